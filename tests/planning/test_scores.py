"""Scores against numbers computed by hand, intervals against laws with known answers."""

import numpy as np
import pytest
from scipy import stats

from dforce.envs import MAZES, dynamics, get_maze, maze_from_text
from dforce.envs.maze.batched import DAMPING, DT, MASS
from dforce.planning.baselines.drivers import run_driver, straight_driver
from dforce.planning.control import Executed, Plan
from dforce.planning.scores import METRICS, blocked_mask, fresh_starts, score_report
from dforce.report.statistics import bootstrap_interval, paired_difference, success_interval, wilson_interval

UMAZE = get_maze("umaze")
GOAL = np.array(UMAZE.goal, dtype=float)


def episodes(rewards) -> Executed:
    rewards = np.asarray(rewards, dtype=float)
    n, steps = rewards.shape
    return Executed(rewards, np.ones((n, steps + 1, 4)), np.zeros((n, steps, 2)), np.tile(GOAL, (n, 1)))


def row_of(rows, metric, starts):
    (row,) = [row for row in rows if row["metric"] == metric and row["variant"]["starts"] == starts]
    return row


def test_rows_by_hand():
    rewards = np.zeros((4, 300))
    rewards[0, 100:200] = 1  # return 100, latched 200, first reach 101
    rewards[1, :] = 1  # 300, 300, 1
    rewards[2, 299] = 1  # 1, 1, 300
    report = score_report(UMAZE, [episodes(rewards)], [np.array([True, False, False, True])])
    rows = report.rows(task="umaze", method="x", variant={"matrix": "pyramid"})

    def score(raw):
        return 100 * (raw - 23.85) / (161.86 - 23.85)

    assert row_of(rows, "return", "all")["value"] == 401 / 4
    assert row_of(rows, "score", "all")["value"] == pytest.approx(score(401 / 4))
    assert row_of(rows, "score_latched", "all")["value"] == pytest.approx(score(501 / 4))
    assert row_of(rows, "score", "blocked")["value"] == pytest.approx(score(50))
    assert row_of(rows, "success", "all")["value"] == 0.75
    reach = row_of(rows, "first_reach", "all")
    assert (reach["value"], reach["n"]) == ((101 + 1 + 300) / 3, 3)
    assert row_of(rows, "first_reach", "blocked")["n"] == 1
    for row in rows:
        assert list(row) == [
            "task", "method", "variant", "metric", "value", "low", "high", "n", "seeds", "unit", "higher_is_better",
        ]  # fmt: skip
        assert row["variant"]["matrix"] == "pyramid" and row["seeds"] == 1 and row["low"] <= row["value"] <= row["high"]
    lines = report.episodes(task="umaze", method="x", variant={"matrix": "pyramid"})
    assert [line["return"] for line in lines] == [100, 300, 1, 0]
    assert lines[3]["first_reach"] == -1 and lines[3]["blocked"] is True and lines[3]["matrix"] == "pyramid"
    assert not any(isinstance(value, (dict, list)) for value in lines[0].values())


def test_seeds_are_pooled_and_counted():
    one, two = np.zeros((3, 300)), np.ones((5, 300))
    report = score_report(UMAZE, [episodes(one), episodes(two)], [np.zeros(3, bool), np.zeros(5, bool)])
    rows = report.rows(task="umaze", method="x")
    assert {row["variant"]["starts"] for row in rows} == {"all"}  # no blocked start, no row about them
    row = row_of(rows, "return", "all")
    assert (row["value"], row["n"], row["seeds"]) == (300 * 5 / 8, 8, 2)
    assert (row["low"], row["high"]) == (0, 300)  # either seed may be drawn twice
    assert [line["episode"] for line in report.episodes(task="u", method="x")] == [0, 1, 2, 0, 1, 2, 3, 4]


def test_metrics_that_do_not_apply_have_no_rows():
    custom = maze_from_text("#####\n#OOG#\n#####")
    run = episodes(np.zeros((2, 5)))
    names = {row["metric"] for row in score_report(custom, [run], [np.zeros(2, bool)]).rows(task="c", method="x")}
    assert names == {"return", "return_latched", "success", "wall_contact"}  # no references, never reached, no plan


def line(*corners, apart=0.15):
    """Places from (3, 1) along these corners."""
    out, now = [], np.array([3.0, 1.0])
    for corner in np.array(corners, dtype=float):
        count = int(np.ceil(np.linalg.norm(corner - now) / apart))
        out += [now + (corner - now) * k / count for k in range(1, count + 1)]
        now = corner
    return np.array(out)


def test_plans_are_counted_along_their_steps_and_before_they_arrive():
    """From (3, 1) a wall at (2, 1) hides the goal (1, 1), and the way is round by (3, 3) and (1, 3)."""
    there = line((3, 3), (1, 3), (1, 1))
    through = line((1, 1))
    over = np.array([[1.0, 1.0]])                                # no planned state is in the wall, the step to it is
    later = np.concatenate([there, np.array([[2.0, 1.0]])])      # after it has arrived
    leap = np.array([[3.0, 1.1], [3.0, 1.4]])
    plans = [there, through, over, later, leap]
    states = np.zeros((len(plans), len(later), 4))
    for plan, places in zip(states, plans, strict=True):
        plan[:, :2] = places[np.arange(len(later)).clip(max=len(places) - 1)]
    assert UMAZE.is_free(states[2, :, :2]).all()
    run = episodes(np.zeros((len(plans), 5)))
    run.trajectory[..., 0] = 3.0
    run.trajectory[0, 3, 0] += 0.1                               # the fastest step that was executed
    planned = run._replace(plan=Plan(np.zeros((*states.shape[:2], 2)), states))
    report = score_report(UMAZE, [planned], [np.zeros(len(plans), bool)])
    assert report.values["leaps"].tolist() == [0, 0, 1, 0, 1] and report.values["in_wall"].tolist() == [0, 1, 1, 0, 0]
    assert set(report.values) <= set(METRICS)
    row = row_of(report.rows(task="u", method="x"), "leaps", "all")
    assert (row["value"], row["low"], row["high"], row["n"]) == pytest.approx(wilson_interval(2, 5))


