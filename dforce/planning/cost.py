"""What planning costs: plans, seconds, and tokens through the network, however it is called."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dforce.planning.control import Plan
from dforce.report.rows import Row, make_row


class Cost(NamedTuple):
    """Cost of planning or driving."""

    plans: int = 0        # number made, each of a batch counts
    seconds: float = 0.0  # of the processor, of the clock on a GPU
    tokens: int = 0       # through the network forwards (without those absorbed into a state once finished)

    def since(self, before: Cost) -> Cost:
        """The difference to an earlier cost."""
        return Cost(self.plans - before.plans, self.seconds - before.seconds, self.tokens - before.tokens)


class TokenCounter:
    """Counts the tokens that networks evaluate, from when they are given to it."""

    def __init__(self, denoiser: Any = None, device: torch.device | str = "cpu"):
        self.tokens, self.device = 0, torch.device(device)
        if isinstance(denoiser, nn.Module):
            self.watch(denoiser)

    def watch(self, denoiser: Any) -> None:
        """Counts those of a network, too."""
        branched = denoiser.branched

        def counted(x: Tensor, *rest: Any) -> Any:  # draws of a tree do not go through `forward`
            self._count(x)
            return branched(x, *rest)

        denoiser.register_forward_hook(lambda module, inputs, output: self._count(inputs[0]))
        denoiser.branched = counted

    def _count(self, x: Tensor) -> None:
        self.tokens += x.shape[0] * x.shape[1]

    def seconds(self) -> float:
        """A clock that other processes do not move where that can be had: the processor's, the wall's for a GPU."""
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()


class Meter:
    """A planner or driver that is timed: `cost` grows with every call."""

    def __init__(self, inner: Any, counter: TokenCounter):
        self.inner, self.counter, self.cost = inner, counter, Cost()
        self.variant = getattr(inner, "variant", {})

    def __call__(self, obs: np.ndarray, *rest: Any) -> Any:
        seconds, tokens = self.counter.seconds(), self.counter.tokens
        answer = self.inner(obs, *rest)
        plans = len(obs) if isinstance(answer, Plan) else 0
        self.cost = Cost(self.cost.plans + plans, self.cost.seconds + self.counter.seconds() - seconds,
                         self.cost.tokens + self.counter.tokens - tokens)
        return answer


def meter_of(planner: Any) -> Meter:
    """The planner, timed, and the tokens of its `denoiser` counted where it has one."""
    device = planner.schedule.alpha.device if hasattr(planner, "schedule") else "cpu"
    return Meter(planner, TokenCounter(getattr(planner, "denoiser", None), device))


def plan_cost_rows(task: str, method: str, variant: Mapping[str, Any], costs: Iterable[Cost], many: str) -> list[Row]:
    """plan_seconds and plan_tokens of all the plans that were made; no row where none was. many: "100 at once"."""
    costs = list(costs)
    plans = sum(cost.plans for cost in costs)
    if not plans:
        return []
    measured = [("plan_seconds", sum(cost.seconds for cost in costs) / plans, f"s a plan, {many}"),
                ("plan_tokens", sum(cost.tokens for cost in costs) / plans, "tokens through the network a plan")]
    return [make_row(task, method, metric, value, n=plans, variant=dict(variant), seeds=len(costs), unit=unit,
                     higher=False) for metric, value, unit in measured]
