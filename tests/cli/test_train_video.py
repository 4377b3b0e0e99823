"""`dforce train video`: a run on a folder of clips, its checkpoint, resuming, carried states, what is refused."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from dforce.cli.main import main
from dforce.core.denoiser import Precond
from dforce.core.loss import corrupt, fused_snr
from dforce.core.schedule import cosine, linear, sigmoid
from dforce.data.generate.balls import balls
from dforce.data.video.dataset import VideoClips
from dforce.data.video.select import balls_clips
from dforce.nets.conv import ConvGRUNet
from dforce.train.checkpoint import load, load_state
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective
from dforce.video.model import load_video

NET = ["net.width=8", "net.multipliers=[1]", "net.latent=4"]
STEPS = 500  # of the slow test
SHORT = ["frames=4", "batch=2", "fit.validate_every=2", "fit.warmup=1", "save_every=2", "fit.precision=fp32"]


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    torch.set_num_threads(1)


def clips(root, *, count=3, frames=9, size=8, seed=0):
    """TECO's layout, with actions 0 and 1: npz of uint8 [T, H, W, 3] in train/ and test/."""
    made = balls(2 * count, frames, size, generator=torch.Generator().manual_seed(seed))
    video = ((made.frames + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2).expand(-1, -1, -1, -1, 3).numpy()
    for i, film in enumerate(video):
        file = root / ("train" if i < count else "test") / "0" / f"{i}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, video=film, actions=np.arange(frames) % 2)
    return root


def train(*words):
    return main(["train", "video", *NET, *SHORT, *words])


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_gives_a_model_that_resumes_bit_for_bit(tmp_path, capsys):
    data = clips(tmp_path / "data")
    assert train(f"data={data}", "fit.steps=4", "out=whole", "samples=0") == 0
    assert train(f"data={data}", "fit.steps=4", "out=parts", "samples=0", "save_every=1", "keep=9") == 0
    (tmp_path / "parts" / "checkpoints" / "step_00000004").rename(tmp_path / "aside")
    (tmp_path / "parts" / "checkpoints" / "step_00000003").rename(tmp_path / "aside3")
    assert main(["train", "video", "resume=parts"]) == 0, capsys.readouterr().err
    whole, parts = load_state(tmp_path / "whole"), load_state(tmp_path / "parts")
    assert whole.step == parts.step == 4
    for name, value in whole.model.items():
        assert torch.equal(value, parts.model[name]), name
    model = load_video(tmp_path / "whole")
    assert model.shape == (3, 8, 8) and model.actions == 2 and model.window == 4 and model.stack == 1
    logged = lines(tmp_path / "whole")
    assert logged[-1]["step"] == 4 and math.isfinite(logged[-1]["val_loss"]) and math.isfinite(logged[-1]["val_bound"])
    assert (tmp_path / "whole" / "STATUS").read_text() == "done\n"


@pytest.mark.slow
def test_stacked_frames_carried_states_and_a_picture(tmp_path, capsys):
    data = clips(tmp_path / "data", frames=16)
    assert train(f"data={data}", "fit.steps=2", "out=run", "stack=2", "carry=true", "samples=2",
                 "objective.levels._target_=dforce.core.loss.rising",
                 "~objective.weight.decay", "~objective.weight.clip",
                 "objective.weight._target_=dforce.core.loss.v_weight",
                 "schedule=sigmoid", "+schedule.shift=0.5") == 0, capsys.readouterr().err
    state = load_state("run")
    assert [tuple(leaf.shape) for leaf in state.carried.values()] == [(2, 4, 4, 4), (2, 6, 8, 8), (2, 1)]
    bundle = load("run")
    assert bundle.layout["event_shape"] == [6, 8, 8] and bundle.layout["token"] == {"action": 4}
    assert (tmp_path / "run" / "media" / "frames.png").stat().st_size > 500
    assert "frames.png" in (tmp_path / "run" / "index.html").read_text()


@pytest.mark.parametrize("words, message", [
    (["frames=5", "stack=2"], "frames=5 is not divisible by stack=2"),
    (["frames=40"], "a window takes 40"),
    (["net.patch=3"], "patch must be a power of two"),
    (["net.multipliers=[1,1,1,1]"], "do not divide"),
    (["net.widht=3"], "did you mean 'net.width'|did you mean 'width'"),
])
def test_what_is_refused(tmp_path, capsys, words, message):
    data = clips(tmp_path / "data", count=1)
    assert train(f"data={data}", "out=run", *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_other_clips_are_not_gone_on_with(tmp_path, capsys):
    data = clips(tmp_path / "data", count=1)
    assert train(f"data={data}", "fit.steps=2", "out=run", "samples=0") == 0
    other = clips(tmp_path / "other", count=2)
    assert main(["train", "video", "resume=run", f"data={other}", "fit.steps=4"]) == 2
    assert "are not those that run was trained on (other digest)" in capsys.readouterr().err


@pytest.mark.parametrize("make", [cosine, sigmoid])
def test_a_shift_moves_every_log_snr_alike(make):
    level = torch.arange(50, 900)
    moved = make(1000).log_snr(level) - make(1000, shift=2.0).log_snr(level)
    torch.testing.assert_close(moved, torch.full_like(moved, 2 * math.log(2)), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        make(10, shift=0.0)


def test_no_shift_changes_nothing():
    assert torch.equal(cosine(100).alpha, cosine(100, shift=1.0).alpha)
    assert linear(10).levels == 10


@pytest.mark.slow
def test_it_learns_what_moves():
    """From a clean past and a frame of noise it tells where the ball went: better than the mean frame, and than the
    last one again; the better, the more is left of the frame."""
    torch.manual_seed(0)
    data = VideoClips(balls_clips("train", size=8), frames=8, batch=16, size=8)
    held_out = VideoClips(balls_clips("val", size=8), frames=8, batch=64, size=8).batch_at(0)
    schedule = cosine(100)
    denoiser = Precond(ConvGRUNet((1, 8, 8), width=16, multipliers=(1,), latent=8), schedule, "v")
    objective = ForcingObjective(denoiser, schedule, weight=fused_snr(5.0, 0.9))
    for _ in fit(objective, data.batch_at, lr=3e-3, steps=STEPS, warmup=20, precision="fp32"):
        pass

    def error(noisy):
        level = torch.zeros(64, 8, dtype=torch.long)
        level[:, -1] = noisy
        shown = corrupt(schedule, held_out.x, level, torch.Generator().manual_seed(1))
        with torch.no_grad():
            x0, _ = denoiser(shown, level, denoiser.init_state(64))
        return float((x0[:, -1] - held_out.x[:, -1]).square().mean())

    stays = float((held_out.x[:, -2] - held_out.x[:, -1]).square().mean())
    spread = float(held_out.x[:, -1].var())
    found = {level: error(level) for level in (100, 90, 20)}
    assert found[100] < 0.35 * spread and found[90] < stays and found[20] < 0.6 * stays, (found, stays, spread)
