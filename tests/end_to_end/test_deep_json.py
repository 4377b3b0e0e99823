"""JSON that is nested too deeply for Python's parser is refused like other damage, wherever it comes from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import dforce
from dforce.align.rewards.store import load_reward, needed_encoder
from dforce.data.generate.video import ABOUT, _claim
from dforce.data.minari import read_metadata
from dforce.data.store import CHECKSUMS, verify_checksums
from dforce.images.classifier import load_classifier
from dforce.report.html import write_index
from dforce.report.rows import read_episodes, read_results
from dforce.train.atomic_folder import MANIFEST, _write_manifest, verified
from dforce.train.auxiliary import load_net
from dforce.train.checkpoint import PRETRAINED
from dforce.video.recording import Record

DEEP = "[" * 100_000 + "]" * 100_000


def resealed(folder, **files):
    """A sealed folder with these files in place of its own."""
    for name, text in files.items():
        (folder / name.replace("_json", ".json")).write_text(text)
    (folder / MANIFEST).unlink(missing_ok=True)
    _write_manifest(folder, {"kind": "reward", "format": 1})
    return folder


def record(folder):
    save_file({"x": torch.zeros(1)}, folder / "state.safetensors", metadata={"rollout": DEEP})
    Record(folder, shape=(1, 2, 2, 3), actions=0, settings={}, resume=True)


def net(folder):
    save_file({"x": torch.zeros(1)}, folder / "net.safetensors", metadata={"walker": DEEP})
    load_net(folder / "net.safetensors", lambda shape: torch.nn.Linear(1, 1), key="walker", what="walker", missing="")


def checkpoint(folder):
    place = shutil.copytree(PRETRAINED / "maze2d-umaze", folder / "checkpoint")
    manifest = json.loads((place / MANIFEST).read_text())
    (place / "layout.json").write_text(DEEP)
    (place / MANIFEST).unlink()
    _write_manifest(place, {key: value for key, value in manifest.items() if key not in ("files", "digest")})
    dforce.load(place)


def minari(folder):
    (folder / "data").mkdir()
    (folder / "data" / "metadata.json").write_text(DEEP)
    read_metadata(folder)


READERS = {
    "manifest": lambda folder: ((folder / MANIFEST).write_text(DEEP), verified(folder)),
    "checkpoint": checkpoint,
    "reward": lambda folder: load_reward(resealed(folder, reward_json=DEEP)),
    "encoder of a reward": lambda folder: needed_encoder(resealed(folder, reward_json=DEEP)),
    "classifier": lambda folder: load_classifier(resealed(folder, classifier_json=DEEP)),
    "results": lambda folder: ((folder / "r.json").write_text(DEEP), read_results(folder / "r.json")),
    "episodes": lambda folder: ((folder / "e.jsonl").write_text(DEEP), list(read_episodes(folder / "e.jsonl"))),
    "rollout": record,
    "metadata of Minari": minari,
    "checksums": lambda folder: ((folder / CHECKSUMS).write_text(DEEP), verify_checksums(folder)),
    "clips made here": lambda folder: ((folder / ABOUT).write_text(DEEP), _claim(folder, {})),
    "network of video": net,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_refuses_it_by_the_name_of_the_file(reader, tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        READERS[reader](tmp_path)


def test_a_page_says_what_it_could_not_read(tmp_path):
    for name in ("env.json", "metrics.jsonl"):
        (tmp_path / name).write_text(DEEP)
    page = write_index(tmp_path).read_text()
    assert "env.json could not be read" in page and "1 line could not be read" in page
