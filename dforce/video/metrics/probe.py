"""Does a generated video follow its actions? An inverse-dynamics probe: two neighbouring frames -> the action.

It is trained on real frames alone and applied to generated ones. Where it names the actions that were fed as often as
in real video, the world model obeys them, even where no real frames exist to compare with.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.train.auxiliary import seeded, train_auxiliary
from dforce.video.auxiliary_nets import motion_layers

Labelled = Callable[[int], tuple[Tensor, Tensor]]  # step -> frames [B, T, C, H, W], actions [B, T] or [B, T, A]


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
