"""Executors against their formulas, and the bookkeeping of receding-horizon control."""

from contextlib import contextmanager

import numpy as np
import pytest

from dforce.envs import dynamics, get_maze
from dforce.planning.control import Executed, Plan, diffused_action, play, run_episodes, tracking
from dforce.planning.evaluation import compare_methods, once, planned, reference_methods

OPEN = get_maze("open")
GOAL = np.array(OPEN.goal, dtype=float)


def plan_of(n: int = 3, horizon: int = 5, seed: int = 0) -> Plan:
    rng = np.random.default_rng(seed)
    return Plan(rng.normal(size=(n, horizon, 2)), rng.normal(size=(n, horizon, 4)))


def straight_line(obs: np.ndarray, goal: np.ndarray, horizon: int) -> Plan:
    """A plan that stays where the ball is: enough for bookkeeping."""
    return Plan(np.zeros((len(obs), horizon, 2)), np.repeat(obs[:, None], horizon, axis=1))


def starts_of(n: int) -> np.ndarray:
    return np.concatenate([np.tile([1.0, 1.0], (n, 1)), np.zeros((n, 2))], axis=1)


def test_tracking_is_the_pd_formula():
    plan, far = plan_of(), np.full((3, 2), 100.0)
    obs = plan.states[:, 2] + np.array([0.01, -0.02, 0.03, -0.3])
    action = tracking(gain_p=4.0, gain_d=2.0)(plan, 2, obs, far)
    np.testing.assert_allclose(action, np.tile([-0.04 - 0.06, 0.08 + 0.6], (3, 1)), atol=1e-12)
    assert (tracking()(plan, 2, obs + 5, far) == -1).all()


def test_tracking_holds_the_last_state_past_the_end():
    plan, obs, far = plan_of(horizon=4), np.zeros((3, 4)), np.full((3, 2), 100.0)
    for hold in (True, False):
        execute = tracking(gain_p=0.1, gain_d=0.1, hold=hold)
        np.testing.assert_array_equal(execute(plan, 40, obs, far), execute(plan, 3, obs, far))


def test_hold_targets_the_goal_at_rest_from_the_first_arrival_on_even_if_the_plan_leaves():
    states = np.zeros((2, 4, 4))
    # Row 0 comes within .4 of x = 1 at step 1, row 1 never does.
    states[:, :, 0] = [[3.0, 1.3, 1.0, 3.0], [3.0, 1.5, 1.5, 3.0]]
    states[:, :, 2] = 0.5
    plan, goal = Plan(np.zeros((2, 4, 2)), states), np.array([[1.0, 0.0], [1.0, 0.0]])
    obs = np.tile([1.02, 0.0, 0.1, 0.0], (2, 1))
    held, free = tracking(gain_p=1.0), tracking(gain_p=1.0, hold=False)
    np.testing.assert_array_equal(held(plan, 0, obs, goal), free(plan, 0, obs, goal))  # nobody has arrived yet
    for t in (1, 2, 3, 9):
        np.testing.assert_allclose(held(plan, t, obs, goal)[0], [1.0 - 1.02 - 0.1, 0.0], atol=1e-12)
        np.testing.assert_array_equal(held(plan, t, obs, goal)[1], free(plan, t, obs, goal)[1])


def test_diffused_action_is_clipped_open_loop_and_coasts_after_the_end():
    plan, obs = plan_of(), np.zeros((3, 4))
    execute = diffused_action()
    for t in range(5):
        np.testing.assert_array_equal(execute(plan, t, obs + t, GOAL), np.clip(plan.actions[:, t], -1, 1))
    np.testing.assert_array_equal(execute(plan, 5, obs, GOAL), np.zeros((3, 2)))


