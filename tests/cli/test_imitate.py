"""`dforce imitate`: demonstrations to a checkpoint that acts; what is remembered, resumed and refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.cli.main import main
from dforce.core.schedule import linear
from dforce.data.minari import save_episodes
from dforce.policy.levels import observed
from dforce.runs.imitation import load_policy
from dforce.train.checkpoint import load, load_state
from tests.cue import CHUNK, answers, demonstrations

DATA = "dforce/cue-v0"
SHORT = [f"data={DATA}", f"chunk={CHUNK}", "net.width=8", "batch=4", "held_out=0.1", "fit.warmup=1", "save_every=2",
         "fit.validate_every=2"]
NARROW = ("imitation.receding.execute=2", "net.width=8", "net.multipliers=[1,2]", "imitation.steps=3")
LEARNING = ["net.width=32", "batch=32", "fit.steps=500", "fit.lr=5e-3", "fit.validate_every=500", "save_every=500"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A Minari store with 64 demonstrations of the cue task."""
    root = tmp_path_factory.mktemp("minari")
    save_episodes(DATA, demonstrations(64), root=root)
    return root


@pytest.fixture(autouse=True)
def _places(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    torch.set_num_threads(1)


def imitate(*words):
    short = [] if any(word.startswith("imitation.hold=") for word in words) else ["imitation.hold=0"]
    return main(["imitate", *SHORT, *short, *words])


@pytest.mark.slow
def test_a_run_gives_a_policy_that_resumes_bit_for_bit(tmp_path, capsys):
    assert imitate("fit.steps=4", "out=whole") == 0, capsys.readouterr().err
    said, weights = capsys.readouterr().out, sum(value.numel() for value in load_state("whole").model.values())
    assert "see it act with: dforce" in said and f"Diffusion Forcing: {weights:,} weights" in said
    assert imitate("fit.steps=4", "out=parts", "save_every=1", "keep=9") == 0
    for step in (3, 4):
        (tmp_path / "parts" / "checkpoints" / f"step_{step:08d}").rename(tmp_path / str(step))
    assert main(["imitate", "resume=parts"]) == 0, capsys.readouterr().err
    whole, parts = load_state("whole"), load_state("parts")
    assert whole.step == parts.step == 4 and all(torch.equal(value, parts.model[name])
                                                 for name, value in whole.model.items())
    policy, layout = load_policy("whole")
    assert layout["tokens"] == {"parts": {"observation": 3}, "action": 1, "chunk": CHUNK} and 0 <= answers(policy) <= 1
    assert torch.equal(torch.cat([policy.of_observation.std, policy.of_action.std]), load("whole").normalizer.std)


@pytest.mark.parametrize("words", [
    ("imitation=teacher_forcing",), ("imitation=cloning_dropout",), ("imitation=cloning_noise",),
    ("imitation=memoryless", "imitation.hold=-1", "imitation.first=true"),
    ("imitation=diffusion_policy", "imitation.hold=-1", "imitation.first=true", "chunk=4", *NARROW),
    ("imitation=long_context", "chunk=4", "net.heads=1", "imitation.receding.stride=2", *NARROW),
    ("imitation=past_tokens", "chunk=4", "net.heads=1", "imitation.receding.stride=2", "imitation.receding.past=2",
     *NARROW),
    ("imitation=chunks", "chunk=4", "net.heads=2", "imitation.hold=-1"),
    ("imitation=chunks", "chunk=4", "net.heads=2", "imitation.window=null", "imitation.levels.dropout=0.5",
     "imitation.receding.lost=noise", "imitation.hold=0"),
    ("net=transformer", "net.width=8", "net.heads=2", "imitation.cut=0.3")], ids=str)
@pytest.mark.slow
def test_every_way_to_learn_trains_and_acts(words, capsys):
    assert imitate("fit.steps=2", "out=run", "fit.precision=fp32", *words) == 0, capsys.readouterr().err
    policy, layout = load_policy("run")
    assert 0 <= answers(policy, 4) <= 1 and layout["policy"]["regression"] == (
        words[0].startswith(("imitation=cloning", "imitation=chunks")))


@pytest.mark.slow  # two trainings that are long enough to learn something
def test_a_network_learns_to_remember_and_without_memory_it_cannot(capsys):
    """The same network on the same data; with the first observation told, forgetting does no harm."""
    forcing = imitate(*LEARNING, "out=forcing")
    assert forcing == 0, capsys.readouterr().err
    assert answers(load_policy("forcing")[0], 50) >= 0.96
    blind = imitate(*LEARNING, "out=blind", "imitation=memoryless", "imitation.hold=0", "imitation.window=1")
    assert blind == 0 and 0.15 < answers(load_policy("blind")[0], 50) < 0.7


@pytest.mark.slow  # every other way to learn, held against what it must be able to do
def test_the_rivals_learn_what_they_can():
    for name, words in {"told": ["imitation=memoryless", "imitation.hold=0", "imitation.first=true"],
                        "cloning": ["imitation=cloning"],
                        "chunks": ["imitation=chunks", "imitation.hold=0", "imitation.first=true", "chunk=4",
                                   "net.heads=2", "fit.lr=3e-3", "fit.steps=600", "batch=64"],
                        "transformer": ["net=transformer", "net.width=32", "net.depth=2", "fit.lr=2e-3"],
                        "cut": ["imitation.cut=0.3", "fit.steps=1200"]}.items():
        assert imitate(*LEARNING, f"out={name}", *words) == 0
        assert answers(load_policy(name)[0], 50) >= 0.9, name


def test_levels_of_observations_and_actions():
    generator = torch.Generator().manual_seed(0)
    schedule = linear(1000)
    level = observed(schedule, (400, 9), generator, cycle=3, dropout=0.25, noise=0.2, actions="pure")
    seen = level[:, [0, 1, 3, 4, 6, 7]]
    assert (level[:, 2::3] == 1000).all() and abs((seen == 1000).float().mean() - 0.25) < 0.03
    assert seen[seen < 1000].max() == schedule.nearest(0.2) and (seen == 0).any()
    plain = observed(schedule, (400, 6), generator)
    assert (plain[:, ::2] == 0).all() and plain[:, 1::2].unique().numel() > 500
    with pytest.raises(ValueError, match="dropout is the share"):
        observed(schedule, (1, 1), dropout=1.5)


def test_what_cannot_be_is_refused(store, capsys):
    assert imitate("data=dforce/cue-v9") == 2 and "did you mean 'dforce/cue-v0'" in capsys.readouterr().err
    assert imitate("chunk=9", "out=run") == 2 and "no whole chunk" in capsys.readouterr().err
    assert main(["imitate", "resume=nowhere"]) == 2 and "is no run folder" in capsys.readouterr().err
    assert imitate("fit.steps=2", "out=run") == 0
    save_episodes(DATA, demonstrations(40), root=store, overwrite=True)
    try:
        assert main(["imitate", "resume=run", "fit.steps=4"]) == 2
        assert "are not those that run was trained on" in capsys.readouterr().err
    finally:
        save_episodes(DATA, demonstrations(64), root=store, overwrite=True)
    with pytest.raises(ValueError, match="is no policy"):
        load_policy("maze2d-umaze")
    assert np.isfinite(load("run").normalizer.std.numpy()).all()
