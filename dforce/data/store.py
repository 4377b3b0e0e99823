"""Where Minari datasets are kept, how one is replaced in a single step, and checksums against changed bytes."""

import contextlib
import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dforce.core.files import sha256
from dforce.data.seal import file_digest

CHECKSUMS = "checksums.json"  # beside Minari's own "data" folder, which Minari alone reads
MINARI_ROOT = "MINARI_DATASETS_PATH"


def datasets_root(root: str | os.PathLike | None = None) -> Path:
    """The folder that holds all datasets: `root`, else $MINARI_DATASETS_PATH, else Minari's own default."""
    return Path(root or os.environ.get(MINARI_ROOT) or Path.home() / ".minari" / "datasets").expanduser()


def list_datasets(root: str | os.PathLike | None = None) -> list[str]:
    """Names of the Minari datasets that exist locally."""
    top = datasets_root(root)
    names = (path.parent.parent.relative_to(top) for path in top.glob("**/data/metadata.json"))
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def unknown_dataset(name: str, root: str | os.PathLike | None) -> str:
    """What to say where there is no dataset of a name: the nearest one, and how datasets are made."""
    there = list_datasets(root)
    near = difflib.get_close_matches(name, there, 1, 0.5)
    hint = f", did you mean {near[0]!r}?" if near else "."
    if os.path.isfile(os.path.join(name, "zarr.json")):
        return f"{name} is a zarr store of format 3; Diffusion Policy's are of format 2: save it with zarr_format=2"
    if os.path.isfile(os.path.join(name, "meta", "info.json")):
        return f"{name}: meta/info.json is damaged, or not that of a LeRobot data set (a JSON object with `features`)"
    if os.path.isdir(name):
        return (f"the folder {name} holds no data that dforce knows: Minari's have data/metadata.json, LeRobot's "
                "meta/info.json, Diffusion Policy's zarr .zgroup; robomimic's and D4RL's are HDF5 files")
    return (f"no dataset {name!r} in {datasets_root(root)}{hint} Datasets there: {', '.join(there) or 'none'}. Data "
            "are made by `dforce data maze` and `dforce data robot`, published ones are fetched by `minari download "
            "<name>`.")


@contextlib.contextmanager
def staged(name: str, *, root: str | os.PathLike | None, overwrite: bool) -> Iterator[Path]:
    """A folder to write dataset `name` in; the dataset takes its place when the block ends without an error.

    Inside the block Minari's root is this folder. The old dataset stays until the new one is on the disk; it is then
    renamed to a hidden name, from which `recovered` brings it back if the process dies between the two renames.
    """
    top = datasets_root(root)
    final = recovered(top / name)
    if final.exists() and not overwrite:
        raise ValueError(f"dataset {name!r} exists at {final}: pass overwrite=True to replace it, or another name")
    top.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=top))
    before = os.environ.get(MINARI_ROOT)
    os.environ[MINARI_ROOT] = str(stage)
    try:
        yield stage
        write_checksums(stage / name)
        for folder in Path(name).parents:  # Minari keeps a file in each namespace
            (top / folder).mkdir(exist_ok=True, parents=True)
            for file in (stage / folder).glob("*.json"):
                if not (top / folder / file.name).exists():
                    os.replace(file, top / folder / file.name)
        aside = _aside(final)
        if final.exists():
            os.replace(final, aside)
        os.replace(stage / name, final)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        if before is None:
            os.environ.pop(MINARI_ROOT, None)
        else:
            os.environ[MINARI_ROOT] = before
        shutil.rmtree(stage, ignore_errors=True)


def recovered(folder: Path) -> Path:
    """`folder`, renamed back from the hidden name of `staged` if a process died between its two renames."""
    if not folder.exists() and _aside(folder).exists():
        os.replace(_aside(folder), folder)
    return folder


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def write_checksums(folder: Path) -> None:
    """Writes down size and sha256 of every file under `folder`, and waits until all of them are on the disk."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))
             if path.is_file() and path.name != CHECKSUMS}
    noted = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    (folder / CHECKSUMS).write_text(json.dumps({"format": 1, "files": noted}, indent=1))
    for path in [*files.values(), folder / CHECKSUMS]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def verify_checksums(folder: Path, *, remember: bool = False) -> None:
    """ValueError for the first file that is not as it was saved; remember: by `file_digest`."""
    if not (folder / CHECKSUMS).exists():
        return
    try:
        noted = json.loads((folder / CHECKSUMS).read_text())
        if noted["format"] != 1:
            raise ValueError(f"its format is {noted['format']!r}, this dforce writes 1")
        items = [(folder / name, entry["bytes"], entry["sha256"]) for name, entry in noted["files"].items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / CHECKSUMS} is damaged ({error}); restore the data or generate it again") from error
    cure = f"restore it or generate the dataset again; if you changed it on purpose, delete {folder / CHECKSUMS}"
    for path, size, digest in items:
        if not path.is_file():
            raise ValueError(f"{path} is missing; {cure}")
        if path.stat().st_size != size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, but {size} were saved; {cure}")
        if (file_digest(path) if remember else sha256(path)) != digest:
            raise ValueError(f"{path} is damaged: its sha256 is not the one noted when it was saved; {cure}")
