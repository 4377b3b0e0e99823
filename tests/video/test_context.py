"""A context as the conditioning of a policy over frames, and the laws of tuning one that has it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from dforce.align import Sampler, policy_gradient
from dforce.align.objectives import AlignObjective
from dforce.align.on_policy import Samples
from dforce.align.trace import kl, replay
from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.schedule import cosine
from dforce.nets.conv import ConvGRUNet
from dforce.nets.frames import FrameTransformerNet
from dforce.video.model import AfterContext, continuation_cond, load_video
from dforce.video.stream import Recipe, begin
from tests.small_video import save_model

NETS = {"gru": lambda **a: ConvGRUNet((1, 8, 8), width=8, latent=8, **a),
        "transformer": lambda **a: FrameTransformerNet((1, 8, 8), width=8, multipliers=(1, 2), layers=1, heads=2,
                                                       context=4, **a)}


def policy(net: str = "gru", actions: int = 0) -> tuple[AfterContext, dict, Sampler]:
    """An untrained policy, a context of three frames for five videos of four, and how it samples them."""
    torch.manual_seed(1)
    schedule = cosine(50)
    told = {"token": {"action": actions}} if actions else {}
    denoiser = AfterContext(Precond(NETS[net](**told), schedule, "v"))
    with torch.no_grad():
        denoiser.net.decoder.last.conv_out.weight.mul_(10)  # untrained, it begins by saying little that is new
    static, token = {"context": torch.rand(5, 3, 1, 8, 8) * 2 - 1}, {}
    if actions:
        static["context_action"], token = torch.rand(5, 3, actions), {"action": torch.rand(5, 4, actions)}
    cond = {"static": static, "token": token}
    return denoiser, cond, Sampler(denoiser, schedule, pyramid(schedule.grid(3, "index"), 4, 1), (4, 1, 8, 8))


# ------------------------------------------------------------------------------------------------------- a context

@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("actions", [0, 3])
def test_what_is_replayed_after_a_context_is_what_was_recorded(net: str, actions: int) -> None:
    denoiser, cond, sampler = policy(net, actions)
    trace = sampler.record(5, cond, Noise(3))
    with torch.no_grad():
        again = replay(trace, denoiser, sampler.schedule)
        torch.testing.assert_close(again.log_prob, trace.log_prob, rtol=0, atol=1e-3)
        other = {**cond, "static": {**cond["static"], "context": -cond["static"]["context"]}}
        moved = replay(trace._replace(cond=other), denoiser, sampler.schedule)
    assert (moved.log_prob - trace.log_prob).abs().max() > 1e-2          # the context does say something


def test_a_context_is_absorbed_as_a_rollout_absorbs_it(tmp_path: Path) -> None:
    model = load_video(save_model(tmp_path / "acts", shape=(1, 8, 8), stack=2, actions=3, width=12))
    frames, actions = torch.rand(2, 8, 1, 8, 8) * 2 - 1, torch.rand(2, 8, 3)
    cond = continuation_cond(model, frames, actions, 4)
    assert cond["static"]["context"].shape == (2, 2, 2, 8, 8) and cond["token"]["action"].shape == (2, 2, 6)
    state = AfterContext(model.denoiser).init_state(2, cond)
    wanted = begin(model, Recipe(), frames[:, :4], lambda first, count: actions[:, first:first + count])
    for name, value in wanted.items():
        torch.testing.assert_close(state[name], value)


def test_the_gradient_reaches_the_weights_through_the_context() -> None:
    denoiser, cond, sampler = policy()
    trace = sampler.record(5, cond, Noise(3))
    state = denoiser.init_state(5, cond)
    assert state["z"].requires_grad and not sampler.denoiser.absorb(*[cond["static"]["context"], torch.zeros(
        5, 3, dtype=torch.long)], denoiser.init_state(5))["z"].requires_grad
    replay(trace, denoiser, sampler.schedule).log_prob.sum().backward()
    assert all(parameter.grad is not None for parameter in denoiser.parameters())


def test_a_checkpoint_of_a_policy_is_one_of_the_network() -> None:
    denoiser, _, _ = policy()
    plain = Precond(denoiser.net, denoiser.schedule, denoiser.predict)
    assert set(denoiser.state_dict()) == set(plain.state_dict())


# ---------------------------------------------------------------------------------------------------------- the laws

def test_a_reward_that_is_the_same_for_all_moves_nothing() -> None:
    """All advantages are 0: no gradient but that of the KL, which is 0 at the base."""
    denoiser, cond, sampler = policy()
    before, reference = copy.deepcopy(denoiser.state_dict()), copy.deepcopy(denoiser).requires_grad_(False)
    trace = sampler.record(5, cond, Noise(3))
    batch = Samples(trace.x[:, -1], cond, torch.ones(5), torch.zeros(5, dtype=torch.float64), torch.arange(5), trace)
    objective = AlignObjective(denoiser, sampler.schedule, policy_gradient(kl_weight=0.1), reference=reference)
    loss, logs = objective(batch)
    loss.backward()
    assert float(logs["kl"]) == pytest.approx(0, abs=1e-6)
    assert max(float(parameter.grad.abs().max()) for parameter in denoiser.parameters()) < 1e-6
    for name, value in denoiser.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_before_tuning_the_reference_does_the_same() -> None:
    denoiser, cond, sampler = policy()
    reference = copy.deepcopy(denoiser)
    one, other = sampler.tokens(5, cond, Noise(8)), sampler._replace(denoiser=reference).tokens(5, cond, Noise(8))
    assert torch.equal(one, other)
    assert not torch.equal(one, sampler.tokens(5, cond, Noise(9)))
    trace = sampler.record(5, cond, Noise(8))
    with torch.no_grad():
        assert float(kl(trace, denoiser, reference, sampler.schedule).abs().max()) == 0
