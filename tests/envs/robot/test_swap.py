"""The swap task: Gymnasium's rules, the same seed the same episode, states to go back to, an expert that succeeds."""

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dforce.envs  # noqa: F401  (registers the tasks)
from dforce.envs.robot.swap import SwapEnv


@pytest.fixture(scope="module")
def env() -> SwapEnv:
    return SwapEnv()


def played(env: SwapEnv, seed: int, steps: int | None = None) -> tuple[np.ndarray, float, dict]:
    """Observations, return and last info of the expert's episode, or of its first steps."""
    seen, total = [env.reset(seed=seed)[0]], 0.0
    for action in env.expert(np.random.default_rng(seed), 5):
        observation, reward, _, _, info = env.step(action)
        seen.append(observation)
        total += reward
        if len(seen) - 1 == steps:
            break
    return np.stack(seen), total, info


@pytest.mark.parametrize("observations", ["low_dim", pytest.param("image", marks=pytest.mark.slow), "mixed"])
@pytest.mark.quick(1)
def test_gymnasium_finds_no_fault(observations: str, pictures: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gymnasium.make("dforce/Swap-v0", observations=observations, image_size=32, max_steps=20)
        check_env(made.unwrapped)
    made.close()


def test_the_expert_swaps_and_is_paid_for_every_stage_once(env: SwapEnv) -> None:
    seen, total, info = played(env, 3)
    red, green = info["clue"]
    assert total == info["stage"] == 3 and info["success"] and info["reached"] and info["success_held"] > 5
    assert env.arrangement() == (green, red)
    assert np.abs(seen[0, 5] - (-0.18, 0, 0.18)[red]) < 0.03 and np.abs(seen[0, 8] - (-0.18, 0, 0.18)[green]) < 0.03


def test_a_decision_is_due_at_the_start_and_after_every_move(env: SwapEnv) -> None:
    due = [env.reset(seed=4)[1]["decision_due"]]
    stages = []
    for action in env.expert(np.random.default_rng(4), 3):
        info = env.step(action)[4]
        due.append(info["decision_due"])
        if due[-1] and not due[-2]:
            stages.append(info["stage"])
    assert due[0] and stages == [1, 2, 3]


def test_the_same_seed_is_the_same_episode_whatever_is_seen_of_it(env: SwapEnv) -> None:
    """Layout, looks and noise have streams of their own."""
    other = SwapEnv(vary=False, noise=0.0)
    first, again, exact = (played(each, 5, 30)[0] for each in (env, env, other))
    assert np.array_equal(first, again)
    assert 0 < np.abs(first - exact).max() < 0.006
    assert not np.array_equal(env.arm.model.geom("red").rgba, other.arm.model.geom("red").rgba)


def test_a_state_goes_on_bit_for_bit_in_another_environment(env: SwapEnv) -> None:
    other, rng = SwapEnv(), np.random.default_rng(0)
    other.reset(seed=0)
    played(env, 6, 12)
    state = env.get_state()
    actions = [env.action_space.low + rng.random(4) * (env.action_space.high - env.action_space.low) for _ in range(8)]
    futures = []
    for each in (env, other):
        each.set_state(state)
        futures.append([each.step(action)[:4] for action in actions])
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(*futures, strict=True))
    assert np.array_equal(env.arm.model.geom("red").rgba, other.arm.model.geom("red").rgba)
    assert np.array_equal(env.reset()[0], other.reset()[0])


def test_random_actions_disturb_nothing(env: SwapEnv) -> None:
    _random_steps(env, 300)


@pytest.mark.slow
def test_ten_thousand_random_steps_without_a_warning(env: SwapEnv) -> None:
    _random_steps(env, 10_000)


def _random_steps(env: SwapEnv, steps: int) -> None:
    env.action_space.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(steps):
            if step % 300 == 0:
                env.reset(seed=step)
            observation, reward, _, _, info = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation) and reward in (0, 1) and not info["success"]
            assert [warning.number for warning in env.arm.data.warning] == [0] * len(env.arm.data.warning)


