"""Counter-based normal noise: a value is a function of (seed, row, token, salt, sample, dimension), not of the path.

So samplers that draw in different orders see the same noise, on every device, and a row of the batch does not depend
on the others. SplitMix64's finaliser (Steele et al. 2014) of mixed counters, then Box-Muller. `shifted` and
`members_of` wrap any `NoiseSource`, pass changed counters on and return its values.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dforce.core.tree import leaves, select

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687   # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685   # 0x94D049BB133111EB
_WORDS = 1 << 64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)).mul_(_MIX_1)
    x = (x ^ _shift(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift(x, 31))


def _finalise_number(x: int) -> int:
    """`_finalise` of one number, modulo 2^64: cheaper than a dozen operations on a tensor."""
    x %= _WORDS
    x = (x ^ x >> 30) * _MIX_1 % _WORDS
    x = (x ^ x >> 27) * _MIX_2 % _WORDS
    return x ^ x >> 31


def mix(*counters: Tensor | int) -> Tensor:
    """A 64-bit hash of integer counters (broadcast together), order mattering."""
    state: Tensor | int = 0
    for counter in counters:
        if isinstance(state, Tensor):
            state = _finalise(state * 3 + _GOLDEN + counter)
        elif isinstance(counter, Tensor):
            state = _finalise(counter + _signed(state * 3 + _GOLDEN))
        else:
            state = _finalise_number(state * 3 + counter + _GOLDEN)
    return state if isinstance(state, Tensor) else torch.tensor(_signed(state))


def _signed(x: int) -> int:
    """The int64 with the bits of x modulo 2^64."""
    return (x + _WORDS // 2) % _WORDS - _WORDS // 2


def seed_of(*counters: int) -> int:
    """A non-negative 63-bit seed for a generator, from integer counters (seed, step, stream, shard)."""
    return int(_shift(mix(*counters), 1))


class NoiseSource(Protocol):
    """A function of counters that returns noise for tokens `like` [B, T, *E], in their shape and dtype.

    row, token: [T] or [B, T], the cell of the schedule matrix that each of the T tokens is. salt: a number or [B, 1],
    separates streams (Monte Carlo draws, lookahead passes, branches of a search). sample: [B], the number of each row
    in the whole batch (default 0..B-1), of which a part sees the noise of the whole.
    """

    def __call__(self, row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
                 sample: Tensor | None = None) -> Tensor: ...


class Noise:
    """Standard normal noise of a seed: the `NoiseSource` that others wrap."""

    def __init__(self, seed: int = 0):
        self.seed = int(seed)

    def bits(self, row: Tensor, token: Tensor, sample: Tensor, *, salt: Tensor | int = 0) -> Tensor:
        """64 random bits for each of the counters (broadcast together), as int64."""
        return mix(self.seed, salt, row, token, sample)

    def __call__(self, row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
                 sample: Tensor | None = None) -> Tensor:
        device = like.device
        batch, tokens, event = like.shape[0], like.shape[1], like.shape[2:]
        row, token = ((each.to(device) if isinstance(each, Tensor) else  # a copied number would wait for a GPU
                       torch.full((), each, dtype=torch.long, device=device)).expand(batch, tokens)
                      for each in (row, token))
        sample = torch.arange(batch, device=device) if sample is None else sample
        base = self.bits(row, token, sample[:, None].expand(batch, tokens), salt=salt)
        dims = max(1, math.prod(event))
        pairs = torch.arange((dims + 1) // 2, device=device, dtype=torch.int64)
        bits = _finalise(base[..., None] + (pairs + 1) * _GOLDEN)
        # 32 bits for each of Box-Muller's two uniforms: float32 noise needs no more.
        u = (_shift(bits, 32).double() + 0.5) * 2.0**-32
        v = (bits & 0xFFFFFFFF).double() * 2.0**-32
        radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
        values = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(2)[..., :dims]
        return values.reshape(batch, tokens, *event).to(like.dtype)


def shifted(noise: NoiseSource, *, rows: int = 0, tokens: int = 0, samples: int = 0) -> NoiseSource:
    """`noise` with its counters moved on: by `rows` and `tokens` for a later chunk, by `samples` for a later part."""
    def shift(row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
              sample: Tensor | None = None) -> Tensor:
        if samples:
            sample = samples + (torch.arange(len(like), device=like.device) if sample is None else sample)
        return noise(row + rows, token + tokens, like, salt=salt, sample=sample)
    return shift


def members_of(noise: NoiseSource, member: Tensor, count: int) -> NoiseSource:
    """The noise of rows `member` [B] of a larger batch of `count`; row n B + i is draw n of row i (see `fork`)."""
    def choose(row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
               sample: Tensor | None = None) -> Tensor:
        sample = torch.arange(len(like), device=like.device) if sample is None else sample
        number = sample // len(member) * count + member.to(sample.device)[sample % len(member)]
        return noise(row, token, like, salt=salt, sample=number)
    return choose


def noise_of_parts(noise: NoiseSource, count: int, size: int) -> Iterator[tuple[slice, NoiseSource]]:
    """Yields the rows of every part of at most `size` of `count` rows, and the noise that they have in the whole."""
    for member in torch.arange(count).split(size):
        yield slice(int(member[0]), int(member[-1]) + 1), members_of(noise, member, count)


def no_noise(row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
             sample: Tensor | None = None) -> Tensor:
    """Zeros for every token: a `NoiseSource` without noise."""
    return torch.zeros_like(like)


def permutation(count: int, *counters: int) -> Tensor:
    """[count] numbers 0..count-1 in an order that is a function of the counters."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*counters)))


def dealt(rows: Any, step: int, batch: int, seed: int, *stream: int) -> Any:
    """`batch` of the rows of every leaf, for step after step: each epoch in an order of its own, whole batches only."""
    first = leaves(rows)[0]
    epoch, part = divmod(step, len(first) // batch)
    order = permutation(len(first), seed, epoch, *stream)
    return select(rows, order[part * batch:(part + 1) * batch].to(first.device))
