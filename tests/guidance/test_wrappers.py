"""Every ordered pair of wrappers keeps the traits of what is inside: all paths agree, or are refused by name."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from dforce.align.lora import without_adapters
from dforce.benchmarks.speed.sampling import Counted
from dforce.core.denoiser import Denoiser, Precond
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise, shifted
from dforce.core.rollout import rollout
from dforce.core.sample import generate
from dforce.core.schedule import linear
from dforce.core.tree import leaves
from dforce.guidance.energy import guided
from dforce.guidance.history import fractional, history_guided
from dforce.guidance.inpaint import inpaint, padded
from dforce.guidance.monte_carlo import monte_carlo
from dforce.guidance.universal import backward_guided, classifier_guided
from dforce.guidance.wrapper import Wrapper, classifier_free, clipped
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet
from tests.align_bed import Vectors
from tests.gaussian_bed import Causal, NonCausal

S, B, T, P = linear(200), 2, 3, 1
GRID, CHUNK = S.grid(2), 2
PATHS = ("wavefront", "constant", "rows")


def energy(x0):
    return -(x0[:, :T] - 1).square().flatten(1).sum(1)


def likelihood(x, level):
    return -(x[:, 0] - 1).square().flatten(1).sum(1)


def filled(d):
    known = torch.zeros(T, *d.event, dtype=d.dtype)
    mask = torch.zeros_like(known, dtype=torch.bool)
    known[1], mask[1] = 0.5, True
    return known, mask


WRAPPERS = {
    "guided": lambda d, bed: guided(d, S, energy, 0.1),
    "differentiable": lambda d, bed: guided(d, S, energy, 0.1, differentiable=True),
    "monte_carlo": lambda d, bed: monte_carlo(d, S, energy, 2, scale=0.1, lookahead=2, reduce="mean"),
    "log_mean": lambda d, bed: monte_carlo(d, S, energy, 2, scale=0.1, lookahead=2, reduce="logmeanexp"),
    "classifier": lambda d, bed: classifier_guided(d, S, likelihood, 0.1),
    "backward": lambda d, bed: backward_guided(d, energy, updates=1),
    "classifier_free": lambda d, bed: classifier_free(d, 2.0),
    "history": lambda d, bed: history_guided(d, S, fractional(2.0, 0.5)),
    "clipped": lambda d, bed: clipped(d, -0.8, 0.8),
    "inpaint": lambda d, bed: inpaint(d, *filled(bed)),
    "padded": lambda d, bed: padded(d, S, Noise(6)(0, torch.arange(P), bed.like[:, :P])),
    "counted": lambda d, bed: Counted(d),
    "without_adapters": lambda d, bed: without_adapters(d),
}
ENERGIES = {"guided", "differentiable", "monte_carlo", "log_mean", "classifier", "backward"}
WHOLE = {"classifier", "backward", "inpaint", "padded"}     # they see whole sequences at once
CUT = {"guided", "monte_carlo", "log_mean", "backward"}     # their estimates have no gradient


class Bed:
    """A denoiser to be wrapped, and the tokens that it takes."""

    def __init__(self, denoiser, event, dtype):
        self.denoiser, self.event, self.dtype = denoiser, event, dtype
        self.like = torch.empty(B, T, *event, dtype=dtype)
        self.x = Noise(1)(0, torch.arange(T), self.like)

    def generate(self, denoiser, path, matrix=None, eta=0.5):
        matrix = pyramid(GRID, T, 1) if matrix is None else matrix
        return generate(denoiser, S, matrix, self.x, eta=eta, noise=Noise(4), path=path)


def network(net):
    torch.manual_seed(0)
    return Bed(Precond(net((2,)).double(), S, "v"), (2,), torch.float64)


BEDS = {
    "exact, causal": lambda: Bed(Causal(S), (1,), torch.float32),
    "exact, non-causal": lambda: Bed(NonCausal(S, T + 2 * P), (1,), torch.float32),
    "GRU": lambda: network(lambda event: RecurrentNet(event, width=6)),
    "causal transformer": lambda: network(lambda event: TransformerNet(event, width=4, depth=1, heads=1, context=6)),
}
PAIRS = [*product(WRAPPERS, WRAPPERS)]
# Exact denoisers hold no network: a GRU stands for them around adapters.
CASES = [(kind, *pair) for kind in BEDS for pair in PAIRS
         if kind.startswith("exact") or (kind == "GRU" and "without_adapters" in pair)]


def refused(outer, inner, bed):
    """What the error says of a pair that cannot be, else None."""
    causal = bed.denoiser.causal
    if inner == "history" and not causal:
        return "causal denoiser"
    if inner == "padded" and causal:
        return "sample the shorter sequence"
    if outer == "history":
        if not causal or inner in WHOLE:
            return "causal denoiser"
        return "would then see noised" if inner in ENERGIES or inner == "history" else None
    if outer == "padded":
        if causal and inner not in WHOLE:
            return "sample the shorter sequence"
        return "inpaint.padded" if inner == "inpaint" else None
    if outer in ("guided", "differentiable", "monte_carlo", "log_mean") and inner in CUT:
        return "estimates without"
    return None


def wrapped(pair, bed):
    denoiser = bed.denoiser
    for name in reversed(pair):
        denoiser = WRAPPERS[name](denoiser, bed)
    return denoiser


@pytest.mark.parametrize("kind, outer, inner", CASES)
@pytest.mark.quick(181)
def test_all_paths_are_the_double_loop(outer, inner, kind):
    bed, pair = BEDS[kind](), {outer, inner}
    if "without_adapters" in pair and kind.startswith("exact"):
        with pytest.raises(ValueError, match="nothing to train|causal|shorter"):
            wrapped((outer, inner), bed)
        return
    if message := refused(outer, inner, bed):
        with pytest.raises(ValueError, match=message):
            bed.generate(wrapped((outer, inner), bed), "auto")
        return
    denoiser, whole = wrapped((outer, inner), bed), pair & WHOLE
    assert denoiser.causal == (bed.denoiser.causal and not whole)
    assert denoiser.recurrent == (bed.denoiser.recurrent and not whole and not pair & ENERGIES)
    assert denoiser.global_x0 == bool(pair & ENERGIES) and denoiser.keeps_chunk == ("history" in pair)
    loop = bed.generate(denoiser, "double_loop")
    tolerance = {"rtol": 0, "atol": 1e-5 if bed.dtype == torch.float32 else 1e-7}
    if outer == inner or kind == "GRU":  # elsewhere it is a path that is compared below, or the double loop again
        torch.testing.assert_close(bed.generate(denoiser, "auto"), loop, **tolerance)
    for path in PATHS:
        may = denoiser.causal and not denoiser.keeps_chunk if path == "rows" else (
            denoiser.recurrent and not denoiser.global_x0)
        if may:
            torch.testing.assert_close(bed.generate(denoiser, path), loop, **tolerance)
        else:
            with pytest.raises(ValueError, match="use path='auto'"):
                bed.generate(denoiser, path)


@pytest.mark.parametrize("kind", ["exact, causal", "GRU", "causal transformer"])
@pytest.mark.parametrize("outer, inner", [pair for pair in PAIRS if not {*pair} & (ENERGIES | WHOLE | {"history"})])
@pytest.mark.quick(16)
def test_a_rollout_is_one_long_sequence(outer, inner, kind):
    """Chunks carried from state to state are the tokens of one matrix in which every chunk waits for the last."""
    bed, chunk = BEDS[kind](), CHUNK
    if "without_adapters" in (outer, inner) and kind.startswith("exact"):
        pytest.skip("holds no network")
    denoiser, matrix = wrapped((outer, inner), bed), pyramid(GRID, chunk, 1)
    rows, noise = len(matrix), Noise(8)
    like = bed.like.float()
    frames = rollout(denoiser, S, matrix, denoiser.init_state(B), bed.event, batch=B, noise=noise) if (
        bed.dtype == torch.float32) else rollout_in_double(denoiser, matrix, noise, bed)
    chunks = torch.cat([next(frames)[0] for _ in range(2)], 1)
    token = torch.arange(chunk)
    starts = [shifted(noise, rows=(rows + 1) * c, tokens=chunk * c)(rows, token, like[:, :chunk], salt=1)
              for c in range(2)]
    bed.x = torch.cat(starts, 1).to(bed.dtype)
    long = torch.cat([torch.cat([matrix, matrix.new_full((rows, chunk), S.levels)], 1),
                      torch.cat([torch.zeros_like(matrix[1:]), matrix[1:]], 1)])
    loop = bed.generate(denoiser, "double_loop", long, eta=0.0)
    torch.testing.assert_close(chunks, loop, rtol=0, atol=1e-5 if bed.dtype == torch.float32 else 1e-7)


def rollout_in_double(denoiser, matrix, noise, bed):
    """A rollout begins in float32: the same in the network's own precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        chunks = rollout(denoiser, S, matrix, denoiser.init_state(B), bed.event, batch=B,
                         noise=lambda row, token, like, **kw: noise(row, token, like.float(), **kw).double())
        yield from [next(chunks) for _ in range(2)]
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("inner", ["classifier_free", "history", "clipped", "counted"])
@pytest.mark.parametrize("kind", ["exact, causal", "GRU", "causal transformer"])
def test_draws_that_share_what_they_keep_are_draws_one_by_one(inner, kind, monkeypatch):
    bed = BEDS[kind]()
    guide = wrapped(("monte_carlo", inner), bed)
    shared = bed.generate(guide, "double_loop")
    monkeypatch.setattr(monte_carlo, "_shares", False)
    torch.testing.assert_close(shared, bed.generate(guide, "double_loop"), rtol=0,
                               atol=1e-5 if bed.dtype == torch.float32 else 1e-7)


