"""Rows of several seeds become one, with the t interval between them."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.studies.video.seeds import over_seeds


def row(value, metric="frechet", method="forcing", n=4):
    return {"task": "balls", "method": method, "variant": {"frames": "0-100"}, "metric": metric, "value": value,
            "low": value - 1, "high": value + 1, "n": n, "seeds": 1, "unit": "", "higher_is_better": False}


def test_seeds_are_pooled_with_a_t_interval():
    from scipy.stats import ttest_1samp

    values = [1.0, 2.0, 4.0]
    pooled = list(over_seeds([[row(v), row(9.0, metric="other")] for v in values]))
    assert len(pooled) == 2 and pooled[1]["value"] == 9 and pooled[0]["seeds"] == 3 and pooled[0]["n"] == 12
    interval = ttest_1samp(values, 0).confidence_interval()
    assert pooled[0]["value"] == pytest.approx(np.mean(values))
    assert (pooled[0]["low"], pooled[0]["high"]) == pytest.approx((interval.low, interval.high))
    alone = list(over_seeds([[row(1.0)]]))
    assert alone == [row(1.0)]                                                 # a seed alone keeps its own interval


def test_a_seed_that_has_no_value_does_not_count():
    missing = row(0.0) | {"value": None, "low": None, "high": None, "n": 0}
    assert list(over_seeds([[missing], [row(2.0)]])) == [row(2.0)]
    assert list(over_seeds([[missing], [missing]])) == [missing]