def test_drivers_and_planners_may_write_into_what_they_are_given():
    def planner(write):
        def plan(obs, goal, horizon, rng):
            made = straight_line(obs.copy(), goal, horizon)
            obs[:], goal[:] = write * 9.0 + (1 - write) * obs, write * 9.0 + (1 - write) * goal
            return made
        return plan

    starts, runs = starts_of(2), []
    for write in (0, 1):
        runs.append(run_episodes(OPEN, planner(write), tracking(), starts, GOAL, steps=6, replan_every=2))

    def act(t, obs, goal):
        obs[:], goal[:] = 9.0, 9.0
        return np.zeros((2, 2))

    still = play(OPEN, act, starts, GOAL, steps=3)
    for name in ("trajectory", "goals", "actions", "rewards"):
        np.testing.assert_array_equal(*(getattr(run, name) for run in runs))
    np.testing.assert_array_equal(still.goals, np.tile(GOAL, (2, 1)))
    np.testing.assert_array_equal(still.trajectory[:, :, :2], np.ones((2, 4, 2)))
    with pytest.raises(ValueError, match="read-only"):
        run_episodes(OPEN, planner(0), lambda plan, t, obs, goal: plan.actions[:, t].__iadd__(1), starts, GOAL, steps=2)


def test_executors_name_themselves():
    assert tracking(hold=False).variant == {
        "executor": "tracking", "gain_p": 10.0, "gain_d": 1.0, "hold": False, "arrive": 0.4, "pace": 1.0,
    }  # fmt: skip
    assert diffused_action().variant == {"executor": "diffused_action"}


