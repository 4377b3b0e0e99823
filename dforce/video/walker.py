"""A policy that chooses the actions of a rollout from its frames, learnt from the walkers in real clips.

Actions of other clips lead into walls; the policy (the last two frames and the last actions -> the next action) sees
what a model, or the engine itself, has made so far, as a player does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.core.noise import mix
from dforce.data.pixels import from_uint8
from dforce.train.auxiliary import load_net, motion_layers, save_net, seeded, train_auxiliary
from dforce.video.recording import Record

MEMORY = 16         # actions that the policy remembers: walkers in mazes go straight for up to 15 frames
FILE = "walker.safetensors"
DRAW = 3            # stream of the counters: which action is taken

Clips = Callable[[int], tuple[Tensor, Tensor | None]]  # step -> frames [B, T, C, H, W], actions [B, T, A]


class WalkerPolicy(nn.Module):
    """forward(pairs, past) -> logits [N, A] of the action that leads to frame t; shape: (C, H, W), in fours.

    pairs: frames t - 2 and t - 1, [N, 2 C, H, W]. past: the last actions, oldest first, [N, memory, A], or zeros.
    """

    def __init__(self, shape: tuple[int, int, int], actions: int, *, memory: int = MEMORY, channels: int = 24):
        super().__init__()
        self.eyes = nn.Sequential(*motion_layers(shape, channels, what="walker"))
        if actions < 2 or memory < 1:
            raise ValueError(f"a walker chooses between at least two actions and remembers at least one, got {actions} "
                             f"and memory={memory}")
        self.shape, self.actions, self.memory, self.channels = shape, actions, memory, channels
        self.past = nn.Linear(memory * actions, 64)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, actions))

    def forward(self, pairs: Tensor, past: Tensor) -> Tensor:
        before, last = pairs.chunk(2, 1)
        return self.head(self.eyes(torch.cat([before, last, 4 * (last - before)], 1)) + self.past(past.flatten(1)))


class Decisions(NamedTuple):
    """Examples: pairs [N, 2 C, H, W] and past [N, memory, A] before actions, and these, label [N]."""

    pairs: Tensor
    past: Tensor
    label: Tensor


def decisions(frames: Tensor, actions: Tensor, memory: int = MEMORY) -> Decisions:
    """Examples of clips [B, T, C, H, W] and one-hot actions [B, T, A] that led to the frames; null ones give none."""
    pairs, past = _before(frames, actions, memory)
    chosen = actions[:, 1:].flatten(0, 1)
    known = chosen.sum(-1) > 0
    return Decisions(pairs[known], past[known], chosen[known].argmax(-1))


def _before(frames: Tensor, actions: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """What came before frames 1..T - 1: pairs [B * (T - 1), 2 C, H, W] and past [B * (T - 1), memory, A]."""
    if actions.shape[:2] != frames.shape[:2]:
        raise ValueError(f"actions must be one a frame, {[*frames.shape[:2]]}, got {[*actions.shape]}")
    if not bool(((actions == 0) | (actions == 1)).all()) or bool((actions.sum(-1) > 1).any()):
        raise ValueError("a walker chooses one of several actions a frame, and these are not one-hot (numbers, "
                         "or those of several stored frames at a stride); give actions=data, random or a file")
    last = frames[:, :-1]
    pairs = torch.cat([torch.cat([last[:, :1], last[:, :-1]], 1), last], 2).flatten(0, 1)
    return pairs, F.pad(actions, (0, 0, memory, 0)).unfold(1, memory, 1)[:, 1:-1].transpose(2, 3).flatten(0, 1)


def train_walker(clips: Clips, actions: int, *, memory: int = MEMORY, steps: int = 600, batch: int = 128,
                 lr: float = 2e-3, seed: int = 0, device: torch.device | str = "cpu") -> WalkerPolicy:
    """A policy that imitates one-hot actions in clips(step) (cross-entropy); the same for the same clips and seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(clips(0)[0].shape[2:])
    policy = seeded(lambda: WalkerPolicy(shape, actions, memory=memory), seed).to(device)  # type: ignore[arg-type]

    def loss(step: int) -> Tensor:
        frames, taken = clips(step)
        seen = None if taken is None else decisions(frames, taken, memory)
        if seen is None or not len(seen.label):
            raise ValueError(f"the real clips of step {step} hold no actions, so there is no walker to learn from")
        chosen = torch.randint(len(seen.label), (batch,), generator=generator).to(seen.label.device)
        pairs, past, label = (part[chosen].to(device) for part in seen)
        return F.cross_entropy(policy(pairs, past), label)

    return train_auxiliary(policy, loss, steps=steps, lr=lr, weight_decay=1e-2)


