"""Several processes give the numbers of one, and a signal stops training between two steps."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from dforce.train.fit import fit, stop_requested
from tests.forked import exit_code, forked
from tests.train.test_fit import PLAIN, Regression, batch_at, train

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def test_stop_requested():
    seen = []
    with stop_requested() as stop:
        for log in fit(Regression(), batch_at, **PLAIN, steps=10):
            if log.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            seen.append(log.step)
            if stop():
                break
    assert seen == [1, 2, 3] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_kills():
    def twice() -> None:
        with stop_requested():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    assert exit_code(forked(twice)) == -signal.SIGTERM


def dealt(step: int, *, shards: tuple[int, int] = (0, 4)) -> dict[str, torch.Tensor]:
    return {name: value[shards[0] * 2:shards[1] * 2] for name, value in batch_at(step).items()}


def in_two_parts() -> dict:
    """What a run in two parts measures and ends with, on however many processes."""
    log, metrics = train(Regression(dropout=0.2), dealt, accumulate=2, shards=4, validate=batch_at, validate_every=10)
    numbers = [[step[name] for name in ("loss", "grad_norm", "skipped")] for step in metrics]
    return {"numbers": numbers, "val": log.metrics["val_loss"], "model": log.training.state().model}


def test_two_processes_equal_one(tmp_path):
    """torchrun's environment, gloo, rows dealt by shards: the numbers of one process that takes the parts in turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    running = [forked(lambda rank=rank: torch.save(in_two_parts(), tmp_path / str(rank)), RANK=str(rank),
                      LOCAL_RANK=str(rank), **group) for rank in range(2)]
    one = in_two_parts()
    assert [exit_code(process) for process in running] == [0, 0]
    for rank in range(2):
        two = torch.load(tmp_path / str(rank), weights_only=True)
        torch.testing.assert_close(torch.tensor(two["numbers"]), torch.tensor(one["numbers"]), rtol=1e-5, atol=1e-6)
        assert two["val"] == pytest.approx(one["val"], rel=1e-5)
        for name, value in one["model"].items():
            torch.testing.assert_close(two["model"][name], value, rtol=0, atol=1e-6)
