"""How well a world model denoises held-out frames, noise level by noise level:
python scripts/video/denoiser.py RUN DATA [--frames 16] [--batch 16]

A denoiser that is right leaves less error the less noise there is; where a row is worse than one with more noise, the
network has not learnt that level, and what it leaves there is what a rollout shows as grain.
"""

from __future__ import annotations

import argparse

import torch

from dforce.checkpoint import load
from dforce.data.video import VideoClips
from dforce.loss import corrupt

STDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.9, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    bundle = load(args.run)
    denoiser, schedule = bundle.denoiser, bundle.schedule
    batch = VideoClips(args.data, frames=args.frames, batch=args.batch, split="val").batch_at(0)
    generator = torch.Generator().manual_seed(0)
    print("noise std | error (root mean square), all frames noisy | the same, frames before the last one all but clean")
    for std in STDS:
        level = torch.full(batch.x.shape[:2], int(schedule.nearest(std / (1 - std**2) ** 0.5)))
        last = torch.full_like(level, int(schedule.nearest(0.04)))
        last[:, -1] = level[:, -1]
        noise = torch.randn(batch.x.shape, generator=generator)
        with torch.no_grad():
            errors = [denoiser(corrupt(schedule, batch.x, each, noise), each,
                               denoiser.init_state(len(batch.x), batch.cond), batch.cond)[0] - batch.x
                      for each in (level, last)]
        print(f"{std:9.2f} | {errors[0].square().mean() ** 0.5:.3f} | {errors[1][:, -1].square().mean() ** 0.5:.3f}")


if __name__ == "__main__":
    main()
