"""Conversion between pixels in [-1, 1], for networks, and 0..255, in files."""

import numpy as np
import torch
from torch import Tensor


def to_uint8(frames: Tensor) -> np.ndarray:
    """frames [..., C, H, W] in [-1, 1], on any device -> uint8 [..., H, W, C]: clamped to [-1, 1] and rounded."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def from_uint8(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., H, W, C] -> float32 [..., C, H, W] in [-1, 1], on the device of a tensor."""
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(np.array(pixels))  # copied: it may be a file that is mapped read-only
    return (pixels.float() / 127.5 - 1).movedim(-1, -3)
