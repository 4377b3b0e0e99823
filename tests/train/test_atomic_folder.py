"""Damage to a checkpoint never goes unnoticed, and no accident while one is written costs the one before it."""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from dforce.train.atomic_folder import write_tensors
from dforce.train.checkpoint import CheckpointError, load, load_state, save, verify
from tests.forked import exit_code, forked
from tests.train.test_checkpoint import CONFIG, FILES, LAYOUT, save_best, ten_steps


@pytest.fixture
def trained():
    return ten_steps()


@pytest.fixture
def saved(tmp_path):
    return save_best(tmp_path)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_flipped_byte_is_reported(saved, name):
    raw = (saved / name).read_bytes()
    draw = random.Random(name)
    for position in {0, len(raw) - 1, *(draw.randrange(len(raw)) for _ in range(25))}:
        damaged = bytearray(raw)
        damaged[position] ^= 1 << draw.randrange(8)
        (saved / name).write_bytes(damaged)
        for use in (load, load_state, verify):
            with pytest.raises(CheckpointError, match=f"{name} is damaged"):
                use(saved)
    (saved / name).write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match="has no MANIFEST" if name == "MANIFEST.json" else f"{name} is missing"):
        load(saved)


@pytest.mark.slow
def test_a_kill_in_mid_write_costs_nothing(trained, tmp_path):
    """SIGKILL at random moments of replacing one checkpoint again and again: a whole one is found, and not too old."""
    folder, draw = tmp_path / "last", random.Random(0)
    save(folder, trained[1]._replace(step=0), config=CONFIG, layout=LAYOUT)

    def save_forever(pipe: int) -> None:
        for step in itertools.count():
            save(folder, trained[1]._replace(step=step), config=CONFIG, layout=LAYOUT)
            os.write(pipe, f"{step}\n".encode())

    for _ in range(10):
        reading, writing = os.pipe()
        writer = forked(lambda pipe=writing: save_forever(pipe))
        os.close(writing)
        with os.fdopen(reading) as lines:
            lines.readline()
            time.sleep(draw.uniform(0, 0.1))
            os.kill(writer, signal.SIGKILL)
            done = [int(line) for line in lines.read().split()]
        assert exit_code(writer) == -signal.SIGKILL and load(folder).step >= max(done, default=0)
    save(folder, trained[1], config=CONFIG, layout=LAYOUT)
    assert os.listdir(tmp_path) == ["last"]  # what the killed ones left is swept away


def test_killed_between_the_two_renames(saved):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    saved.rename(saved.with_name(f"best.old-{dead.pid}"))
    assert load(saved).step == 10 and os.listdir(saved.parent) == ["best"]


@pytest.mark.parametrize("limit", [0, 100, 1500, 6000])
def test_a_full_disk_costs_nothing(trained, saved, limit):
    """No file may grow beyond `limit` bytes: each kind of file fails in its turn."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not write .*: .*It needs [\d.]+ MB, [\d.]+ MB are free"):
            save(saved, trained[1]._replace(step=11), config=CONFIG, layout=LAYOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert load(saved).step == 10 and os.listdir(saved.parent) == ["best"]


def test_too_little_space_is_seen_before_writing(trained, saved, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(CheckpointError, match="No space left on device.* 0.0 MB are free"):
        save(saved, trained[1], config=CONFIG, layout=LAYOUT)
    monkeypatch.undo()
    assert load(saved).step == 10


def test_tied_weights_and_other_layouts_survive(tmp_path):
    big = torch.randn(4, 6)
    tensors = {"a": big.T, "b": big.T, "part": big[1:3]}
    write_tensors(tmp_path / "t.safetensors", tensors)
    for name, value in load_file(tmp_path / "t.safetensors").items():
        assert torch.equal(value, tensors[name])
