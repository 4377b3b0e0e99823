"""How alike pictures are: PSNR and SSIM, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE = 2.0       # of pixel values in -1..1. With a range of 2 but values in 0..1 a PSNR is 6.02 dB too high
SIGMA, RADIUS = 1.5, 5  # pixels: the Gaussian window of Wang et al. (2004), cut at 3.5 sigma


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of frames x, y [..., C, H, W] in -1..1 -> [...]; infinite where equal."""
    _check_pair(x, y)
    return 10 * torch.log10(RANGE**2 / (x.double() - y.double()).square().flatten(-3).mean(-1))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of frames x, y [..., C, H, W] in -1..1 -> [...], 1 where equal.

    Gaussian window of 11 x 11, population covariance, mean over the channels and over the pixels whose window lies
    inside. Raises ValueError for frames smaller than the window.
    """
    _check_pair(x, y)
    if min(x.shape[-2:]) < 2 * RADIUS + 1:
        raise ValueError(f"SSIM looks through windows of {2 * RADIUS + 1} pixels; frames of "
                         f"{x.shape[-2]} x {x.shape[-1]} are too small for it, use psnr")
    a, b = (each.double().reshape(-1, 1, *x.shape[-2:]) for each in (x, y))
    mean_a, mean_b, aa, bb, ab = (_blur(each) for each in (a, b, a * a, b * b, a * b))
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    covariance, variances = ab - mean_a * mean_b, aa - mean_a**2 + bb - mean_b**2
    index = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    return index.flatten(1).mean(1).view(x.shape[:-2]).mean(-1)


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean over windows that lie inside: x [N, 1, H, W] -> [N, 1, H - 10, W - 10]."""
    offset = torch.arange(-RADIUS, RADIUS + 1, dtype=x.dtype, device=x.device)
    weight = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(x, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim < 3:
        raise ValueError(f"frames to compare must have one shape [..., C, H, W], got {[*x.shape]} and {[*y.shape]}")
