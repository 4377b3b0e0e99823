"""Counter-based normal noise: a value is a function of (seed, row, token, salt, sample, dimension), not of the path.

A double loop, a wavefront and a sampler that skips what nobody needs draw their numbers in different orders; with
counters all of them see the same noise, on every device, and a row of the batch does not depend on its neighbours.
The generator is SplitMix64's finaliser (Steele et al. 2014) applied to mixed counters, then Box-Muller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    """`_finalise` of one number, modulo 2^64: a dozen operations on a tensor cost more than its own would."""
    x %= _WORDS
    x = (x ^ x >> 30) * _MIX_1 % _WORDS
    x = (x ^ x >> 27) * _MIX_2 % _WORDS
    return x ^ x >> 31


def mix(*counters: Tensor | int) -> Tensor:
    """A 64-bit hash of integer counters (broadcast together), order mattering."""
    state: Tensor | int = 0
    for counter in counters:
        if isinstance(state, int) and isinstance(counter, int):
            state = _finalise_number(state * 3 + counter + _GOLDEN)
        else:
            tripled = state * 3 + _GOLDEN if isinstance(state, Tensor) else _signed(state * 3 + _GOLDEN)
            state = _finalise(tripled + counter)
    return state if isinstance(state, Tensor) else torch.tensor(_signed(state))


def _signed(x: int) -> int:
    """The int64 with the bits of x modulo 2^64."""
    return (x + _WORDS // 2) % _WORDS - _WORDS // 2


def seed_of(*counters: int) -> int:
    """A non-negative 63-bit seed for a generator, from integer counters (seed, step, stream, shard)."""
    return int(_shift(mix(*counters), 1))


def _counter(value: Tensor | int, device: torch.device) -> Tensor:
    """On the device; a number is written there, for to copy it would be to wait for a GPU."""
    return value.to(device) if isinstance(value, Tensor) else torch.full((), value, dtype=torch.long, device=device)


class Noise:
    """Standard normal noise by counters. noise(row [T], token [T], like [B, T, *E]) -> [B, T, *E].

    `row` and `token` say which cell of the schedule matrix each of the T tokens is, ([T] or [B, T]); `salt` (a number,
    or [B, 1]) separates streams (Monte Carlo draws, lookahead passes, branches of a search). `sample` [B] says which
    member of the batch each row is (default 0..B-1), so that a sub-batch, or an unrolled wavefront, sees the noise of
    the whole.
    """

    def __init__(self, seed: int = 0):
        self.seed = int(seed)

    def __call__(self, row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
                 sample: Tensor | None = None) -> Tensor:
        device = like.device
        batch, tokens, event = like.shape[0], like.shape[1], like.shape[2:]
        row, token = (_counter(each, device).expand(batch, tokens) for each in (row, token))
        sample = torch.arange(batch, device=device) if sample is None else sample
        base = mix(self.seed, salt, row, token, sample[:, None].expand(batch, tokens))
        dims = max(1, math.prod(event))
        pairs = torch.arange((dims + 1) // 2, device=device, dtype=torch.int64)
        bits = _finalise(base[..., None] + (pairs + 1) * _GOLDEN)
        # 32 bits for each of Box-Muller's two uniforms: float32 noise needs no more.
        u = (_shift(bits, 32).double() + 0.5) * 2.0**-32
        v = (bits & 0xFFFFFFFF).double() * 2.0**-32
        radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
        values = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(2)[..., :dims]
        return values.reshape(batch, tokens, *event).to(like.dtype)
