"""Rows of results.json about one method: what they share, and intervals over rollouts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dforce.report.rows import Row, make_row
from dforce.report.statistics import Interval, bootstrap_interval


class RowMaker(NamedTuple):
    """Makes rows of one task, method and variant (see `dforce.report.rows.Row`)."""

    task: str
    method: str
    variant: dict[str, Any]

    def real(self) -> RowMaker:
        """Real video, beside the same method."""
        return self._replace(method="real video")

    def having(self, **variant: Any) -> RowMaker:
        """With more to its variant."""
        return self._replace(variant={**self.variant, **variant})

    def row(self, metric: str, estimate: Interval | float, *, n: int | None = None, unit: str = "",
            higher: bool | None = None) -> Row:
        """A row of an interval, or of a number and how many samples it is of; what is not finite becomes null."""
        interval = estimate if isinstance(estimate, Interval) else Interval(estimate, math.nan, math.nan, n or 0)
        known: Interval | float | None = interval
        if not math.isfinite(interval.low) or not math.isfinite(interval.high):
            known = interval.value
        if not math.isfinite(interval.value):
            known = None
        return make_row(self.task, self.method, metric, known, n=interval.n, variant=self.variant, unit=unit,
                        higher=higher)

    def mean(self, metric: str, values: Tensor, *, seed: int = 0, unit: str = "times",
             higher: bool | None = None) -> Row:
        """A row of the mean over rollouts [B], bootstrapped over them."""
        interval = bootstrap_interval(values.double().numpy(), rng=np.random.default_rng(seed))
        return self.row(metric, interval if interval.n > 1 else interval.value, n=interval.n, unit=unit, higher=higher)
