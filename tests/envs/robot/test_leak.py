"""Whether one observation tells what only memory should: if it does, the tasks are worth nothing as tests of memory.

Three probes are trained to predict what comes next from the observation at which it is decided. With what has to be
remembered beside it they must succeed, so that a failure without it says something.
"""

import warnings

import numpy as np
import pytest

from dforce.data.generate.robot import make_task
from dforce.envs.robot.swap import SLOTS

RED, GREEN, STOP = 0, 1, 2


def swap_decisions(seeds: range) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Observations [n, 10] at decisions, what is moved next [n], the clue [n, 2] and the episode [n]."""
    env, rows = make_task("swap"), []
    for seed in seeds:
        observation, info = env.reset(seed=seed)
        due, stages = False, [RED, GREEN, RED, STOP]
        actions = env.expert(np.random.default_rng([seed, 1]), 0)
        while True:
            if info["decision_due"] and not due:
                rows.append((observation, stages[info["stage"]], info["clue"], seed))
            due = info["decision_due"]
            action = next(actions, None)
            if action is None:
                break
            observation, _, _, _, info = env.step(action)
    seen, following, clues, episodes = zip(*rows, strict=True)
    return np.stack(seen), np.array(following), np.stack(clues), np.array(episodes)


def cue_decisions(task: str, seeds: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations at which "go" is first seen, the answer [n], and the episode [n]. After two dark steps only."""
    env, seen, answers = make_task(task, span=2), [], []
    for seed in seeds:
        observation, info = env.reset(seed=seed)
        while not info["decision_due"]:
            observation, _, _, _, info = env.step(np.append(env.arm.target, 0))
        seen.append(observation)
        answers.append(info["clue"][0])
    return np.stack(seen), np.array(answers), np.array(seeds)


def best_probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Accuracy of the best of three probes in five folds, of which no episode is in two."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probes = {"MLP": MLPClassifier((64, 64), alpha=1e-3, max_iter=150, random_state=0),
              "early stopped MLP": MLPClassifier((64, 64), alpha=1.0, max_iter=150, early_stopping=True,
                                                 random_state=0),
              "boosting": HistGradientBoostingClassifier(max_iter=80, learning_rate=0.05, random_state=0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = {name: cross_val_score(make_pipeline(StandardScaler(), probe), features, labels, groups=groups,
                                        cv=GroupKFold(5)).mean() for name, probe in probes.items()}
    print({name: round(float(score), 3) for name, score in scores.items()})
    return float(max(scores.values()))


def slots(observations: np.ndarray) -> np.ndarray:
    """Slots of red and of green [n, 2] as they are seen."""
    return np.abs(observations[:, [5, 8], None] - np.array(SLOTS)).argmin(-1)


def one_hot(slot: np.ndarray) -> np.ndarray:
    return np.eye(3)[slot].reshape(len(slot), -1)


def test_memory_tells_what_comes_next_and_the_arrangement_does_not() -> None:
    """Of the first episodes: (arrangement, clue) determines the next move, and one arrangement has several."""
    seen, following, clues, episodes = swap_decisions(range(6))
    assert len(seen) == 24 and set(np.bincount(episodes)) == {4}
    known: dict = {}
    for arrangement, clue, move in zip(slots(seen), clues, following, strict=True):
        assert known.setdefault((*arrangement, *clue), move) == move
    moves: dict = {}
    for arrangement, move in zip(slots(seen), following, strict=True):
        moves.setdefault(tuple(arrangement), set()).add(move)
    assert max(map(len, moves.values())) >= 2
    assert (seen[:, 3] == 0).all()  # the only number of the gripper is what it was told


@pytest.mark.slow
def test_one_observation_of_the_swap_does_not_tell_what_comes_next() -> None:
    pytest.importorskip("sklearn")
    seen, following, clues, episodes = swap_decisions(range(80_000, 80_300))
    assert len(seen) == 1200 and np.bincount(following).max() == 600
    assert best_probe(seen, following, episodes) <= 0.55
    memory = np.concatenate([seen, one_hot(slots(seen)), one_hot(clues)], 1)
    assert best_probe(memory, following, episodes) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("task", ["remember_color", "remember_place", "count"])
def test_one_observation_at_go_does_not_tell_the_cue(task: str) -> None:
    pytest.importorskip("sklearn")
    seen, answers, episodes = cue_decisions(task, range(90_000, 91_200))
    assert best_probe(seen, answers, episodes) <= 1 / 3 + 0.05
    assert best_probe(np.concatenate([seen, np.eye(3)[answers]], 1), answers, episodes) >= 0.99
