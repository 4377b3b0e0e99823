"""Several rewards as one: a normalised weighted sum, or a vote. Both are rewards themselves."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dforce.align.rewards.protocol import Reward, ask_reward

Evaluators = Mapping[str, Reward] | Sequence[Reward]


class Scale(NamedTuple):
    """What an evaluator's answers are like: their mean and standard deviation (in its own unit)."""

    mean: float
    std: float


class Weighted:
    """sum_i weight_i (r_i - mean_i) / std_i, so that a weight says how much an evaluator matters, whatever its unit.

    evaluators: rewards, named or not. weights: one for each, None for equal ones; negative turns an evaluator round.
    statistics: fixed means and deviations (`scales_of` takes them from samples of the base model): a sample's reward is
    then a function of the sample alone. None: running ones of all that was asked so far (Welford 1962), whose
    `state_dict` has to be kept for a run that goes on. normalise=False: the plain weighted sum. An evaluator whose
    answers never differed counts 0.
    """

    def __init__(self, evaluators: Evaluators, weights: Sequence[float] | Mapping[str, float] | None = None, *,
                 normalise: bool = True, statistics: Mapping[str, Scale] | None = None):
        self.evaluators = _named(evaluators)
        self.weights = _weights(weights, list(self.evaluators))
        if statistics is not None:
            if not normalise:
                raise ValueError("statistics do nothing with normalise=False: leave one of the two out")
            _same_names(statistics, self.evaluators, "statistics")
        self.normalise, self.statistics = normalise, statistics
        self._seen: dict[str, tuple[int, float, float]] = {name: (0, 0.0, 0.0) for name in self.evaluators}

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] | None = None) -> Tensor:
        """[B] float64. Asking changes the running statistics."""
        answers = _ask_all(self.evaluators, samples, prompts, metadata)
        if not self.normalise:
            return torch.stack([self.weights[name] * answer for name, answer in answers.items()]).sum(0)
        if self.statistics is None:
            for name, answer in answers.items():
                self._seen[name] = _merged(self._seen[name], answer)
        total = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
        for name, answer in answers.items():
            mean, std = self.scales[name]
            if std > 0:
                total += self.weights[name] * (answer - mean) / std
        return total

    @property
    def scales(self) -> Mapping[str, Scale]:
        """The statistics that apply now."""
        if self.statistics is not None:
            return self.statistics
        return {name: Scale(mean, (squares / count) ** 0.5 if count else 0.0)
                for name, (count, mean, squares) in self._seen.items()}

    def state_dict(self) -> dict[str, list[float]]:
        """JSON-able: count, mean and sum of squared deviations of each evaluator."""
        return {name: list(seen) for name, seen in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        _same_names(state, self.evaluators, "the state")
        self._seen = {name: (int(count), float(mean), float(squares)) for name, (count, mean, squares) in state.items()}


def scales_of(evaluators: Evaluators, samples: Tensor, prompts: Sequence[Any],
            metadata: Sequence[Any] | None = None) -> dict[str, Scale]:
    """The fixed statistics of `Weighted`: of these samples [B, ...], B >= 2, best of the base model."""
    if len(samples) < 2:
        raise ValueError(f"a standard deviation takes two samples or more, got {len(samples)}")
    answers = _ask_all(_named(evaluators), samples, prompts, metadata)
    return {name: Scale(float(answer.mean()), _spread(answer)) for name, answer in answers.items()}


class Vote:
    """Each evaluator ranks the samples, and the ranks are what counts, so that no unit and no outlier does.

    rule "rank" (Borda): the share of the others that a sample is better than, averaged over the evaluators; "majority"
    (Copeland): the share against which more evaluators are for it than against it. Ties count half: answers lie in
    [0, 1], mean 1/2. weights: votes of each evaluator, None for one each; negative turns an evaluator round. within:
    samples of one "prompt" are compared, or all of the "batch".
    """

    def __init__(self, evaluators: Evaluators, rule: Literal["rank", "majority"] = "rank", *,
                 weights: Sequence[float] | Mapping[str, float] | None = None,
                 within: Literal["prompt", "batch"] = "prompt"):
        if rule not in ("rank", "majority"):
            raise ValueError(f"rule must be 'rank' or 'majority', got {rule!r}")
        if within not in ("prompt", "batch"):
            raise ValueError(f"within must be 'prompt' or 'batch', got {within!r}")
        self.evaluators, self.rule, self.within = _named(evaluators), rule, within
        self.weights = _weights(weights, list(self.evaluators))
        if not any(self.weights.values()):
            raise ValueError("nobody has a vote: every weight is 0")

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] | None = None) -> Tensor:
        """[B] float64 in [0, 1]. O(B^2) comparisons."""
        answers = torch.stack(list(_ask_all(self.evaluators, samples, prompts, metadata).values()))
        signs = (answers[:, :, None] - answers[:, None, :]).sign()  # [evaluators, B, B] 1: the row is the better one
        votes = signs.new_tensor([self.weights[name] for name in self.evaluators])[:, None, None]
        total = (votes * signs).sum(0)
        won = total / votes.abs().sum() if self.rule == "rank" else total.sign()
        others = ~torch.eye(len(samples), dtype=torch.bool, device=won.device)
        if self.within == "prompt":
            number = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(str, prompts)))}
            number_of = torch.tensor([number[str(prompt)] for prompt in prompts], device=won.device)
            if len(number_of) != len(samples):
                raise ValueError(f"got {len(number_of)} prompts for {len(samples)} samples; within='batch' needs none")
            others = others & (number_of[:, None] == number_of[None, :])
        return 0.5 + 0.5 * won.where(others, 0.0).sum(1) / others.sum(1).clamp(min=1)


