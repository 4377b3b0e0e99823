"""Whether the two pictures at a decision of the swap task tell what comes next: they must not.

    python scripts/studies/robots/image_leak.py --out runs/image_leak

A convolutional net sees both pictures (64 x 64) at which a decision is due and learns what is moved next, and, so that
it learns to see, where the cubes stand. Half of the episodes train it, the other half test it. The positive control is
the same net that is given the slots at the beginning as well: only if it succeeds, a failure without says anything.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dforce.data.generate.robot import make_task

NEXT = (0, 1, 0, 2)  # red, green, red, stop: what comes after each stage
CAMERAS = ("front", "top")


def decisions(episodes: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures uint8 [4 E, 6, 64, 64] at decisions, "next" and "clue" and "slots" of red and of green [4 E, ...]."""
    env = make_task("swap", observations="low_dim")
    camera = make_task("swap", observations="image")
    rows: list[tuple] = []
    for number in range(seed, seed + episodes):
        _, info = env.reset(seed=number)
        due, actions = False, env.expert(np.random.default_rng([number, 1]), 0)
        while True:
            if info["decision_due"] and not due:  # pictures are drawn only here
                camera.set_state(env.get_state())
                seen = camera.observe()
                rows.append((np.concatenate([seen[name].transpose(2, 0, 1) for name in CAMERAS]), NEXT[info["stage"]],
                             info["clue"], env.arrangement()))
            due, action = info["decision_due"], next(actions, None)
            if action is None:
                break
            *_, info = env.step(action)
    camera.close()
    return dict(zip(("pictures", "next", "clue", "slots"), map(np.stack, zip(*rows, strict=True)), strict=True))


class Probe(nn.Module):
    """pictures [B, 6, 64, 64] in [0, 1] and clue [B, 6] -> logits of what comes next [B, 3] and of the slots [B, 2, 3].

    clue: one-hot slots at the beginning, zeros without them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seeing = nn.Sequential(nn.Conv2d(6, 24, 5, 2, 2), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(),
                                    nn.Conv2d(48, 48, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 64, 128),
                                    nn.ReLU())
        self.slots = nn.Linear(128, 6)
        self.following = nn.Sequential(nn.Linear(128 + 12, 128), nn.ReLU(), nn.Linear(128, 3))

    def forward(self, pictures: Tensor, clue: Tensor) -> tuple[Tensor, Tensor]:
        features = self.seeing(pictures)
        slots = self.slots(features)
        return self.following(torch.cat([features, slots.unflatten(1, (2, 3)).softmax(-1).flatten(1), clue], 1)), slots


def accuracy(data: dict[str, np.ndarray], *, remembers: bool, epochs: int, seed: int) -> dict[str, float]:
    """Share of the second half's decisions that a probe trained on the first half predicts; and of slots it sees."""
    torch.manual_seed(seed)
    pictures = torch.from_numpy(data["pictures"])
    clue = functional.one_hot(torch.from_numpy(data["clue"]), 3).flatten(1).float() * remembers
    following, slots = torch.from_numpy(data["next"]), torch.from_numpy(data["slots"])
    half, probe = len(pictures) // 2, Probe()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(half).split(64):
            chosen, seen = probe(pictures[rows].float() / 255, clue[rows])
            loss = (functional.cross_entropy(chosen, following[rows])
                    + functional.cross_entropy(seen.unflatten(1, (2, 3)).transpose(1, 2), slots[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        tested = torch.arange(half, len(pictures)).split(256)
        parts = [probe(pictures[rows].float() / 255, clue[rows]) for rows in tested]
    chosen, seen = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"next": float((chosen.argmax(1) == following[half:]).float().mean()),
            "slots": float((seen.unflatten(1, (2, 3)).argmax(-1) == slots[half:]).float().mean()),
            "majority": float(torch.bincount(following[half:]).max() / half), "decisions": half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the decisions and the results")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=100_000, help="of the first episode")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / f"decisions_{chosen.seed}_{chosen.episodes}.npz"
    if not file.exists():
        np.savez(file, **decisions(chosen.episodes, chosen.seed))  # type: ignore[arg-type]
    data = dict(np.load(file))
    results = {name: accuracy(data, remembers=remembers, epochs=chosen.epochs, seed=0)
               for name, remembers in (("with the slots at the beginning", True), ("pictures alone", False))}
    (chosen.out / "results.json").write_text(json.dumps(results, indent=1))
    for name, result in results.items():
        print(f"{name}: next {result['next']:.3f} (majority {result['majority']:.3f}), slots {result['slots']:.3f}, "
              f"{result['decisions']:,} decisions")


if __name__ == "__main__":
    main()
