"""Episodes to and from local Minari datasets of vectors and pictures; no network is used."""

import json
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.arrays import open_hdf5, part, read_part
from dforce.data.columns import checked_column, column_names, flatten_rows, opened_storage
from dforce.data.episodes import Episodes, pack
from dforce.data.minari_pictures import MAIN, EpisodePictures, stored_cameras
from dforce.data.seal import leads_out
from dforce.data.store import datasets_root, recovered, staged, verify_checksums
from dforce.data.token_layout import parts_of

ABOUT = "dforce"  # key of Minari's metadata under which Episodes.about is kept


def save_episodes(name: str, episodes: Episodes, *, env: Any = None, about: dict | None = None, overwrite: bool = False,
                  root: str | os.PathLike | None = None, **minari_fields: Any) -> Path:
    """Writes episodes as the Minari dataset `name` ("namespace/name-v1"), complete or not at all; returns its folder.

    env: Gymnasium id or spec. about: JSON-able facts, joined with `episodes.about`. minari_fields: description, author,
    ... of `minari.create_dataset_from_buffers`. ValueError where the folder exists, unless `overwrite`.
    """
    import gymnasium

    spaces = {}
    if env is None:  # spaces are taken from the arrays
        def box(array: Any) -> gymnasium.Space:
            if array.dtype == np.uint8 and len(array.shape) == 4:
                return gymnasium.spaces.Box(0, 255, array.shape[1:], np.uint8)
            kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float32)
            return gymnasium.spaces.Box(-np.inf, np.inf, array.shape[1:], kind.type)

        first = _observed(episodes, slice(0, 1))
        spaces["observation_space"] = (gymnasium.spaces.Dict({key: box(array) for key, array in first.items()})
                                       if isinstance(first, dict) else box(first))
        spaces["action_space"] = box(episodes.actions)
    return save_buffers(name, _buffers(episodes), env=env, about={**episodes.about, **(about or {})},
                        overwrite=overwrite, root=root, **spaces, **minari_fields)


def save_buffers(name: str, buffers: Iterable[Any], *, env: Any, about: dict, overwrite: bool = False,
                 root: str | os.PathLike | None = None, **minari_fields: Any) -> Path:
    """As `save_episodes`, from Minari's own buffers, one at a time. env None: give both spaces."""
    import minari

    json.dumps(about)  # an error comes before the arrays are written
    _check_name(name)
    with staged(name, root=root, overwrite=overwrite), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari asks for author, e-mail, permalink, one warning each
        dataset = minari.create_dataset_from_buffers(name, buffers, env=env, data_format="hdf5", jpeg_encoding=False,
                                                     **minari_fields)
        dataset.storage.update_metadata({ABOUT: about})
    return datasets_root(root) / name


def kept(name: str, about: dict, *, overwrite: bool = False, root: str | os.PathLike | None = None) -> bool:
    """Whether dataset `name` exists, is whole and was made with the same `about`: it need not be made again.

    ValueError where another dataset of that name exists, unless `overwrite`: the error comes before the work.
    """
    folder = recovered(datasets_root(root) / name)
    if not overwrite and (folder / "data" / "metadata.json").exists() and read_metadata(folder).get(ABOUT) == about:
        verify_checksums(folder)
        return True
    if folder.exists() and not overwrite:
        raise ValueError(f"dataset {name!r} exists at {folder}, made otherwise: pass overwrite=True, or another name")
    return False


def read_minari(folder: Path, infos: Sequence[str], name: str) -> Episodes:
    """The episodes of a dataset folder; name: how it was called, where it does not name itself."""
    verify_checksums(folder)
    metadata, storage = read_metadata(folder), opened_storage(folder / "data")
    spaces = storage.observation_space, storage.action_space
    names = column_names(spaces[0], "observation"), column_names(spaces[1], "action")
    cameras = stored_cameras(spaces[0], folder / "data", jpeg=storage.jpeg_encoding, hdf5=_in_hdf5(metadata))
    keys = "observations", "actions", "rewards", "terminations", "truncations"
    columns: dict[str, list] = {key: [] for key in keys}
    extra: dict[str, list] = {key: [] for key in infos}
    leaves = ["/".join(camera.leaf) for camera in cameras.values()]
    for number, raw in enumerate(_raw_episodes(folder / "data", metadata, leaves)):
        _collect(number, raw, spaces, columns, extra, folder)
    about = {"observation_names": names[0], "action_names": names[1], **metadata.get(ABOUT, {})}
    about["dataset"] = metadata.get("dataset_id", name)
    if "env" not in about and metadata.get("env_spec"):
        about["env"] = _env_id(metadata["env_spec"], folder)
    rows = [len(each) for each in columns["observations"]]
    images = {key: EpisodePictures(camera, rows) for key, camera in cameras.items()}
    flags = {key: columns.pop(key) for key in ("terminations", "truncations")}
    return pack(**columns, **flags, infos=extra, about=about, images=images)


