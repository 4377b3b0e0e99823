"""Policies tuned on their returns: what is recorded is what was played, and what pays becomes more frequent."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from dforce.align.episodes import EpisodeMonitor, EpisodePlayer
from dforce.align.policy_check import check_on_policy
from dforce.align.trace import replay
from dforce.cli.main import main
from dforce.core.noise import Noise
from dforce.data.episodes import pack
from dforce.data.minari import save_episodes
from dforce.report.rows import filter_rows, read_results
from dforce.runs.imitation import load_policy

STEPS, CHUNK, OFF = 4, 2, 0.5


class Reach(gymnasium.Env):
    """Four steps; the action that pays most is the observation, a number drawn at the beginning."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.goal = 0, self.np_random.normal(size=1).astype(np.float32)
        return self.goal.copy(), {}

    def step(self, action):
        self.t += 1
        off = float(abs(action - self.goal)[0])
        return self.goal.copy(), float(np.exp(-off**2)), False, self.t == STEPS, {"success": off < 0.2}


def demonstrations(count=64):
    """Of an expert that is off by half, and unsteady."""
    rng, env, observations, actions = np.random.default_rng(0), Reach(), [], []
    for seed in range(count):
        goal, _ = env.reset(seed=seed)
        observations.append(np.repeat(goal[None], STEPS + 1, 0))
        actions.append(goal + OFF + 0.4 * rng.normal(size=(STEPS, 1)))
    return pack(observations, actions, [np.ones(STEPS)] * count, about={"env": "test/Reach-v0"})


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A folder with a policy learnt from these demonstrations."""
    root = tmp_path_factory.mktemp("reach")
    if "test/Reach-v0" not in gymnasium.registry:
        gymnasium.register("test/Reach-v0", entry_point=Reach)
    save_episodes("dforce/reach-v0", demonstrations(), root=root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        patch.chdir(root)
        assert main(["imitate", "data=dforce/reach-v0", f"chunk={CHUNK}", "net.width=16", "batch=32", "held_out=0",
                     "fit.steps=250", "fit.lr=5e-3", "fit.warmup=5", "out=base"]) == 0
    return root


def player(root, copies=8, **how):
    policy, _ = load_policy(root / "base")
    return EpisodePlayer(policy, Reach, copies=copies, levels=policy.schedule.grid(4, "index"), **how)


def test_episodes_are_runs_of_their_plans_and_the_same_side_by_side_or_not(learnt):
    together, alone = (player(learnt, copies=copies) for copies in (6, 4))
    played, other = (each([5, 6, 5, 7, 8, 9], Noise(3)) for each in (together, alone))
    torch.testing.assert_close(played.returns, other.returns, atol=1e-4, rtol=1e-4)
    assert played.episode.tolist() == [*range(6)] * 2 and other.episode.tolist() == [0, 1, 2, 3] * 2 + [4, 5] * 2
    torch.testing.assert_close(other.trace.x, played.trace.x[[0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 10, 11]], atol=1e-4,
                               rtol=1e-4)
    assert played.returns[0] != played.returns[2]  # one start, and noise of its own
    policy = together.policy
    check_on_policy(played.trace, policy.denoiser, policy.schedule)
    replayed = replay(played.trace, policy.denoiser, policy.schedule)
    assert replayed.log_prob.shape == (12, 4, 1) and (played.trace.dims[:, :3] == 2).all()
    served = EpisodePlayer(policy, Reach, copies=3)([5, 5], Noise(0))
    assert served.trace is None  # as it is served, noise is a function of what it saw first
    torch.testing.assert_close(served.returns[0], served.returns[1], atol=1e-5, rtol=0)


def test_the_divergence_from_itself_is_nothing(learnt):
    each = player(learnt)
    looked = EpisodeMonitor(each, load_policy(learnt / "base")[0].denoiser, range(4), sampler=None).look()
    assert looked["kl"] == pytest.approx(0, abs=1e-6) and 0 < looked["return"] < STEPS


@pytest.mark.slow
def test_what_pays_becomes_more_frequent_and_a_run_goes_on(learnt, monkeypatch, capsys):
    """The expert's error is unlearnt: the return rises beyond its interval, on starts that were never tuned on."""
    monkeypatch.chdir(learnt)
    words = ["align", "policy", "checkpoint=base", "env=test/Reach-v0", "algorithm.samples=128",
             "algorithm.lr=2e-3", "steps=4", "copies=128", "watch=16", "evaluate=64", "watch_every=6"]
    assert main([*words, "algorithm.epochs=6", "out=tuned"]) == 0, capsys.readouterr().err
    assert main(["align", "policy", "resume=tuned", "algorithm.epochs=12"]) == 0, capsys.readouterr().err
    rows = read_results(learnt / "tuned" / "results.json").rows
    for sampling in ("as in tuning", "as it is served"):
        difference, = filter_rows(rows, variant={"sampling": sampling}, metric="return_difference")
        assert difference["low"] > 0.1, difference
    before, after = (load_policy(learnt / name)[0].denoiser.net for name in ("base", "tuned"))
    same = {name for name, value in before.state_dict().items() if torch.equal(value, after.state_dict()[name])}
    assert same == {"null", *(f"core.{name}" for name, _ in before.core.named_parameters())}  # what remembers stays


@pytest.mark.parametrize(("words", "message"), [
    (("algorithm=rwr",), "algorithm is ddpo_is"), (("eta=0",), "eta > 0"), (("algorithm.gae=0.8",), "without gae"),
    (("checkpoint=null",), "checkpoint is needed"), (("checkpoint=maze2d-umaze",), "is no policy")], ids=str)
def test_what_cannot_be_tuned_is_refused(learnt, monkeypatch, capsys, words, message):
    monkeypatch.chdir(learnt)
    assert main(["align", "policy", "checkpoint=base", *words]) == 2 and message in capsys.readouterr().err