def test_sequential_futures_want_a_denoiser_without_guidance():
    with pytest.raises(ValueError, match="without guidance of its own"):
        monte_carlo(guided(Causal(S), S, energy, differentiable=True), S, energy, 2, futures="sequential")


def test_a_wrapper_forwards_all_that_a_denoiser_has():
    """A trait that joins the protocol must be forwarded too, or a wrapper would answer with the default."""
    asked = {name for name in vars(Denoiser) if not name.startswith("_") or name == "__call__"}
    assert asked and asked <= set(vars(Wrapper))
    for name, make in WRAPPERS.items():
        bed = BEDS["exact, non-causal" if name == "padded" else "GRU"]()
        assert isinstance(make(bed.denoiser, bed), Denoiser) and isinstance(make(bed.denoiser, bed), Wrapper)


@pytest.mark.parametrize("name, null", [
    ("recurrent", {"static": {"start": torch.zeros(1, 2)}, "token": {"place": torch.zeros(1, 1, 1)}}),
    ("image", {"static": {"class": torch.zeros(1, dtype=torch.long)}})])
def test_guidance_in_one_forward_is_that_of_two(name, null):
    """x0_hat, gradients by x, and states, in float64."""
    torch.manual_seed(0)
    if name == "recurrent":
        net = RecurrentNet((2,), width=8, token={"place": 1}, static={"start": 2})
        cond = {"static": {"start": torch.randn(B, 2).double()}, "token": {"place": torch.randn(B, T, 1).double()}}
        null = {part: {key: value.double() for key, value in entries.items()} for part, entries in null.items()}
    else:
        net, cond = Vectors(2), {"static": {"class": torch.tensor([1, 2])}}
    inner = Precond(net, S, "v").double()
    x, level = torch.randn(B, T, 2, requires_grad=True, dtype=torch.float64), torch.tensor([[90, 90, 90], [4, 4, 4]])
    answers = []
    for one_forward in (True, False):
        counted = Counted(inner)
        free = classifier_free(counted, 3.0, null, one_forward=one_forward)
        x0, after = free(x, level, free.init_state(B, cond), cond)
        assert (counted.calls, counted.tokens) == (1 if one_forward else 2, 2 * B * T)
        answers.append([x0, torch.autograd.grad(x0.square().sum(), x)[0], *leaves(after)])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