@torch.no_grad()
def expected(policy: WalkerPolicy, frames: Tensor, actions: Tensor) -> Tensor:
    """Probabilities [B, T, A] of the actions that lead to each frame of clips, given all before it; 0 at frame 0."""
    device, parts = next(policy.parameters()).device, []
    for one, taken in zip(frames.split(1), actions.split(1), strict=True):
        pairs, past = _before(one, taken, policy.memory)
        parts.append(policy(pairs.to(device), past.to(device)).cpu().softmax(-1))
    return F.pad(torch.stack(parts), (0, 0, 1, 0))


class Walker:
    """Actions (frame, count) -> [B, count, A] of a policy that is shown the frames as they are made.

    frames, actions: what came before, [B, N, C, H, W] and [B, N, A]; N may be 0. rollouts: their numbers [B]. The
    action that leads to a frame is drawn once the frames before it have been shown by `see`, as a function of (seed,
    rollout, frame) and of these. Within a chunk, later actions are drawn from the last frame shown and the actions
    since.
    """

    def __init__(self, policy: WalkerPolicy, frames: Tensor, actions: Tensor, *, seed: int = 0,
                 rollouts: Tensor | None = None):
        if actions.shape != (*frames.shape[:2], policy.actions) or tuple(frames.shape[2:]) != policy.shape:
            raise ValueError(f"this walker sees frames {policy.shape} and chooses one of {policy.actions} actions, got "
                             f"{[*frames.shape]} and {[*actions.shape]}")
        self.policy, self.seed = policy, seed
        self.rollouts = torch.arange(len(frames)) if rollouts is None else rollouts
        self.seen, self.decided = frames.shape[1], frames.shape[1]  # frames shown, actions known
        self.taken = actions.cpu()                                   # [B, n, A], the last of those decided
        self.frames = frames[:, -2:].cpu()                          # [B, 0 to 2, C, H, W]

    def __call__(self, frame: int, count: int) -> Tensor:
        first = self.decided - self.taken.shape[1]
        if not first <= frame <= self.seen:
            raise ValueError(f"the walker has seen {self.seen} frames and remembers actions from frame {first} on; "
                             f"for the action that leads to frame {frame}, show it the frames before (see)")
        while self.decided < frame + count:
            self.taken, self.decided = torch.cat([self.taken, self._next()[:, None]], 1), self.decided + 1
        return self.taken[:, frame - first:frame - first + count]

    def see(self, frames: Tensor) -> None:
        """The next frames [B, n, C, H, W], in -1..1."""
        self(self.seen, frames.shape[1])
        self.seen += frames.shape[1]
        self.frames = torch.cat([self.frames, frames.cpu()], 1)[:, -2:]
        self.taken = self.taken[:, -max(self.policy.memory, self.decided - self.seen):]

    def recall(self, record: Record) -> None:
        """Continues after all frames and actions that a record holds."""
        frames, actions = record.frames(), record.actions_fed()
        assert actions is not None
        self.taken = torch.cat([self.taken, torch.from_numpy(actions).transpose(0, 1)], 1)[:, -self.policy.memory:]
        self.frames = torch.cat([self.frames, from_uint8(np.array(frames[-2:])).transpose(0, 1)], 1)[:, -2:]
        self.seen = self.decided = self.seen + len(frames)

    @torch.no_grad()
    def _next(self) -> Tensor:
        """The action [B, A] that leads to the first frame for which none is chosen yet; zeros for frame 0."""
        if self.decided == 0:
            return torch.zeros(len(self.rollouts), self.policy.actions)
        frames = self.frames if len(self.frames[0]) else torch.zeros(len(self.rollouts), 1, *self.policy.shape)
        pairs = torch.cat([frames[:, 0], frames[:, -1]], 1).contiguous()  # as it is after a recall, to the last bit
        past = F.pad(self.taken, (0, 0, max(self.policy.memory - self.taken.shape[1], 0), 0))[:, -self.policy.memory:]
        device = next(self.policy.parameters()).device
        part = self.policy(pairs.to(device), past.to(device)).cpu().double().softmax(-1)
        number = mix(self.seed, DRAW, self.rollouts, self.decided) & (1 << 52) - 1
        drawn = (part.cumsum(-1) <= (number.double() / (1 << 52))[:, None]).sum(-1)
        return F.one_hot(drawn.clamp(max=self.policy.actions - 1), self.policy.actions).float()


def save_walker(policy: WalkerPolicy, file: Path) -> None:
    """One safetensors file that holds the weights and the sizes."""
    save_net(policy, file, key="walker", about={"shape": policy.shape, "actions": policy.actions,
                                                "memory": policy.memory, "channels": policy.channels})


def load_walker(file: Path, *, device: torch.device | str = "cpu") -> WalkerPolicy:
    """The policy that `save_walker` wrote. Raises FileNotFoundError, or ValueError for another file."""
    return load_net(file, WalkerPolicy, key="walker", what="walker", missing="there is no walker {file}: dforce "
                    "rollout actions=walker leaves one").to(device)