@pytest.mark.slow
def test_a_hundred_episodes_come_twice(env: SwapEnv) -> None:
    for seed in range(100):
        assert np.array_equal(played(env, seed, 20)[0], played(env, seed, 20)[0])


@pytest.mark.slow
def test_the_expert_succeeds_in_two_hundred_episodes(env: SwapEnv) -> None:
    assert np.mean([played(env, 70_000 + seed)[2]["success"] for seed in range(200)]) >= 0.98


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_vector_environments_are_their_copies(kind: str, env: SwapEnv) -> None:
    made = gymnasium.make_vec("dforce/Swap-v0", num_envs=2, vectorization_mode=kind)
    seen, info = made.reset(seed=[1, 2])
    action = np.array([[0.45, 0.1, 0.2, 0], [0.5, -0.1, 0.2, 1]], np.float32)
    after = made.step(action)[0]
    made.close()
    for row, seed in enumerate((1, 2)):
        assert np.array_equal(seen[row], env.reset(seed=seed)[0])
        assert np.array_equal(after[row], env.step(action[row])[0])
    assert info["clue"].shape == (2, 2) and info["decision_due"].all()


def test_pictures_show_the_cubes_where_they_are(pictures: None) -> None:
    """The red and the green pixels seen from above lie where the cubes do: columns grow with y, rows with x."""
    made = SwapEnv(observations="image", noise=0.0)
    picture = made.reset(seed=7)[0]["top"].astype(int)
    for cube, channel in ((0, 0), (1, 1)):
        rest = np.delete(picture, channel, -1).max(-1)
        rows, columns = np.nonzero(picture[..., channel] > 2 * rest)
        x, y, z = made.cube(cube)
        scale = 64 / (2 * (1.15 - z) * np.tan(np.deg2rad(17)))
        assert abs(columns.mean() + 0.5 - (32 + y * scale)) < 1.5
        assert abs(rows.mean() + 0.5 - (32 + (x - 0.48) * scale)) < 2
    made.close()


def test_bad_input_is_named(env: SwapEnv) -> None:
    env.reset(seed=0)
    for action in (np.zeros(3), np.array([0.4, 0, 0.3, np.nan])):
        with pytest.raises(ValueError, match="four finite numbers"):
            env.step(action)
    with pytest.raises(ValueError, match="low_dim, image, mixed"):
        SwapEnv(observations="pixels")
    with pytest.raises(ValueError, match="span"):
        SwapEnv(span=0)


def test_a_push_adds_its_impulse_and_a_moved_cube_is_seen_elsewhere(env: SwapEnv) -> None:
    env.reset(seed=3)
    arm, mass = env.arm, 0.05
    before, address = arm.data.qvel.copy(), int(arm.model.body("prop_green").dofadr[0])
    env.disturb("cube", [0.01, 0, 0], 0.6)                         # the second of two
    change = arm.data.qvel - before
    assert change[address:address + 3] == pytest.approx([0.01 / mass, 0, 0], abs=1e-9)  # velocity is impulse by mass
    assert abs(np.delete(change, range(address, address + 6))).max() < 1e-12
    red = env.cube(0)
    env.disturb("moved", [0.02, -0.01, 0], 0.2)
    assert env.cube(0) == pytest.approx(red + [0.02, -0.01, 0])
    assert abs(env.observe()[4:7] - env.cube(0)).max() < 0.006      # its noise is a millimetre
    calm, tool = env.get_state(), arm.tool
    env.disturb("arm", [0, 20.0, 0])
    for _ in range(4):
        mujoco.mj_step(arm.model, arm.data)
    assert 0.02 < arm.tool[1] - tool[1] < 0.1                       # 2 to 10 cm, in the direction of the blow
    env.set_state(calm)
    start = env.cube(0)
    env.disturb("cube", [0, 0.03, 0], 0.2)
    for _ in range(5):
        env.step([*arm.target, 0.0])
    assert env.cube(0)[1] - start[1] == pytest.approx((0.03 / mass) ** 2 / 2 / 9.81, rel=0.25)  # friction 1 brakes it
    with pytest.raises(ValueError, match="'table' cannot be disturbed"):
        env.disturb("table", [0, 0, 0])
