"""`dforce align pipeline` and `dforce sample pipeline`: what they leave, that a run goes on, what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dforce.align.on_policy import Query
from dforce.cli.main import main
from dforce.images.chosen_prompts import chosen_prompts, with_held_out
from dforce.images.judge import Judged
from dforce.images.pictures import CARDS, by_prompt
from dforce.report.rows import filter_rows, read_results
from dforce.runs import trackers
from dforce.train.checkpoint import find, load, load_state
from tests.images.conftest import text_unet
from tests.page_rules import check_page

SMALL = ["algorithm.epochs=1", "algorithm.samples=4", "algorithm.updates=1", "steps=2", "watch=0", "evaluate=0",
         "device=cpu"]
ALGORITHMS = {  # of every kind of source and loss one, with settings small enough; all: test_pipeline_algorithms.py
    "grpo": ["algorithm.group=2"], "diffusion_dpo": ["algorithm.group=4", "algorithm.pairs=1"],
    "sft": ["algorithm.keep=.5"], "nft": [], "draft": []}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def align(folder: Path, *words: str) -> int:
    given = {word.partition("=")[0] for word in words}
    usual = [word for word in ["prompts=[a cat,a dog]", "reward=bright", *SMALL] if word.partition("=")[0] not in given]
    return main(["align", "pipeline", *([] if "resume" in given else [f"pipeline={folder}", *usual]), *words])


def learnt(run: str) -> dict[str, torch.Tensor]:
    return load_state(find(run)).model


def test_tuned_and_drawn_beside_the_base(sd_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align(sd_folder, "held_out=[a bird]", "algorithm.lr=.01", "watch=2", "evaluate=2", "out=a") == 0
    assert f"pipeline={sd_folder} lora=a" in capsys.readouterr().out
    assert set(learnt("a")) and all(".lowrank." in name for name in learnt("a"))     # no copy of the base
    rows = read_results("a/results.json").rows
    for prompts in ("tuned on", "never tuned on"):
        methods = {row["method"] for row in filter_rows(rows, metric="reward", variant={"prompts": prompts})}
        assert methods == {"base", "tuned"}
    last = json.loads(Path("a/metrics.jsonl").read_text().splitlines()[-1])
    assert last["watch_kl"] > 0 < last["watch_unseen_kl"] and {"watch_reward", "watch_unseen_reward"} <= set(last)
    check_page(Path("a/index.html"))
    words = [f"pipeline={sd_folder}", "prompts=[a cat,a dog]", "count=3", "steps=2", "device=cpu"]
    assert main(["sample", "pipeline", *words, "lora=a", "reward=bright", "out=both"]) == 0
    assert main(["sample", "pipeline", *words, "out=base"]) == 0
    lines = [json.loads(line) for line in Path("both/images/metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a cat", "a cat", "a dog"] * 2 and "reward" in lines[0]
    for i in range(3):
        base, same, tuned = (Path(run, "images", f"{i:05d}_{name}.png").read_bytes() for run, name in
                             (("base", "base"), ("both", "base"), ("both", "tuned")))
        assert base == same != tuned                                                # one noise, and the base as it was
    check_page(Path("both/index.html"))


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_been_stopped(sd_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["algorithm.samples=2", "steps=2", "guidance=1", "prompts=[a cat]", "save_every=1", "algorithm.lr=.01"]
    assert align(sd_folder, *quick, "algorithm.epochs=2", "out=whole") == 0
    assert align(sd_folder, *quick, "out=part") == 0
    first = learnt("part")
    assert align(sd_folder, "resume=part", "algorithm.epochs=2") == 0
    assert all(torch.equal(value, learnt("part")[name]) for name, value in learnt("whole").items())
    assert any(not torch.equal(value, learnt("part")[name]) for name, value in first.items())
    capsys.readouterr()
    assert main(["sample", "image", "checkpoint=part"]) == 2
    assert "dforce sample pipeline" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_from_the_command_line(name: str, sd_folder: Path) -> None:
    assert align(sd_folder, f"algorithm={name}", *ALGORITHMS[name], "algorithm.lr=.01", "rows=3", "out=a") == 0
    moved = [value for key, value in learnt("a").items() if key.endswith("lowrank.b")]
    assert moved and any(bool(value.any()) for value in moved)


@pytest.mark.slow
def test_all_weights_learn_and_are_written_as_diffusers_reads_them(sd_folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    assert align(sd_folder, "lowrank=null", "evaluate=2", "out=a") == 0
    unet = UNet2DConditionModel.from_pretrained("a/unet", local_files_only=True)
    weights = learnt("a")
    for name, value in unet.state_dict().items():
        assert torch.equal(value, weights[f"denoiser.net.module.{name}"]), name
    assert main(["sample", "pipeline", f"pipeline={sd_folder}", "prompts=[a cat]", "lora=a", "steps=2", "device=cpu",
                 "out=s"]) == 0


def test_bad_input_is_one_line_and_nothing_is_written(sd_folder: Path, capsys: pytest.CaptureFixture[str],
                                                      tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(sd_folder, half)
    shutil.rmtree(half / "text_encoder")
    Path("blank.txt").write_text("\n\n")
    for words, message in (
            (["prompts=null"], "prompts is needed"), (["prompts=3"], "prompts are no int"), (["prompts=[]"], "needed"),
            (["prompts=[a cat,true]"], "texts"), (["prompts=animls45"], "did you mean 'animals45'"),
            (["prompts=none.txt"], "none.txt"), (["prompts=blank.txt"], "got 'none'"),
            (["held_out={a: 1}"], "held_out"),
            (["prompts=os.getcwd"], "trust"), (["pipeline=null"], "pipeline is needed"),
            (["pipeline=nowhere"], "no folder nowhere"), ([f"pipeline={half}"], "part text_encoder is missing"),
            (["size=[8]"], "size is [height, width]"), (["lowrank=null", "dtype=bf16"], "fp32"),
            (["tracker=wand"], "did you mean 'wandb'"),
            (["resume=nowhere"], "no run folder")):
        assert align(sd_folder, *words, "out=a") == 2, words
        error = capsys.readouterr().err
        assert message in error and error.strip().splitlines()[-1].startswith("dforce: "), (words, error)
        assert not Path("a").exists(), words


@pytest.mark.slow
@pytest.mark.parametrize("part, message", [("scheduler", "LCMScheduler"), ("unet", "takes 9 channels")])
def test_a_pipeline_that_is_not_reproduced_is_refused_in_one_line(part: str, message: str, sd_folder: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import LCMScheduler

    shutil.copytree(sd_folder, "other")
    if part == "unet":
        text_unet(in_channels=9).save_pretrained("other/unet")
    else:
        LCMScheduler(steps_offset=1).save_pretrained("other/scheduler")
        index = json.loads(Path("other/model_index.json").read_text())
        Path("other/model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "LCMScheduler"]}))
    for words in (["align", "pipeline"], ["sample", "pipeline"]):
        assert main([*words, "pipeline=other", "prompts=[a cat]", "device=cpu", "out=a"]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dforce: ")]
        assert len(lines) == 1 and message in lines[0], lines
        assert not Path("a").exists()


def test_a_reward_that_fails_leaves_a_run_to_go_on_with(sd_folder: Path, capsys: pytest.CaptureFixture[str],
                                                        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import math\nasked = []\ndef reward(images, prompts, metadata):\n    asked.append(1)\n" \
           "    return [math.nan if len(asked) > LAST else 1.0 + i for i in range(len(images))]\n"
    for name, last in (("bad_pipe", "1"), ("good_pipe", "99")):
        (tmp_path / f"{name}.py").write_text(code.replace("LAST", last))
    monkeypatch.syspath_prepend(str(tmp_path))
    quick = ["algorithm.samples=2", "guidance=1", "prompts=[a cat]", "algorithm.epochs=2"]
    assert align(sd_folder, *quick, "reward=bad_pipe.reward", "trust=bad_pipe", "out=a") == 2
    error = capsys.readouterr().err
    assert "not finite" in error and "epoch 1" in error and "prompt 'a cat'" in error
    assert Path("a/STATUS").read_text().startswith("failed")
    assert align(sd_folder, "resume=a", "reward=good_pipe.reward", "trust=good_pipe") == 0
    assert Path("a/STATUS").read_text().strip() == "done"


def test_prompts_are_lists_files_names_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("some.txt").write_text("a cat\n\n two dogs \n")
    Path("some.jsonl").write_text('{"prompt": "3 cats", "count": 3}\n')
    (tmp_path / "my_prompts.py").write_text("def both():\n    return [('a cat', {'n': 1}), 'a dog']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert chosen_prompts("some.txt").texts == ["a cat", "two dogs"]
    assert chosen_prompts("some.jsonl") == (["3 cats"], [{"count": 3}])
    assert chosen_prompts("my_prompts.both", trust="my_prompts") == (["a cat", "a dog"], [{"n": 1}, None])
    assert len(chosen_prompts("animals45").texts) == 45
    kept, unseen = with_held_out("animals45", 0.2, seed=0)
    assert len(unseen.texts) == 9 and not set(kept.texts) & set(unseen.texts) and len(kept.texts) == 36


def test_a_picture_has_cards_of_every_prompt_first() -> None:
    labels = torch.arange(3).repeat_interleave(10)
    x = torch.zeros(30, 1, 3, 4, 4)
    sets = {name: Judged(name, x, labels, {"reward": torch.arange(30.0).numpy()}) for name in ("base", "tuned")}
    figure = by_prompt(sets, labels, ["a cat", "a " + "very " * 60 + "long dog", "a bird"])
    titles = [sub.get_suptitle().strip() for sub in figure.subfigs]
    assert len([title for title in titles if title]) == CARDS and {titles.count("a cat"), titles.count("a bird")} == {4}
    below = [ax.get_xlabel() for ax in figure.subfigs[0].axes]
    assert below == ["base 0.00", "tuned 0.00"]


def test_draft_is_given_the_prompts_and_metadata_of_its_batch() -> None:
    from dforce.align.backprop import starts

    batch = starts(lambda count, generator: Query(list("abcd")), 4, (1, 2))(0)
    assert batch.row.tolist() == [0, 1, 2, 3] and batch.x.shape == (4, 1, 2)


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    heard = []

    class Flaky:
        def numbers(self, step, values):
            if step > 1:
                raise OSError("the disk\nis full")
            heard.append((step, dict(values)))

    monkeypatch.setitem(trackers.TRACKERS, "flaky", lambda folder, config, begin: Flaky())
    tracking = trackers.Tracking("flaky", tmp_path, {}, 0)
    for step in (1, 2, 3):
        tracking.numbers(step, {"loss": 0.5, "lost": float("nan"), "note": "x"})
    tracking.close()
    assert heard == [(1, {"loss": 0.5})]
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "left out from now on" in out
    with pytest.raises(ImportError, match="pip install wandb"):
        trackers.need_tracker("wandb")


def test_event_files_hold_numbers_and_images(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = trackers.Tracking("tensorboard", tmp_path, {}, 0)
    tracking.numbers(3, {"reward": 0.25})
    tracking.pictures(3, trackers.Shown(torch.zeros(2, 4, 4, 3, dtype=torch.uint8).numpy(), ["a cat · 1", "a dog · 2"]))
    tracking.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(3, 0.25)]
    assert len(events.Images("images/1")) == 1


def test_a_model_is_not_made_of_adapters_alone(tmp_path: Path) -> None:
    from dforce.train.checkpoint import CheckpointError, save
    from dforce.train.state import TrainingState

    layout = {"kind": "pipeline", "event_shape": [1, 2, 2], "pipeline": "sd"}
    save(tmp_path / "step_1", TrainingState(1, {"denoiser.a.lowrank.a": torch.zeros(1, 2)}, {}, {}, {}), config={},
         layout=layout)
    with pytest.raises(CheckpointError, match="what was tuned of the pipeline sd"):
        load(tmp_path / "step_1")
