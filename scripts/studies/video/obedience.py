"""Is a world model obeyed by its walker, or does it obey? python scripts/studies/video/obedience.py ROLLOUT [--engine
RUN]

A walker who sees the frames mostly chooses what anybody would: a model that heard nothing and dreamt of a usual walk
would be found to do much of what it was told. Two measures tell these apart, beside the same of real clips:

of=unexpected: kappa of the probe over the actions alone that the policy, before its draw, found less likely than half.
of=drawn again: kappa of the probe with actions drawn a second time from what the policy would have done, and told to
nobody: what deafness would reach.

ROLLOUT: a run folder of `dforce rollout actions=walker`; RUN: one of scripts/studies/video/engine.py on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dforce.data.pixels import from_uint8
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder
from dforce.video.evaluation import CLIPS, labelled_windows
from dforce.video.metrics.features import train_probe
from dforce.video.metrics.measure import RowMaker, probe_rows
from dforce.video.model import load_video
from dforce.video.reference_clips import RealVideo
from dforce.video.walker import FILE, WalkerPolicy, expected, load_walker


def unexpected(policy: WalkerPolicy, frames: Tensor, actions: Tensor) -> Tensor:
    """actions [B, T, A], those set to none that the policy found at least as likely as all others together."""
    return actions * ((expected(policy, frames, actions) * actions).sum(-1, keepdim=True) < 0.5)


def drawn_again(policy: WalkerPolicy, frames: Tensor, actions: Tensor) -> Tensor:
    """Others [B, T, A] in place of actions, drawn from what the policy would have done; none where there was none."""
    part = expected(policy, frames, actions)
    drawn = torch.multinomial(part[:, 1:].flatten(0, 1), 1, generator=torch.Generator().manual_seed(0))
    again = torch.zeros_like(actions)
    again[:, 1:] = torch.nn.functional.one_hot(drawn.view(len(part), -1), policy.actions)
    return again * actions.sum(-1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollout", type=Path)
    parser.add_argument("--engine", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = OmegaConf.load(args.rollout / "config.yaml")
    model, policy = load_video(cfg.checkpoint), load_walker(args.rollout / FILE)
    size = cfg.samples, *model.shape[1:], model.shape[0]
    runs = {cfg.method: (np.fromfile(args.rollout / "frames.u8", np.uint8).reshape(-1, *size)[:cfg.frames],
                         np.fromfile(args.rollout / "actions.f32", np.float32).reshape(-1, cfg.samples, model.actions)
                         [:cfg.frames])}
    if args.engine:
        runs["engine, another maze"] = np.load(args.engine / "frames.npy"), np.load(args.engine / "actions.npy")
    learnt, real = (RealVideo(model, cfg.data or model.data, split=split, seed=cfg.seed) for split in ("train", "val"))
    with RunFolder("video/obedience", {"rollout": str(args.rollout)}, out=args.out) as folder:
        probe = train_probe(lambda step: labelled_windows(learnt, step), model.actions, steps=cfg.feature_steps,
                            seed=cfg.seed)
        (frames, actions, _), rows = real.clips(min(CLIPS, max(len(real), 2))), []
        assert actions is not None
        for name, change in (("unexpected", unexpected), ("drawn again", drawn_again)):
            known = frames, change(policy, frames, actions)
            for method, (made, fed) in runs.items():
                other = change(policy, from_uint8(made).transpose(0, 1), torch.from_numpy(fed).transpose(0, 1))
                rows += probe_rows(probe, made, other.transpose(0, 1).numpy(), known,
                                   RowMaker(real.data, method, {"actions": "walker", "of": name}))
        rows = [row for i, row in enumerate(rows) if row not in rows[:i]]  # real clips come with every run
        folder.results(rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
