"""States are values: nests of tensors that are forked, permuted and reset leaf by leaf."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from dforce.core.tree import fork, leaves, map_state, reset, select


class Pair(NamedTuple):
    a: torch.Tensor
    b: object


def nest(offset: float = 0.0):
    g = torch.arange(3.0) + offset
    return {"z": g.clone(), "more": [Pair(g[:, None] * torch.ones(3, 2), None), (g.long(),)], "none": None}


def test_map_keeps_the_structure():
    out = map_state(lambda a, b: a + b, nest(), nest(1.0))
    assert isinstance(out["more"], list) and isinstance(out["more"][0], Pair) and isinstance(out["more"][1], tuple)
    assert out["none"] is None and out["more"][0].b is None and out["z"].tolist() == [1, 3, 5]
    assert [tuple(leaf.shape) for leaf in leaves(nest())] == [(3,), (3, 2), (3,)]
    assert torch.equal(map_state(lambda a: a * 2, torch.ones(2)), torch.full((2,), 2.0)) and leaves(None) == []


def test_fork_makes_the_draw_the_slow_dimension():
    out = fork(nest(), 2)
    assert out["z"].tolist() == [0, 1, 2, 0, 1, 2]
    assert out["more"][0].a.shape == (6, 2) and torch.equal(out["more"][0].a[3:], out["more"][0].a[:3])


def test_select_permutes_and_shrinks():
    assert select(nest(), torch.tensor([2, 0]))["z"].tolist() == [2, 0]
    assert select(nest(), torch.tensor([True, False, True]))["more"][0].a.tolist() == [[0, 0], [2, 2]]


def test_reset_takes_fresh_rows_only_where_asked():
    out = reset(nest(), nest(10.0), torch.tensor([False, True, False]))
    assert out["z"].tolist() == [0, 11, 2] and out["more"][0].a.tolist() == [[0, 0], [11, 11], [2, 2]]
    assert out["more"][1][0].dtype == torch.int64


def test_select_undoes_fork():
    assert torch.equal(select(fork(nest(), 4), torch.arange(3))["z"], nest()["z"])


@pytest.mark.parametrize("bad", ["text", 3, {"a": 1.5}])
def test_no_tensor_no_state(bad):
    with pytest.raises(TypeError, match="made of tensors, dicts, lists and tuples, got a"):
        fork(bad, 2)
