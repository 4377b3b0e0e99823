"""Preference pairs: made of scored samples, or read from a file."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dforce.align.on_policy import ORDER, Samples
from dforce.align.trace import Trace
from dforce.core.denoiser import Cond
from dforce.core.noise import dealt
from dforce.core.tree import select
from dforce.data.arrays import read_npz, write_npz


class Pairs(NamedTuple):
    """P pairs of samples under one conditioning, the first preferred."""

    win: Tensor                # [P, T, *E]
    lose: Tensor               # [P, T, *E]
    cond: Cond | None
    weight: Tensor             # [P] 1, or 0 for a tie
    win_trace: Trace | None = None
    lose_trace: Trace | None = None


def best_against_worst(k: int = 1) -> Callable[[Samples], Pairs]:
    """The k best of each group against its k worst, as `prepare` of `OnPolicy`; equals make weight 0."""
    if k < 1:
        raise ValueError(f"k must be >= 1 pair a group, got {k}")

    def pair(samples: Samples) -> Pairs:
        wins, losses = [], []
        for group in samples.group.unique():
            members = (samples.group == group).nonzero().flatten()
            if len(members) < 2 * k:
                raise ValueError(f"{k} best against {k} worst take groups of at least {2 * k}, got {len(members)}")
            members = members[samples.reward[members].sort(stable=True).indices]
            wins.append(members[-k:].flip(0))
            losses.append(members[:k])
        win, lose = torch.cat(wins), torch.cat(losses)
        weight = (samples.reward[win] > samples.reward[lose]).to(samples.x.dtype)
        cond = select(samples.cond, win) if samples.cond else None
        trace = samples.trace
        return Pairs(samples.x[win], samples.x[lose], cond, weight,
                     *((select(trace, win), select(trace, lose)) if trace is not None else (None, None)))
    return pair


class Preferences:
    """A fixed set of pairs as batch_at(step) for `dforce.fit`, drawn with counted randomness, epoch after epoch."""

    def __init__(self, pairs: Pairs, *, batch: int, seed: int = 0):
        if not len(pairs.win):
            raise ValueError("there are no preference pairs: nothing to learn from")
        if not 1 <= batch <= len(pairs.win):
            raise ValueError(f"a batch takes 1..{len(pairs.win)} pairs (there are no more), got {batch}")
        self.pairs, self.batch, self.seed = pairs, batch, seed

    def __call__(self, step: int) -> Pairs:
        return dealt(self.pairs, step, self.batch, self.seed, ORDER)


def read_pairs(path: str | Path, *, static: Collection[str] | None = None) -> Pairs:
    """Pairs in an .npz file: arrays `win` and `lose` [P, T, *E], numbers; others [P, ...] become cond["static"].

    An array `weight` [P], where there is one, says how much each pair counts, 0 for a tie. static: names that
    conditioning may have; None takes any. ValueError names the file and what does not fit.
    """
    arrays = read_npz(path, "preference pairs")
    missing = [name for name in ("win", "lose") if name not in arrays]
    if missing:
        raise ValueError(f"{path} must hold arrays 'win' and 'lose' [P, T, *E], has {sorted(arrays) or 'none'}")
    win, lose = arrays.pop("win").float(), arrays.pop("lose").float()
    if not len(win):
        raise ValueError(f"{path} holds no preference pairs: nothing to learn from")
    if win.shape != lose.shape or win.ndim < 2:
        raise ValueError(f"{path}: win and lose must be [P, T, *E] alike, got {[*win.shape]} and {[*lose.shape]}")
    if not (win.isfinite().all() and lose.isfinite().all()):
        raise ValueError(f"{path}: win and lose must be finite numbers")
    wrong = {name: [*value.shape] for name, value in arrays.items() if value.shape[:1] != win.shape[:1]}
    if wrong:
        raise ValueError(f"{path}: conditioning must have one row for each of the {len(win)} pairs, got {wrong}")
    weight = _weight(path, arrays.pop("weight", torch.ones(len(win))), (win == lose).flatten(1).all(1))
    unknown = sorted(set(arrays) - set(arrays if static is None else static))
    if unknown:
        raise ValueError(f"{path} holds arrays {unknown} that mean nothing here: known are win, lose, weight"
                         f"{''.join(f', {name}' for name in static or ())}")
    cond: Cond | None = {"static": arrays} if arrays else None
    return Pairs(win, lose, cond, weight)


def _weight(path: str | Path, weight: Tensor, same: Tensor) -> Tensor:
    """[P] float32, checked. same: [P], pairs of one sample and itself."""
    if weight.ndim != 1 or not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError(f"{path}: weight must be one number >= 0 for each pair, got {[*weight.shape]}, "
                         f"{weight.dtype}, least {float(weight.min())}")
    if not bool((weight > 0).any()):
        raise ValueError(f"{path} holds only ties (every weight is 0): nothing to learn from")
    wrong = (same & (weight > 0)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"{path}: in {len(wrong)} pairs (the first is {wrong[0]}) win and lose are the same sample: "
                         "leave them out, or give them weight 0")
    return weight.float()


def write_pairs(path: str | Path, pairs: Pairs) -> None:
    """What `read_pairs` reads, weights included. Static conditioning only; traces are left out."""
    static = (pairs.cond or {}).get("static") or {}
    if (pairs.cond or {}).get("token"):
        raise ValueError("a file of pairs holds static conditioning only, got cond['token']")
    taken = sorted({"win", "lose", "weight"} & set(static))
    if taken:
        raise ValueError(f"conditioning named {taken} has no place in a file of pairs: it is called so itself")
    write_npz(path, {"win": pairs.win, "lose": pairs.lose, "weight": pairs.weight, **static})
