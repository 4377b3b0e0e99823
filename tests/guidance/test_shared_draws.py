"""Draws that share what they keep are the draws one by one, and cost less."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import cosine
from dforce.guidance import shared_draws
from dforce.guidance.monte_carlo import monte_carlo
from dforce.guidance.wrapper import classifier_free
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet

S, TIME = cosine(60), 9
SHAPES = {"static": {"s": 1}, "token": {"a": 1}}


def bed(kind, batch):
    torch.manual_seed(0)
    net = {"recurrent": lambda: RecurrentNet((2,), width=10, **SHAPES),
           "deep": lambda: RecurrentNet((2,), width=6, depth=2, **SHAPES),
           "transformer": lambda: TransformerNet((2,), width=8, depth=2, heads=2, context=6, **SHAPES),
           "classifier-free": lambda: RecurrentNet((2,), width=6, **SHAPES),
           "learning": lambda: RecurrentNet((2,), width=10, **SHAPES)}[kind]()
    denoiser = Precond(net.double(), S, "v").eval().requires_grad_(kind == "learning")
    if kind == "classifier-free":
        denoiser = classifier_free(denoiser, 2.0, {"static": {"s": torch.zeros(1, 1).double()},
                                                   "token": {"a": torch.zeros(1, 1, 1).double()}})
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(2)).double()  # noqa: E731
    return denoiser, draw(batch, TIME, 2), {"static": {"s": draw(batch, 1)}, "token": {"a": draw(batch, TIME, 1)}}


def energy(x0):
    """Of all tokens, each pair of neighbours too: not a sum over tokens."""
    return -(x0 - 0.5).square().sum((1, 2)).sqrt() - (x0[:, 1:] * x0[:, :-1]).sum((1, 2)).tanh()


def both(monkeypatch, run):
    """run() with the draws one by one, and shared."""
    with monkeypatch.context() as alone:
        alone.setattr(monte_carlo, "_shares", False)
        return run(), (alone.undo(), run())[1]


@pytest.mark.parametrize("kind", ["recurrent", "deep", "transformer", "classifier-free", "learning"])
@pytest.mark.parametrize("draws, lookahead, chunk", [(2, 2, None), (4, 3, None), (7, 2, 2), (5, 4, 1)])
@pytest.mark.quick(6)
def test_equal_to_the_draws_one_by_one(kind, draws, lookahead, chunk, monkeypatch):
    denoiser, x, cond = bed(kind, 3)
    level = pyramid(S.grid(8), TIME, 1)[6].expand(3, -1)

    def run():
        guide = monte_carlo(denoiser, S, energy, draws, lookahead=lookahead, reduce="mean", scale=0.7, chunk=chunk)
        x0, state = guide(x, level, guide.init_state(3, cond), cond)
        return x0, state["inner"]

    for grain in (1, 4):
        monkeypatch.setattr(shared_draws, "GRAIN", grain)
        (wanted, state), (got, state_) = both(monkeypatch, run)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(state_, state, rtol=1e-6, atol=1e-8)
    plain = monte_carlo(denoiser, S, energy, 1, scale=0.7)
    assert (wanted - plain(x, level, plain.init_state(3, cond), cond)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind, batch, delay", [("recurrent", 1, 1), ("recurrent", 1, 3), ("recurrent", 2, 0),
                                                ("recurrent", 2, 4), ("learning", 2, 3)])
@pytest.mark.quick(2)
def test_whole_plans_are_equal(kind, batch, delay, monkeypatch):
    """Prefixes absorbed on the way, draws that keep everything, rows with one unfinished token."""
    denoiser, x, cond = bed(kind, batch)
    monkeypatch.setattr(shared_draws, "GRAIN", 2)

    def run(path="rows"):
        guide = monte_carlo(denoiser, S, energy, 4, lookahead=2, reduce="mean", scale=0.3, noise=Noise(5))
        return generate(guide, S, pyramid(S.grid(4), TIME, delay), x, cond=cond, noise=Noise(5), path=path)

    wanted, got = both(monkeypatch, run)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(run("double_loop" if delay == 0 else "rows"), wanted, rtol=1e-7, atol=1e-9)


def test_who_shares(monkeypatch):
    denoiser, x, cond = bed("recurrent", 2)
    whole = Precond(TransformerNet((2,), width=8, depth=1, heads=2, causal=False, **SHAPES).double(), S, "v")
    assert monte_carlo(denoiser, S, energy, 2, reduce="mean")._shares
    for other in (monte_carlo(denoiser, S, energy, 1, reduce="mean"), monte_carlo(denoiser, S, energy, 4),
                  monte_carlo(denoiser, S, energy, 4, reduce="mean", branch="posterior"),
                  monte_carlo(denoiser, S, energy, 4, reduce="mean", futures="sequential"),
                  monte_carlo(whole, S, energy, 4, reduce="mean")):
        assert not other._shares


@pytest.mark.parametrize("kind", ["recurrent", "learning"])
def test_it_evaluates_fewer_tokens(kind, monkeypatch):
    """4 draws, 2 passes: one by one 7 T tokens a row; shared, the row once and twice what each draw has of its own."""
    denoiser, x, cond = bed(kind, 1)
    counted, inner = [], denoiser._input
    monkeypatch.setattr(denoiser, "_input", lambda x, level: (counted.append(level.numel()), inner(x, level))[1])
    monkeypatch.setattr(shared_draws, "GRAIN", 1)
    guide = monte_carlo(denoiser, S, energy, 4, lookahead=2, reduce="mean")
    level = torch.full((1, TIME), 60)

    def run():
        counted.clear()
        guide(x, level, guide.init_state(1, cond), cond)
        return sum(counted)

    own = TIME - 1 - guide._splits(level, 3).flatten()
    assert both(monkeypatch, run) == (7 * TIME, TIME + 2 * int(own.sum()))
    assert TIME + 2 * int(own.sum()) <= 5 * TIME
