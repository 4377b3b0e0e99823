"""Small networks trained on the data set itself: features to measure video in, and a probe that sees its actions.

Distances between features are comparable within one data set only, so each stands beside that of real clips.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.train.auxiliary import load_net, motion_layers, save_net, seeded, train_auxiliary

Clips = Callable[[int], Tensor]  # step -> real frames [B, T, C, H, W] in -1..1, T >= 2
Labelled = Callable[[int], tuple[Tensor, Tensor]]  # step -> frames [B, T, C, H, W], actions [B, T] or [B, T, A]


class PairEncoder(nn.Module):
    """An autoencoder of frame pairs: forward(pairs [N, 2 C, H, W]) -> features [N, width], unit variance on its data.

    It reconstructs the first frame and the change to the second, each divided by its standard deviation in the data.
    shape: (C, H, W) of a frame, H and W multiples of 4; `width` of the features, `channels` of the first layer.
    """

    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, int, int], *, width: int = 32, channels: int = 24):
        super().__init__()
        c, h, w = shape
        if h % 4 or w % 4:
            raise ValueError(f"the encoder halves frames twice: height and width must be multiples of 4, got {h} x {w}")
        self.shape, self.width, self.channels = (c, h, w), width, channels
        self.encoder = nn.Sequential(
            nn.Conv2d(2 * c, channels, 4, 2, 1), nn.SiLU(), nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(2 * channels * (h // 4) * (w // 4), width))
        self.decoder = nn.Sequential(
            nn.Linear(width, 2 * channels * (h // 4) * (w // 4)), nn.Unflatten(1, (2 * channels, h // 4, w // 4)),
            nn.SiLU(), nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(channels, 2 * c, 4, 2, 1))
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def target(self, pairs: Tensor) -> Tensor:
        """First frame and change, each at unit scale: [N, 2 C, H, W]."""
        first, second = pairs.chunk(2, 1)
        return torch.cat([first / self.scale[0], (second - first) / self.scale[1]], 1)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.encoder(self.target(pairs)) - self.mean) / self.std

    def loss(self, pairs: Tensor) -> Tensor:
        """Mean squared error of the reconstruction."""
        wanted = self.target(pairs)
        return (self.decoder(self.encoder(wanted)) - wanted).square().mean()


def pairs_of(frames: Tensor) -> Tensor:
    """Neighbouring frames of clips [B, T, C, H, W] -> [B * (T - 1), 2 C, H, W]."""
    if frames.ndim != 5 or frames.shape[1] < 2:
        raise ValueError(f"clips of at least two frames [B, T, C, H, W] are wanted, got {[*frames.shape]}")
    return torch.cat([frames[:, :-1], frames[:, 1:]], 2).flatten(0, 1)


def train_features(clips: Clips, *, steps: int = 600, pairs: int = 64, width: int = 32, lr: float = 2e-3,
                   seed: int = 0, device: torch.device | str = "cpu") -> PairEncoder:
    """An encoder on `device`, trained on neighbouring frames of clips(step); the same for the same clips and seed."""
    generator = torch.Generator().manual_seed(seed)
    first = clips(0)
    shape = tuple(first.shape[2:])
    encoder = seeded(lambda: PairEncoder(shape, width=width), seed).to(device)  # type: ignore[arg-type]
    a, b = pairs_of(first).chunk(2, 1)
    encoder.scale.copy_(torch.stack([a.std(), (b - a).std()]).clamp(min=1e-3))

    def loss(step: int) -> Tensor:
        every = pairs_of(clips(step))
        return encoder.loss(every[torch.randint(len(every), (pairs,), generator=generator)].to(device))

    train_auxiliary(encoder, loss, steps=steps, lr=lr, weight_decay=1e-4)
    whole = torch.cat([encoder(pairs_of(clips(step)).to(device)) for step in range(max(2, min(steps, 8)))])
    encoder.mean.copy_(whole.mean(0))
    encoder.std.copy_(whole.std(0).clamp(min=1e-6))
    return encoder


@torch.no_grad()
def clip_features(encoder: PairEncoder, frames: Tensor, *, at_once: int = 1024) -> Tensor:
    """Features [B, T - 1, width], on the CPU, of clips [B, T, C, H, W]; computed where the encoder is."""
    parts = [encoder(part.to(encoder.mean.device)).cpu() for part in pairs_of(frames).split(at_once)]
    return torch.cat(parts).view(len(frames), frames.shape[1] - 1, -1)


def save_features(encoder: PairEncoder, file: str | Path) -> Path:
    """One safetensors file that holds the weights and the sizes."""
    return save_net(encoder, file, key="pair_encoder", about={"shape": encoder.shape, "width": encoder.width,
                                                              "channels": encoder.channels})


def load_features(file: str | Path) -> PairEncoder:
    """The encoder that `save_features` wrote. Raises FileNotFoundError, or ValueError for another file."""
    return load_net(file, PairEncoder, key="pair_encoder", what="features",
                    missing="there is no file of features {file}")


class ActionProbe(nn.Module):
    """forward(pairs [N, 2 C, H, W]) -> logits [N, actions] of the action from the first frame to the second."""

    def __init__(self, shape: tuple[int, int, int], actions: int, *, channels: int = 32):
        super().__init__()
        layers = motion_layers(shape, channels, what="probe")
        if actions < 2:
            raise ValueError(f"a probe tells at least two actions apart, got {actions}")
        self.shape, self.actions = shape, actions
        # both frames and their difference: small motions are where a plain convolution of two frames starts too slowly
        self.net = nn.Sequential(*layers, nn.SiLU(), nn.Linear(64, actions))

    def forward(self, pairs: Tensor) -> Tensor:
        first, second = pairs.chunk(2, 1)
        return self.net(torch.cat([first, second, 4 * (second - first)], 1))


def transitions(frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs [N, 2 C, H, W] and numbers [N] of the actions (or one-hot) between them; null ones are left out."""
    if actions.shape[:2] != frames.shape[:2]:
        raise ValueError(f"actions must be one a frame, {[*frames.shape[:2]]}, got {[*actions.shape]}")
    if actions.ndim == 3:
        actions = torch.where(actions.abs().sum(-1) > 0, actions.argmax(-1), -1)
    pairs = torch.cat([frames[:, :-1], frames[:, 1:]], 2).flatten(0, 1)
    label = actions[:, 1:].long().flatten()
    return pairs[label >= 0], label[label >= 0]


