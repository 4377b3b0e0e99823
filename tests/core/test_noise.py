"""Counter-based noise: standard normal, independent along every counter, and the same whatever path asks for it."""

from __future__ import annotations

import itertools

import pytest
import torch

from dforce.core.noise import Noise, members_of, mix, no_noise, seed_of, shifted
from dforce.planning.returns import tempered
from dforce.planning.search.sub_plans import PRIME, BranchNoise

stats = pytest.importorskip("scipy.stats")


def many(seed=0, **options):
    """[rows 40, B 20, T 10, 13] values."""
    like = torch.zeros(20, 10, 13, dtype=torch.float64)
    return torch.stack([Noise(seed)(row, torch.arange(10), like, **options) for row in range(40)])


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345, -7])
def test_standard_normal(seed):
    values = many(seed).flatten()
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((values**2).numpy(), "chi2", (1,)).pvalue > 1e-3
    assert torch.isfinite(values).all() and 3.5 < values.abs().max() < 6.8


@pytest.mark.parametrize("dim", range(4), ids=["row", "sample", "token", "dimension"])
def test_every_slice_is_normal_and_uncorrelated_with_its_neighbour(dim):
    values = many(3)
    a, b = (values.narrow(dim, first, values.shape[dim] - 1).flatten() for first in (0, 1))
    limit = 4 / len(a) ** 0.5
    for f in (lambda v: v, lambda v: v**2 - 1, torch.sign):
        assert abs(float((f(a) * f(b)).mean())) < limit * f(a).std() * f(b).std()
    means = values.movedim(dim, 0).flatten(1).mean(1) * (values.numel() / values.shape[dim]) ** 0.5
    assert means.abs().max() < 4.5


@pytest.mark.parametrize("other", [dict(seed=1), dict(salt=1), dict(salt=-1)])
def test_seeds_and_salts_are_streams_of_their_own(other):
    a, b = many(0).flatten(), many(**{"seed": 0, **other}).flatten()
    assert not (a == b).any() and abs(float((a * b).mean())) < 4 / len(a) ** 0.5
    assert stats.kstest(((a + b) / 2**0.5).numpy(), "norm").pvalue > 1e-3


def test_counters_do_not_stand_in_for_each_other():
    like = torch.zeros(1, 1, 4)
    cells = [Noise(a)(b, c, like, salt=d, sample=torch.tensor([e]))
             for a, b, c, d, e in itertools.product(range(3), repeat=5)]
    assert len(torch.cat(cells).flatten().unique()) == 3**5 * 4


def test_box_muller_pairs_are_independent():
    v = many(5)
    a, b = v[..., 0:12:2].flatten(), v[..., 1:12:2].flatten()
    angle = torch.atan2(b, a) / (2 * torch.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr((a**2 + b**2).numpy(), angle.numpy()).statistic) < 4 / len(a) ** 0.5


