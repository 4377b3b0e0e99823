"""Noise schedules: two float64 tables (alpha, sigma) over integer levels 0..K, where level 0 is exactly clean.

A network is told a level through the third column, `label` (log-SNR, or the timestep of a pretrained network).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

BUILDABLE = ("linear", "cosine", "sigmoid", "flow", "timesteps")  # by name, in a configuration

NOISE_END = -12.0   # nats of log-SNR: even spacing starts here where level K is noisier (below it nothing happens)
LABEL_RANGE = 20.0  # nats of log-SNR: beyond e^20 a token is clean, below e^-20 it is noise, to any float32 network


class Schedule(nn.Module):
    """A Gaussian path x_k = alpha_k x_0 + sigma_k eps, tabulated at levels k = 0..K.

    alpha, sigma: [K+1], alpha[0] = 1 and sigma[0] = 0; the signal-to-noise ratio falls strictly with k.
    label: [K+1], what a network is told about a level; by default the log-SNR, of a clean token that of level 1.
    The tables stay float64 under `.to(dtype)`, `.half()` and `.bfloat16()` (1 - alpha_bar cancels in float32).
    """

    alpha: Tensor
    sigma: Tensor
    label: Tensor
    _log_snr: Tensor

    def __init__(self, alpha: Tensor, sigma: Tensor, label: Tensor | None = None):
        super().__init__()
        alpha, sigma = alpha.double(), sigma.double()
        _check_tables(alpha, sigma, label)
        log_snr = 2 * (alpha.log() - sigma.log()).clamp(-LABEL_RANGE / 2, LABEL_RANGE / 2)
        log_snr[0] = log_snr[1]
        label = log_snr.clone() if label is None else label.double()
        for name, table in {"alpha": alpha, "sigma": sigma, "label": label, "_log_snr": log_snr}.items():
            self.register_buffer(name, table, persistent=False)
        self._grids: dict[int, Tensor] = {}  # on the CPU; kept, since training may use one at every step

    def _apply(self, fn: Any, recurse: bool = True) -> Schedule:
        """Follows `.to(device)`, but no cast: the tables keep their float64 values."""
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(device=self._buffers[name].device)  # type: ignore[union-attr]
        return self

    @property
    def levels(self) -> int:
        """K, the index of the noisiest level."""
        return len(self.alpha) - 1

    def forward(self, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at `level` [B, T], in float64, shaped to broadcast against `like` [B, T, *E]."""
        shape = level.shape + (1,) * (like.ndim - level.ndim)
        return self.alpha[level].view(shape), self.sigma[level].view(shape)

    def log_snr(self, level: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at `level`, float64, clamped to +-20 nats; level 0 reads as level 1."""
        return self._log_snr[level]

    def nearest(self, noise_to_signal: float) -> int:
        """The level whose sigma / alpha is nearest to `noise_to_signal` >= 0, a noise std in data units."""
        if noise_to_signal < 0:
            raise ValueError(f"a noise standard deviation cannot be negative, got {noise_to_signal}")
        return int((self.sigma / self.alpha.clamp(min=1e-12) - noise_to_signal).abs().argmin())

    def grid(self, steps: int, spacing: Literal["log_snr", "index"] = "log_snr") -> Tensor:
        """[steps + 1] levels from K down to 0, strictly falling.

        spacing: "log_snr": the first `steps` levels are evenly spaced in log-SNR between K and 1, then 0 (the spacing
        of DPM-Solver, Lu et al. 2022, which second-order sampling needs). Where K is noisier than -12 nats (cosine,
        sigmoid, flow) the spacing counts from there; otherwise a third of 10 steps would go into pure noise. "index":
        evenly spaced in the level ('trailing', Lin et al. 2023; the protocol of the Diffusion Forcing paper).
        """
        K = self.levels
        if not 1 <= steps <= K:
            raise ValueError(f"steps must lie in 1..{K} (the schedule has {K} levels), got {steps}")
        if spacing not in ("log_snr", "index"):
            raise ValueError(f"spacing must be 'log_snr' or 'index', got {spacing!r}")
        if spacing == "index":
            return torch.linspace(K, 0, steps + 1, dtype=torch.float64).round().long()
        if steps not in self._grids:
            self._grids[steps] = self._even_in_log_snr(steps)
        return self._grids[steps].clone()

    def _even_in_log_snr(self, steps: int) -> Tensor:
        K = self.levels
        log_snr = self.log_snr(torch.arange(1, K + 1, device=self.alpha.device)).cpu()  # of levels 1..K, falling
        noisiest = min(max(float(log_snr[-1]), NOISE_END), float(log_snr[0]))
        wanted = torch.linspace(noisiest, float(log_snr[0]), steps, dtype=torch.float64)
        level = (log_snr[None] - wanted[:, None]).abs().argmin(1) + 1
        level[0] = K
        # Near the clean end neighbouring levels can be further apart than the wanted spacing: keep the fall strict.
        for i in range(steps - 1, -1, -1):
            level[i] = max(int(level[i]), steps - i)
            if i < steps - 1:
                level[i] = max(int(level[i]), int(level[i + 1]) + 1)
        for i in range(steps):
            level[i] = min(int(level[i]), K - i)
        return torch.cat([level, level.new_zeros(1)])


def _check_tables(alpha: Tensor, sigma: Tensor, label: Tensor | None) -> None:
    if alpha.ndim != 1 or alpha.shape != sigma.shape or len(alpha) < 2:
        raise ValueError(f"alpha and sigma must be tables [K+1] with K >= 1, got {[*alpha.shape]}, {[*sigma.shape]}")
    if label is not None and label.shape != alpha.shape:
        raise ValueError(f"label must have one entry a level, [{len(alpha)}], got {[*label.shape]}")
    if not (torch.isfinite(alpha).all() and torch.isfinite(sigma).all()):
        raise ValueError("alpha and sigma must be finite")
    if alpha[0] != 1 or sigma[0] != 0:
        raise ValueError(f"level 0 must be clean (alpha 1, sigma 0), got alpha={alpha[0]:.4g}, sigma={sigma[0]:.4g}")
    ratio = sigma[1:].log() - alpha[1:].log()  # inf where alpha is 0: pure noise, allowed at K only
    if (sigma[1:] <= 0).any() or (alpha < 0).any() or not (ratio.diff() > 0).all():  # inf - inf is nan
        raise ValueError("sigma / alpha must rise strictly with the level, from 0 at level 0")


def from_betas(betas: Tensor) -> Schedule:
    """The variance-preserving schedule of Ho et al. (2020), eq. 4: alpha_k^2 = prod_{j<=k} (1 - beta_j). betas: [K]."""
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas.double()).cumprod(0)])
    return Schedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def linear(levels: int = 1000, *, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """Linear betas (Ho et al. 2020), `start` and `end` being their values at K = 1000.

    For other K they are scaled by 1000 / K, and at most .999: the last level is noisier the fewer there are: alpha_K is
    6.4e-3 at K = 1000, 4.5e-3 at 100, 2.8e-3 at 50 and 7.7e-6 at 20.
    """
    scale = 1000 / levels
    return from_betas(torch.linspace(start * scale, min(end * scale, 0.999), levels, dtype=torch.float64))


def _from_alpha_bar(alpha_bar: Tensor) -> Schedule:
    """Variance preserving, from a falling curve alpha_bar [K+1]; betas capped at .999 (Nichol & Dhariwal 2021)."""
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(min=1e-8, max=0.999)
    return from_betas(betas)


def _shifted(alpha_bar: Tensor, shift: float) -> Tensor:
    """alpha_bar with sigma / alpha times `shift`: for frames of a side, side / 64 (Hoogeboom et al. 2023, eq. 4)."""
    if shift <= 0:
        raise ValueError(f"shift multiplies sigma / alpha and is positive (1 for none), got {shift}")
    return alpha_bar if shift == 1 else alpha_bar / (alpha_bar + shift**2 * (1 - alpha_bar))


def cosine(levels: int = 1000, *, offset: float = 0.008, shift: float = 1.0) -> Schedule:
    """Nichol & Dhariwal (2021), eq. 17: alpha_bar = cos^2((k / K + offset) / (1 + offset) pi / 2); see `_shifted`."""
    u = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    curve = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return _from_alpha_bar(curve if shift == 1 else _shifted(curve / curve[0], shift))


def sigmoid(levels: int = 1000, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0,
            shift: float = 1.0) -> Schedule:
    """Jabri et al. (2022), appendix B: alpha_bar is a sigmoid from `start` to `end`, over `tau`; see `_shifted`."""
    u = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    low, high = torch.sigmoid(torch.tensor([start / tau, end / tau], dtype=torch.float64))
    return _from_alpha_bar(_shifted((high - torch.sigmoid((u * (end - start) + start) / tau)) / (high - low), shift))


def flow(levels: int = 1000, *, shift: float = 1.0) -> Schedule:
    """The straight path of flow matching (Lipman et al. 2023): alpha = 1 - s, sigma = s, s in 0..1, s_K = 1.

    `shift` moves the levels towards noise, s = shift u / (1 + (shift - 1) u) (Esser et al. 2024, eq. 23).
    """
    u = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    s = shift * u / (1 + (shift - 1) * u)
    return Schedule(1 - s, s)


def timesteps(curve: Literal["linear", "cosine", "sigmoid"], levels: int = 1000) -> Schedule:
    """A schedule that labels level k as code after Ho et al. (2020) does: the timestep k - 1, and -1 where clean."""
    curves: dict[str, Callable[[int], Schedule]] = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}
    if curve not in curves:
        raise ValueError(f"curve must be linear, cosine or sigmoid, got {curve!r}")
    path = curves[curve](levels)
    return Schedule(path.alpha, path.sigma, torch.arange(-1, levels))
