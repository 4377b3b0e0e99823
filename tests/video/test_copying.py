"""The error from noise beside that of copying: its numbers, its sentence, what a rollout and a training say of it."""

import pytest
import torch

from dforce.data.batch import Batch
from dforce.report.statistics import Interval
from dforce.train.validation import held_out_error, noted
from dforce.video.copying import copying_rows, copying_sentence, errors_from_noise
from dforce.video.metrics.measure import RowMaker
from dforce.video.model import VideoModel, load_video
from dforce.video.stream import Recipe
from tests.small_video import save_model

MAKER = RowMaker("clips", "model", {})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VideoModel:
    return load_video(save_model(tmp_path_factory.mktemp("model") / "checkpoint", shape=(1, 8, 8), actions=2, stack=2))


def windows(step):
    g = torch.Generator().manual_seed(step)
    return torch.rand(16, 8, 1, 8, 8, generator=g) * 2 - 1, torch.rand(16, 8, 2, generator=g)


def test_it_is_the_held_out_error_of_validations(model):
    frames, actions = windows(0)
    made, kept = errors_from_noise(model, frames, actions, seed=3)
    batch = Batch(model.tokens(frames), None, model.cond(actions), torch.ones(16, dtype=torch.bool))
    from dforce.core.noise import Noise
    same = held_out_error(model.denoiser, model.schedule, batch, stds=(), noise=Noise(3))
    torch.testing.assert_close(made.mean().sqrt(), same["pure"])
    torch.testing.assert_close(kept.mean().sqrt(), same["kept"])
    assert torch.equal(kept, (frames[:, -2:] - frames[:, -4:-2]).square().flatten(1).mean(1))


def test_rows_have_an_interval_over_windows_and_the_sentence_follows_it(model):
    rows = {row["metric"]: row for row in copying_rows(model, windows, MAKER)}
    row = rows["error / copying"]
    assert row["n"] == 64 and row["low"] < row["value"] < row["high"]
    assert row["value"] == pytest.approx(rows["error from noise"]["value"] / rows["error of copying"]["value"])
    better, unsure, worse = ([MAKER.row("error / copying", Interval(*values, 64)), MAKER.row("error from noise", 0.09,
                              n=64), MAKER.real().row("error of copying", 0.1, n=64)] for values in (
        (0.9, 0.85, 0.95), (0.98, 0.93, 1.02), (1.5, 1.4, 1.6)))
    assert copying_sentence(better) == ("On held-out clips a frame made from noise errs 0.090, one that repeats the "
                                        "last 0.100 (0.90 [0.85, 0.95] times).")
    assert all("no better than keeping the last frame" in copying_sentence(each) for each in (unsure, worse))
    assert copying_sentence([]) == "" and copying_rows(model, lambda step: tuple(
        each[:, :2] for each in windows(step)), MAKER) == []


def test_the_line_of_a_step_keeps_the_last_validation():
    line = noted({"loss": 0.5, "val_error_pure": 0.4, "val_error_kept": 0.1}, "")
    assert line == "loss 0.5000, held out from noise 0.400, keeping the last 0.100"
    assert noted({"loss": 0.25}, line) == "loss 0.2500, held out from noise 0.400, keeping the last 0.100"
    assert noted({"loss": 0.25}, "loss 0.5000") == "loss 0.2500"


@pytest.mark.parametrize("steps, given, history, said", [(2, (), 1.0, "history=1 is taken"), (3, (), 1.5, ""),
                                                         (1, ("history",), 1.5, "give history=1, or more steps")])
def test_few_steps_and_strong_history_do_not_go_together(steps, given, history, said):
    recipe, lines = Recipe(steps=steps, history=1.5).fitting(given, latents=False)
    assert recipe.history == history and bool(lines) == bool(said) and said in "".join(lines)


def test_latents_are_not_clamped_unless_it_is_asked_for():
    assert Recipe().fitting((), latents=True)[0].clamp is None
    assert Recipe().fitting(("clamp",), latents=True) == (Recipe(), []) == Recipe().fitting((), latents=False)
