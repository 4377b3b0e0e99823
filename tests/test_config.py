"""Configuration: what is built is what was written, only what is listed is built, and a mistake is named before."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dforce
from dforce.config import CHECKPOINT_ROOMS, Node, build, check, check_like, read, resolve
from dforce.config.moved import MOVED, _say, present, present_name
from dforce.config.nodes import ROOMS
from dforce.core import loss, schedule
from dforce.nets.recurrent import RecurrentNet
from dforce.train import objectives
from dforce.train.checkpoint import build_denoiser

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
    node = {"_target_": "dforce.train.objectives.ForcingObjective", "_partial_": True,
            "weight": {"_target_": "dforce.core.loss.min_snr", "gamma": 2.0},
            "levels": {"_target_": "dforce.core.loss.shared", "_partial_": True}}
    built = build(node)
    assert isinstance(built, functools.partial) and built.func is objectives.ForcingObjective
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
    with pytest.raises(ValueError, match=r"net\.width must be a whole number, got"):
        check({"net": {**NET, "width": value}})


def test_an_int_is_a_float_but_a_bool_is_none() -> None:
    check({"_target_": "dforce.core.loss.min_snr", "gamma": 5})
    with pytest.raises(ValueError, match="gamma must be a number, got True"):
        check({"_target_": "dforce.core.loss.min_snr", "gamma": True})


def test_nodes_inside_lists_are_checked() -> None:
    with pytest.raises(ValueError, match=r"weights\[1\]\.gama: .*did you mean 'gamma'"):
        check({"weights": [1, {"_target_": "dforce.core.loss.min_snr", "gama": 1.0}]})


# ------------------------------------------------------------------------------------------------ what may be built

FORBIDDEN = {"path", "paths", "file", "files", "folder", "folders", "dir", "directory", "checkpoint", "checkpoints",
             "trust", "url", "host", "port", "command"}  # parts of a parameter's name


def modules() -> Iterator[Any]:
    """All modules of the rooms whose constructors may be named."""
    for room in map(importlib.import_module, ROOMS):
        yield room
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            yield importlib.import_module(module.name)


def buildable() -> dict[str, Callable[..., Any]]:
    """Every name that a configuration may build, and what it names."""
    return {f"{module.__name__}.{name}": getattr(module, name)
            for module in modules() for name in getattr(module, "BUILDABLE", ())}


def test_only_what_a_module_lists_and_defines_itself_is_built() -> None:
    names = buildable()
    assert len(names) > 40
    for name, constructor in names.items():
        assert resolve(name) is constructor
        assert constructor.__module__ == name.rpartition(".")[0], f"{name} is defined in {constructor.__module__}"


def test_no_module_of_another_room_lists_anything() -> None:
    root = Path(dforce.__file__).parent
    listing = [file.relative_to(root.parent) for file in root.rglob("*.py") if "\nBUILDABLE" in file.read_text("utf-8")]
    assert len(listing) > 10
    for file in listing:
        assert ".".join(file.parts).startswith(ROOMS), file


def test_nothing_that_may_be_built_takes_a_file_a_folder_an_address_or_trust() -> None:
    for name, constructor in buildable().items():
        for parameter in inspect.signature(constructor).parameters.values():
            words = set(parameter.name.lower().split("_"))
            typed = set(re.findall(r"\w+", str(parameter.annotation)))
            assert not words & FORBIDDEN, f"{name} takes {parameter.name}"
            assert not typed & {"Path", "PathLike", "IO", "TextIO", "BinaryIO"}, f"{name} takes {parameter}"


def test_every_public_name_that_is_not_listed_is_refused() -> None:
    listed = buildable()
    for module in [*modules(), *map(importlib.import_module, ("dforce.runs.folder", "dforce.data.store"))]:
        public = [name for name, value in vars(module).items() if not name.startswith("_") and callable(value)]
        for path in (f"{module.__name__}.{name}" for name in public):
            if path not in listed and path not in MOVED:
                with pytest.raises(ValueError, match="_target_"):
                    resolve(path)


HOSTILE = ["os.system", "builtins.eval", "subprocess.Popen", "dforce", "dforce..loss", "", None, 3,
           "dforce.cli.main.os.system", "dforce.runs.folder.os.system", "dforce.core.loss.torch.save",
           "dforce.nets.recurrent.torch.load", "dforce.core.loss.Tensor", "dforce.core.schedule.__builtins__.eval",
           "dforce.core.loss.min_snr.__globals__", "dforce.nets.recurrent.RecurrentNet.__init__",
           "dforce.nets.recurrent.RecurrentNet.load_state_dict", "dforce.__init__.load", "dforce.load", "dforce.save",
           "dforce.video.model.load_video", "dforce.data.store.datasets_root", "dforce.runs.shards.write_shard",
           "dforce.runs.folder.RunFolder", "dforce.runs.folder.write_atomic", "dforce.cli.main.main",
           "dforce.train.checkpoint.load", "dforce.cli.commands.train.run", "dforce.config.build",
           "dforce.core.schedule", "dforce.__version__"]


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_targets_are_refused(path: object) -> None:
    with pytest.raises(ValueError, match="_target_"):
        resolve(path)
    with pytest.raises(ValueError, match="_target_"):
        check({"a": [{"b": {"_target_": path}}]})
    with pytest.raises(ValueError, match="_target_"):
        build({"_target_": "dforce.core.loss.min_snr", "gamma": {"_target_": path}})


def test_a_checkpoint_builds_networks_and_schedules_and_nothing_else() -> None:
    config = {"net": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 8},
              "schedule": {"_target_": "dforce.core.schedule.linear"}, "predict": "x0"}
    layout = {"event_shape": [2]}
    assert build_denoiser(config, layout).schedule.levels == 1000
    rooms = tuple(f"{room}." for room in CHECKPOINT_ROOMS)
    for name in buildable():
        if name.startswith(rooms):
            assert resolve(name, rooms=CHECKPOINT_ROOMS)
            continue
        for hostile in ({**config, "net": {"_target_": name}}, {**config, "schedule": {"_target_": name}},
                        {**config, "net": {**config["net"], "width": {"_target_": name}}}):
            with pytest.raises(ValueError, match="_target_"):
                build_denoiser(hostile, layout)


def test_trust_is_the_command_lines_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_own.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mine_own.Net"}
    with pytest.raises(ValueError, match="takes no 'trust'"):
        check({"_target_": "dforce.core.loss.min_snr", "trust": "mine_own"})
    for config in ({"trust": "mine_own", "weight": node}, {"trust": ["mine_own"], "weight": node}):
        with pytest.raises(ValueError, match="outside dforce"):
            check(config)
        with pytest.raises(ValueError, match="outside dforce"):
            read(config, Weighed)
    with pytest.raises(ValueError, match="outside dforce"):  # as a checkpoint that tries to vouch for itself
        build_denoiser({"net": node, "schedule": node, "predict": "x0", "trust": "mine_own"}, {"event_shape": [2]})
    with pytest.raises(ValueError, match="nothing that a configuration may build"):  # nor does it open dforce itself
        resolve("dforce.runs.folder.write_atomic", trust="dforce")
    assert "mine_own" not in sys.modules


def test_refused_before_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("class Net:\n    def __init__(self, width: int = 1): self.width = width\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="trust=mine"):
        resolve("mine.Net")
    assert "mine" not in sys.modules
    assert build({"_target_": "mine.Net", "width": 3}, trust="mine").width == 3
    assert build({"_target_": "mine.Net"}, trust=["other", "mine"]).width == 1
    (tmp_path / "mine.py").write_text("import os\nclass Net: pass\n")
    for foreign in ("mine.os.system", "mine.Net.__init__.__globals__", "dforce.core.schedule.math.sqrt"):
        with pytest.raises(ValueError, match="_target_"):
            resolve(foreign, trust="mine")


def test_nearest_target() -> None:
    with pytest.raises(ValueError, match="did you mean 'min_snr'"):
        resolve("dforce.core.loss.min_snrr")


def test_names_that_the_package_lends_resolve() -> None:
    assert resolve("dforce.min_snr") is loss.min_snr
    assert resolve("dforce.nets.recurrent.RecurrentNet") is RecurrentNet


# ------------------------------------------------------------------------------------------------- typed values


@dataclass(frozen=True)
class Weighed:
    """A run kind: nodes arrive built, but for those that the data complete."""

    weight: Callable[..., Any]
    net: Node = None  # type: ignore[assignment]
    sizes: tuple[int, ...] = ()
    steps: int = 3
    name: str | None = None


def test_a_typed_value_has_the_keys_that_are_called_as_its_fields() -> None:
    node = {"_target_": "dforce.core.loss.min_snr", "gamma": 2.0}
    value = read({"weight": node, "net": NET, "sizes": [1, 2], "name": None, "elsewhere": 3}, Weighed)
    torch.testing.assert_close(value.weight(torch.tensor([9.0])), torch.tensor([2.0]))
    assert (value.net, value.sizes, value.steps, value.name) == (NET, (1, 2), 3, None)
    assert read({"weight": node, "steps": 5}, Weighed, steps=7).steps == 7
    for wrong, message in (({"steps": "many"}, "steps must be a whole number, got 'many'"),
                           ({"sizes": 3}, "sizes must be a list of a whole number, got 3"),
                           ({"name": 3}, "name must be a word or null, got 3")):
        with pytest.raises(ValueError, match=message):
            read({"weight": node, **wrong}, Weighed)


# ------------------------------------------------------------------------------------------------------ old names


def test_every_old_name_leads_to_what_may_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    listed = buildable()
    for old, new in MOVED.items():
        assert new in listed and old not in listed and resolve(old) is listed[new]
    capsys.readouterr()
    _say.cache_clear()
    assert present_name("dforce.loss.snr") == present_name("dforce.loss.snr") == "dforce.core.loss.snr"
    message = "dforce.loss.snr is dforce.core.loss.snr now; please write the new name"
    assert capsys.readouterr().err.count(message) == 1


def test_an_old_configuration_is_read_under_present_names() -> None:
    old = {"fit": {"_target_": "dforce.fit.fit", "steps": 3}, "levels": [{"_target_": "dforce.loss.shared"}]}
    assert present(old) == {"fit": {"_target_": "dforce.train.fit.fit", "steps": 3},
                            "levels": [{"_target_": "dforce.core.loss.shared"}]}


# ---------------------------------------------------------------------------------------------------- plain keys

TEXT = """steps: 10      # of denoising
clamp: 1.0     # largest size of an estimate; null for none
out: null      # run folder
"""


@pytest.mark.parametrize("given", [{"steps": 5}, {"clamp": None}, {"clamp": 2}, {"out": "there"}])
def test_plain_keys_take_what_their_line_says(given: dict[str, object]) -> None:
    check_like({"steps": 10, "clamp": 1.0, "out": None, **given}, TEXT)


@pytest.mark.parametrize(("given", "message"), [
    ({"steps": None}, "steps must be a whole number, as its default 10, got null"),
    ({"clamp": "big"}, "clamp must be a number, as its default 1.0, got 'big'")])
def test_plain_keys_of_another_type_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_like({"steps": 10, "clamp": 1.0, "out": None, **given}, TEXT)


def test_the_verbs_take_the_nulls_that_they_speak_of() -> None:
    """`dforce rollout clamp=null` and the like: said in the comment, so let through."""
    from dforce.cli.manual import text_of

    for verb, key in (("rollout", "clamp"), ("align/video", "delay"), ("align/image", "classifier")):
        defaults = yaml.safe_load(text_of(verb))
        assert defaults[key] is not None
        check_like(defaults | {key: None}, text_of(verb))


def test_weights_of_rewards_are_any_finite_numbers_whatever_the_rewards_are_called():
    from dforce.config import check_numbers

    check_numbers({"rewards": {"jpeg": 1, "spread": 0.4, "clip": -2}})  # spread and clip are keys elsewhere
    with pytest.raises(ValueError, match=r"rewards\.spread must be"):
        check_numbers({"rewards": {"spread": float("nan")}})
