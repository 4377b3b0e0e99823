"""What a file declares is not believed: sizes are held against what is stored, or against a stated limit."""

from __future__ import annotations

import io
import resource
import zipfile

import numpy as np
import pytest

from dforce.config import bounded_yaml
from dforce.data import VideoClips
from dforce.data.arrays import read_npz
from dforce.data.columns import column_names, flatten_rows, one_hot
from dforce.data.video.clip import ArrayClip, read_array

HUGE = (2 * 10**12, 2, 2, 1)  # 8 TB of uint8
VIDEO = np.zeros((9, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def little_memory():
    """Whatever allocates gigabytes on the word of a file fails here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("member", ["video", "actions", "pose"])
def test_an_npz_that_declares_terabytes_is_left_out_by_name(tmp_path, member, compression):
    np.savez(tmp_path / "good.npz", video=VIDEO)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w", compression) as archive:
        for name, array in {"video": VIDEO, "actions": np.zeros(9, int)}.items():
            if name != member:
                content = io.BytesIO()
                np.save(content, array)
                archive.writestr(f"{name}.npy", content.getvalue())
        archive.writestr(f"{member}.npy", header(HUGE) + bytes(100))
    if member == "pose":
        clips = VideoClips(tmp_path, frames=9, held_out=0, batch=2)
        with pytest.raises(ValueError, match="'pose' of bad.npz .*8,000.000 GB"):
            clips.poses([0, 1], frames=9)
        return
    with pytest.warns(UserWarning, match=r"1 of 2 clips are left out \(bad.npz: .*8,000.000 GB.* are stored"):
        assert len(VideoClips(tmp_path, frames=9, held_out=0).clips) == 1
    with pytest.raises(ValueError, match="bad.npz is no .npz file of pairs: .*8,000.000 GB"):
        read_npz(tmp_path / "bad.npz", "pairs")


def test_an_npy_of_actions_and_an_archive_of_no_bytes(tmp_path):
    (tmp_path / "actions.npy").write_bytes(header(HUGE) + bytes(100))
    with pytest.raises(ValueError, match="'actions' of actions.npy cannot be read .it declares"):
        read_array(tmp_path / "actions.npy", "actions")
    (tmp_path / "actions.npy").write_bytes(header((-1, 4)) + bytes(100))
    with pytest.raises(ValueError, match="actions.npy cannot be read"):
        read_array(tmp_path / "actions.npy", "actions")


@pytest.mark.parametrize("classes", [None, 200_000])
def test_a_choice_of_a_hundred_thousand_is_refused_before_it_is_one_hot(classes):
    clip = ArrayClip.of(np.zeros((100_001, 1, 1, 1), np.uint8), np.arange(100_001), name="a")
    with pytest.raises(ValueError, match="a has the action 100,000.* at most 4,096 are one-hot"):
        VideoClips([clip], frames=9, held_out=0, actions=classes)


@pytest.mark.parametrize("actions,said", [(np.ones(9, bool), "bool"), (np.ones(9, complex), "complex"),
                                          (np.full(9, "a"), "<U1"), (np.ones((9, 1), bool), "bool")])
def test_actions_that_are_no_numbers_are_refused(actions, said):
    with pytest.raises(ValueError, match=f"a: its actions are {said}.* wanted is integers"):
        VideoClips([ArrayClip.of(VIDEO, actions, name="a")], frames=9, held_out=0)


def test_spaces_that_declare_too_many_columns_are_refused():
    spaces = pytest.importorskip("gymnasium").spaces
    for space in (spaces.Discrete(10**9), spaces.Box(0, 1, (70_000,)), spaces.MultiBinary(10**6)):
        with pytest.raises(ValueError, match="columns; at most 65,536 are read"):
            column_names(space, "observation")
    with pytest.raises(ValueError, match="10,000 choices, at most 4,096"):
        flatten_rows(spaces.Discrete(10_000), np.zeros(3, int))
    assert one_hot(np.array([0, 2]), 3).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_yaml_aliases_do_not_explode(tmp_path):
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(12))
    for name, text in (("laughs", laughs), ("itself", "a: &a [*a]"), ("deep", "[" * 20_000), ("broken", "a: ]")):
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"{name}.yaml (has|is no)"):
            bounded_yaml(tmp_path / f"{name}.yaml")
    (tmp_path / "good.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert bounded_yaml(tmp_path / "good.yaml").startswith("a:")


def test_a_checkpoint_whose_configuration_explodes_is_refused(tmp_path, monkeypatch):
    from dforce.cli.compose import resumed
    from dforce.runs.folder import Invocation

    (tmp_path / "config.yaml").write_text("a: &a [*a]")
    call = Invocation.__new__(Invocation, *[None] * len(Invocation._fields))
    with pytest.raises(ValueError, match="config.yaml has inf values"):
        resumed({"resume": str(tmp_path)}, call, frozenset())


@pytest.mark.parametrize("values", [np.ones(4, dtype="c8"), np.array(["a"] * 4), np.zeros(4, dtype="M8[s]")])
def test_arrays_that_are_no_real_numbers_are_refused_by_name(tmp_path, values) -> None:
    np.savez(tmp_path / "pairs.npz", win=np.zeros(4), lose=values)
    with pytest.raises(ValueError, match="no .npz file of pairs: lose is .*, wanted are real numbers"):
        read_npz(tmp_path / "pairs.npz", "pairs")
