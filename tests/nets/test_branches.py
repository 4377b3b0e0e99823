"""Sequences that branch off one another, walked side by side, are each of them walked alone."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.schedule import cosine
from dforce.nets.recurrent import RecurrentNet

TIME = 7
# where the sequences begin, and which earlier one the last of them continue; the others have states of their own
TREES = [([0, 0, 1, 3, 3, 6], [1, 0, 1, 0]), ([0, 2, 2, 5], []), ([0, 4], [0]), ([3], []), ([2, 2, 3], [1])]


def bed(depth, predict, begins, given):
    torch.manual_seed(0)
    net = RecurrentNet((3,), token={"a": 2}, width=10, depth=depth)
    denoiser = Precond(net.double(), cosine(50), predict).requires_grad_(False)
    x = [torch.randn(1, TIME - first, 3, dtype=torch.float64) for first in begins]
    level = [torch.randint(0, 51, (1, TIME - first)) for first in begins]
    cond = [torch.randn(1, TIME - first, 2, dtype=torch.float64) for first in begins]
    return denoiser, x, level, cond, torch.randn(given, depth, 10, dtype=torch.float64)


def packed(sequences):
    return torch.cat(sequences, 1)[0][:, None]


def alone(denoiser, begins, parents, x, level, cond, z):
    """Estimates, the states that branches begin with, and those behind given sequences, one sequence at a time."""
    given, out, began, ended = len(begins) - len(parents), [], [], []
    for i, first in enumerate(begins):
        state = {"z": z[i:i + 1]}
        if i >= given:
            j = parents[i - given]
            kept = slice(first - begins[j])
            state = denoiser.remember(x[j][:, kept], level[j][:, kept], {"z": z[j:j + 1]},
                                      {"token": {"a": cond[j][:, kept]}})
            began.append(state["z"])
        x0, state = denoiser(x[i], level[i], state, {"token": {"a": cond[i]}})
        out.append(x0)
        ended += [state["z"]] if i < given else []
    return packed(out), *(torch.cat(part) if part else z[:0] for part in (began, ended))


@pytest.mark.parametrize("depth, predict", [(1, "v"), (2, "x0"), (3, "eps")])
@pytest.mark.parametrize("begins, parents", TREES)
def test_equal_to_each_alone(begins, parents, depth, predict):
    """Values, and the gradient of something that reads all of them, in the tokens and in the given states."""
    denoiser, x, level, cond, z = bed(depth, predict, begins, len(begins) - len(parents))
    found = []
    for each in (False, True):
        leaves = [part.clone().requires_grad_() for part in x]
        first = z.clone().requires_grad_()
        if each:
            answer = alone(denoiser, begins, parents, leaves, level, cond, first)
        else:
            out, began, ended = denoiser.branched(packed(leaves), packed(level), {"z": first}, begins, TIME, parents,
                                                  {"token": {"a": packed(cond)}})
            answer = out, began["z"], ended["z"]
        loss = sum((part * torch.arange(part.numel()).view(part.shape)).sin().sum() for part in answer)
        found.append((*answer, *torch.autograd.grad(loss, [first, *leaves])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_who_branches():
    denoiser, x, *_ = bed(1, "v", [0], 1)
    assert denoiser.may_branch(x[0].requires_grad_())
    with torch.no_grad():
        assert not denoiser.may_branch(x[0])
    assert not denoiser.requires_grad_().may_branch(x[0])
    assert not Precond(torch.nn.Identity(), cosine(50)).may_branch(x[0])
