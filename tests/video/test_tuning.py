"""`dforce align video`: its reward, what it leaves in its folder, that it goes on exactly, bad input, and learning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dforce.align.rewards.builtin import Brightness
from dforce.align.rewards.protocol import Subject
from dforce.align.rewards.store import reward_of_frames
from dforce.cli.main import main
from dforce.report.rows import filter_rows, read_results
from dforce.train.checkpoint import build_denoiser, find, load, save
from dforce.train.state import TrainingState
from dforce.video.tuning_report import video_values
from tests.small_video import save_model

pytest.importorskip("av")
SMALL = Subject((1, 8, 8))
QUICK = ["frames=4", "steps=2", "watch=8", "watch_every=1", "evaluate=6", "rollouts=2", "rollout_frames=12", "window=4",
         "feature_steps=4", "device=cpu", "algorithm.samples=8", "algorithm.group=4", "algorithm.updates=2",
         "algorithm.epochs=2"]
BARE = [*QUICK, "watch=0", "evaluate=0"]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dforce.data.video.select.BALLS", {"train": 24, "val": 12})
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base", shape=(1, 8, 8), width=12)


def test_a_reward_is_lifted_to_the_mean_over_frames() -> None:
    frames = torch.full((2, 3, 1, 8, 8), -1.0)
    frames[0, 0], frames[1] = 1.0, 9.0                                              # beyond white is white

    def values(reward) -> list[float]:
        return reward_of_frames(reward, SMALL).tuned(frames, ["a", "b"], [None] * 2).tolist()

    assert values("bright") == pytest.approx([1 / 3, 1.0])
    assert values("dark") == pytest.approx([-1 / 3, -1.0])
    both = reward_of_frames("jpeg", SMALL)
    assert both.held_out is not None and both.tuned(frames, ["a", "b"], [None] * 2)[0] < 0
    node = {"_target_": "dforce.align.rewards.builtin.Brightness", "sign": -2.0}
    assert values(node) == pytest.approx([-2 / 3, -2.0])
    with pytest.raises(ValueError, match="which is no reward"):
        reward_of_frames({"_target_": "dforce.align.algorithms.ddpo.GRPO"}, SMALL)
    with pytest.raises(ValueError, match="must be positive"):
        Brightness(0.0)


def test_what_is_measured_of_pairs_of_videos() -> None:
    frames = torch.zeros(4, 2, 1, 8, 8)
    frames[1], frames[3, 1] = 1.0, 0.5
    found = video_values(reward_of_frames("bright", SMALL), frames, [3, 7])
    assert found["reward"].tolist() == pytest.approx([0.75, 0.5625])
    assert found["diversity"].tolist() == pytest.approx([64.0, 8.0])
    assert found["change"].tolist() == pytest.approx([0.0, 0.25])
    assert "diversity" not in video_values(reward_of_frames("bright", SMALL), frames, [1, 2, 3, 4])


# ---------------------------------------------------------------------------------------------------------- the verb

def align(*words: str) -> int:
    return main(["align", "video", *words])


def weights(where: str | Path) -> dict[str, torch.Tensor]:
    return dict(load(where).denoiser.state_dict())


@pytest.mark.slow
def test_what_a_run_leaves(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align(f"checkpoint={checkpoint}", "algorithm.kl=0.1", *QUICK, "out=a") == 0
    assert "dforce rollout checkpoint=a" in capsys.readouterr().out
    for file in ("index.html", "media/watch.png", "media/before_after.png", "media/rollout.mp4", "media/rollouts.png",
                 "media/drift_base.png", "media/drift_tuned.png", "episodes.jsonl"):
        assert Path("a", file).stat().st_size > 0
    rows = read_results("a/results.json").rows
    short = {name: {row["metric"] for row in filter_rows(rows, method=name, variant={"sampling": "policy"})}
             for name in ("base", "tuned", "real video", "tuned - base")}
    assert short["base"] == {"reward", "brightness", "contrast", "change", "diversity"}
    assert short["tuned"] == {*short["base"], "kl"} and "reward_difference" in short["tuned - base"]
    (gap,) = filter_rows(rows, method="tuned - base", metric="reward_difference")
    means = [filter_rows(rows, method=name, metric="reward")[0]["value"] for name in ("tuned", "base")]
    assert gap["value"] == pytest.approx(means[0] - means[1]) and gap["n"] == 6
    for name in ("base", "tuned"):                                                 # drift, as a rollout reports it
        drift = {row["metric"] for row in filter_rows(rows, method=name, variant={"sampling": "rollout"})}
        assert {"frechet", "frechet / floor", "brightness / real", "broken off", "speed of balls"} <= drift
    looks = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    looks = [line for line in looks if "watch_kl" in line]
    assert [look["queries"] for look in looks] == [0, 8, 16] and looks[0]["watch_kl"] == 0 < looks[1]["watch_kl"]
    assert looks[0]["watch_reward_error"] > 0
    ours, base = load("a"), load(checkpoint)
    assert ours.layout == base.layout and ours.config["align"]["algorithm"]["_target_"].endswith(".GRPO")
    assert {key: value for key, value in ours.config.items() if key != "align"} == base.config
    assert json.loads((find("a") / "state.json").read_text())["extra"]["aligned"]["queries"] == 16
    assert main(["rollout", "checkpoint=a", "frames=4", "samples=2", "steps=2", "measure=false", "out=r"]) == 0


@pytest.mark.parametrize("more", [["algorithm=dpok", "algorithm.group=2"],
                                  pytest.param(["lowrank=2"], marks=pytest.mark.slow),
                                  pytest.param(["algorithm=nft", "algorithm.group=2"], marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_been_stopped(checkpoint: Path, more: list[str]) -> None:
    common = [f"checkpoint={checkpoint}", *BARE, *more]
    if "lowrank=2" in more:                                                        # a GRU over vectors has few layers
        torch.manual_seed(0)
        config = {**load(checkpoint).config, "net": {"_target_": "dforce.nets.conv.ConvGRUNet", "width": 8,
                                                     "latent": 8}}
        made = build_denoiser(config, load(checkpoint).layout)
        state = {f"denoiser.{name}": value for name, value in made.state_dict().items()}
        save(Path("conv"), TrainingState(0, state, {}, {}, {}), config=config, layout=load(checkpoint).layout)
        common[0] = "checkpoint=conv"
    assert align(*common, "algorithm.epochs=3", "out=whole") == 0
    assert align(*common, "algorithm.epochs=1", "out=part") == 0
    assert align("resume=part", "algorithm.epochs=3") == 0
    for (name, one), other in zip(weights("whole").items(), weights("part").values(), strict=True):
        assert torch.equal(one, other), name
    assert any(not torch.equal(a, b) for a, b in zip(weights("whole").values(), weights(common[0][11:]).values(),
                                                     strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ddpo_sf", "ddpo_is", "rwr", "filtered", "sft", "diffusion_dpo", "d3po",
                                       "draft"])
def test_every_algorithm_takes_a_context(checkpoint: Path, algorithm: str) -> None:
    sizes = {"sft": ["samples=64"], "draft": ["samples=4", "updates=2"], "diffusion_dpo": ["samples=16"],
             "d3po": ["samples=16"]}.get(algorithm, ["samples=8"])
    words = [word for word in BARE if word.split("=")[0] not in ("algorithm.group", "algorithm.updates",
                                                                 "algorithm.samples")]
    assert align(f"checkpoint={checkpoint}", *words, f"algorithm={algorithm}", *(f"algorithm.{size}" for size in sizes),
                 "out=a") == 0


@pytest.mark.slow
def test_models_with_actions_and_stacked_frames(tmp_path: Path) -> None:
    from tests.cli.test_train_video import clips

    clips(tmp_path / "clips", count=6)
    base = save_model(tmp_path / "acts", shape=(3, 8, 8), stack=2, actions=2, data=str(tmp_path / "clips"), width=12)
    words = [*QUICK, "frames=4", "context=2", "rollout_frames=6",
             "reward_node={_target_: dforce.align.rewards.builtin.Jpeg, size: 16}"]
    assert align(f"checkpoint={base}", *words, "out=a") == 0
    metrics = {row["metric"] for row in read_results("a/results.json").rows}
    assert {"reward_difference", "frechet"} <= metrics and "held_out_reward" not in metrics


@pytest.mark.parametrize("words, told", [(["checkpoint=null"], "checkpoint is needed"),
                                         (["checkpoint=digits"], "no model of video"),
                                         (["checkpoint=maze2d-umaze"], "no model of video"),
                                         (["checkpoint=nosuch"], "neither a checkpoint"),
                                         (["reward=brigt"], "did you mean 'bright'"), (["reward=os.system"], "outside"),
                                         (["algorithm=grop"], "did you mean 'grpo'"),
                                         (["beta=3"], "algorithm.beta is a key of algorithm="),
                                         (["frames=0"], "frames must be at least 1"),
                                         (["context=-1"], "context must be at least 0"),
                                         (["kl_max=1", "watch=0"], "kl_max takes a watch"),
                                         (["frames=80"], "a window takes 84")])
def test_mistakes_are_told_before_anything_is_written(checkpoint: Path, capsys: pytest.CaptureFixture[str],
                                                      words: list[str], told: str) -> None:
    assert align(f"checkpoint={checkpoint}", *words, "out=out") == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and not Path("out").exists()


@pytest.mark.slow
def test_a_reward_that_turns_nan_leaves_the_weights_before_it(checkpoint: Path, tmp_path: Path, monkeypatch,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad_video.py").write_text(
        "import torch\nasked = []\ndef reward(images, prompts, metadata):\n"
        "    assert images.ndim == 5 and images.shape[1] == 1 and len(prompts) == len(images)\n"
        "    asked.append(1)\n    return images.flatten(1).mean(1) * (float('nan') if len(asked) == 2 else 1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    command = [f"checkpoint={checkpoint}", "reward=bad_video.reward", "trust=bad_video", *BARE, "save_every=100"]
    assert align(*command, "out=a") == 2
    error = capsys.readouterr().err
    assert "not finite" in error and "epoch 1" in error and "step_00000002" in error
    assert Path("a/STATUS").read_text().startswith("failed") and Path("a/index.html").is_file()
    assert load("a").step == 2
    assert align("resume=a", "trust=bad_video") == 0 and load("a").step == 4       # the reward is well again


# -------------------------------------------------------------------------------------------------------- learning

@pytest.mark.slow
def test_tuning_raises_the_brightness_of_what_follows(tmp_path: Path) -> None:
    """An untrained network makes grey haze: the reward pays for white, and held-out contexts get whiter."""
    base = save_model(tmp_path / "haze", shape=(1, 8, 8), width=16)
    assert align(f"checkpoint={base}", *QUICK, "watch=0", "rollouts=0", "evaluate=12", "algorithm.samples=32",
                 "algorithm.updates=4", "algorithm.epochs=12", "algorithm.lr=1e-3", "out=a") == 0
    (gap,) = filter_rows(read_results("a/results.json").rows, method="tuned - base", metric="reward_difference")
    assert gap["low"] > 0.02, gap
