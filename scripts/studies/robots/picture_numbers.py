"""Whether the numbers that a policy's coders make of pictures tell where the cubes of the swap stand.

    python scripts/studies/robots/picture_numbers.py CHECKPOINT

A ridge regression reads the places of both cubes from the numbers of every third observation of the expert's episodes;
its error is that on episodes which it was not fitted to. The controls are the same regression on the true places with
a millimetre of noise, as low-dimensional observations have them, and on a constant.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from dforce.data.generate.robot import make_task
from dforce.report.rows import make_row, write_results
from dforce.runs.folder import environment, results_header
from dforce.train.checkpoint import load

STRIDE, TESTED = 3, 0.2  # steps between pictures; share of the episodes that test
NAMES = [f"{cube} {axis}" for cube in ("red", "green") for axis in "xyz"]


def observations(episodes: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures "front" and "top" [N, 64, 64, 3], "cubes" [N, 6] in metres and "episode" [N]."""
    env, rows = make_task("swap", observations="mixed"), []
    for number in range(seed, seed + episodes):
        seen, _ = env.reset(seed=number)
        for step, action in enumerate(env.expert(np.random.default_rng([number, 1]), 0)):
            if step % STRIDE == 0:
                rows.append((seen["front"], seen["top"], np.concatenate([env.cube(0), env.cube(1)]), number))
            env.observations = "mixed" if (step + 1) % STRIDE == 0 else "low_dim"  # pictures are drawn only here
            seen = env.step(action)[0]
        env.observations = "mixed"
    return dict(zip(("front", "top", "cubes", "episode"), map(np.stack, zip(*rows, strict=True)), strict=True))


def errors(features: np.ndarray, places: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Root mean square error of each place [6] on the rows `tested`, in mm."""
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-9)
    a = np.concatenate([scaled, np.ones((len(scaled), 1))], 1)
    fitted = a[~tested]
    ridge = 1e-5 * len(fitted) * np.eye(a.shape[1])
    weights = np.linalg.solve(fitted.T @ fitted + ridge, fitted.T @ places[~tested])
    return 1000 * np.sqrt(((a[tested] @ weights - places[tested])**2).mean(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of dforce imitate, of pictures")
    parser.add_argument("--work", type=Path, default=Path("runs/picture_numbers"), help="folder of the observations")
    parser.add_argument("--out", type=Path, default=Path("docs/results/robot_picture_numbers.json"))
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=500_000, help="of the first episode")
    chosen, begin, about = parser.parse_args(), time.monotonic(), environment()
    coders = load(chosen.checkpoint).coders
    if coders is None:
        raise SystemExit(f"{chosen.checkpoint} sees no pictures")
    chosen.work.mkdir(parents=True, exist_ok=True)
    file = chosen.work / f"observations_{chosen.seed}_{chosen.episodes}.npz"
    if not file.exists():
        np.savez(file, **observations(chosen.episodes, chosen.seed))  # type: ignore[arg-type]
    data = dict(np.load(file))
    tested = data["episode"] >= chosen.seed + round((1 - TESTED) * chosen.episodes)
    numbers = {name: coders.encode(name, torch.from_numpy(data[name])).numpy() for name in coders.sizes}
    noisy = data["cubes"] + 0.001 * np.random.default_rng(0).standard_normal(data["cubes"].shape)
    features = {**{f"numbers of the {name} camera": each for name, each in numbers.items()},
                "numbers of both cameras": np.concatenate([*numbers.values()], 1),
                "true places, 1 mm of noise": noisy, "nothing": np.zeros((len(tested), 1))}
    rows = [make_row("swap, places of the cubes", method, name, float(error), n=int(tested.sum()), unit="mm",
                     higher=False) for method, each in features.items()
            for name, error in zip(NAMES, errors(each, data["cubes"], tested), strict=True)]
    write_results(chosen.out, results_header(about, round(time.monotonic() - begin, 1)), rows)
    for method in features:
        print(method, {row["metric"]: round(row["value"] or 0, 1) for row in rows if row["method"] == method})


if __name__ == "__main__":
    main()