def test_the_path_does_not_matter():
    noise, like = Noise(7), torch.zeros(6, 5, 2, 3)
    whole = noise(4, torch.arange(5), like)
    assert torch.equal(noise(4, torch.arange(5), like), whole)
    # Some tokens only.
    assert torch.equal(noise(4, torch.arange(2, 4), like[:, 2:4]), whole[:, 2:4])
    # Some members of the batch only, in another order.
    rows = torch.tensor([5, 0, 2])
    assert torch.equal(noise(4, torch.arange(5), like[rows], sample=rows), whole[rows])
    # As a wavefront asks: cells of different rows side by side, as sequences of one token.
    cells = noise(torch.tensor([[4]] * 6 + [[9]] * 6), torch.tensor([[1]] * 6 + [[3]] * 6), torch.zeros(12, 1, 2, 3),
                  sample=torch.arange(6).repeat(2))
    assert torch.equal(cells[:6, 0], whole[:, 1])
    assert torch.equal(cells[6:, 0], noise(9, torch.arange(5), like)[:, 3])
    # Row [T] as well as [B, T] and a plain number.
    assert torch.equal(noise(torch.full((5,), 4), torch.arange(5), like), whole)
    # More dimensions extend fewer.
    assert torch.equal(noise(4, torch.arange(5), torch.zeros(6, 5, 8)).flatten(2)[..., :6], whole.flatten(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_only_rounds(dtype):
    exact = Noise(3)(1, torch.arange(4), torch.zeros(2, 4, 3, dtype=torch.float64))
    cast = Noise(3)(1, torch.arange(4), torch.zeros(2, 4, 3, dtype=dtype))
    assert cast.dtype == dtype and cast.device.type == "cpu" and torch.equal(cast, exact.to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_numbers():
    here = Noise(3)(1, torch.arange(4), torch.zeros(2, 4, 3))
    there = Noise(3)(1, torch.arange(4, device="cuda"), torch.zeros(2, 4, 3, device="cuda"))
    torch.testing.assert_close(there.cpu(), here)


def test_tokens_without_events():
    assert Noise()(0, torch.arange(3), torch.zeros(2, 3)).shape == (2, 3)


def bits(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([(x >> i) & 1 for i in range(64)], -1)


def test_mix_avalanches():
    """Any flipped input bit flips every output bit half the time."""
    x = mix(torch.arange(4000))
    for bit in (0, 1, 7, 20, 40, 62, 63):
        flipped = x ^ (1 << bit if bit < 63 else -(1 << 63))
        for a, b in ((mix(x), mix(flipped)), (mix(x, 5), mix(flipped, 5)), (mix(5, x), mix(5, flipped))):
            share = (bits(a) != bits(b)).double().mean(0)
            assert (share - 0.5).abs().max() < 0.04, bit


def test_mix_minds_the_order_and_does_not_collide():
    n = torch.arange(300)
    pairs = mix(n[:, None], n[None]).flatten()
    assert len(pairs.unique()) == len(pairs)
    assert mix(1, 2) != mix(2, 1) and mix(0) != mix(0, 0)


def test_seed_of_fits_every_generator():
    seeds = [seed_of(a, b) for a in range(30) for b in range(30)]
    assert len(set(seeds)) == 900 and all(0 <= s < 2**63 for s in seeds)
    torch.Generator().manual_seed(max(seeds))
    assert seed_of(1, 2) == seed_of(1, 2) == int(mix(1, 2)) >> 1 & (2**63 - 1)


# ------------------------------------------------------------------------------------------------- noise around noise

MEMBER = torch.tensor([4, 2])
# name -> the wrapper, and the counters (row, token, salt, sample) and factor that it stands for
AROUND = {
    "chunk": (lambda n: shifted(n, rows=7, tokens=3), lambda r, t, s, b: (r + 7, t + 3, s, b, 1.0)),
    "candidates": (lambda n: shifted(n, samples=5), lambda r, t, s, b: (r, t, s, b + 5, 1.0)),
    "members": (lambda n: members_of(n, MEMBER.repeat(5), 10), lambda r, t, s, b: (r, t, s, MEMBER.repeat(5)[b], 1.0)),
    "tempered": (lambda n: tempered(n, 0.25), lambda r, t, s, b: (r, t, s, b, 0.25)),
    "branches": (lambda n: BranchNoise(n, torch.tensor([11, 0]), MEMBER, 6, token=2),
                 lambda r, t, s, b: (r, t + 2, s + PRIME * torch.tensor([11, 0])[b % 2][:, None],
                                     b // 2 * 6 + MEMBER[b % 2], 1.0)),
}


@pytest.mark.parametrize("sample", [None, torch.tensor([1, 0])])
@pytest.mark.parametrize("outer, inner", itertools.product(AROUND, AROUND))
def test_noise_around_noise_asks_what_it_wraps(outer, inner, sample):
    row, token, salt, like = torch.tensor([2, 3, 4]), torch.arange(3), 1, torch.empty(2, 3, 5)
    (around, first), (inside, then) = AROUND[outer], AROUND[inner]
    assert not around(inside(no_noise))(row, token, like, salt=salt, sample=sample).any()
    assert not around(inside(tempered(Noise(3), 0.0)))(row, token, like, salt=salt, sample=sample).any()
    *counters, one = first(row, token, salt, torch.arange(2) if sample is None else sample)
    *counters, other = then(*counters)
    wanted = one * other * Noise(3)(counters[0], counters[1], like, salt=counters[2], sample=counters[3])
    assert torch.equal(around(inside(Noise(3)))(row, token, like, salt=salt, sample=sample), wanted)
