"""Random actions in the swap task: no warning, and the same seed is the same episode, bit for bit.

    python scripts/studies/robots/steps.py --out docs/results/robot_steps.json
"""

import argparse
import time
import warnings

import numpy as np

from dforce.data.generate.robot import make_task
from dforce.report.rows import make_row, write_results
from dforce.report.statistics import wilson_interval
from dforce.runs.folder import environment, results_header


def played(seed: int, steps: int) -> list[np.ndarray]:
    """Observations and rewards of an episode of random actions."""
    env = make_task("swap", observations="low_dim")
    seen, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    out = [np.asarray(seen)]
    for _ in range(steps):
        seen, reward, _, _, _ = env.step(env.action_space.sample())
        out += [np.asarray(seen), np.asarray(reward)]
    env.close()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out")
    args, about, begin = parser.parse_args(), environment(), time.monotonic()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        same = [all(map(np.array_equal, played(seed, args.steps), played(seed, args.steps)))
                for seed in range(args.episodes)]
    for each in warned:
        print(each.message)
    rows = [make_row("dforce/Swap-v0", "random actions", "same seed same episode",
                     wilson_interval(sum(same), len(same)), unit="share", higher=True),
            make_row("dforce/Swap-v0", "random actions", "warnings", len(warned), n=2 * args.episodes * args.steps,
                     unit="warnings", higher=False)]
    print([(row["metric"], row["value"], row["n"]) for row in rows])
    if args.out:
        write_results(args.out, results_header(about, round(time.monotonic() - begin, 1)), rows)


if __name__ == "__main__":
    main()
