"""Checkpoints of the Diffusion Forcing repository: the network that takes them over, and its sampling.

official.safetensors holds what the repository's own code (main branch, the commit is in its metadata) computed with the
weights that `file` draws: 3x8x8 frames, width 8, multipliers 1 and 2, 2 heads of 4, sigmoid schedule, 4 sampling steps.
"""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dforce.cli.main import main
from dforce.core.transition import transition
from dforce.video.model import load_video
from dforce.video.official import NETWORK
from dforce.video.stream import Recipe, begin, stream

with safe_open(Path(__file__).parent / "official.safetensors", "pt") as content:
    ABOUT, OFFICIAL = content.metadata(), {name: content.get_tensor(name) for name in content.keys()}
KEYS = ["size=8", "window=4", "stride=1"]


def state_dict():
    """Random weights under the repository's names, in the order of these."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in json.loads(ABOUT["shapes"]).items():
        value = torch.randn(shape, generator=draw)
        tensors[NETWORK + name] = value / value[0].numel() ** 0.5 if len(shape) > 1 else 0.3 * value + (
            1.0 if name.endswith("weight") else 0.0)
    tensors |= {NETWORK + name: OFFICIAL["freqs"] for name in json.loads(ABOUT["frequencies"])}
    half = torch.tensor(0.5)
    return {**tensors, "diffusion_model.alphas_cumprod": OFFICIAL["alphas_cumprod"], "data_mean": half,
            "data_std": half}


def written(place, tensors, **more):
    torch.save({"state_dict": tensors, "global_step": 7, "epoch": 0, **more}, place)
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    file = written(folder / "model.ckpt", state_dict(), optimizer_states=[])
    assert main(["data", "checkpoint", f"checkpoint={file}", *KEYS, f"out={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture
def model(run):
    return load_video(run)


def close(value, name):
    assert torch.allclose(value, OFFICIAL[name], atol=1e-5, rtol=1e-5), (value - OFFICIAL[name]).abs().max()


def test_the_network_answers_as_the_official_one_at_any_levels(model):
    net = model.denoiser.net
    with torch.no_grad():
        close(net(OFFICIAL["x"], OFFICIAL["timestep"].float(), net.init_state(2))[0], "v")


def test_a_step_of_ddim_after_clean_frames_is_the_official_one(model):
    x, level, to = OFFICIAL["x"], torch.tensor([[0, 0, 0, 1000, 750]] * 2), torch.tensor([[0, 0, 0, 750, 500]] * 2)
    with torch.no_grad():
        x0, _ = model.denoiser(x, level, model.denoiser.init_state(2))
    close(transition(model.schedule, x, x0, level, to, eta=0.0).mean[:, 3:], "step")


def test_a_rollout_by_the_recipe_that_comes_with_it_makes_the_official_frame(model):
    recipe = Recipe(**{**model.config["recipe"], "steps": 4})
    state = begin(model, recipe, OFFICIAL["x"][:, :3])
    frames = stream(model, recipe, state, batch=2, noise=lambda row, token, like, salt=0, sample=None:
                    OFFICIAL["x"][:, 3:4], context=3)
    (first, _), (second, after) = islice(frames, 2)
    close(first, "frame")
    assert after["x"].shape[1] == 3 and torch.equal(after["x"][:, -2:], torch.cat([first, second], 1))


def test_frames_absorbed_count_as_frames_shown_and_older_ones_than_the_window_are_forgotten(model):
    denoiser, x = model.denoiser, OFFICIAL["x"]
    level = torch.tensor([[0, 0, 300, 500]] * 2)
    with torch.no_grad():
        whole, _ = denoiser(x[:, 1:], level, denoiser.init_state(2))
        state = denoiser.absorb(x[:, :3], torch.zeros(2, 3, dtype=torch.long), denoiser.init_state(2))
        parts, _ = denoiser(x[:, 3:], level[:, 2:], state)
    assert torch.allclose(parts, whole[:, 2:], atol=1e-6) and denoiser.causal and denoiser.keeps_chunk


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop(NETWORK + "init_conv.bias"), "lacks first.bias"),
    (lambda t: t.update({NETWORK + "extra.weight": torch.ones(2)}), "unknown here, extra.weight"),
    (lambda t: t.update({NETWORK + "out.1.weight": torch.ones(3, 9, 1, 1, 1)}), "last.1.weight"),
    (lambda t: t.update({NETWORK + "init_conv.bias": torch.full((8,), float("nan"))}), "not finite in first.bias"),
    (lambda t: t.update({"diffusion_model.alphas_cumprod": torch.linspace(0.9, 0.1, 1000)}), "no schedule known here"),
    (lambda t: t.update({NETWORK + "rotary_time_pos_embedding.freqs": torch.ones(2)}), "rotary frequencies"),
    (lambda t: t.update(data_mean=torch.tensor([0.4])), "its data_mean is 0.4"),
    (lambda t: t.pop("diffusion_model.alphas_cumprod"), "it lacks 'diffusion_model.alphas_cumprod'"),
    (lambda t: t.update({NETWORK + "out.1.weight": torch.ones(1).expand(2**30)}), "as a Lightning checkpoint"),
    (lambda t: t.update(code=Path("x")), "as a Lightning checkpoint"),  # an object: what would run code is refused
])
def test_a_file_of_another_model_is_refused_in_one_line_and_nothing_is_left(change, message, tmp_path, capsys):
    tensors = state_dict()
    change(tensors)
    file = written(tmp_path / "other.ckpt", tensors)
    assert main(["data", "checkpoint", f"checkpoint={file}", *KEYS, f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not list(tmp_path.glob("run/checkpoints/*"))


def test_it_rolls_out_by_the_command(run, tmp_path, capsys):
    command = ["rollout", f"checkpoint={run}", "frames=3", "samples=1", "steps=2", "film=false"]
    assert main([*command, f"out={tmp_path / 'film'}"]) == 0
    assert "spacing=index" in capsys.readouterr().out and (tmp_path / "film" / "results.json").is_file()
