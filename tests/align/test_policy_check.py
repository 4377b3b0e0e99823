"""What policy gradients stand on: log-probabilities recorded while sampling are those of a batched replay."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.sample import sample
from dforce.core.schedule import flow, linear
from dforce.core.transition import transition
from dforce.nets.recurrent import RecurrentNet


@pytest.mark.parametrize("schedule, predict", [(linear(100), "v"), (linear(100), "eps"), (flow(100), "flow")])
@pytest.mark.parametrize("delay", [0, 2])
def test_the_ratio_is_one_on_policy(schedule, predict: str, delay: int) -> None:
    torch.manual_seed(0)
    denoiser = Precond(RecurrentNet((3,), width=16), schedule, predict)
    matrix, x = pyramid(schedule.grid(6), 4, delay), torch.randn(5, 4, 3)
    with torch.no_grad():
        steps = list(sample(denoiser, schedule, matrix, x, eta=1.0, order=1))
    before = torch.stack([x, *(step.x for step in steps[:-1])])                       # [S, B, T, E]
    after, level, to = (torch.stack([getattr(step, name) for step in steps]) for name in ("x", "level", "to"))
    recorded = torch.stack([step.kernel.log_prob(step.x) for step in steps])
    flat = [tensor.flatten(0, 1) for tensor in (before, after, level, to)]
    x0, _ = denoiser(flat[0], flat[2], denoiser.init_state(len(flat[0])))             # all steps in one forward
    replayed = transition(schedule, flat[0], x0, flat[2], flat[3], eta=1.0).log_prob(flat[1]).view_as(recorded)
    torch.testing.assert_close((replayed - recorded).exp(), torch.ones_like(recorded), rtol=0, atol=2e-3)
    assert (recorded[(to < level) & (to > 0)] != 0).all()                              # every real step has a density
    assert (recorded[(to == level) | (to == 0)] == 0).all()                            # held and final ones have none
    gradient, = torch.autograd.grad(replayed.sum(), denoiser.net.encoder[0].weight)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
