"""robomimic's HDF5 files and Diffusion Policy's zarr buffers, made by their published layouts."""

from __future__ import annotations

import gzip
import itertools
import json
import zipfile
import zlib
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest

from dforce.data import load_episodes
from dforce.data.whole_episodes import WholeEpisodes
from tests.spoiled import refused_in_one_line

LENGTHS = (6, 3, 11)
SIDE = 4


def values(e: int, rows: int) -> dict[str, np.ndarray]:
    """Observations that tell the episode and the row."""
    t = np.arange(rows)
    return {"eef_pos": np.stack([np.full(rows, e), t, t * .5], 1), "gripper": (t % 2).astype(np.float64)[:, None],
            "front_image": np.broadcast_to((40 * e + t).astype(np.uint8)[:, None, None, None], (rows, SIDE, SIDE, 3))}


def actions(e: int) -> np.ndarray:
    return np.stack([np.arange(LENGTHS[e]) + 100 * e, -np.arange(LENGTHS[e])], 1).astype(np.float32)


def robomimic(path: Path, *, after: bool = True, images: bool = True) -> Path:
    """Episodes in no order; with masks, as robomimic writes them."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        data.attrs["total"] = sum(LENGTHS)
        for e, name in ((2, "demo_10"), (0, "demo_0"), (1, "demo_2")):
            demo, n = data.create_group(name), LENGTHS[e]
            demo.attrs["num_samples"] = n
            demo["actions"], demo["rewards"] = actions(e), (np.arange(n) == n - 1) * 1.
            demo["dones"], demo["states"] = (np.arange(n) == n - 1).astype(int), np.full((n, 7), e, np.float64)
            for key, rows in values(e, n + 1).items():
                if key == "front_image" and not images:
                    continue
                demo.create_dataset(f"obs/{key}", data=rows[:-1], compression="gzip")
                if after:
                    demo[f"next_obs/{key}"] = rows[1:]
        for key, names in {"train": ["demo_10", "demo_0"], "valid": ["demo_2"], "20_percent": ["demo_0"]}.items():
            file[f"mask/{key}"] = np.array(names, dtype="S8")
    return path


@pytest.mark.parametrize("after", [True, False])
def test_robomimic_files_are_read(tmp_path, after):
    episodes = load_episodes(robomimic(tmp_path / "low.hdf5", after=after), infos=("states",))
    assert episodes.lengths.tolist() == list(LENGTHS)
    for e, n in enumerate(LENGTHS):
        wanted, (observed, acted, rewards) = values(e, n + 1), episodes.episode(e)
        row = int(episodes.first_observation[e])
        seen = episodes.images["front_image"][row:row + n + 1]
        if not after:
            wanted = {key: np.concatenate([rows[:-1], rows[-2:-1]]) for key, rows in wanted.items()}
        np.testing.assert_array_equal(observed, np.concatenate([wanted["eef_pos"], wanted["gripper"]], 1))
        np.testing.assert_array_equal(seen, wanted["front_image"])
        np.testing.assert_array_equal(acted, actions(e))
        assert rewards.tolist() == [0.] * (n - 1) + [1.]
    np.testing.assert_array_equal(episodes.infos["states"][:, 0], np.repeat([0, 1, 2], LENGTHS))
    assert episodes.terminations.sum() == 3 and not episodes.truncations.any()
    assert episodes.about["dt"] == 1 / 20 and episodes.about["robomimic"] == {"env_name": "Lift"}
    assert episodes.about["filter_keys"] == ["20_percent", "train", "valid"]
    assert ("last_observation" in episodes.about) != after


def test_every_filter_key_chooses_its_episodes(tmp_path):
    path = robomimic(tmp_path / "low.hdf5")
    for key, chosen in {"train": [0, 2], "valid": [1], "20_percent": [0]}.items():
        episodes = load_episodes(path, subset=key)
        assert episodes.lengths.tolist() == [LENGTHS[e] for e in chosen]
        assert np.unique(episodes.observations[:, 0]).tolist() == chosen
        assert episodes.images["front_image"][0][0, 0, 0] == 40 * chosen[0]
    with pytest.raises(ValueError, match="no filter key 'test', it has 20_percent, train, valid"):
        load_episodes(path, subset="test")


def lose_rows(demo: h5py.Group) -> None:
    rows = demo["actions"][:-1]
    del demo["actions"]
    demo["actions"] = rows


def replace(demo: h5py.Group, key: str, value: object) -> None:
    del demo[key]
    demo[key] = value


BAD_HDF5 = {
    "no observations": (lambda d: d.parent["demo_0"].pop("obs"), "has no observations .*dataset_states_to_obs"),
    "another number of steps": (lose_rows, r"demo_2 cannot be read \(num_samples is 3, it has 2 actions\)"),
    "fewer observations": (lambda d: replace(d, "obs/gripper", np.zeros((2, 1))), "gripper has 2 rows, there are 3"),
    "wider actions": (lambda d: replace(d, "actions", np.zeros((3, 5))), "actions of 2 and 5 numbers"),
    "wider observations": (lambda d: replace(d, "obs/gripper", np.zeros((3, 2))), "obs/gripper has 2 numbers a row"),
    "a missing camera": (lambda d: d["obs"].pop("front_image"), "obs has no front_image"),
    "a missing part": (lambda d: d["obs"].pop("gripper"), "obs has no gripper"),
    "pictures of another size": (lambda d: replace(d, "obs/front_image", np.zeros((3, 2, 2, 3), np.uint8)),
                                 "front_image of demo_2 is uint8"),
    "text": (lambda d: replace(d, "rewards", np.array([b"a"] * 3)), "rewards holds byte strings"),
    "NaN rewards": (lambda d: replace(d, "rewards", np.full(3, np.nan)), "rewards must be finite"),
    "strange env_args": (lambda d: d.parent.attrs.__setitem__("env_args", "{"), "env_args cannot be read"),
    "a mask of what is not there": (lambda d: replace(d.file, "mask/valid", np.array([b"demo_77"])),
                                    "names demo_77, which is not among the episodes"),
    "another file": (lambda d: replace(d, "next_obs", h5py.ExternalLink("other.h5", "/")), "is a link out of the file"),
}


@pytest.mark.parametrize("name", BAD_HDF5)
def test_bad_robomimic_files_get_one_clear_line(tmp_path, name):
    path = robomimic(tmp_path / "low.hdf5")
    spoil, message = BAD_HDF5[name]
    with h5py.File(path, "a") as file:
        spoil(file["data/demo_2"])
    with refused_in_one_line(path, message):
        load_episodes(path, subset="valid" if "mask" in name else None).images["front_image"][:]


def zarr(root: Path, key: str, array: np.ndarray, chunks: tuple[int, ...], compressor: dict | None, *,
         separator: str = ".", order: str = "C", fill: object = 0) -> None:
    """An array of zarr's format 2; pieces that hold nothing but the fill value are not stored."""
    (root / key).mkdir(parents=True)
    about = {"zarr_format": 2, "shape": array.shape, "chunks": chunks, "dtype": array.dtype.str, "fill_value": fill,
             "order": order, "filters": None, "compressor": compressor, "dimension_separator": separator}
    (root / key / ".zarray").write_text(json.dumps(about))
    pack = {None: bytes, "zlib": zlib.compress, "gzip": gzip.compress}.get(
        compressor and compressor["id"], lambda raw: numcodecs.get_codec(compressor).encode(raw))
    grid = [range(-(-side // chunk)) for side, chunk in zip(array.shape, chunks, strict=True)]
    for place in itertools.product(*grid):
        piece = np.full(chunks, fill, array.dtype)
        part = array[tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, chunks, strict=True))]
        piece[tuple(map(slice, part.shape))] = part
        if (piece != fill).any():
            file = root / key / separator.join(map(str, place))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pack(piece.tobytes(order)))  # type: ignore[operator]


