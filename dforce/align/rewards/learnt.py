"""A reward that is learnt of preference pairs, of images or of trajectories: the Bradley-Terry model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dforce.align.preferences import Pairs, Preferences
from dforce.align.rewards.builtin import class_index
from dforce.align.rewards.network import evaluating
from dforce.core.denoiser import Cond
from dforce.core.noise import permutation
from dforce.core.tree import map_state, select
from dforce.train.auxiliary import auxiliary_steps
from dforce.train.fit import Log

SPLIT, CHUNK = 17, 512  # stream of randomness; samples judged at once
WARMUP = 20           # steps of a learning rate that rises
Watch = Callable[[Log], Any]


class BradleyTerry:
    """A reward learnt from pairs: p(a is preferred to b) = sigmoid(r(a) - r(b)) (Bradley & Terry 1952), so in nats.

    (samples [B, T, *E], prompts, metadata) -> [B]; differentiable in the samples; the mean over those it was fitted on
    is 0 by `offset`. net: (x, cond) -> [B]; where it has `classes`, a prompt is the number or name of one.
    """

    def __init__(self, net: nn.Module, *, offset: float = 0.0):
        self.net, self.offset = net, offset

    def __call__(self, samples: Tensor, prompts: Sequence[Any] = (), metadata: Sequence[Any] | None = None) -> Tensor:
        classes = getattr(self.net, "classes", 0)
        cond: Cond | None = {"static": {"class": class_index(prompts, classes)}} if classes else None
        return self.score(samples, cond)

    def score(self, samples: Tensor, cond: Cond | None = None) -> Tensor:
        """[B] on the samples' device, in evaluation mode."""
        device = next(self.net.parameters()).device
        with evaluating(self.net):
            parts = [self.net(samples[rows].to(device), map_state(lambda leaf: leaf.to(device), select(cond, rows)))
                     for rows in torch.arange(len(samples)).split(CHUNK)]
        return torch.cat(parts).to(samples.device) - self.offset


class BradleyTerryLoss(nn.Module):
    """objective(pairs, generator) -> (loss, logs): the mean of -w log sigmoid(r(win) - r(lose)), nats; log 2 by guess.

    w: the pairs' weights, 0 for a tie. Logs "agrees", the share of the pairs of weight > 0 in which win scores higher.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pairs: Pairs, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        margin = self.net(pairs.win, pairs.cond) - self.net(pairs.lose, pairs.cond)
        counts = (pairs.weight > 0).to(margin.dtype)
        loss = -(pairs.weight * nn.functional.logsigmoid(margin)).sum() / pairs.weight.sum().clamp(min=1e-12)
        return loss, {"agrees": ((margin.detach() > 0) * counts).sum() / counts.sum().clamp(min=1)}


class FittedPairs(NamedTuple):
    """margin, trained: r(win) - r(lose) in nats of held-out pairs [H] and of those learnt from [P], ties left out."""

    model: BradleyTerry
    margin: Tensor
    trained: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the held-out pairs in which the preferred sample scores higher."""
        return float((self.margin > 0).double().mean())


def fit_bradley_terry(net: nn.Module, pairs: Pairs, *, steps: int = 400, batch: int = 64, lr: float = 1e-3,
                      weight_decay: float = 1e-2, held_out: float = 0.2, seed: int = 0, watch: Watch | None = None,
                      device: torch.device | str | None = None) -> FittedPairs:
    """Trains `net` by `dforce.fit` (in place) on all but a part `held_out` of the pairs.

    A net that has `observe(x)` is shown the samples that it learns from. watch: called with the `Log` of every step.
    """
    if not bool((pairs.weight > 0).any()):
        raise ValueError(f"there is no pair with a preference among {len(pairs.win)}: nothing to learn from")
    known, test = split_pairs(pairs._replace(win_trace=None, lose_trace=None), held_out, seed=seed)
    observe = getattr(net, "observe", None)
    if callable(observe):
        observe(torch.cat([known.win, known.lose]))
    source = Preferences(known, batch=min(batch, len(known.win)), seed=seed)
    for log in auxiliary_steps(BradleyTerryLoss(net), source, steps=steps, lr=lr, warmup=WARMUP, seed=seed,
                               weight_decay=weight_decay, device=device):
        if watch is not None:
            watch(log)
    model = BradleyTerry(net.eval())
    with torch.no_grad():
        ends = [(model.score(part.win, part.cond), model.score(part.lose, part.cond)) for part in (known, test)]
    model.offset = float(torch.cat(ends[0]).mean())
    trained, margin = ((win - lose)[part.weight > 0] for (win, lose), part in zip(ends, (known, test), strict=True))
    return FittedPairs(model, margin, trained)


def split_pairs(pairs: Pairs, held_out: float, *, seed: int = 0) -> tuple[Pairs, Pairs]:
    """The pairs to learn from, and about a part `held_out` of them to be asked about: no sample is in both."""
    group = _components(pairs)
    number = len(set(group))
    count = round(held_out * number)
    if not 0 < held_out < 1 or count < 1 or count >= number:
        raise ValueError(f"held_out={held_out} leaves {count} of {number} groups of pairs for the test; both sides "
                         f"take some (pairs that share a sample go together; there are {len(group)} pairs)")
    order = permutation(number, seed, SPLIT).tolist()
    names = dict(zip(dict.fromkeys(group), order, strict=True))
    chosen = torch.tensor([names[member] < count for member in group], device=pairs.win.device)
    known, test = select(pairs, ~chosen), select(pairs, chosen)
    if not bool((test.weight > 0).any()) or not bool((known.weight > 0).any()):
        raise ValueError(f"one side of held_out={held_out} has ties alone; {len(group)} pairs are too few")
    return known, test


def _components(pairs: Pairs) -> list[int]:
    """[P] numbers, equal for pairs that hang together by shared samples (union-find over the samples' bytes)."""
    parent = list(range(len(pairs.win)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[bytes, int] = {}
    for side in (pairs.win, pairs.lose):
        for i, sample in enumerate(side.detach().cpu().contiguous().flatten(1).numpy()):
            parent[root(i)] = root(first.setdefault(sample.tobytes(), i))
    return [root(i) for i in range(len(parent))]