@pytest.mark.parametrize("name", ["umaze", "medium"])
def test_wall_contact_is_where_the_dynamics_can_push_a_ball(name):
    maze, rng = MAZES[name], np.random.default_rng(0)
    position = rng.uniform(0.0, maze.walls.shape, size=(40_000, 2)) - 0.7
    position = position[maze.is_free(position)]
    contact = maze.near_wall(position[..., :2])
    pushed = np.zeros(len(position), bool)
    for angle in np.arange(0, 2 * np.pi, np.pi / 4):  # a wall pushes on a ball at it that drives towards it
        speed = np.tile([np.cos(angle), np.sin(angle)], (len(position), 1))
        after = dynamics(maze, np.concatenate([position, speed], axis=1), np.zeros_like(speed))
        pushed |= (np.abs(speed / (1 + DT * DAMPING / MASS) - after[:, 2:]) > 1e-9).any(axis=1)
    np.testing.assert_array_equal(contact, pushed)
    assert 0.05 < contact.mean() < 0.95


def test_blocked_starts_are_the_failures_of_straight_driving():
    starts = fresh_starts(UMAZE, 300, seed=11)
    blocked = blocked_mask(UMAZE, starts, GOAL)
    np.testing.assert_array_equal(blocked, ~run_driver(UMAZE, straight_driver, starts, GOAL).success)
    assert blocked.mean() == pytest.approx(0.37, abs=0.08)
    np.testing.assert_array_equal(starts, fresh_starts(UMAZE, 300, seed=11))
    cells = np.rint(starts[:, :2]).astype(int)
    assert {tuple(cell) for cell in cells} == {tuple(cell) for cell in UMAZE.free_cells}
    assert np.abs(starts[:, :2] - cells).max() <= 0.1 and starts[:, 2:].std() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("successes, n", [(0, 20), (7, 20), (20, 20), (90, 100), (1, 1)])
def test_wilson_equals_scipy(successes, n):
    ours = wilson_interval(successes, n)
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)
    assert ours.value == successes / n


def test_bootstrap_covers_a_known_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = bootstrap_interval(rng.exponential(size=80), rng=rng, draws=400)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


@pytest.mark.slow
def test_bootstrap_over_seeds_covers_where_episodes_alone_do_not():
    rng = np.random.default_rng(1)
    seed = np.repeat(np.arange(12), 20)
    both = alone = 0
    for _ in range(200):
        values = rng.normal(size=12)[seed] + rng.normal(size=240)  # as much spread between seeds as within
        found = bootstrap_interval(values, seed, rng=rng, draws=300)
        naive = bootstrap_interval(values, rng=rng, draws=300)
        both += found.low <= 0.0 <= found.high
        alone += naive.low <= 0.0 <= naive.high
    assert both / 200 >= 0.88 and alone / 200 <= 0.6


def test_success_interval_is_wilson_for_one_seed_and_never_narrower_for_more():
    rng = np.random.default_rng(2)
    success = (rng.random(60) < 0.8).astype(float)
    wilson = wilson_interval(int(success.sum()), 60)
    assert success_interval(success, rng=rng) == wilson
    assert success_interval(success, np.zeros(60), rng=rng) == wilson
    seed = np.repeat([0, 1, 2], 20)
    perfect = success_interval(np.ones(60), seed, rng=rng)
    assert perfect.low == wilson_interval(60, 60).low < 1  # the bootstrap alone would claim certainty
    uneven = success_interval(np.repeat([1.0, 1.0, 0.0], 20), seed, rng=rng)
    assert (uneven.low, uneven.high) == (0.0, 1.0)  # one seed of three failed outright


def test_paired_difference_takes_the_starts_out():
    rng = np.random.default_rng(3)
    start = rng.normal(scale=100, size=200)
    a, b = start + 1 + rng.normal(scale=0.5, size=200), start + rng.normal(scale=0.5, size=200)
    found = paired_difference(a, b)
    assert found.value == pytest.approx((a - b).mean()) and 0.8 < found.low < 1 < found.high < 1.2
    swapped = paired_difference(b, a)
    np.testing.assert_allclose([swapped.low, swapped.high], [-found.high, -found.low], atol=0.02)
    with pytest.raises(ValueError, match="same episodes"):
        paired_difference(a, b[:-1])


def test_bad_reports_are_answered():
    run = episodes(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="one mask"):
        score_report(UMAZE, [run], [])
    with pytest.raises(ValueError, match="one an episode"):
        score_report(UMAZE, [run], [np.zeros(3, bool)])
    with pytest.raises(ValueError, match="success"):
        score_report(UMAZE, [run], [np.zeros(2, bool)]).episodes(task="u", method="x", variant={"success": 1})
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(3, 2)