def buffer(root: Path) -> Path:
    """A replay buffer whose arrays are packed in all the ways that are read."""
    joined = {key: np.concatenate([values(e, n)[key] for e, n in enumerate(LENGTHS)]) for key in values(0, 1)}
    zarr(root, "data/action", np.concatenate([actions(e) for e in range(3)]), (8, 2), {"id": "blosc", "cname": "lz4"})
    zarr(root, "data/state", joined["eef_pos"], (7, 2), {"id": "blosc", "cname": "zstd", "shuffle": 2}, order="F")
    zarr(root, "data/gripper", joined["gripper"], (4, 1), {"id": "zlib", "level": 1}, separator="/")
    zarr(root, "data/keypoint", joined["eef_pos"].reshape(-1, 3, 1).repeat(2, 2), (20, 3, 2), None)
    zarr(root, "data/img", joined["front_image"].astype(np.float32), (5, SIDE, SIDE, 3), {"id": "zstd"})
    zarr(root, "data/camera_0", joined["front_image"], (5, SIDE, 2, 3), {"id": "gzip", "level": 1})
    zarr(root, "data/timestamp", np.arange(sum(LENGTHS)) * .1, (100,), {"id": "lz4"})
    zarr(root, "meta/episode_ends", np.cumsum(LENGTHS), (3,), None)
    for folder in (root, root / "data", root / "meta"):
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
    return root


def zipped(root: Path, inside: str = "") -> Path:
    path = buffer(root / "unzipped").parent / "buffer.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((root / "unzipped").rglob("*")):
            archive.write(file, inside + file.relative_to(root / "unzipped").as_posix())
    return path


