"""IQL and CQL on a maze2d task's demonstrations, by d3rlpy, scored as every other method is.

python scripts/studies/planning/offline_rl.py [--task maze2d-umaze] [--algorithms iql cql] [--steps 100000] [--seeds 0 1
2]

Needs d3rlpy (`pip install -c constraints.txt '.[planning,offline-rl]'`), which stands beside dforce's own dependencies
and replaces none of them. Rewards are those of the environment, 1 within half a cell of the task's own goal in the
state stepped into, computed here from the observations; the demonstrations never end, so nothing is terminal. The
policies know one goal, so Multi2D, whose goals vary, is refused. Settings are d3rlpy's defaults (the papers' for
MuJoCo) but for those given.
Training seed s is driven from the starts of seed s.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from findings import tell, write

from dforce.data import load_episodes
from dforce.envs import maze_reward
from dforce.planning.baselines.drivers import Driver, run_driver
from dforce.planning.scores import blocked_mask, score_report
from dforce.planning.tasks import Task, get_task

ALGORITHMS = ("iql", "cql")


def replay(task: Task, data: str) -> Any:
    """The demonstrations as a d3rlpy data set, rewarded for the task's goal."""
    from d3rlpy.dataset import MDPDataset

    episodes = load_episodes(data)
    goal = np.asarray(task.maze.goal, dtype=float)
    count, width = len(episodes), episodes.observations.shape[1]
    chains = episodes.observations.reshape(count, -1, width).astype(np.float32)
    rewards = maze_reward(chains[:, 1:, :2], goal).astype(np.float32)
    ends = np.zeros(rewards.shape, dtype=np.float32)
    ends[:, -1] = 1.0                                           # where a chain was cut off: no terminal
    return MDPDataset(chains[:, :-1].reshape(-1, width), episodes.actions.astype(np.float32),
                      rewards.reshape(-1, 1), np.zeros(rewards.size, dtype=np.float32), timeouts=ends.reshape(-1))


def learnt(name: str, dataset: Any, seed: int, asked: argparse.Namespace) -> Driver:
    """The policy of one training, as a driver."""
    import d3rlpy

    d3rlpy.seed(seed)
    scaled = {"observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(), "batch_size": asked.batch,
              "gamma": asked.gamma}
    config = (d3rlpy.algos.IQLConfig(**scaled, expectile=asked.expectile, weight_temp=asked.weight_temp)
              if name == "iql" else d3rlpy.algos.CQLConfig(**scaled, conservative_weight=asked.conservative_weight))
    policy = config.create(device="cuda:0" if torch.cuda.is_available() else False)
    policy.fit(dataset, n_steps=asked.steps, n_steps_per_epoch=min(asked.steps, 10_000), show_progress=False,
               logger_adapter=d3rlpy.logging.NoopAdapterFactory())
    return lambda obs, goal, rng: np.clip(policy.predict(obs.astype(np.float32)), -1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="maze2d-umaze")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--steps", type=int, default=100_000, help="gradient steps; the papers take a million")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--expectile", type=float, default=0.7, help="IQL")
    parser.add_argument("--weight-temp", type=float, default=3.0, help="IQL, inverse temperature")
    parser.add_argument("--conservative-weight", type=float, default=5.0, help="CQL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=100, help="starts of each seed")
    parser.add_argument("--data-steps", type=int, default=None, help="size of the data; None: as published")
    parser.add_argument("--out", type=Path, default=None)
    asked, begin, rows = parser.parse_args(), time.monotonic(), []
    task = get_task(asked.task)
    if not task.name.startswith("maze2d-"):
        parser.error(f"{task.name} has goals that vary; these policies know one: give a maze2d task")
    out = asked.out or Path("runs/offline_rl") / task.name / "results.json"
    dataset = replay(task, task.make_data(steps=asked.data_steps))
    for name in asked.algorithms:
        runs, masks = [], []
        for seed in asked.seeds:
            starts, goals = task.starts(asked.episodes, seed)
            driver = learnt(name, dataset, seed, asked)
            runs.append(run_driver(task.world, driver, starts, goals, steps=task.steps, seed=seed))
            masks.append(blocked_mask(task.world, starts, goals))
        own = ({"expectile": asked.expectile, "weight_temp": asked.weight_temp} if name == "iql"
               else {"conservative_weight": asked.conservative_weight})
        variant = {"steps": asked.steps, "batch": asked.batch, "gamma": asked.gamma, **own}
        found = score_report(task.world, runs, masks).rows(task=task.name, method=name.upper(), variant=variant)
        tell(found)
        rows += found
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, rows, begin)


if __name__ == "__main__":
    main()
