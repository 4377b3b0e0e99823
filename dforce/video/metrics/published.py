"""Published metrics: PSNR, SSIM, and FVD and LPIPS, whose weights the user brings, for nothing is ever downloaded."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORTEST = 10  # frames: I3D halves time four times and pools over what is left

# Layers of torchvision's AlexNet.features up to the last one that LPIPS looks at: (index, out, kernel, stride, padding)
ALEXNET = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1))
POOLED = (3, 6)  # a maximum over 3 x 3, every second one, comes before these
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of lpips.ScalingLayer: pixels in -1..1 to ImageNet's
RANGE = 2.0       # of pixel values in -1..1. With a range of 2 but values in 0..1 a PSNR is 6.02 dB too high
SIGMA, RADIUS = 1.5, 5  # pixels: the Gaussian window of Wang et al. (2004), cut at 3.5 sigma


def _rgb(frames: Tensor) -> Tensor:
    """One channel repeated: the published networks look at three."""
    return frames.expand(*frames.shape[:-3], 3, *frames.shape[-2:]) if frames.shape[-3] == 1 else frames


class I3D:
    """Features of clips by FVD's TorchScript: frames [B, T, C, H, W] in -1..1 -> [B, 400] (Unterthiner et al. 2018).

    file: i3d_torchscript.pt. A TorchScript is a program: use a file that you trust.
    """

    def __init__(self, file: str | Path):
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {str(file)!r}: FVD needs i3d_torchscript.pt, which dforce "
                                    "neither ships nor downloads; leave i3d=null to measure without")
        try:
            self.net = torch.jit.load(str(file), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"{file} is no TorchScript: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def __call__(self, frames: Tensor, *, at_once: int = 8) -> Tensor:
        if frames.ndim != 5 or frames.shape[1] < SHORTEST:
            raise ValueError(f"I3D looks at clips [B, T, C, H, W] of at least {SHORTEST} frames, got {[*frames.shape]}")
        features = [self.net(part.transpose(1, 2), rescale=False, resize=True, return_features=True)
                 for part in _rgb(frames).split(at_once)]
        return torch.cat(features).flatten(1)


class Lpips(nn.Module):
    """LPIPS 0.1 on AlexNet (Zhang et al. 2018): forward(x, y [..., C, H, W] in -1..1) -> [...], 0 where equal.

    backbone: torchvision's AlexNet, alexnet-owt-*.pth; heads: alex.pth as the package lpips ships it.
    """

    def __init__(self, backbone: str | Path, heads: str | Path):
        super().__init__()
        weights, linear = _tensors(backbone), _tensors(heads)
        self.convs = nn.ModuleList()
        self.heads = nn.ParameterList()
        channels = 3
        try:
            for i, (index, out, kernel, stride, padding) in enumerate(ALEXNET):
                conv = nn.Conv2d(channels, out, kernel, stride, padding)
                conv.weight.data.copy_(weights[f"features.{index}.weight"])
                conv.bias.data.copy_(weights[f"features.{index}.bias"])  # type: ignore[union-attr]
                self.convs.append(conv)
                self.heads.append(nn.Parameter(linear[f"lin{i}.model.1.weight"].view(1, out, 1, 1).clone()))
                channels = out
        except (KeyError, RuntimeError) as error:
            raise ValueError("lpips=[backbone, heads] wants torchvision's AlexNet and the heads of LPIPS 0.1 for it, "
                             f"but {backbone} and {heads} do not fit: {error}") from error
        self.eval().requires_grad_(False)

    def _features(self, x: Tensor) -> list[Tensor]:
        features = []
        x = (x - x.new_tensor(SHIFT).view(1, 3, 1, 1)) / x.new_tensor(SCALE).view(1, 3, 1, 1)
        for conv, (index, *_) in zip(self.convs, ALEXNET, strict=True):
            x = F.relu(conv(F.max_pool2d(x, 3, 2) if index in POOLED else x))
            features.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape or min(x.shape[-2:]) < 32:
            raise ValueError(f"LPIPS compares frames of one shape, at least 32 x 32, got {[*x.shape]} and {[*y.shape]}")
        a, b = (self._features(_rgb(each).reshape(-1, 3, *x.shape[-2:])) for each in (x, y))
        parts = [((fa - fb).square() * head).sum(1).mean((1, 2)) for fa, fb, head in zip(a, b, self.heads, strict=True)]
        return torch.stack(parts).sum(0).view(x.shape[:-3])


def _tensors(file: str | Path) -> dict[str, Tensor]:
    """A state dict; nothing else is unpickled."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r}: LPIPS needs weights that dforce neither ships nor "
                                "downloads; leave lpips=null to measure without")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} holds no weights: {str(error).splitlines()[0]}") from error


def clips_of(frames: Tensor, length: int = 16) -> Tensor:
    """Long clips [B, T, C, H, W] cut into [B * (T // length), length, C, H, W], as FVD wants many short ones."""
    count = frames.shape[1] // length
    if count < 1:
        raise ValueError(f"clips of {frames.shape[1]} frames are shorter than {length}")
    return frames[:, :count * length].unflatten(1, (count, length)).flatten(0, 1)


def load_lpips(paths: Sequence[str]) -> Lpips:
    """`Lpips` of [backbone, heads]."""
    if isinstance(paths, str) or len(paths) != 2:
        raise ValueError(f"lpips is two paths, [backbone, heads], got {paths}")
    return Lpips(*paths)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of frames x, y [..., C, H, W] in -1..1 -> [...]; infinite where equal."""
    _check_pair(x, y)
    return 10 * torch.log10(RANGE**2 / (x.double() - y.double()).square().flatten(-3).mean(-1))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), window 11 x 11, of frames [..., C, H, W] in -1..1 -> [...]."""
    _check_pair(x, y)
    if min(x.shape[-2:]) < 2 * RADIUS + 1:
        raise ValueError(f"SSIM: {x.shape[-2]} x {x.shape[-1]} pixels are too small for it, use psnr")
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