def _ask_all(evaluators: Mapping[str, Reward], samples: Tensor, prompts: Sequence[Any],
             metadata: Sequence[Any] | None) -> dict[str, Tensor]:
    return {name: ask_reward(reward, samples, prompts, metadata, where=f"the evaluator {name!r}")
            for name, reward in evaluators.items()}


def _named(evaluators: Evaluators) -> dict[str, Reward]:
    if not isinstance(evaluators, Mapping):
        evaluators = {str(i): reward for i, reward in enumerate(evaluators)}
    if not evaluators:
        raise ValueError("there are no evaluators: give one reward or more")
    return dict(evaluators)


def _weights(weights: Sequence[float] | Mapping[str, float] | None, names: list[str]) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(names, 1.0)
    if isinstance(weights, Mapping):
        _same_names(weights, names, "weights")
        return {name: float(weights[name]) for name in names}
    if len(weights) != len(names):
        raise ValueError(f"{len(names)} evaluators ({', '.join(names)}) take as many weights, got {len(weights)}")
    return {name: float(weight) for name, weight in zip(names, weights, strict=True)}


def _same_names(named: Mapping[str, Any], wanted: Mapping[str, Any] | Sequence[str], what: str) -> None:
    if set(named) != set(wanted):
        raise ValueError(f"{what} must be of the evaluators {', '.join(wanted)}, got those of {', '.join(named)}")


def _spread(answer: Tensor) -> float:
    """The standard deviation; exactly 0 where nothing differs, not the rounding of a mean."""
    return float(answer.std(correction=0)) if bool(answer.max() > answer.min()) else 0.0


def _merged(seen: tuple[int, float, float], answer: Tensor) -> tuple[int, float, float]:
    """Count, mean and squared deviations with a batch [B] added (Chan et al. 1979)."""
    count, mean, squares = seen
    new, total = len(answer), count + len(answer)
    center = float(answer.mean()) if bool(answer.max() > answer.min()) else float(answer[0])
    away = center - mean
    added = new * _spread(answer) ** 2
    return (total, mean + away * new / total, squares + added + away**2 * count * new / total)