@pytest.mark.parametrize("make", [buffer, zipped, lambda root: zipped(root, "pusht/pusht.zarr/")])
def test_replay_buffers_are_read(tmp_path, make):
    episodes = load_episodes(make(tmp_path / "buffer.zarr"), infos=("timestamp",))
    assert episodes.lengths.tolist() == list(LENGTHS) and episodes.about["dt"] == pytest.approx(.1)
    names = episodes.about["observation_names"]
    assert names == ["observation.gripper[0]", *(f"observation.keypoint[{i}]" for i in range(6)),
                     *(f"observation.state[{i}]" for i in range(3))]
    for e, n in enumerate(LENGTHS):
        wanted = {key: np.concatenate([rows, rows[-1:]]) for key, rows in values(e, n).items()}
        observed, acted, _ = episodes.episode(e)
        np.testing.assert_array_equal(observed[:, 7:], wanted["eef_pos"])
        np.testing.assert_array_equal(observed[:, 1:7], wanted["eef_pos"].repeat(2, 1))
        np.testing.assert_array_equal(observed[:, :1], wanted["gripper"])
        np.testing.assert_array_equal(acted, actions(e))
        rows = episodes.first_observation[e] + np.arange(n + 1)[::-1]
        for camera in ("img", "camera_0"):
            np.testing.assert_array_equal(episodes.images[camera][rows], wanted["front_image"][::-1])
    assert episodes.truncations.sum() == 3 and episodes.infos["timestamp"][1] == .1


def test_other_libraries_data_become_token_sequences(tmp_path):
    for path in (robomimic(tmp_path / "low.hdf5"), buffer(tmp_path / "buffer.zarr")):
        episodes = load_episodes(path)
        episodes.images.clear()
        batch = WholeEpisodes(episodes, chunk=3, batch=4, held_out=0).batch_at(0)
        assert batch.x.isfinite().all() and batch.x.shape[0] == 4


def note(root: Path, key: str, **changes: object) -> None:
    path = root / key / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def ends(root: Path, numbers: list[int]) -> None:
    (root / "meta/episode_ends/0").write_bytes(np.array(numbers).tobytes())


BAD_ZARR = {
    "pickled": (lambda r: note(r, "data/action", compressor={"id": "pickle"}), "it is packed with pickle; blosc, gzip"),
    "jpeg 2000": (lambda r: note(r, "data/img", compressor={"id": "jpeg2k"}), "it is packed with jpeg2k"),
    "objects": (lambda r: note(r, "data/action", dtype="|O"), "wanted are arrays of numbers in format 2"),
    "format 3": (lambda r: note(r, "data/action", zarr_format=3), "zarr format 3"),
    "a huge shape": (lambda r: note(r, "data/action", shape=[10**9, 2]), "declares 8.0 GB .* of which 0.000 GB are"),
    "huge pieces": (lambda r: note(r, "data/action", chunks=[10**9, 2]), "in pieces of 8.0 GB"),
    "other pieces": (lambda r: note(r, "data/keypoint", chunks=[5, 3, 2]), r"0.0.0 cannot be read \(it has 960"),
    "a damaged piece": (lambda r: (r / "data/action/0.0").write_bytes(b"\2\1!\1" * 9), "data/action/0.0 cannot"),
    "a bomb": (lambda r: (r / "data/action/0.0").write_bytes(numcodecs.Blosc().encode(bytes(10**6))), "0.0 cannot be"),
    "a zlib bomb": (lambda r: (r / "data/gripper/0/0").write_bytes(zlib.compress(bytes(10**6))), "it has 33 bytes, a"),
    "ends beyond the arrays": (lambda r: ends(r, [6, 9, 40]), "action has 20 rows, meta/episode_ends goes up to 40"),
    "falling ends": (lambda r: ends(r, [6, 3, 20]), "must rise from episode to episode"),
    "no action": (lambda r: (r / "data/action").rename(r / "data/act"), "has no data/action, it has act,"),
    "an array without its facts": (lambda r: (r / "data/action/.zarray").write_text("{}"), "data/action/.zarray"),
    "pictures outside of 0..255": (lambda r: note(r, "data/img", fill_value=300.) or (r / "data/img/1.0.0.0").unlink(),
                                   "data/img has numbers outside of 0..255"),
}


@pytest.mark.parametrize("name", BAD_ZARR)
def test_bad_replay_buffers_get_one_clear_line(tmp_path, name):
    root = buffer(tmp_path / "buffer.zarr")
    spoil, message = BAD_ZARR[name]
    spoil(root)
    with refused_in_one_line(root, message):
        load_episodes(root).images["img"][:]


@pytest.mark.filterwarnings("default")
def test_pieces_that_are_not_stored_are_told(tmp_path):
    root = buffer(tmp_path / "a.zarr")
    next((root / "data/action").glob("0.*")).unlink()
    with pytest.warns(UserWarning, match="data/action/.zarray: 1 of the array's pieces"):
        load_episodes(root)


def test_links_out_of_a_buffer_are_not_followed(tmp_path):
    root, other = buffer(tmp_path / "buffer.zarr"), tmp_path / "elsewhere"
    (root / "data/action/0.0").rename(other)
    (root / "data/action/0.0").symlink_to(other)
    with pytest.raises(ValueError, match="data/action/0.0 is a link out of the folder"):
        load_episodes(root)