def _env_id(spec: Any, folder: Path) -> str:
    """The name in the environment's specification, JSON that lies in the metadata as a string."""
    try:
        return str(json.loads(spec)["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder}: env_spec of its metadata cannot be read ({type(error).__name__}: {error}); "
                         "restore the dataset or generate it again") from error


def read_metadata(folder: Path) -> dict:
    """Minari's metadata of a dataset folder; ValueError names the file if it is no JSON object, or leads elsewhere."""
    for path in (folder / "data" / MAIN, folder / "data" / "metadata.json"):
        if leads_out(path, folder):
            raise ValueError(f"{path} is a link out of its folder, which is not followed; put the file itself there")
    try:
        metadata = json.loads(path.read_text())
        if not isinstance(metadata, dict):
            raise ValueError("it is no JSON object")
        return metadata
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore the dataset or generate it again") from error


def _collect(number: int, raw: dict, spaces: tuple[Any, Any], columns: dict, extra: dict, folder: Path) -> None:
    """Adds one stored episode, flattened and checked. ValueError, which names the folder, the episode and the key."""
    where = f"episode {number} of {folder}"
    try:
        observations = flatten_rows(spaces[0], raw["observations"])
        actions = flatten_rows(spaces[1], raw["actions"])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{where} does not fit the dataset's spaces: {error}") from error
    steps = len(actions)
    if len(observations) != steps + 1:
        raise ValueError(f"{where} has {len(observations)} observations and {steps} actions; Minari wants one more")
    columns["observations"].append(observations)
    columns["actions"].append(actions)
    columns["rewards"].append(checked_column(raw["rewards"], steps, f"rewards of {where}"))
    for key in ("terminations", "truncations"):
        columns[key].append(checked_column(raw[key], steps, f"{key} of {where}", flag=True))
    for key, values in extra.items():
        values.append(_info(raw["infos"], key, steps, where))


def _info(infos: Any, key: str, steps: int, where: str) -> np.ndarray:
    """An info at each step, [steps, ...]: Minari has a row for each observation, of which the last is dropped."""
    try:
        value = np.asarray(infos[key] if isinstance(infos, dict) else read_part(infos, key))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} has no info {key!r}, it has {sorted(infos or {})}") from error
    if len(value) != steps + 1:
        raise ValueError(f"info {key!r} of {where} has {len(value)} rows for {steps} steps; Minari's infos have "
                         f"{steps + 1}, one for each observation (reset() must return the info as well)")
    return checked_column(value, steps + 1, f"info {key!r} of {where}", wide=True)[:steps]


def _raw_episodes(data: Path, metadata: dict, unread: Collection[str] = ()) -> Iterator[dict]:
    """Episodes as stored. HDF5 is read directly (Minari decodes every info first); other formats through Minari.

    unread: keys of observations that stay in the file.
    """
    if not _in_hdf5(metadata):
        from minari.dataset.minari_storage import MinariStorage

        for raw in MinariStorage.read(data).get_episodes(range(metadata["total_episodes"])):
            yield {**raw, "infos": _joined(raw["infos"] or {})}
        return
    with open_hdf5(data / MAIN) as file:
        for number in range(metadata["total_episodes"]):
            group = part(file, f"episode_{number}")
            pictures = ["/".join([f"/episode_{number}/observations", *filter(None, [key])]) for key in unread]
            yield {**{k: read_part(group, k, pictures) for k in ("observations", "actions", "rewards", "terminations",
                                                                 "truncations")},
                   "infos": part(group, "infos") if "infos" in list(group) else None}


def _in_hdf5(metadata: dict) -> bool:
    return bool(metadata.get("data_format", "hdf5") == "hdf5")


def _joined(infos: dict, before: str = "") -> dict[str, Any]:
    """Nested infos as one mapping, with keys a/b."""
    out: dict[str, Any] = {}
    for key, value in infos.items():
        out |= _joined(value, f"{before}{key}/") if isinstance(value, dict) else {f"{before}{key}": value}
    return out


def _buffers(episodes: Episodes) -> Iterator[Any]:
    """Minari's episode buffers. Its infos have a row for each observation, so the last one is repeated."""
    from minari.data_collector import EpisodeBuffer

    for e, (first, length) in enumerate(zip(episodes.first_step, episodes.lengths, strict=True)):
        _, actions, rewards = episodes.episode(e)
        row = int(episodes.first_observation[e])
        observations = _observed(episodes, slice(row, row + int(length) + 1))
        steps = slice(int(first), int(first + length))
        infos = {k: np.concatenate([v[steps], v[steps][-1:]]) for k, v in episodes.infos.items()}
        yield EpisodeBuffer(id=e, observations=observations, actions=actions, rewards=rewards, infos=infos or None,
                            terminations=episodes.terminations[steps], truncations=episodes.truncations[steps])


def _observed(episodes: Episodes, rows: slice) -> Any:
    """Observations as Minari stores them: an array, or where there are pictures a dict of them and of the parts."""
    if not episodes.images:
        return episodes.observations[rows]
    ends = np.cumsum([0, *(parts := parts_of(episodes.names()[0])).values()])
    vectors = {name: episodes.observations[rows, ends[i]:ends[i + 1]] for i, name in enumerate(parts)}
    return {**{name: np.asarray(each[np.arange(rows.start, rows.stop)]) for name, each in episodes.images.items()},
            **vectors}


def _check_name(name: str) -> None:
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parsed = parse_dataset_id(name)[0] is not None
    except (ValueError, TypeError):
        parsed = False
    if not parsed:
        raise ValueError(f"{name!r} is no Minari dataset name: want 'namespace/name-v1', 2 letters or more before /")
