"""Whether the two pictures at a decision of the swap task tell what comes next: they must not.

    python scripts/studies/robots/image_leak.py

A convolutional net sees both pictures (64 x 64) at which a decision is due and learns what is moved next, and, so that
it learns to see, where the cubes stand. The positive control is the same net that is given the slots at the beginning
as well: only if it succeeds, a failure without says anything. Of the net without, the best epoch on the very decisions
that are reported counts, and a second one is trained on what comes next alone. Finished probes are kept in --work.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dforce.data.generate.robot import make_task
from dforce.report.rows import make_row, write_results
from dforce.report.statistics import wilson_interval
from dforce.runs.folder import environment, results_header

NEXT = (0, 1, 0, 2)  # red, green, red, stop: what comes after each stage
CAMERAS = ("front", "top")
TESTED = 1200  # decisions, the last ones; the others train
PROBES = {"with the slots at the beginning": (True, True), "pictures alone": (False, True),
          "pictures alone, no slots learnt": (False, False)}  # remembers, sees: what it is given, what it learns beside


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


def accuracies(data: dict[str, np.ndarray], *, remembers: bool, sees: bool, epochs: int,
               seed: int) -> list[dict[str, float]]:
    """After every epoch: shares of the tested decisions, and of their slots, that a probe tells."""
    torch.manual_seed(seed)
    pictures = torch.from_numpy(data["pictures"])
    clue = functional.one_hot(torch.from_numpy(data["clue"]), 3).flatten(1).float() * remembers
    following, slots = torch.from_numpy(data["next"]), torch.from_numpy(data["slots"])
    count, probe, out = len(pictures) - TESTED, Probe(), []
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * -(-count // 64))
    for _ in range(epochs):
        for rows in torch.randperm(count).split(64):
            chosen, seen = probe(pictures[rows].float() / 255, clue[rows])
            loss = functional.cross_entropy(chosen, following[rows])
            loss = loss + sees * functional.cross_entropy(seen.unflatten(1, (2, 3)).transpose(1, 2), slots[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            tested = torch.arange(count, len(pictures)).split(256)
            parts = [probe(pictures[rows].float() / 255, clue[rows]) for rows in tested]
        chosen, seen = (torch.cat(part) for part in zip(*parts, strict=True))
        out.append({"next": float((chosen.argmax(1) == following[count:]).float().mean()),
                    "slots": float((seen.unflatten(1, (2, 3)).argmax(-1) == slots[count:]).float().mean())})
        print(out[-1], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/image_leak"), help="folder of decisions and probes")
    parser.add_argument("--out", type=Path, default=Path("docs/results/robot_image_leak.json"))
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=100_000, help="of the first episode")
    parser.add_argument("--only", nargs="*", default=list(PROBES), help="probes to train, if they are not yet")
    chosen, begin, about = parser.parse_args(), time.monotonic(), environment()
    chosen.work.mkdir(parents=True, exist_ok=True)
    file = chosen.work / f"decisions_{chosen.seed}_{chosen.episodes}.npz"
    if not file.exists():
        np.savez(file, **decisions(chosen.episodes, chosen.seed))  # type: ignore[arg-type]
    data, rows = dict(np.load(file)), []
    majority = int(np.bincount(data["next"][-TESTED:]).max())
    rows.append(make_row("swap, one picture of each camera", "always the commonest", "next", wilson_interval(
        majority, TESTED), higher=False))
    for name, (remembers, sees) in PROBES.items():
        done = chosen.work / f"{name} {chosen.seed} {chosen.episodes} {chosen.epochs}.json"
        if not done.exists() and name in chosen.only:
            done.write_text(json.dumps(accuracies(data, remembers=remembers, sees=sees, epochs=chosen.epochs, seed=0)))
        if not done.exists():
            continue
        epochs = json.loads(done.read_text())
        for metric in ("next", "slots")[:1 + sees]:
            value = epochs[-1][metric] if remembers or metric == "slots" else max(each[metric] for each in epochs)
            count = TESTED * (2 if metric == "slots" else 1)  # two cubes
            rows.append(make_row("swap, one picture of each camera", name, metric, wilson_interval(
                round(value * count), count), higher=remembers or metric == "slots"))
    write_results(chosen.out, results_header(about, round(time.monotonic() - begin, 1)), rows)
    for row in rows:
        print(f"{row['method']}, {row['metric']}: {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")


if __name__ == "__main__":
    main()
