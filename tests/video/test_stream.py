"""Streams of frames: chunks, contexts and actions in order, equal to the core, and bit for bit again from disk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dforce.core.denoiser import Denoiser, Precond
from dforce.core.matrix import autoregressive
from dforce.core.noise import Noise, no_noise
from dforce.core.rollout import Recent
from dforce.core.sample import generate
from dforce.core.schedule import cosine
from dforce.data.pixels import to_uint8
from dforce.nets.recurrent import RecurrentNet
from dforce.video.baselines import TwoCall, WindowPast, sliding_window, states_before
from dforce.video.model import VideoModel
from dforce.video.recording import Record, flatten, unflatten
from dforce.video.stream import Recipe, begin, stream

S = cosine(50)
SHAPE, A = (1, 4, 4), 2


def model(stack: int = 1, actions: int = A) -> VideoModel:
    torch.manual_seed(0)
    c, h, w = SHAPE
    net = RecurrentNet((stack * c, h, w), token={"action": stack * actions} if actions else {}, width=16)
    return VideoModel(Precond(net, S, "v").eval(), S, SHAPE, stack, actions, "", 8, {}, {}, None)  # type: ignore[arg-type]


def frames(batch=2, time=6, seed=0):
    return torch.rand(batch, time, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def told(frame, count, batch=2):
    """Numbers that say which frame they lead to."""
    numbers = torch.arange(frame, frame + count, dtype=torch.float32) / 10
    return numbers[None, :, None].expand(batch, -1, A)


@pytest.mark.parametrize("stack", [1, 2])
def test_tokens_and_frames_are_inverse_and_keep_order(stack):
    m, x = model(stack), frames()
    tokens = m.tokens(x)
    assert tokens.shape == (2, 6 // stack, stack, 4, 4) and torch.equal(m.frames(tokens), x)
    assert torch.equal(tokens[:, 1, 0], x[:, stack, 0])
    cond = m.cond(told(0, 6))
    assert torch.equal(cond["token"]["action"][0, 1], torch.arange(stack, 2 * stack).repeat_interleave(A) / 10)


def test_a_stream_is_generate_from_the_state_after_the_context():
    m, x, noise = model(), frames(), Noise(1)
    recipe = Recipe(steps=4, stabilise_std=0.0, clamp=None)
    state = begin(m, recipe, x, told)
    chunk, after = next(stream(m, recipe, state, batch=2, actions=told, context=6, noise=noise))
    zeros = torch.zeros(2, 6, dtype=torch.long)
    by_hand = m.denoiser.absorb(x, zeros, m.denoiser.init_state(2), m.cond(told(0, 6)))
    torch.testing.assert_close(state["z"], by_hand["z"])
    grid = S.grid(4)
    start = noise(5, torch.arange(1), x[:, :1], salt=1)
    wanted = generate(m.denoiser, S, autoregressive(grid, 1), start, state=by_hand, cond=m.cond(told(6, 1)))
    torch.testing.assert_close(chunk, wanted)
    torch.testing.assert_close(after["z"], m.denoiser.absorb(chunk, zeros[:, :1], by_hand, m.cond(told(6, 1)))["z"])


@pytest.mark.parametrize("recipe", [
    Recipe(steps=3, chunk=2), Recipe(steps=3, chunk=4, delay=1, eta=1.0, mode="noise"),
    Recipe(steps=3, chunk=2, refresh=(4, 6)),
    Recipe(method="sliding", steps=3, chunk=4, keep=4), Recipe(method="regression", chunk=2),
])
def test_a_stream_goes_on_from_disk_bit_for_bit(recipe, tmp_path):
    m, x, noise = model(stack=2), frames(), Noise(7)
    state = begin(m, recipe, x, told)
    options = {"batch": 2, "actions": told, "context": 6, "noise": noise}
    whole = list(itertools.islice(stream(m, recipe, state, **options), 5))
    record = Record(tmp_path, shape=(2, 4, 4, 1), actions=A, settings={"seed": 7})
    for i, (chunk, after) in enumerate(whole[:3], 1):
        record.append(to_uint8(chunk), told(6, recipe.chunk))
        if i < 3:
            record.save(after, chunks=i, frames=i * recipe.chunk)
    again = Record(tmp_path, shape=(2, 4, 4, 1), actions=A, settings={"seed": 7}, resume=True)
    assert again.chunks == 2 and len(again.frames()) == 2 * recipe.chunk       # the third was after the state
    for (wanted, _), (got, _) in zip(whole[2:], stream(m, recipe, again.state, first=2, **options), strict=False):
        assert torch.equal(wanted, got)
    assert np.array_equal(again.frames()[:recipe.chunk].swapaxes(0, 1), to_uint8(whole[0][0]))
    assert again.actions_fed().shape == (2 * recipe.chunk, 2, A)


def test_a_record_is_not_gone_on_with_by_other_settings(tmp_path):
    record = Record(tmp_path, shape=(1, 4, 4, 3), actions=0, settings={"seed": 7, "steps": 3})
    record.append(np.zeros((1, 2, 4, 4, 3), np.uint8), None)
    record.save({"z": torch.zeros(1, 2)}, chunks=2, frames=2)
    with pytest.raises(ValueError, match="steps was 3, is 4"):
        Record(tmp_path, shape=(1, 4, 4, 3), actions=0, settings={"seed": 7, "steps": 4}, resume=True)
    (tmp_path / "frames.u8").write_bytes(b"12")
    with pytest.raises(ValueError, match="frames.u8 is damaged: it is not what was written before frame 2"):
        Record(tmp_path, shape=(1, 4, 4, 3), actions=0, settings={"seed": 7, "steps": 3}, resume=True)
    with pytest.raises(ValueError, match="frames must be uint8"):
        record.append(np.zeros((1, 2, 4, 4, 1), np.uint8), None)


def test_states_survive_flattening():
    state = {"a": (torch.ones(2), None, [torch.zeros(1, 3)]), "b": Recent({"z": torch.eye(2)}, torch.ones(2, 0), {})}
    tensors = {}
    again = unflatten(flatten(state, tensors), tensors)
    assert again["a"][1] is None and isinstance(again["b"], Recent) and torch.equal(again["b"].state["z"], torch.eye(2))
    assert isinstance(again["a"], tuple) and isinstance(again["a"][2], list)
    with pytest.raises(TypeError, match="got a str"):
        flatten({"a": "b"}, {})


def test_the_clamp_holds_and_chunks_that_do_not_fill_tokens_are_refused():
    m = model(stack=2)
    state = begin(m, Recipe(chunk=2), frames(), told)
    x, _ = next(stream(m, Recipe(chunk=2, steps=3, clamp=0.1), state, batch=2, actions=told))
    assert x.abs().max() <= 0.1 + 1e-6
    wide, _ = next(stream(m, Recipe(chunk=2, steps=3, clamp=None), state, batch=2, actions=told))
    assert wide.abs().max() > 0.1
    for recipe, message in [(Recipe(chunk=3), "whole tokens of 2"), (Recipe(chunk=2, clamp=-1.0), "clamp"),
                            (Recipe(chunk=2, method="df"), "one of forcing"), (Recipe(chunk=2, delay=-1), "delay"),
                            (Recipe(chunk=2, method="sliding", refresh=(2, 2)), "no state")]:
        with pytest.raises(ValueError, match=message):
            recipe.checked(2)
    with pytest.raises(ValueError, match="takes actions of 2 numbers a frame; say which"):
        begin(m, Recipe(chunk=2), frames())
    with pytest.raises(ValueError, match="do not fill tokens of 2"):
        m.tokens(frames(time=5))


def test_history_guidance_of_weight_one_is_none_and_others_guide():
    m, x = model(), frames()

    def first(recipe):
        state = begin(m, recipe, x, told)
        return next(stream(m, recipe, state, batch=2, actions=told, context=6, noise=Noise(1)))

    plain, _ = first(Recipe(steps=3, clamp=None))
    assert torch.equal(plain, first(Recipe(steps=3, clamp=None, history_std=0.3))[0])
    guided, state = first(Recipe(steps=3, clamp=None, history=2.0))
    assert not torch.allclose(plain, guided) and state["token"].tolist() == [7, 7]
    assert not torch.allclose(guided, first(Recipe(steps=3, clamp=None, history=2.0, history_std=0.5))[0])
    assert first(Recipe(steps=3, clamp=0.2, history=9.0))[0].abs().max() <= 0.2 + 1e-6  # the clamp is around the guided
    tensors = {}
    assert torch.equal(unflatten(flatten(state, tensors), tensors)["past"][1]["z"], state["past"][1]["z"])
    with pytest.raises(ValueError, match="leave history=1"):
        Recipe(method="sliding", history=2.0).checked(1)


def test_a_model_of_latents_takes_and_gives_frames():
    class Halved:
        """Latents by averaging 2 x 2 pixels; back by repeating."""

        def event_shape(self, shape):
            return shape[0], shape[1] // 2, shape[2] // 2

        def encode(self, frames):
            return torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 2).unflatten(0, frames.shape[:2])

        def decode(self, latents):
            return latents.repeat_interleave(2, -1).repeat_interleave(2, -2)

    small = model()
    m = small._replace(shape=(1, 8, 8), latents=Halved())
    big = torch.nn.functional.interpolate(frames().flatten(0, 1), scale_factor=2).unflatten(0, (2, 6))
    recipe = Recipe(steps=3, clamp=None)
    pixels, _ = next(stream(m, recipe, begin(m, recipe, big, told), batch=2, actions=told, context=6))
    latents, _ = next(stream(small, recipe, begin(small, recipe, frames(), told), batch=2, actions=told, context=6))
    assert pixels.shape == (2, 1, 1, 8, 8) and torch.equal(pixels[..., ::2, ::2], latents)
    none = torch.zeros(2, 0, 1, 8, 8)
    assert next(stream(m, recipe, begin(m, recipe, none, told), batch=2, actions=told))[0].shape == (2, 1, 1, 8, 8)


# ------------------------------------------------------------------------------------------------------- baselines

def test_a_sliding_window_is_full_sequence_diffusion_with_replacement():
    """Its known tokens are, row by row, on the path of their own noise; one row above, they are noised exactly."""
    m, x, noise = model(), frames(time=3), Noise(2)
    levels = []

    class Spy(Denoiser):
        causal = recurrent = True
        init_state, absorb = m.denoiser.init_state, m.denoiser.absorb

        def __call__(self, x, level, state, cond=None):
            levels.append((x.clone(), level))
            return m.denoiser(x, level, state, cond)

    past = WindowPast(x, m.cond(told(0, 3))["token"])
    grid = S.grid(4)
    run = sliding_window(Spy(), S, grid, past, new=2, keep=3, cond=lambda c: m.cond(told(3 + 2 * c, 2)), noise=noise,
                         order=1)
    new, after = next(run)
    assert new.shape == (2, 2, *SHAPE) and after.x.shape == (2, 3, *SHAPE)
    assert torch.equal(after.x[:, 0], x[:, 2]) and torch.equal(after.x[:, 1:], new)
    assert torch.equal(after.token["action"], told(2, 3))
    start = levels[0][0][:, :3]
    for shown, level in levels:
        assert (level == level[0, 0]).all()                                    # one level for the whole window
        alpha, sigma = S.alpha[level[0, 0]], S.sigma[level[0, 0]]
        eps = (start - S.alpha[-1] * x) / S.sigma[-1]
        torch.testing.assert_close(shown[:, :3], (alpha * x + sigma * eps).float(), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="keeps one"):
        next(sliding_window(Spy(), S, grid, past, new=0, keep=3))


def test_teacher_forcing_sees_the_clean_past_and_nothing_of_the_future():
    m, x = model(), frames(time=4)
    cond = m.cond(told(0, 4))
    before = states_before(m.denoiser, x, cond)
    for t in range(4):
        past = {"token": {"action": cond["token"]["action"][:, :t]}}
        wanted = m.denoiser.absorb(x[:, :t], torch.zeros(2, t, dtype=torch.long), m.denoiser.init_state(2), past) \
            if t else m.denoiser.init_state(2)
        torch.testing.assert_close(before["z"].unflatten(0, (2, 4))[:, t], wanted["z"])


def test_the_two_call_loss_is_the_mean_over_tokens_of_single_predictions():
    from dforce.data.batch import Batch

    m, x = model(), frames(time=3)
    m.denoiser.requires_grad_(True)
    batch = Batch(x, torch.tensor([[True, True, True], [True, False, False]]), m.cond(told(0, 3)), torch.ones(2).bool())
    objective = TwoCall(m.denoiser, S, levels="last")
    loss, logs = objective(batch, torch.Generator().manual_seed(0))
    terms = []
    for b, t in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        past = m.cond(told(0, t, 1)) if t else None
        state = m.denoiser.init_state(1)
        if t:
            state = m.denoiser.absorb(x[b:b + 1, :t], torch.zeros(1, t, dtype=torch.long), state, past)
        guess, _ = m.denoiser(torch.zeros(1, 1, *SHAPE), torch.full((1, 1), S.levels), state, m.cond(told(t, 1, 1)))
        terms.append((guess[0, 0] - x[b, t]).square().mean())
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    loss.backward()
    core = m.denoiser.net.core.weight_hh_l0.grad
    assert core is not None and core.abs().max() > 0                           # the past learns to be remembered
    random, _ = TwoCall(m.denoiser, S)(batch, torch.Generator().manual_seed(0))
    assert torch.equal(random, TwoCall(m.denoiser, S)(batch, torch.Generator().manual_seed(0))[0])
    assert not torch.equal(random, TwoCall(m.denoiser, S)(batch, torch.Generator().manual_seed(1))[0])
    with pytest.raises(ValueError, match="'random' or 'last'"):
        TwoCall(m.denoiser, S, levels="all")


def test_regression_rolls_its_own_predictions_out():
    m, recipe = model(), Recipe(method="regression", clamp=None, stabilise_std=0.0)
    x, state = frames(), begin(model(), Recipe(), frames(), told)
    out = [chunk for chunk, _ in itertools.islice(stream(m, recipe, state, batch=2, actions=told, context=6), 2)]
    for t, got in enumerate(out):
        wanted, _ = m.denoiser(torch.zeros(2, 1, *SHAPE), torch.full((2, 1), S.levels), state, m.cond(told(6 + t, 1)))
        torch.testing.assert_close(got, wanted)
        state = m.denoiser.absorb(got, torch.zeros(2, 1, dtype=torch.long), state, m.cond(told(6 + t, 1)))
    assert not no_noise(0, 0, x).any()
