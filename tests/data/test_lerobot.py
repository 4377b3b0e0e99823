"""LeRobot data sets: what dforce writes is read back equal, what the published layout says is read rightly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dforce.data import load_episodes, pack
from dforce.data.robot_formats.lerobot_writer import write_lerobot
from dforce.data.token_layout import parts_of
from dforce.data.whole_episodes import WholeEpisodes
from tests.random_episodes import equal, ragged
from tests.spoiled import refused_in_one_line

LENGTHS, FPS = (6, 3, 9, 5), 30
JOINTS = ["pan.pos", "lift.pos", "grip.pos"]
TASKS = ["put it there", "bring it back"]


def frames(length: int, e: int) -> dict[str, np.ndarray]:
    """Numbers that tell the episode and the frame."""
    t = np.arange(length)
    state = np.stack([np.full(length, e), t, e + t / 100], 1).astype(np.float32)
    return {"observation.state": state, "observation.environment_state": np.stack([t, t * t], 1).astype(np.float32),
            "action": np.stack([t / 8 + e, -t / 8], 1).astype(np.float32), "next.reward": (t * .5).astype(np.float32),
            "next.done": t == length - 1, "timestamp": (t / FPS).astype(np.float32), "frame_index": t,
            "episode_index": np.full(length, e), "task_index": np.full(length, e % 2)}


def column(values: np.ndarray, fixed: bool) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    kind = pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[1] if fixed else -1)
    return pa.array(values.tolist(), kind)


def write(path: Path, table: dict | pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path)


def info_of(version: str, **more: object) -> dict:
    vector = lambda width, names=None: {"dtype": "float32", "shape": [width], "names": names}  # noqa: E731
    scalar = lambda kind: {"dtype": kind, "shape": [1], "names": None}  # noqa: E731
    features = {"observation.state": vector(3, {"motors": JOINTS}), "observation.environment_state": vector(2),
                "action": vector(2, ["u", "v"]), "next.reward": scalar("float32"), "next.done": scalar("bool"),
                "timestamp": scalar("float32"), **{key: scalar("int64") for key in ("frame_index", "episode_index",
                                                                                    "index", "task_index")}}
    return {"codebase_version": version, "robot_type": "so100", "fps": FPS, "total_episodes": len(LENGTHS),
            "total_frames": sum(LENGTHS), "total_tasks": 2, "chunks_size": 1000, "features": features,
            "splits": {"train": "0:3", "test": "3:4"}, "video_path": None, **more}


def by_hand_v3(root: Path, fixed: bool = False) -> Path:
    """Four episodes in two parquet files, as version 3.0 is published."""
    rows, first = [], np.cumsum([0, *LENGTHS])
    for file, episodes in enumerate(([0, 1, 2], [3])):
        parts = [{**frames(LENGTHS[e], e), "index": first[e] + np.arange(LENGTHS[e])} for e in episodes]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        write(root / f"data/chunk-000/file-{file:03d}.parquet", {k: column(v, fixed) for k, v in joined.items()})
        rows += [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": LENGTHS[e], "data/chunk_index": 0,
                  "data/file_index": file, "dataset_from_index": int(first[e]), "dataset_to_index": int(first[e + 1]),
                  "stats/action/min": [0., 0.]} for e in episodes]
    write(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    write(root / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": TASKS})
    info = info_of("v3.0", data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def by_hand_v2(root: Path) -> Path:
    """A parquet an episode, two episodes a folder, as versions 2.0 and 2.1 are published."""
    for e, first in enumerate(np.cumsum([0, *LENGTHS[:-1]])):
        table = {**frames(LENGTHS[e], e), "index": first + np.arange(LENGTHS[e])}
        write(root / f"data/chunk-{e // 2:03d}/episode_{e:06d}.parquet", {k: column(v, True) for k, v in table.items()})
    (root / "meta").mkdir()
    path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (root / "meta/info.json").write_text(json.dumps(info_of("v2.1", chunks_size=2, data_path=path)))
    listed = [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": n} for e, n in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, listed)) + "\n")
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps({"task_index": i, "task": task}) + "\n"
                                                   for i, task in enumerate(TASKS)))
    return root


def edit(root: Path, **changes: object) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("make", [by_hand_v3, lambda root: by_hand_v3(root, fixed=True), by_hand_v2])
def test_data_of_the_published_layout_are_read(tmp_path, make):
    episodes = load_episodes(make(tmp_path / "set"), infos=("timestamp",))
    assert episodes.lengths.tolist() == list(LENGTHS)
    for e, length in enumerate(LENGTHS):
        wanted, (observations, actions, rewards) = frames(length, e), episodes.episode(e)
        whole = np.concatenate([wanted["observation.state"], wanted["observation.environment_state"]], 1)
        np.testing.assert_array_equal(observations, np.concatenate([whole, whole[-1:]]))  # the last stands there again
        np.testing.assert_array_equal(actions, wanted["action"])
        np.testing.assert_array_equal(rewards, wanted["next.reward"])
    last = np.isin(np.arange(sum(LENGTHS)), np.cumsum(LENGTHS) - 1)
    np.testing.assert_array_equal(episodes.terminations, last)
    assert not episodes.truncations.any() and episodes.infos["timestamp"].shape == (sum(LENGTHS),)
    assert [TASKS[i] for i in episodes.infos["task_index"][np.cumsum(LENGTHS) - 1]] == [*TASKS, *TASKS]
    about = episodes.about
    assert about["tasks"] == TASKS and about["dt"] == 1 / FPS and about["robot"] == "so100"
    assert about["action_names"] == ["u", "v"] and about["last_observation"] == "repeated"
    assert about["observation_names"][:3] == [f"observation.state[{name}]" for name in JOINTS]
    assert parts_of(about["observation_names"]) == {"state": 3, "environment_state": 2}


def test_windows_of_lerobot_data_stay_in_their_episode(tmp_path):
    sequences = WholeEpisodes(load_episodes(by_hand_v3(tmp_path / "set")), chunk=2, batch=64, window=2, held_out=0)
    batch = sequences.batch_at(0)
    width = sequences.tokens.parts["state"]
    observed = sequences.normalizer.part(0, width).denormalize(batch.x[:, ::sequences.tokens.cycle, :width])
    acted = sequences.normalizer.part(5, 7).denormalize(sequences.tokens.actions_of(batch.x[:, 2::3]))
    assert len(np.unique(observed[:, 0, :2].round().numpy(), axis=0)) > 10  # from anywhere
    np.testing.assert_allclose(observed[:, 0, 0], observed[:, 1, 0], atol=1e-4)
    e, t = observed[..., 0].round().long(), observed[..., 1].round().long()
    here = batch.mask[:, 2::3]  # tokens of actions that are data
    moved = torch.stack([torch.minimum(t + i, torch.tensor(LENGTHS)[e] - 1) for i in range(2)], -1) / 8
    np.testing.assert_allclose(acted[here], torch.stack([moved + e[..., None], -moved], -1)[here], atol=1e-4)


def test_a_subset_is_a_split(tmp_path):
    root = by_hand_v3(tmp_path / "set")
    assert load_episodes(root, subset="test").lengths.tolist() == [5]
    assert load_episodes(root, subset="train").lengths.tolist() == [6, 3, 9]
    with pytest.raises(ValueError, match="no split 'val', it has train, test"):
        load_episodes(root, subset="val")
    with pytest.raises(ValueError, match="subset=val is for LeRobot"):
        load_episodes("robot/swap-v0", subset="val")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_written_is_read_back_equal(tmp_path, dtype):
    episodes = ragged(dtype=dtype)
    root = write_lerobot(tmp_path / "set", episodes, file_mb=0.001)
    assert len(list(root.glob("data/chunk-000/*.parquet"))) == 5
    back = load_episodes(root, infos=("goal",))
    equal(episodes, back)
    assert back.about == {**episodes.about, "dataset": "set"} and set(back.infos) == {"goal"}
    assert not list(tmp_path.glob(".*"))


def test_parts_names_flags_and_tasks_are_read_back_equal(tmp_path):
    rng, lengths = np.random.default_rng(0), (4, 1, 7)
    names = [f"observation.{part}[{i}]" for part in ("arm", "hand") for i in range(2)]
    flags = [[rng.random(n) < .3 for n in lengths] for _ in range(2)]
    episodes = pack([rng.normal(size=(n + 1, 4)) for n in lengths], [rng.normal(size=(n, 3)) for n in lengths],
                    [rng.normal(size=n) for n in lengths], terminations=flags[0], truncations=flags[1],
                    infos={"success": [rng.random(n) < .5 for n in lengths],
                           "pose": [rng.normal(size=(n, 2, 3)) for n in lengths],
                           "task_index": [np.full(n, i % 2) for i, n in enumerate(lengths)]},
                    about={"dt": 1 / 30, "observation_names": names, "tasks": TASKS, "dataset": "arm", "span": 4})
    back = load_episodes(write_lerobot(tmp_path / "set", episodes), infos=("success", "pose"))
    equal(episodes, back, infos=("success", "pose", "task_index"))
    assert back.about == episodes.about
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["fps"] == 30 and info["features"]["observation.arm"]["shape"] == [2] and info["total_frames"] == 15


def test_statistics_are_those_of_all_frames(tmp_path):
    episodes = ragged()
    root = write_lerobot(tmp_path / "set", episodes)
    stats = json.loads((root / "meta/stats.json").read_text())["observation.state"]
    for name, wanted in {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}.items():
        np.testing.assert_allclose(stats[name], wanted(episodes.observations, 0), rtol=1e-9)
    assert stats["count"] == [len(episodes.observations)]
    one = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    np.testing.assert_allclose(one["stats/observation.state/q50"], np.median(episodes.episode(1)[0], 0))


def test_nothing_half_written_stays_and_nothing_is_overwritten(tmp_path):
    episodes = ragged()
    with pytest.raises(ValueError, match=r"how much time passes between two steps .*: give fps="):
        write_lerobot(tmp_path / "set", pack([np.zeros((3, 1))],
                                             [np.zeros((2, 1))], [np.zeros(2)]))
    unserializable = pack([np.zeros((3, 1))], [np.zeros((2, 1))], [np.zeros(2)], about={"dt": .1, "x": object()})
    with pytest.raises(TypeError):
        write_lerobot(tmp_path / "set", unserializable)
    assert not list(tmp_path.iterdir())
    root = write_lerobot(tmp_path / "set", episodes)
    with pytest.raises(ValueError, match="set exists: choose another folder"):
        write_lerobot(root, episodes)
    data = root / "data/chunk-000/file-000.parquet"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="file-000.parquet is damaged: its sha256"):
        load_episodes(root)


def truncate(root: Path) -> None:
    path = next(root.glob("data/*/*.parquet"))
    path.write_bytes(path.read_bytes()[:200])


def relist(root: Path, **changes: object) -> None:
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1] |= changes
    pq.write_table(pa.Table.from_pylist(rows), path)


def redo(root: Path, name: str, values: pa.Array | None) -> None:
    path = root / "data/chunk-000/file-001.parquet"
    table = pq.read_table(path).drop_columns([name])
    pq.write_table(table if values is None else table.append_column(name, values), path)


def features(root: Path, key: str, **changes: object) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][key] = {**info["features"].get(key, {}), **changes}
    edit(root, features=info["features"])


BAD = {
    "another version": (lambda r: edit(r, codebase_version="v1.6"), "version v1.6; v2.0, v2.1 and v3.0 are read"),
    "no fps": (lambda r: edit(r, fps=0), "fps is 0, wanted is a positive number"),
    "another fps": (lambda r: edit(r, fps=25), "frame 1 has the timestamp 0.0333333 s, at 25 frames .* 0.04 s"),
    "wider actions": (lambda r: features(r, "action", shape=[3]), "action has 2 numbers a frame, .* says 3"),
    "ragged actions": (lambda r: redo(r, "action", pa.array([[0.], [0., 1.], [0.], [0.], [0.]])), "different lengths"),
    "no value": (lambda r: redo(r, "action", pa.array([[0., 1.], None, *[[0., 1.]] * 3])), "no value in 1 of 5 places"),
    "text": (lambda r: redo(r, "next.reward", pa.array(["a"] * 5)), "next.reward holds string values"),
    "a column is gone": (lambda r: redo(r, "observation.state", None), "lacks the column observation.state"),
    "no action": (lambda r: features(r, "action", dtype="string"), "no action of numbers among its features"),
    "a huge feature": (lambda r: features(r, "action", shape=[10**5, 10**5]), "at most 65,536 are read"),
    "more episodes declared": (lambda r: edit(r, total_episodes=9), "declares 9 episodes"),
    "another length": (lambda r: relist(r, length=4), "episode 1 has 4 frames, from 6 to 9"),
    "out of range": (lambda r: relist(r, dataset_from_index=70, dataset_to_index=73), "index runs from 6, .* says 70"),
    "negative": (lambda r: relist(r, **{"data/file_index": -1}), "file_index is -1, wanted is a whole number"),
    "no such file": (lambda r: relist(r, **{"data/file_index": 7}), "file-007.parquet is missing"),
    "twice": (lambda r: relist(r, episode_index=0), "an episode is listed twice"),
    "path out": (lambda r: edit(r, data_path="../{chunk_index}/x.parquet"), "leads out of the data set"),
    "absolute path": (lambda r: edit(r, data_path="/etc/passwd"), "'/etc/passwd' leads out of the data set"),
    "format language": (lambda r: edit(r, data_path="{chunk_index.__class__}"), "is no template of a path"),
    "unknown field": (lambda r: edit(r, data_path="{place:03d}"), r"info.json cannot be read \(no 'place'\)"),
    "truncated parquet": (truncate, "is damaged or no parquet file"),
    "no list": (lambda r: next(r.glob("meta/episodes/*/*")).unlink(), "has no parquet file"),
    "no json": (lambda r: (r / "meta/stats.json").write_text("[" * 10**5), r"stats.json cannot be read \("),
    "deep features": (lambda r: edit(r, features=3), "info.json cannot be read"),
    "other statistics": (lambda r: (r / "meta/stats.json").write_text('{"action": {"mean": [0]}}'), "of 1 numbers"),
}


@pytest.mark.filterwarnings("ignore:.*are left out")
@pytest.mark.parametrize("name", BAD)
def test_bad_data_get_one_clear_line(tmp_path, name):
    root = by_hand_v3(tmp_path / "set")
    spoil, message = BAD[name]
    spoil(root)
    with refused_in_one_line(root, message):
        load_episodes(root)


def test_links_out_of_the_data_set_are_not_followed(tmp_path):
    root, other = by_hand_v3(tmp_path / "set"), by_hand_v3(tmp_path / "other")
    path = root / "data/chunk-000/file-001.parquet"
    path.unlink()
    path.symlink_to(other / "data/chunk-000/file-001.parquet")
    with pytest.raises(ValueError, match="leads out of the data set, which is not followed"):
        load_episodes(root)


def test_a_declared_size_is_not_believed(tmp_path, monkeypatch):
    root = by_hand_v3(tmp_path / "set")
    monkeypatch.setattr("dforce.data.robot_formats.parquet.SMALL", 1000)
    write(root / "data/chunk-000/file-001.parquet", {"action": pa.array(np.zeros(10**7, np.float32))})
    with pytest.raises(ValueError, match=r"file-001.parquet .*declares 0.1 GB in [\d,]+ bytes"):
        load_episodes(root)


def test_nan_is_named_where_training_begins(tmp_path):
    root = by_hand_v3(tmp_path / "set")
    state = frames(5, 3)["observation.state"]
    state[2, 1] = np.nan
    redo(root, "observation.state", column(state, False))
    with pytest.raises(ValueError, match=re.escape("lift.pos")):
        WholeEpisodes(load_episodes(root), chunk=2, batch=2, held_out=0)