@pytest.mark.parametrize("bad", [{"gain_p": 0.0}, {"gain_d": -1.0}, {"arrive": 0.0}, {"arrive": 0.6}])
def test_tracking_refuses_bad_numbers(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        tracking(**bad)


def test_play_follows_the_dynamics_and_the_reward():
    rng = np.random.default_rng(0)
    starts = starts_of(4)
    done = play(OPEN, lambda t, obs, goal: rng.uniform(-1, 1, (4, 2)), starts, GOAL, steps=60)
    np.testing.assert_array_equal(done.trajectory[:, 0], starts)
    for t in range(60):
        after = dynamics(OPEN, done.trajectory[:, t], done.actions[:, t])
        np.testing.assert_array_equal(after, done.trajectory[:, t + 1])
    near = np.linalg.norm(done.trajectory[:, 1:, :2] - GOAL, axis=-1) <= 0.5  # of the state stepped into
    np.testing.assert_array_equal(done.rewards, near)


def test_episode_numbers_by_hand():
    rewards = np.array([[0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=float)
    done = Executed(rewards, np.zeros((3, 6, 4)), np.zeros((3, 5, 2)), np.zeros((3, 2)))
    assert done.returns.tolist() == [2, 0, 5]
    assert done.success.tolist() == [True, False, True]
    assert done.first_reach.tolist() == [3, -1, 1]
    assert done.latched.tolist() == [3, 0, 5]
    np.testing.assert_array_equal(done.latched, np.maximum.accumulate(rewards, axis=1).sum(axis=1))


@pytest.mark.parametrize(
    "every, shrink, asked",
    [(None, False, [10]), (None, True, [10]), (4, False, [10, 10, 10]), (4, True, [10, 6, 2]), (20, True, [10])],
)
def test_receding_horizon_asks_when_and_for_what_it_should(every, shrink, asked):
    calls, executed = [], []

    def planner(obs, goal, remaining, rng):
        calls.append((obs.copy(), remaining, rng.integers(2**62)))
        return straight_line(obs, goal, remaining)

    def executor(plan, t, obs, goal):
        executed.append((len(calls) - 1, t, plan))
        return np.full((2, 2), 0.3)

    done = run_episodes(OPEN, planner, executor, starts_of(2), GOAL, steps=10, replan_every=every, shrink=shrink)
    period = every or 10
    assert [remaining for _, remaining, _ in calls] == asked
    assert [(number, t) for number, t, _ in executed] == [(t // period, t % period) for t in range(10)]
    for number, (obs, _, _) in enumerate(calls):  # a plan starts from where the ball is
        np.testing.assert_array_equal(obs, done.trajectory[:, number * period])
    assert done.plan is executed[0][2]  # the first plan is kept
    assert len({draw for *_, draw in calls}) == len(calls)  # each plan has noise of its own
    assert done.goals.shape == (2, 2)


def test_planning_noise_depends_on_seed_and_step_only():
    def draws(every, seed):
        seen = {}

        def planner(obs, goal, remaining, rng):
            seen[len(seen) * every] = rng.integers(2**62)
            return straight_line(obs, goal, remaining)

        run_episodes(OPEN, planner, tracking(), starts_of(1), GOAL, steps=12, replan_every=every, seed=seed)
        return seen

    rare, often = draws(6, seed=1), draws(3, seed=1)
    assert rare[0] == often[0] and rare[6] == often[6]
    assert draws(6, seed=2)[0] != rare[0]


def test_perfect_plan_is_tracked_to_its_end():
    rng = np.random.default_rng(3)
    starts = starts_of(3)
    told = play(OPEN, lambda t, obs, goal: rng.uniform(-0.5, 0.5, (3, 2)), starts, GOAL, steps=50)
    plan = Plan(told.actions, told.trajectory[:, 1:])

    def planner(obs, goal, remaining, rng):
        return plan

    for executor in (diffused_action(), tracking(hold=False)):
        done = run_episodes(OPEN, planner, executor, starts, GOAL, steps=50)
        assert np.abs(done.trajectory - told.trajectory)[..., :2].max() < 0.05
    np.testing.assert_array_equal(
        run_episodes(OPEN, planner, diffused_action(), starts, GOAL, steps=50).trajectory, told.trajectory
    )


def test_bad_input_is_answered():
    starts = starts_of(2)

    def planner_of(plan):
        return lambda obs, goal, remaining, rng: plan

    def run(plan=None, starts=starts, goals=GOAL, **options):
        return run_episodes(OPEN, planner_of(plan or plan_of(2)), tracking(), starts, goals, steps=3, **options)

    with pytest.raises(ValueError, match="unstacked"):
        run(Plan(np.zeros((2, 5, 20)), np.zeros((2, 5, 40))))
    with pytest.raises(ValueError, match="for 2 episodes"):
        run(plan_of(3))
    broken = plan_of(2)
    broken.states[1, 3, 2] = np.nan
    with pytest.raises(ValueError, match="episode 1, step 3, column 2"):
        run(broken)
    with pytest.raises(ValueError, match="replan_every=0"):
        run(replan_every=0)
    with pytest.raises(ValueError, match=r"starts must be \[N, 4\]"):
        run(starts=starts[0])
    with pytest.raises(ValueError, match="goals must be"):
        run(goals=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="start .* not in a free cell"):
        run(starts=np.zeros((2, 4)))
    with pytest.raises(ValueError, match="goal .* not in a free cell"):
        run(goals=np.array([0.0, 0.0]))
    with pytest.raises(ValueError, match="steps"):
        play(OPEN, lambda t, obs, goal: goal, starts, GOAL, steps=0)


def test_the_shares_of_an_evaluation_add_up_to_one():
    class Telling:
        """A planner that tells its work in two shares."""

        def __init__(self, progress=None):
            self.progress = progress

        def with_(self, progress):
            return Telling(progress)

        def __call__(self, obs, goal, horizon, rng):
            for _ in range(2 if self.progress else 0):
                self.progress(0.5)
            return straight_line(obs, goal, horizon)

    starts, bars = starts_of(3), {}
    methods = [*reference_methods(OPEN), planned("plan", OPEN, Telling(), tracking(), replan_every=70),
               planned("once", OPEN, once(Telling()), tracking())]

    @contextmanager
    def bar(name):
        bars[name] = []
        yield bars[name].append

    compare_methods(OPEN, methods, starts, GOAL, task="open", bar=bar)
    assert [*bars] == [method.name for method in methods]
    for shares in bars.values():
        assert sum(shares) == pytest.approx(1) and len(shares) >= OPEN.max_steps
