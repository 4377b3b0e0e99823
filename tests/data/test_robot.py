"""Demonstrations of robots: equal with any number of processes, whole episodes, pictures without loss."""

from pathlib import Path

import minari
import numpy as np
import pytest

from dforce.data import load_episodes
from dforce.data.generate.robot import RobotGeneration, demonstrate, make_task


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def test_a_data_set_is_the_experts_episodes_with_their_seeds_and_is_made_once() -> None:
    generation = RobotGeneration("swap", episodes=2, tail=7, seed=11)
    played: list = []
    assert generation.make(played.append) and not generation.make(played.append)
    assert [each.seed for each in played] == [11, 12]
    episodes = load_episodes(generation.dataset, infos=["clue", "success_held", "decision_due"])
    assert list(episodes.lengths) == [each.steps for each in played]
    for number, each in enumerate(played):
        observations, actions, rewards = episodes.episode(number)
        assert np.array_equal(observations, each.arrays["observations"])
        assert np.array_equal(actions, each.arrays["actions"]) and rewards.sum() == 3
        assert np.array_equal(actions[-7:], actions[-1:].repeat(7, 0))  # the tail rests
    assert episodes.infos["clue"].shape == (episodes.steps, 2) and episodes.infos["decision_due"][0]
    data = minari.load_dataset(generation.dataset)
    assert [int(each["seed"]) for each in data.storage.get_episode_metadata([0, 1])] == [11, 12]
    recovered = data.recover_environment()
    assert np.array_equal(recovered.reset(seed=11)[0], episodes.observations[0])
    with pytest.raises(ValueError, match="made otherwise"):
        RobotGeneration("swap", episodes=3, tail=7, seed=11).make(played.append)


@pytest.mark.slow  # two new processes import torch
def test_two_processes_make_the_same_as_one() -> None:
    sets = []
    for processes in (1, 2):
        generation = RobotGeneration("swap", episodes=2, tail=0, processes=processes, name=f"robot/p{processes}-v0")
        generation.make(lambda each: None)
        sets.append(load_episodes(generation.dataset))
    assert np.array_equal(sets[0].observations, sets[1].observations)
    assert np.array_equal(sets[0].actions, sets[1].actions) and sets[0].about["dataset"] != sets[1].about["dataset"]


@pytest.mark.slow
def test_pictures_are_kept_without_loss() -> None:
    generation = RobotGeneration("swap", episodes=1, observations="mixed", image_size=16, tail=0)
    played: list = []
    generation.make(played.append)
    stored = minari.load_dataset(generation.dataset)[0].observations
    for key, value in played[0].arrays["observations"].items():
        assert np.array_equal(stored[key], value)
    assert stored["front"].dtype == np.uint8 and stored["proprio"].shape[1] == 4
    episodes = load_episodes(generation.dataset)
    assert list(episodes.images) == ["front", "top"] and episodes.observations.shape[1] == 4
    assert np.array_equal(episodes.images["top"][:], stored["top"])


def test_failures_are_left_out_and_an_expert_that_only_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = demonstrate("swap", {}, 0, 5)
    monkeypatch.setattr("dforce.data.generate.robot.demonstrate",
                        lambda task, settings, tail, seed: real._replace(seed=seed, success=seed % 2 == 0))
    generation = RobotGeneration("swap", episodes=2)
    assert [each.seed for each in generation.demonstrations() if each.success] == [0, 2]
    monkeypatch.setattr("dforce.data.generate.robot.demonstrate",
                        lambda task, settings, tail, seed: real._replace(seed=seed, success=False))
    with pytest.raises(RuntimeError, match="13 episodes without success"):
        list(generation.demonstrations())


def test_settings_reach_the_environment_and_bad_ones_are_named() -> None:
    generation = RobotGeneration("swap", span=9, noise=0.0)
    env = make_task("swap", **generation.settings)
    assert env.span == 9 and env.noise == 0 and generation.dataset == "robot/swap-span9-low-dim-v0"
    with pytest.raises(ValueError, match="at least 1"):
        RobotGeneration("swap", episodes=0)
    with pytest.raises(ValueError, match="task=swap takes no objects"):
        RobotGeneration("swap", objects=3)
    with pytest.raises(ValueError, match="task=pusht takes no noise, span"):
        RobotGeneration("pusht", noise=0.1, span=2)


@pytest.mark.parametrize("task", ["remember_color", "remember_place", "count"])
def test_every_cue_is_demonstrated(task: str) -> None:
    """What has to be remembered is stored at every step, so that a policy can be given it as a control."""
    arrays = demonstrate(task, {"span": 3, "objects": 2}, 2, 0).arrays
    assert arrays["infos"]["success"][-1] and arrays["rewards"].sum() == 1
    assert len(np.unique(arrays["infos"]["clue"])) == 1 and arrays["observations"].shape[1] == 13
