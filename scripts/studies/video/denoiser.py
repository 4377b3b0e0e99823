"""How well a world model denoises held-out frames after a clean past, noise by noise:
python scripts/studies/video/denoiser.py RUN DATA [--frames 16] [--batch 64] [--device cpu]

A denoiser that is right leaves less error the less noise there is; where a row is worse than one with more noise, the
network has not learnt that level, and what it leaves there is what a rollout shows as grain. A training's page shows
the same of its validations (errors.png); this asks a finished model, on as many windows as you like.
"""

from __future__ import annotations

import argparse

from dforce.data.video.dataset import VideoClips
from dforce.train.checkpoint import load
from dforce.train.precision import device_of
from dforce.train.validation import held_out_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", help="none: the GPU if there is one")
    args = parser.parse_args()
    device = device_of(args.device)
    bundle = load(args.run, device=device)
    batch = VideoClips(args.data, frames=args.frames, batch=args.batch, split="val", device=device).batch_at(0)
    print("noise std over signal | root mean square error")
    for name, error in held_out_error(bundle.denoiser, bundle.schedule, batch, rows=args.batch).items():
        print(f"{name:>21} | {float(error):.3f}")


if __name__ == "__main__":
    main()
