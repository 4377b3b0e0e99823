"""Evaluation of policies: episodes with stages, faults and pairs; and the whole command on the swap task."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import dforce
import dforce.envs.robot
from dforce.benchmarks.robot import film
from dforce.benchmarks.robot.episodes import Remembered, check_task, play_episodes
from dforce.cli.main import main
from dforce.data.normalize import Affine
from dforce.policy.corruption import Corruption
from dforce.policy.forcing import ForcingPolicy
from dforce.report.rows import filter_rows, read_episodes, read_results
from tests.cue import CHUNK, LAYOUT, STEPS, Cue, Exact

SCHEDULE = dforce.linear(1000)
POLICY = ForcingPolicy(Exact(SCHEDULE), SCHEDULE, Affine.identity(4), LAYOUT)


class Staged(Cue):
    """The cue task as a robot task tells it: a stage for each half that was right, success when all was."""

    def reset(self, *, seed):
        self.right = 0
        return super().reset(seed=seed)[0], self.info()

    def info(self):
        return {"stage": 2 * self.right // STEPS, "success": self.right == STEPS, "decision_due": self.t == STEPS - 2}

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        self.right += int(reward)
        return observation, reward, terminated, truncated, self.info()


def test_episodes_tell_how_far_they_got_whatever_is_played_side_by_side():
    seeds = range(50, 59)
    alone, four = (play_episodes(POLICY, [Staged() for _ in range(n)], seeds, Corruption(missing=0.3))[0]
                   for n in (1, 4))
    key = [(e.seed, e.stage, e.reached, e.held, e.first, e.steps) for e in alone]
    assert key == [(e.seed, e.stage, e.reached, e.held, e.first, e.steps) for e in four]
    assert key == [(seed, 2, True, True, STEPS, STEPS) for seed in seeds]  # the first observation is never lost
    np.testing.assert_allclose(alone[3].actions, four[3].actions, atol=1e-5)


def test_beginnings_are_gone_back_to_bit_for_bit():
    class Still:
        def reset(self, n):
            return None

        def act(self, observation, state):
            seen.append(observation)
            return np.tile(np.array([0.5, 0.1, 0.1, 1.0]), (len(observation), 3, 1)), state

    def made():
        return gymnasium.make("dforce/Swap-v0", max_steps=6)

    kept: dict = {}
    anew, again = [made(), made()], [Remembered(made(), kept) for _ in range(2)]
    played = []
    for envs, seeds in ((anew, (3, 4)), (again, (4, 3)), (again, (3, 4))):
        seen: list = []
        episodes = play_episodes(Still(), envs, seeds, Corruption())[0]
        played.append((np.stack(seen), [(each.seed, each.stage, each.steps) for each in episodes]))
    assert set(kept) == {3, 4} and played[0][1] == played[2][1]
    np.testing.assert_array_equal(played[0][0], played[2][0])
    np.testing.assert_array_equal(played[0][0], played[1][0][:, ::-1])


def test_faults_reach_the_policy():
    envs, seeds = [Staged() for _ in range(30)], range(30)
    late = play_episodes(POLICY, envs, seeds, Corruption(delay=2))[0]
    assert not any(episode.reached for episode in late) and all(episode.stage == 1 for episode in late)
    decisions = play_episodes(POLICY, envs, seeds, Corruption(missing=1.0, at_decisions=True))[0]
    assert all(episode.reached for episode in decisions)  # what has to be done is known from the cue and the time


@pytest.mark.parametrize("answer", [np.full((2, 1, 1), np.nan), np.zeros((1, 1, 1))], ids=["NaN", "a row is missing"])
def test_actions_that_no_robot_can_do_are_refused(answer):
    class Broken(ForcingPolicy):
        def act(self, observation, state, **more):
            return answer, state

    with pytest.raises(ValueError, match="rows of finite actions"):
        play_episodes(Broken(Exact(SCHEDULE), SCHEDULE, Affine.identity(4), LAYOUT), [Staged(), Staged()], range(2),
                      Corruption())


def test_tasks_that_the_policy_was_not_made_for_are_refused():
    class Other(Staged):
        action_space = type("Space", (), {"shape": (1,)})

    check_task(Other(), LAYOUT)
    with pytest.raises(ValueError, match="another robot"):
        check_task(Other(), {**LAYOUT, "tokens": {"parts": {"observation": 4}, "action": 1, "chunk": 2}})
    with pytest.raises(ValueError, match="no task with stages"):
        check_task(Cue(), LAYOUT)


class Drawn(Staged):
    """The cue task with a picture of its time, in which a blow turns the cue round."""

    unwrapped = property(lambda self: self)

    def disturb(self, what, vector, place):
        self.blows = getattr(self, "blows", 0) + 1

    def render(self):
        return np.full((240, 480, 3), self.t, np.uint8)


def test_an_episode_is_done_again_with_its_faults_and_what_the_policy_expected_beside_it():
    corruption, env = Corruption(missing=0.5, push=1.0, until=STEPS - 1), Drawn()
    episode = play_episodes(POLICY, [env], [5], corruption)[0][0]
    again = Drawn()
    shown = film.do_again(lambda **_: again, POLICY, episode, corruption, expects=True)
    assert again.blows == env.blows == 1 and (again.t, again.cue) == (env.t, env.cue)
    assert [frame[0, 0, 0] for frame in shown.frames] == [0, *range(film.STRIDE, STEPS + 1, film.STRIDE)]
    assert shown.seen.shape == (STEPS + 1, 3) and np.allclose(shown.seen[:, 1], np.arange(STEPS + 1) / STEPS)
    assert list(shown.expected) == [film.AHEAD * CHUNK] and abs(shown.expected[STEPS][1] - 1) < 0.3
    frames = film.framed(shown, {"red": 2, "time": 1}, 0.1)
    assert {frame.shape for frame in frames} == {(480 + film.CHART[1], 960, 3)}
    before, after = (np.flatnonzero((frame[480:] == film.CURSOR).all(-1).sum(0) > 100) for frame in (frames[0],
                                                                                                     frames[-1]))
    assert len(before) == 2 and after.min() - before.max() > 600       # the time goes from the left to the right
    assert film.framed(shown, {}, 0.1) is shown.frames
    names = ["tool y", "red x", "red y", "green y", "grip"]
    layout = {"tokens": {"parts": {"a": 4}, "action": 1}, "names": names, "window": None}
    assert film.charted(layout) == {"red": 2, "green": 3}
    assert film.charted({**layout, "window": 2}) == film.charted({**layout, "policy": {"regression": True}}) == {}


@pytest.mark.slow  # MuJoCo: demonstrations, two trainings of a few steps, episodes of 300 steps
def test_the_command_compares_policies_on_the_swap_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    torch.set_num_threads(1)
    assert main(["data", "robot", "task=swap", "episodes=4", "out=data"]) == 0, capsys.readouterr().err
    for out, words in (("a", []), ("b", ["imitation=cloning"])):
        assert main(["imitate", "fast_dev_run=true", f"out={out}", *words]) == 0, capsys.readouterr().err
    assert main(["evaluate", "robot", "checkpoint=[a,b]", "fast_dev_run=true", "out=eval",
                 "data=robot/swap-low-dim-v0", "only=[none,50% missing]"]) == 0, capsys.readouterr().err
    rows = read_results("eval/results.json").rows
    assert {row["method"] for row in rows} == {"expert", "nearest demonstration", "Diffusion Forcing",
                                               "behaviour cloning", "Diffusion Forcing - behaviour cloning"}
    expert, = filter_rows(rows, method="expert", metric="reached")
    assert expert["value"] == 1 and expert["n"] == 4 and expert["low"] is not None
    assert len(filter_rows(rows, metric="reached_difference")) == 2 * 2
    assert len(list(read_episodes("eval/episodes.jsonl"))) == 2 * 2 * 4
    assert any((tmp_path / "eval" / "media").glob("*.mp4"))
    assert main(["evaluate", "robot", "checkpoint=maze2d-umaze"]) == 2 and "is no policy" in capsys.readouterr().err
    assert main(["evaluate", "robot", "checkpoint=a", "only=[nothing]"]) == 2
    assert "the corruptions are none, 10% missing" in capsys.readouterr().err
    assert main(["evaluate", "robot"]) == 2 and "checkpoint is needed" in capsys.readouterr().err
