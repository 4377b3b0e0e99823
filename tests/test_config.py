"""Configuration: what is built is what was written, and whatever is wrong is named before anything is built."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import yaml

from dforce.config import build, check, check_like, resolve
from dforce.core import loss, schedule
from dforce.nets.recurrent import RecurrentNet

NET = {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 8}


def test_build_equals_the_call() -> None:
    built = build({"_target_": "dforce.core.schedule.linear", "levels": 20})
    torch.testing.assert_close(built.alpha, schedule.linear(20).alpha, rtol=0, atol=0)


def test_what_the_data_dictate_goes_to_the_outermost_target() -> None:
    net = build(NET, event_shape=(3,))
    assert (net.event_shape, net.width) == ((3,), 8)
    with pytest.raises(ValueError, match="width is given by the data"):
        build(NET, event_shape=(3,), width=4)
    with pytest.raises(ValueError, match="event_shape"):
        build(NET)


def test_lists_become_tuples_where_a_tuple_is_wanted() -> None:
    assert build({**NET, "event_shape": [2, 3]}).event_shape == (2, 3)


def test_partial_and_nested_nodes() -> None:
    node = {
        "_target_": "dforce.train.objectives.ForcingObjective",
        "_partial_": True,
        "weight": {"_target_": "dforce.core.loss.min_snr", "gamma": 2.0},
        "levels": {"_target_": "dforce.core.loss.shared", "_partial_": True},
    }
    built = build(node)
    assert isinstance(built, functools.partial) and built.func is loss.ForcingObjective
    torch.testing.assert_close(built.keywords["weight"](torch.tensor([9.0])), torch.tensor([2.0]))
    assert built.keywords["levels"].func is loss.shared


def test_omegaconf_nodes_are_read_resolved() -> None:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"k": 7, "s": {"_target_": "dforce.core.schedule.linear", "levels": "${k}"}})
    check(cfg)
    assert build(cfg.s).levels == 7


def test_unknown_key_names_the_nearest_all_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("# widht in a comment\nnet:\n  widht: 8\n")
    with pytest.raises(ValueError) as caught:
        check({"net": {"_target_": NET["_target_"], "widht": 8}}, files=[file])
    for part in ("net.widht", "did you mean 'width'?", "depth, event_shape", f"{file}, line 3"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", ["abc", 1.5, True, None, [8]])
def test_type_mismatch(value: object) -> None:
    with pytest.raises(ValueError, match=r"net\.width must be int, got"):
        check({"net": {**NET, "width": value}})


def test_an_int_is_a_float_but_a_bool_is_none() -> None:
    check({"_target_": "dforce.core.loss.min_snr", "gamma": 5})
    with pytest.raises(ValueError, match="gamma must be float, got True"):
        check({"_target_": "dforce.core.loss.min_snr", "gamma": True})


def test_nodes_inside_lists_are_checked() -> None:
    with pytest.raises(ValueError, match=r"weights\[1\]\.gama: .*did you mean 'gamma'"):
        check({"weights": [1, {"_target_": "dforce.core.loss.min_snr", "gama": 1.0}]})


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "dforce",
        "dforce.cli.main.os.system",
        "dforce.core.loss.torch.save",
        "dforce.nets.recurrent.RecurrentNet.load_state_dict",
        "dforce.core.schedule.__builtins__.eval",
        "dforce.runs.folder.RunFolder",
        "dforce.cli.main.main",
        "dforce.train.checkpoint.load",
        "dforce.cli.commands.data.run",
        "dforce.config.build",
        "dforce.core.schedule",
        "dforce.__version__",
        "dforce.core.loss.Tensor",
        "builtins.eval",
        "dforce..loss",
        "",
        None,
        3,
    ],
)
def test_targets_that_dforce_does_not_export_are_refused(path: object) -> None:
    with pytest.raises(ValueError, match="_target_"):
        resolve(path)
    with pytest.raises(ValueError, match="_target_"):
        check({"a": {"_target_": path}})


def test_refused_before_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("class Net:\n    def __init__(self, width: int = 1): self.width = width\n")
    monkeypatch.syspath_prepend(tmp_path)
    import sys

    with pytest.raises(ValueError, match="trust=mine"):
        resolve("mine.Net")
    assert "mine" not in sys.modules
    assert build({"_target_": "mine.Net", "width": 3}, trust="mine").width == 3
    assert build({"_target_": "mine.Net"}, trust=["other", "mine"]).width == 1
    with pytest.raises(ValueError, match="no part"):
        resolve("dforce.core.schedule.math.sqrt", trust="mine")


def test_nearest_target() -> None:
    with pytest.raises(ValueError, match="did you mean 'min_snr'"):
        resolve("dforce.core.loss.min_snrr")


def test_names_that_the_package_lends_resolve() -> None:
    assert resolve("dforce.min_snr") is loss.min_snr
    assert resolve("dforce.nets.recurrent.RecurrentNet") is RecurrentNet


TEXT = """steps: 10      # of denoising
clamp: 1.0     # largest size of an estimate; null for none
out: null      # run folder
"""


@pytest.mark.parametrize("given", [{"steps": 5}, {"clamp": None}, {"clamp": 2}, {"out": "there"}])
def test_plain_keys_take_what_their_line_says(given: dict[str, object]) -> None:
    check_like({"steps": 10, "clamp": 1.0, "out": None, **given}, TEXT)


@pytest.mark.parametrize(("given", "told"), [({"steps": None}, "steps must be int, as its default 10, got None"),
                                             ({"clamp": "big"}, "clamp must be float, as its default 1.0, got 'big'")])
def test_plain_keys_of_another_type_are_named(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_like({"steps": 10, "clamp": 1.0, "out": None, **given}, TEXT)


def test_the_verbs_take_the_nulls_that_they_speak_of() -> None:
    """`dforce rollout clamp=null` and the like: said in the comment, so let through."""
    from dforce.cli.manual import text_of

    for verb, key in (("rollout", "clamp"), ("align/video", "delay"), ("align/image", "classifier")):
        defaults = yaml.safe_load(text_of(verb))
        assert defaults[key] is not None
        check_like(defaults | {key: None}, text_of(verb))
