"""The tasks with a cue: it is hidden in time, the arm is braked until then, the expert touches the right disc."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dforce.data.generate.robot import make_task
from dforce.envs import ROBOT_TASKS

TASKS = ["remember_color", "remember_place", "count"]


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_finds_no_fault(task: str, pictures: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gymnasium.make(ROBOT_TASKS[task], observations="mixed", image_size=16, span=3)
        check_env(made.unwrapped)
    made.close()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objects", [2, 4])
def test_the_expert_touches_what_the_cue_told(task: str, objects: int) -> None:
    env = make_task(task, objects=objects, span=4, noise=0.0)
    for seed in range(3):
        first, info = env.reset(seed=seed)
        seen, total = [first], 0.0
        for action in env.expert(np.random.default_rng(seed), 2):
            observation, reward, _, _, info = env.step(action)
            seen.append(observation)
            total += reward
        cue, go = np.stack(seen)[:, 5:5 + objects], np.stack(seen)[:, 4]
        assert info["success"] and total == 1 and go[-1] == 1
        start = int(go.argmax())
        shown = int(np.diff(cue[:, 0], prepend=0).clip(0).sum()) - 1 if task == "count" else int(cue[0].argmax())
        assert shown == info["clue"][0]
        assert not cue[start - 4:].any()  # dark for `span` steps and from then on


@pytest.mark.parametrize("task", TASKS)
def test_the_span_moves_go_and_nothing_moves_before(task: str) -> None:
    starts = []
    for span in (0, 7):
        env = make_task(task, span=span, noise=0.0)
        observation, _ = env.reset(seed=5)
        home, steps = observation[:3], 0
        while not observation[4]:
            observation, _, _, _, info = env.step(np.array([0.5, 0.2, 0.05, 1]))
            steps += 1
            assert np.abs(observation[:3] - home).max() < 0.002 and observation[3] == 0
        starts.append(steps)
        assert info["decision_due"]
    assert starts[1] - starts[0] == 7


def test_the_first_touch_counts() -> None:
    env = make_task("remember_place", span=0)
    env.reset(seed=1)
    wrong = (env.progress.answer + 1) % 3
    for number in (wrong, env.progress.answer):
        for _ in range(25):
            *_, info = env.step(np.append(env.progress.places[number] + [0, 0, 0.03], 0))
    assert env.progress.choice == wrong and not info["success"] and not info["reached"] and info["stage"] == 0


def test_discs_come_in_an_order_of_their_own_with_go() -> None:
    """Before go nothing is on the table, so no place can be rehearsed."""
    env = make_task("remember_color", span=1)
    orders = set()
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        assert (observation[8:].reshape(3, 3)[:, 2] < -0.04).all()
        while not observation[4]:
            observation, *_ = env.step(np.append(env.arm.target, 0))
        orders.add(tuple(observation[8:].reshape(3, 3)[:, 1].argsort()))
    assert len(orders) > 2


def test_a_state_goes_on_bit_for_bit_with_its_cue_and_its_colors(pictures: None) -> None:
    env, other = (make_task("remember_color", observations="image", image_size=32) for _ in range(2))
    env.reset(seed=3)
    other.reset(seed=4)
    other.set_state(env.get_state())
    for _ in range(7):
        seen, copied = (each.step(np.array([0.4, 0, 0.3, 0]))[0] for each in (env, other))
        assert np.array_equal(seen["front"], copied["front"]) and np.array_equal(seen["top"], copied["top"])
    env.close()
    other.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_in_two_hundred_episodes(task: str) -> None:
    env, successes = make_task(task, objects=4, span=10), 0
    for seed in range(200):
        env.reset(seed=71_000 + seed)
        for action in env.expert(np.random.default_rng(seed), 1):
            *_, info = env.step(action)
        successes += info["success"]
    assert successes >= 196


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="objects is 2 to 4"):
        make_task("count", objects=5)
