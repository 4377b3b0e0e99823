"""Causality: no output of a causal denoiser hears of later tokens; guidance by design does."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.schedule import linear
from dforce.guidance.energy import guided
from dforce.guidance.inpaint import inpaint
from dforce.guidance.wrapper import classifier_free, clipped
from dforce.nets.recurrent import RecurrentNet
from tests.gaussian_bed import Causal, NonCausal

S, T = linear(50), 5


def net(**options):
    torch.manual_seed(0)
    return Precond(RecurrentNet((2,), width=12, depth=2, **options).double(), S, "v", data_std=0.7)


def reach(denoiser, event=2, of="x"):
    """[T, T]: does x0_hat of token t (row) hear of token s (column)?"""
    x = torch.randn(2, T, event, generator=torch.Generator().manual_seed(0)).double()
    level = torch.tensor([[10, 1, 50, 25, 3]]).expand(2, T)

    def answer(value):
        given = {"token": {"a": value}} if of == "cond" else None
        return denoiser(x if of == "cond" else value, level, denoiser.init_state(2, given), given)[0]

    jacobian = torch.autograd.functional.jacobian(answer, x if of == "x" else torch.randn(2, T, 3).double())
    return jacobian.abs().sum((0, 2, 3, 5)) > 0


LOWER = torch.ones(T, T).tril().bool()


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: clipped(d, -50, 50), lambda d: classifier_free(d, 1.5)],
                         ids=["plain", "clipped", "classifier_free"])
def test_recurrent_net_is_causal_and_forgets_nothing(wrap):
    denoiser = wrap(net())
    assert denoiser.causal
    hears = reach(denoiser)
    assert not (hears & ~LOWER).any()
    assert torch.equal(hears, LOWER)


def test_token_conditioning_is_causal():
    assert torch.equal(reach(net(token={"a": 3}), of="cond"), LOWER)


def test_v_at_level_zero_is_the_token_itself():
    x = torch.randn(2, T, 2).double()
    got, _ = net()(x, torch.zeros(2, T, dtype=torch.long), net().init_state(2))
    assert torch.equal(got, x)


def test_the_state_after_hears_of_every_token():
    denoiser = net()
    x = torch.randn(1, T, 2).double()
    level = torch.full((1, T), 20)
    jacobian = torch.autograd.functional.jacobian(lambda x: denoiser(x, level, denoiser.init_state(1))[1]["z"], x)
    assert (jacobian.abs().sum((0, 1, 2, 3, 5)) > 0).all()


def test_the_exact_denoisers_are_what_they_say():
    assert torch.equal(reach(Causal(S), 1), LOWER)
    assert reach(lambda_of(NonCausal(S, T)), 1).all()


def lambda_of(denoiser):
    """NonCausal answers in float32."""
    class Double:
        init_state = denoiser.init_state

        def __call__(self, x, level, state, cond=None):
            return denoiser(x.float(), level, state)

    return Double()


def test_guidance_hears_of_later_tokens_and_says_so():
    denoiser = guided(net(), S, lambda x0: -x0[:, -1].square().sum(1), differentiable=True)
    assert denoiser.global_x0 and denoiser.causal and not denoiser.recurrent
    x = torch.randn(1, T, 2).double()
    level = torch.full((1, T), 20)
    state = denoiser.init_state(1)
    changed = x.clone()
    changed[:, -1] += 1
    assert (denoiser(x, level, state)[0] != denoiser(changed, level, state)[0])[:, 0].any()
    masked = inpaint(net(), torch.zeros(T, 2).double(), torch.zeros(T, 2, dtype=torch.bool))
    assert not masked.causal and not masked.recurrent