def train_probe(clips: Labelled, actions: int, *, steps: int = 600, pairs: int = 64, lr: float = 2e-3,
                seed: int = 0, device: torch.device | str = "cpu") -> ActionProbe:
    """A probe on `device` after training on clips(step) -> frames, actions; the same for the same clips and seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(clips(0)[0].shape[2:])
    probe = seeded(lambda: ActionProbe(shape, actions), seed).to(device)  # type: ignore[arg-type]

    def loss(step: int) -> Tensor:
        shown, label = transitions(*clips(step))
        chosen = torch.randint(len(label), (pairs,), generator=generator)
        return F.cross_entropy(probe(shown[chosen].to(device)), label[chosen].to(device))

    return train_auxiliary(probe, loss, steps=steps, lr=lr, weight_decay=1e-3)


@torch.no_grad()
def fed_and_seen(probe: ActionProbe, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """(action fed, action that the probe sees), [N] each, on the CPU, over all pairs of clips [B, T, C, H, W]."""
    pairs, label = transitions(frames.cpu(), actions.cpu())
    device = next(probe.parameters()).device
    seen = [probe(part.to(device)).argmax(-1).cpu() for part in pairs.split(1024)]
    return label, torch.cat(seen) if seen else label


def kappa(fed: Tensor, seen: Tensor, actions: int) -> float:
    """Agreement beyond chance (Cohen 1960), (p - p_e) / (1 - p_e): 0 unrelated, 1 always right, NaN undefined."""
    if len(fed) == 0:
        return float("nan")
    joint = torch.zeros(actions, actions, dtype=torch.float64)
    joint.index_put_((fed, seen), torch.ones(len(fed), dtype=torch.float64), accumulate=True)
    joint = joint / joint.sum()
    chance = float((joint.sum(0) * joint.sum(1)).sum())
    return float("nan") if chance == 1 else (float(joint.trace()) - chance) / (1 - chance)
