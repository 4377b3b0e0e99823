"""A reward that is learnt of mean ratings: a regression head on a frozen encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dforce.align.rewards.learnt import SPLIT, WARMUP, Watch
from dforce.align.rewards.network import encode
from dforce.core.noise import dealt, permutation
from dforce.data.arrays import read_npz, write_npz
from dforce.train.auxiliary import auxiliary_steps


class Ratings(NamedTuple):
    """N samples and what they were given: rating [N], the mean over those who rated."""

    x: Tensor       # [N, T, *E]
    rating: Tensor  # [N]


class RatingHead(nn.Module):
    """Features [B, F], standardised -> ratings [B]; hidden: width of a layer in between, 0 is linear, as LAION's is."""

    shift: Tensor
    scale: Tensor
    rating: Tensor

    def __init__(self, features: int, *, hidden: int = 0):
        super().__init__()
        self.size, self.hidden = features, hidden
        inner = [nn.Linear(features, hidden), nn.SiLU()] if hidden else []
        self.net = nn.Sequential(*inner, nn.Linear(hidden or features, 1))
        for name, value in (("shift", torch.zeros(features)), ("scale", torch.ones(features)),
                            ("rating", torch.tensor([0.0, 1.0]))):
            self.register_buffer(name, value)

    def forward(self, features: Tensor) -> Tensor:
        return self.standard(features) * self.rating[1] + self.rating[0]

    def standard(self, features: Tensor) -> Tensor:
        """The rating less the mean of those learnt from, over their deviation."""
        return self.net((features - self.shift) / self.scale)[:, 0]


class MeanRating:
    """A reward learnt from ratings: the mean rating that a head on the features of a frozen encoder expects.

    (samples [B, T, *E], prompts, metadata) -> [B], in the unit of the ratings; differentiable. encoder: see `encode`.
    """

    def __init__(self, encoder: Any, head: RatingHead):
        self.encoder, self.head = encoder, head

    def __call__(self, samples: Tensor, prompts: Sequence[Any] = (), metadata: Sequence[Any] | None = None) -> Tensor:
        return self.head(encode(self.encoder, samples).to(self.head.shift.device)).to(samples.device)


class RatingLoss(nn.Module):
    """objective({"features", "rating"}, generator) -> (mean squared error of standardised ratings, logs)."""

    def __init__(self, head: RatingHead):
        super().__init__()
        self.head = head

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> Any:
        wanted = (batch["rating"] - self.head.rating[0]) / self.head.rating[1]
        return (self.head.standard(batch["features"]) - wanted).square().mean(), {}


class FittedRatings(NamedTuple):
    """predicted, rated: [H] of the held-out samples."""

    model: MeanRating
    predicted: Tensor
    rated: Tensor

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of prediction and rating on the held-out samples."""
        return spearman(self.predicted, self.rated)


def fit_rating(encoder: Any, ratings: Ratings, *, hidden: int = 0, steps: int = 400, batch: int = 64, lr: float = 1e-2,
               weight_decay: float = 1e-2, held_out: float = 0.2, seed: int = 0, watch: Watch | None = None,
               device: torch.device | str | None = None) -> FittedRatings:
    """Trains a head by `dforce.fit` on all but a part `held_out` of the samples; the encoder is only asked."""
    count, chosen = len(ratings.x), round(held_out * len(ratings.x))
    if not 0 < held_out < 1 or chosen < 2 or count - chosen < 2:
        raise ValueError(f"held_out={held_out} of {count} rated samples leaves {chosen} for the test and "
                         f"{count - chosen} to learn from; two of each are the least")
    order = permutation(count, seed, SPLIT)
    test, learnt = order[:chosen], order[chosen:]
    with torch.no_grad():
        features = encode(encoder, ratings.x).float()
    if not bool(features.isfinite().all()):
        raise ValueError("the encoder's features are not finite for these samples")
    known, rated = features[learnt], ratings.rating[learnt].float()
    if not bool(rated.max() > rated.min()):
        raise ValueError(f"all {len(learnt)} ratings to learn from are {float(rated[0]):g}: nothing to learn")
    head = RatingHead(features.shape[1], hidden=hidden)
    spread = known.std(0, correction=0)
    head.shift.copy_(known.mean(0))
    head.scale.copy_(torch.where(spread > 1e-6 * known.abs().amax(0), spread, torch.ones_like(spread)))
    head.rating.copy_(torch.stack([rated.mean(), rated.std(correction=0)]))
    rows, batch = {"features": known, "rating": rated}, min(batch, len(learnt))
    for log in auxiliary_steps(RatingLoss(head), lambda step: dealt(rows, step, batch, seed), steps=steps, lr=lr,
                               warmup=WARMUP, seed=seed, weight_decay=weight_decay, device=device):
        if watch is not None:
            watch(log)
    with torch.no_grad():
        predicted = head(features[test].to(head.shift.device)).cpu()
    return FittedRatings(MeanRating(encoder, head), predicted, ratings.rating[test].float())


def read_ratings(path: str | Path) -> Ratings:
    """Ratings in an .npz file: arrays `x` [N, T, *E] and `rating` [N], or [N, R] of R raters, nan where one did not."""
    arrays = read_npz(path, "ratings")
    if set(arrays) != {"x", "rating"}:
        raise ValueError(f"{path} must hold the arrays 'x' [N, T, *E] and 'rating' [N] or [N, R], has {sorted(arrays)}")
    x, rating = arrays["x"].float(), arrays["rating"].double()
    if not len(x):
        raise ValueError(f"{path} holds no ratings: nothing to learn from")
    if x.ndim < 3 or rating.ndim not in (1, 2) or len(rating) != len(x):
        raise ValueError(f"{path}: x must be [N, T, *E], rating [N] or [N, R], got {[*x.shape]} and {[*rating.shape]}")
    mean = rating.nanmean(1) if rating.ndim == 2 else rating
    bad = (~(mean.isfinite() & x.isfinite().flatten(1).all(1))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{path}: {len(bad)} samples (the first is {bad[0]}) were rated by no one, or are not finite")
    return Ratings(x, mean.float())


def write_ratings(path: str | Path, ratings: Ratings) -> None:
    """What `read_ratings` reads."""
    write_npz(path, {"x": ratings.x, "rating": ratings.rating})


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of a [N] and b [N], ties at their mean rank; nan where one does not vary."""
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a rank correlation is of two lists of one length, got {[*a.shape]} and {[*b.shape]}")
    one, other = (ranks - ranks.mean() for ranks in (mean_ranks(a), mean_ranks(b)))
    scale = (one.square().sum() * other.square().sum()).sqrt()
    return float((one * other).sum() / scale) if float(scale) > 0 else float("nan")


def mean_ranks(values: Tensor) -> Tensor:
    """[N] float64 ranks 1..N, equal values sharing the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]
