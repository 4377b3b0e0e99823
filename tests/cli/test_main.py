"""The command line and the package's front door: quick help, one message for a mistake, lazy imports."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dforce
from dforce.cli import launch, manual
from dforce.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = [verb if kind == verb else f"{verb}/{kind}" for verb, kinds in manual.kinds().items() for kind in kinds]
GROUPS = sorted(file for file in (ROOT / "configs").glob("*/*.yaml") if file.parent.name != "suites")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.delenv("DFORCE_TRACEBACK", raising=False)


def fresh(code: str) -> str:
    """What a new interpreter prints; `conftest` there finds the checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", "from tests import conftest\nimport sys\n" + code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# the package


def test_import_loads_no_torch() -> None:
    assert fresh("import dforce\nprint('torch' in sys.modules, dforce.__version__)") == f"False {dforce.__version__}\n"


def test_every_public_name_is_there_and_agrees_with_what_type_checkers_are_told() -> None:
    for name in dforce.__all__:
        assert callable(getattr(dforce, name)) and name in dir(dforce)
    assert dforce.__all__ == [name for names in dforce._PUBLIC.values() for name in names.split()]
    tree = ast.parse(Path(dforce.__file__).read_text())
    typed = {node.module: {alias.name for alias in node.names} for node in ast.walk(tree)
             if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dforce.")}  # fmt: skip
    assert typed == {f"dforce.{module}": set(names.split()) for module, names in dforce._PUBLIC.items()}
    with pytest.raises(AttributeError, match="smaple"):
        _ = dforce.smaple


def test_the_version_is_the_project_s() -> None:
    assert re.search(rf'^version = "{re.escape(dforce.__version__)}"$', (ROOT / "pyproject.toml").read_text(), re.M)


# help


def test_help_lists_every_kind_and_loads_neither_torch_nor_hydra() -> None:
    words = [["--help"], *([*name.split("/"), "--help"] for name in NAMES)]
    code = f"from dforce.cli.main import main\nfor a in {words}: assert main(a) == 0\n"
    text = fresh(code + "print('loaded', {'torch', 'hydra', 'omegaconf'} & set(sys.modules))")
    assert text.endswith("loaded set()\n")
    for name in NAMES:
        assert re.search(rf"^  {name.replace('/', ' ')} +\w.{{20,}}", text, re.M), name


def test_help_of_a_verb_shows_groups_defaults_and_comments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("schedule=cosine|flow|linear|sigmoid   (default linear)", "width: ", "horizon: 300", "# ",
                 "see also: dforce train image --help"):
        assert part in text
    assert "@package" not in text
    assert main(["align", "--help"]) == 0  # a verb without a kind of its own name
    text = capsys.readouterr().out
    assert "dforce align <kind>" in text and "see also: dforce align video --help" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_has_a_command_and_a_configuration_that_passes_the_check(name: str) -> None:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from dforce.config import check, check_like

    assert callable(importlib.import_module(f"dforce.cli.commands.{name.replace('/', '_')}").run)
    with initialize_config_module("dforce.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose(manual.file_of(name)))
    check(cfg)
    check_like(cfg, manual.text_of(name))
    assert "verbs" not in cfg and "out" in cfg


@pytest.mark.parametrize("file", GROUPS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_group_file_passes_the_check(file: Path) -> None:
    from omegaconf import OmegaConf

    from dforce.config import check

    check(OmegaConf.load(file), files=[file])


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "net").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_net_is_built_from_its_file_and_the_shapes_of_the_data(file: Path) -> None:
    from omegaconf import OmegaConf

    from dforce.train.checkpoint import build_denoiser

    layouts = {"image": {"event_shape": [1, 8, 8], "static": {"class": 10}},
               "video": {"event_shape": [3, 16, 16], "token": {"action": 2}},
               "lettering": {"event_shape": [3, 16, 48], "static": {"text": 5}},
               "policy": {"event_shape": [8], "token": {"kind": 2},
                          "tokens": {"parts": {"state": 3}, "action": 2, "chunk": 4}}}
    config = {"net": OmegaConf.load(file), "schedule": {"_target_": "dforce.core.schedule.linear"}, "predict": "x0"}
    layout = layouts.get(file.stem.partition("_")[0], {"event_shape": [6], "static": {"start": 4}})
    denoiser = build_denoiser(config, layout)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) > 0


# mistakes


def test_the_traceback_is_there_for_those_who_ask(capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFORCE_TRACEBACK", "1")
    assert main(["data", "maze", "maze=nosuch", "steps=100"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_shows_where(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "split", None)
    assert main(["doctor"]) == 1
    assert "in launch" in (error := capsys.readouterr().err) and "please report it" in error


@pytest.mark.parametrize("raised", [FloatingPointError("training diverged"), RuntimeError("2 rows of 3"),
                                    TypeError("a state is made of tensors")])
def test_whose_fault_it_is_does_not_hang_on_the_class(raised: Exception, capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """What dforce says in a `raise` of its own is one line; what breaks in a user's function names its place."""
    def ours(*_: object) -> None:
        raised.with_traceback(None)
        exec(compile("raise error", "fit.py", "exec"), {"error": raised, "__name__": "dforce.train.fit"})

    def mine(*_: object) -> None:
        raise raised.with_traceback(None)

    place = f"test_main.py:{mine.__code__.co_firstlineno + 1},"
    for function, message in ((ours, f"dforce: {raised}\n"), (mine, place)):
        monkeypatch.setattr(launch, "launch", function)
        assert main(["doctor"]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and "report" not in error


def test_too_little_memory_says_what_to_ask_less_of(capsys: pytest.CaptureFixture[str],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(launch, "launch", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    assert main(["doctor"]) == 2
    assert "not enough memory: ask for less" in (error := capsys.readouterr().err) and "Traceback" not in error


def test_the_process_is_left_as_it_was() -> None:
    before = list(sys.argv), dict(os.environ)
    assert main(["data", "maze", "maze=nosuch", "steps=100"]) == 2
    assert (sys.argv, dict(os.environ)) == before


# running


def test_data_maze_writes_a_data_set_and_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dforce.data import load_episodes

    name = "dforce/tiny-v0"
    assert main(["data", "maze", "steps=2000", f"name={name}", "out=here"]) == 0
    assert f"dataset {name}" in capsys.readouterr().out
    assert len(load_episodes(name).actions) == 2000
    assert (tmp_path / "here" / "STATUS").read_text() == "done\n"
    assert "steps: 2000" in (tmp_path / "here" / "config.yaml").read_text()
    env = json.loads((tmp_path / "here" / "env.json").read_text())
    assert env["versions"]["mujoco"] and env["command"] == f"dforce data maze steps=2000 name={name} out=here"
    assert {p.name for p in tmp_path.iterdir()} == {"here", "minari"}  # Hydra leaves nothing of its own
    assert main(["data", "maze", "steps=2000", f"name={name}", "out=here"]) == 2


def test_data_robot_writes_a_data_set_and_films_its_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dforce.data import load_episodes

    assert main(["data", "robot", "task=count", "span=2", "episodes=2", "tail=1", "out=here"]) == 0
    printed = capsys.readouterr().out
    assert "2 demonstrations of count as the data set robot/count-span2-low-dim-v0" in printed
    assert len(load_episodes("robot/count-span2-low-dim-v0")) == 2
    assert list((tmp_path / "here" / "media").glob("expert.*")) or "no film: no pictures without" in printed


def test_a_failed_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dforce.cli.commands.benchmark_speed.SpeedBenchmark.measure", _refuse)
    assert main(["benchmark", "speed", "out=here"]) == 2
    assert (tmp_path / "here" / "STATUS").read_text() == "failed: no room for it\n"


def _refuse(*_: object) -> None:
    raise ValueError("no room for it")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupt_is_on_record(number: signal.Signals, wrapped: bool, tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a library has made another error of it."""
    def measure(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            if wrapped:
                raise ValueError("cannot read the checkpoint") from error
            raise

    monkeypatch.setattr("dforce.cli.commands.benchmark_speed.SpeedBenchmark.measure", measure)
    before = signal.getsignal(number)
    assert main(["benchmark", "speed", "out=here"]) == 128 + number and signal.getsignal(number) is before
    said = "stopped; nothing of it can be gone on with"
    assert (tmp_path / "here" / "STATUS").read_text() == f"{said}\n"
    assert capsys.readouterr().err == f"dforce: {said}\n" and (tmp_path / "here" / "index.html").is_file()


@pytest.mark.parametrize("words", [["train", "resume=runs/a"], ["plan"]])
def test_an_interrupt_outside_of_a_run_says_so(words: list[str], capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run_job", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert main(words) == 130
    said = "go on with resume=runs/a" if len(words) > 1 else "before anything was written"
    assert capsys.readouterr().err.endswith(f"{said}\n")


def test_a_command_gets_plain_values_and_what_the_command_line_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("dforce.cli.commands.benchmark_speed.run", lambda cfg, call: calls.append((cfg, call)))
    assert main(["benchmark", "speed", "rounds=3", "+new.key=1", "quick=true"]) == 0
    (cfg, call), = calls
    assert type(cfg) is dict and cfg["rounds"] == 3 and call.config == cfg and cfg["new"] == {"key": 1}
    assert call.given == {"rounds", "new.key", "quick"} and (call.verb, call.out) == ("benchmark/speed", None)
    assert call.command == "dforce benchmark speed rounds=3 +new.key=1 quick=true"


@pytest.mark.slow
def test_a_sweep_makes_one_folder_a_job(tmp_path: Path) -> None:
    names = "name=dforce/a-v0,dforce/b-v0"
    assert main(["data", "maze", "-m", names, "steps=1000", "hydra.sweep.dir=sweep"]) == 0
    assert [(tmp_path / "sweep" / job / "STATUS").read_text() for job in "01"] == ["done\n"] * 2


def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in ("python", "torch", "mujoco", "minari", "precision", "disk", "write"):
        assert re.search(rf"^ +ok  {part} ", text, re.M), text
    assert not (tmp_path / "runs").exists()


def test_doctor_gives_a_fix_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from dforce.runs import environment

    monkeypatch.setitem(sys.modules, "av", None)
    finding = environment._module("av")
    assert finding.state == "warn" and "dforce[video]" in finding.fix
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert environment._module("numpy").state == "fail"
