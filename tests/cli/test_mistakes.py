"""Mistakes on the command line: one line on stderr that says what came, what was wanted and what to do; exit code 2."""

import errno
import resource
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dforce.cli.main import main, os_error
from dforce.cli.words import split

PLANNER, VIDEO = "checkpoint=maze2d-umaze", "checkpoint=doom16"
GROUPS = [("train", "net", "transfromer", "transformer"), ("train", "schedule", "cosin", "cosine"),
          ("train video", "net", "video_grru", "video_gru"), ("plan", "planner", "difusion", "diffusion"),
          ("plan", "planner", "mctdd", "mctd"), ("plan", "executor", "diffused-action", "diffused_action"),
          ("align planner", "executor", "trackng", "tracking"), ("align image", "algorithm", "drpo", "grpo"),
          ("align video", "algorithm", "ddpo_iss", "ddpo_is")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.delenv("DFORCE_TRACEBACK", raising=False)


def one_line(words: str | list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that `dforce <words>` complains in, and nothing but that."""
    code = main(words.split() if isinstance(words, str) else words)
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert err.count("\n") == 1 and err.startswith("dforce: ") and "Traceback" not in out, err
    for riddle in ("[Errno", "typing.", "<class", "Literal[", "hydra.cc", "Error executing job"):
        assert riddle not in err, err
    return err


@pytest.mark.parametrize("command, group, wrong, right", GROUPS)
def test_a_wrong_choice_of_a_group_names_the_nearest(command: str, group: str, wrong: str, right: str,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(f"{command} {group}={wrong}", capsys)
    assert f"no {group} '{wrong}'; did you mean '{right}'? valid: " in line
    for other in ("", "null", "[a,b]", "{width:3}"):
        assert f"no {group} {other!r}" in one_line([*command.split(), f"{group}={other}"], capsys)


def test_a_plug_in_of_hydra_that_is_missing_is_named_with_what_brings_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "seed=0,1"]
    line = one_line(["train", *words, "hydra/launcher=submitit_slurm"], capsys)
    assert "Hydra has no hydra/launcher 'submitit_slurm': pip install 'dforce[slurm]'" in line
    assert "Hydra has no hydra/launcher 'dask'" in one_line(["train", *words, "hydra/launcher=dask"], capsys)


WORDS: list[tuple[str, list[str]]] = [  # words -> what the line has to say
    ("trian", ["no verb 'trian'", "did you mean 'train'", "doctor"]),
    ("data", ["data what?", "dforce data maze", "dforce data video"]),
    ("data balls", ["no kind 'balls'", "robot", "video"]), ("data kind=maze", ["data what?"]),
    ("train train", ["no kind 'train'", "image", "video"]), ("train steps", ["no kind 'steps'", "image"]),
    ("plan umaze", ["takes key=value", "'umaze'"]),
    ("plan checkpoint maze2d-umaze", ["takes key=value", "write checkpoint=maze2d-umaze"]),
    ("plan --checkpoint maze2d-umaze", ["no flag --checkpoint", "here checkpoint=maze2d-umaze"]),
    ("plan --checkpoint=maze2d-umaze", ["no flag --checkpoint", "here checkpoint=maze2d-umaze"]),
    ("plan -checkpoint maze2d-umaze", ["no flag -checkpoint", "here checkpoint=maze2d-umaze"]),
    ("train --net transformer", ["here net=transformer"]), ("train --fit.steps=3", ["here fit.steps=3"]),
    ("train --steps 3", ["no flag --steps", "did you mean 'fit.steps'"]),
    ("train --fast-dev-run", ["here fast_dev_run=VALUE"]),
    ("train -x", ["no flag -x", "valid: "]), ("train --cfg jbo", ["--cfg jbo", "'job'"]),
    ("train --config-dir nosuch", ["nosuch", "not found"]),
    ("train fit.steps", ["'fit.steps' is no key=value"]), ("train =3", ["'=3' is no key=value"]),
    ("train data=", ["data= has no value", "data=null"]), ("train out=", ["out= has no value"]),
    ("train fit..steps=3", ["cannot read 'fit..steps=3'"]), ("train fit.steps=[", ["cannot read 'fit.steps=['"]),
    ("train fit.steps={", ["cannot read"]), ("train fit.steps=\"3", ["cannot read"]),
    ("train net.width=3=4", ["net.width must be a whole number, got '3=4'"]),
    ("train data=it's", ["no dataset \"it's\""]), ("train data=a=b", ["no dataset 'a=b'"]),
    ("train seed=1,2", ["seed=1,2", "--multirun"]), ("train +data=3", ["already at 'data'"]),
    ("train data=${foo}", ["Interpolation key 'foo' not found"]),
    ("train fit.step=10", ["no key 'fit.step'", "did you mean 'steps'"]),
    ("train stpes=3", ["no key 'stpes'", "did you mean 'fit.steps'", "train/train.yaml"]),
    ("train ~fit.stpes", ["no key 'fit.stpes'", "did you mean 'steps'"]),
    ("train net.widht=3", ["no key 'net.widht'", "did you mean 'width'", "net/recurrent.yaml"]),
    ("train +net.widht=3", ["net.widht", "did you mean 'width'"]),
    ("train nett.width=3", ["no key 'nett.width'", "did you mean 'net.width'"]),
    ("demo train.net.widht=3", ["did you mean 'width'", "net/recurrent.yaml"]),
    ("demo train.fit.stpes=3", ["did you mean 'steps'", "train.yaml"]),
    ("demo +train.fit.stpes=3", ["train.fit.stpes", "did you mean 'steps'"]),
    ("demo train.fit.warmup=x", ["train.fit.warmup must be a whole number, got 'x'", "train.yaml, line"]),
    ("train -m net=recurrent,transfromer", ["no net 'transfromer'", "did you mean 'transformer'"]),
    ("train net.width=wide", ["net.width must be a whole number, got 'wide'"]),
    ("train fast_dev_run=1", ["fast_dev_run must be true or false"]),
    ("train fit.precision=fp16", ["fit.precision must be one of auto, fp32, bf16, got 'fp16'"]),
    ("train cut_at=timeouts", ["cut_at must be a list"]), ("train objective=forcing", ["objective", "_target_"]),
    ("train objective.weight=min_snr", ["objective.weight must be a mapping, or a node with its _target_"]),
    ("train net._target_=os.system", ["'os.system'", "outside dforce"]),
    ("train trust=dforce net._target_=dforce.runs.folder.write_atomic", ["nothing that a configuration"]),
    ("train +net.trust=os", ["takes no 'trust'"]), ("train resume=nosuch", ["resume=nosuch is no run folder"]),
    (f"plan planner.energy=Reach {PLANNER}", ["planner.energy must be", "_target_", "'Reach'"]),
    (f"plan maze=umze {PLANNER}", ["no task 'umze'", "did you mean 'umaze'"]),
    (f"plan maze=####/#XG#/#### {PLANNER}", ["'X'", "row 1"]),
    ("plan checkpoint=maze2d-umze", ["did you mean 'maze2d-umaze'"]),
    (f"plan {VIDEO}", ["not on a maze", "dforce train data="]), (f"rollout {PLANNER}", ["no model of video"]),
    ("rollout checkpoint=dom16", ["did you mean 'doom16'"]), (f"rollout {VIDEO} mode=foo", ["mode must be one of"]),
    (f"rollout {VIDEO} lpips=3", ["lpips must be a list"]), (f"rollout {VIDEO} actions=foo", ["actions must be data"]),
    (f"rollout {VIDEO} data=nosuch", ["'nosuch'", "dforce data video"]),
    ("data maze maze=nosuch steps=100", ["'nosuch'", "umaze"]), ("data maze maze=nosuch -m seed=0,1", ["'nosuch'"]),
    ("demo maze=umze", ["'umze'", "did you mean 'umaze'"]), ("demo maze=##/#O", ["not closed by walls"]),
    ("align image reward=jpge", ["no reward 'jpge'", "did you mean 'jpeg'"]),
    ("align video checkpoint=balls reward=brihgt", ["no reward 'brihgt'", "did you mean 'bright'"]),
    (f"align planner {PLANNER} seeds=0", ["seeds must be a list"]),
    (f"align planner {PLANNER} beside=[rwrr]", ["no algorithm 'rwrr'", "did you mean 'rwr'"]),
    ("benchmark align tasks=jpeg", ["tasks must be a list"]), ("benchmark speed parts=data", ["parts must be a list"]),
    ("benchmark planning task=maze2d-umza", ["no task 'maze2d-umza'", "did you mean 'maze2d-umaze'"]),
    ("benchmark planning size=gpu", ["size=gpu", "did you mean"]),
    ("benchmark planning suite=nosuch", ["nosuch is no file"]),
    ("train video data=nosuch", ["'nosuch'"]), ("train image data=nosuch", ["nosuch"]),
    ("train reward", ["data is needed"]), ("train reward data=nosuch.npz", ["nosuch.npz"]),
    ("sample image checkpoint=digits classes=[cat]", ["no class 'cat'"]), ("data video source=dom", ["dom"]),
]


@pytest.mark.parametrize("words, parts", WORDS, ids=[words for words, _ in WORDS])
def test_a_mistake_is_one_line(words: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(words, capsys)
    assert all(part in line for part in parts), line
    there = [file.name for file in Path().iterdir() if file.name != "minari"]
    assert there == [] or " -m " in words  # nothing is left behind, but for Hydra's folder of a sweep


@pytest.mark.parametrize("command, verb, ships", [
    ("plan", "dforce train", "maze2d-medium, maze2d-umaze"),
    ("align planner", "dforce train", "maze2d-medium, maze2d-umaze"),
    ("rollout", "dforce train video", "balls, doom16"), ("align video", "dforce train video", "balls, doom16"),
    ("sample image checkpoint=null", "dforce train image", "digits, words")])
def test_a_missing_checkpoint_lists_what_ships(command: str, verb: str, ships: str,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(command, capsys)
    assert f"checkpoint of `{verb}`" in line and f"ships with dforce ({ships};" in line and "for other commands" in line


@pytest.mark.parametrize("command, module, extra", [
    (f"rollout {VIDEO} frames=2", "av", "video"), (f"rollout {VIDEO} serve=8765", "websockets", "video"),
    ("align video checkpoint=balls", "av", "video"), ("data maze steps=1000", "minari", "planning"),
    ("train image", "sklearn", "images"), ("train image data=patches", "skimage", "images"),
    ("data maze maze=pointmaze-umaze steps=1000", "gymnasium_robotics", "benchmarks"),
    ("data video fast_dev_run=true", "vizdoom", "doom")])
def test_a_missing_package_is_answered_by_the_extra_that_brings_it(
        command: str, module: str, extra: str, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    from dforce.envs.maze.pointmaze import _shared

    _shared.cache_clear()
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install 'dforce[{extra}]'" in one_line(command, capsys)


def test_the_operating_system_s_errors_name_the_file_and_a_cure(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "file has content; choose another out=" in one_line("data maze steps=1000 out=file", capsys)
    assert "Not a directory; give another path" in one_line("data maze steps=1000 out=file/run", capsys)
    assert "/proc/run: " in one_line("data maze steps=1000 out=/proc/run", capsys)
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    assert os_error(full).startswith("runs/x: No space left on device; free some space")


def test_a_file_that_may_grow_no_further_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        line = one_line("sample image checkpoint=digits per_class=2 steps=2 out=run", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "run" in line and "File too large; a limit of the system (ulimit -f)" in line


@pytest.mark.parametrize("value", ["a=b", "it's", "my data/x v0", "#####/#OG#/#####", "~/x", "a:b", 'a"b', "x(1)",
                                   "100%"])
def test_values_with_quotes_blanks_and_equals_signs_arrive(value: str) -> None:
    _, (word, other) = split("train", [f"data={value}", "seed='a,b'"])
    read = OverridesParser.create().parse_overrides([word, other])
    assert [override.value() for override in read] == [value, "a,b"]


def test_a_key_that_is_given_twice_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("dforce.cli.commands.train.run", lambda cfg, call: calls.append(cfg["seed"]))
    assert main(["train", "seed=1", "seed=2"]) == 0 and calls == [2]
    assert capsys.readouterr().err == "note: seed is given twice, seed=1 and seed=2; the last one counts\n"
