"""A tuning run as a generator of epochs, the same for every algorithm and whatever is tuned."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from dforce.align.advantage import PerPromptStats
from dforce.align.objectives import AlignObjective
from dforce.align.on_policy import OnPolicy
from dforce.align.value import StepCredit
from dforce.guidance.reporting import share_of
from dforce.train.fit import Log, TrainingState, fit

SAMPLING = 0.3  # share of an epoch's work, about; the rest are its updates


class KLControl:
    """The weight of the KL to the reference: fixed, or steered to a target (Ziegler et al. 2019, section 2.2)::

        w <- w (1 + gain clip(KL / target - 1, -0.2, 0.2))

    once an epoch, KL [nats of a whole run] being the mean of what the epoch's updates measured. target None: fixed.
    Where the KL falls as 1 / w^2, as under a Gaussian reward, a gain of 1/2 takes out an error at once.
    """

    def __init__(self, weight: float, target: float | None = None, *, gain: float = 0.5):
        if weight < 0 or not math.isfinite(weight):
            raise ValueError(f"the weight of the KL must be >= 0, got {weight}")
        if target is not None and (target <= 0 or weight == 0 or gain <= 0):
            raise ValueError(f"to steer the KL to a target takes target > 0 [nats], and a weight kl > 0 to begin with; "
                             f"got target {target}, weight {weight}")
        self.weight, self.target, self.gain = weight, target, gain
        self._seen: list[float] = []

    def see(self, kl: Tensor) -> None:
        """One measurement [] of the epoch that runs."""
        if self.target is not None:
            self._seen.append(float(kl))

    def step(self) -> None:
        """The end of an epoch: moves the weight. Does nothing where nothing was seen."""
        seen = [value for value in self._seen if math.isfinite(value)]
        if self.target is not None and seen:
            off = sum(seen) / len(seen) / self.target - 1
            self.weight *= 1 + self.gain * min(max(off, -0.2), 0.2)
        self._seen = []


@dataclass(frozen=True)
class Aligning:
    """An algorithm made ready: what `dforce.fit` is given, and what must be remembered beside the weights."""

    name: str
    settings: dict[str, Any]  # of the algorithm, for the record
    objective: AlignObjective
    source: Callable[[int], Any]
    per_epoch: int            # steps of the optimiser
    options: dict[str, Any]   # of `fit`
    queries: Callable[[int], int]  # epochs done -> rewards asked for until then
    credit: PerPromptStats | None = None  # credit, control and value learn along and are no weights
    control: KLControl | None = None
    value: StepCredit | None = None

    @property
    def epochs(self) -> int:
        return int(self.settings["epochs"])

    @property
    def steps(self) -> int:
        return self.per_epoch * self.epochs

    def memory(self) -> dict[str, Any]:
        """JSON-able: statistics of prompts and the weight of the KL, for a run that goes on."""
        return {"credit": self.credit.state_dict() if self.credit else None,
                "kl_weight": self.control.weight if self.control else None}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Takes up what `memory` gave."""
        if self.credit is not None and memory.get("credit") is not None:
            self.credit.load_state_dict(memory["credit"])
        if self.control is not None and memory.get("kl_weight") is not None:
            self.control.weight = float(memory["kl_weight"])


class Epoch(NamedTuple):
    """One epoch done. metrics: means over its updates of what the loss logs, and what its samples gave (reward of the
    policy before the updates). memory: as it has to be kept with the weights of now."""

    number: int              # epochs done
    queries: int             # rewards asked for so far
    metrics: dict[str, float]
    log: Log                 # of its last update: weights, and how to save them
    memory: dict[str, Any]


def tuning_epochs(aligning: Aligning, *, seed: int = 0, resume: TrainingState | None = None,
                  device: Any = None, advance: Callable[[float], object] = lambda share: None) -> Iterator[Epoch]:
    """Runs the epochs that remain and yields after each.

    resume: the state at the end of an epoch. advance: told the shares of an epoch as they are done, 1 an epoch.
    """
    updates: list[dict[str, float]] = []
    sampling = SAMPLING if isinstance(aligning.source, OnPolicy) else 0.0
    if isinstance(aligning.source, OnPolicy):
        aligning.source.sampler = aligning.source.sampler._replace(advance=share_of(advance, sampling))
    for log in fit(aligning.objective, aligning.source, steps=aligning.steps, seed=seed, resume=resume, device=device,
                   **aligning.options):
        updates.append(log.metrics)
        advance((1 - sampling) / aligning.per_epoch)
        if log.step % aligning.per_epoch:
            continue
        number = log.step // aligning.per_epoch
        metrics = {name: sum(each[name] for each in updates) / len(updates) for name in updates[0]}
        if isinstance(aligning.source, OnPolicy):
            sampled = aligning.source.epochs[-1]
            metrics |= {name: value for name, value in sampled.items() if name not in ("epoch", "queries")}
        if aligning.value is not None and len(aligning.value.explained):
            metrics["value_explained"] = float(aligning.value.explained[-1])  # before the last step
        if aligning.control is not None:
            metrics["kl_weight"] = aligning.control.weight
            aligning.control.step()
        yield Epoch(number, aligning.queries(number), metrics, log, aligning.memory())
        updates = []
