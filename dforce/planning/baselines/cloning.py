"""Behaviour cloning, a driver, and inverse dynamics, an executor: MLPs that `dforce.fit` trains, or `cache` has."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dforce.data.draws import philox_uniform
from dforce.data.normalize import Affine
from dforce.planning.baselines.drivers import Driver, checked_demonstrations
from dforce.planning.control import Plan, tracking
from dforce.train.fit import fit
from dforce.train.sealed_file import load_file_sealed, save_file_sealed
from dforce.train.state import load_weights

BUILDABLE = ("behaviour_cloning", "inverse_dynamics")  # by name, in a configuration

Pairs = tuple[np.ndarray, np.ndarray]  # inputs [B, I], the action that was taken [B, A]


class Regressor(nn.Module):
    """f(x): an MLP between normalised inputs [B, I] and outputs [B, O], in physical units on both sides."""

    def __init__(self, known: Affine, wanted: Affine, *, width: int = 256, depth: int = 3):
        super().__init__()
        self.known, self.wanted = known, wanted
        sizes = [known.width, *[width] * depth]
        layers = [layer for i, o in zip(sizes[:-1], sizes[1:], strict=True) for layer in (nn.Linear(i, o), nn.Mish())]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], wanted.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.wanted.denormalize(self.layers(self.known.normalize(x)))

    def act(self, x: np.ndarray) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for inputs [N, I]."""
        with torch.no_grad():
            out = self(torch.tensor(x, dtype=torch.float32, device=self.known.mean.device))
        return out.double().clamp(-1, 1).cpu().numpy()


class SquaredError(nn.Module):
    """objective((x [B, I], y [B, O]), generator) -> (mean squared error in normalised units, logs), for `fit`."""

    def __init__(self, regressor: Regressor):
        super().__init__()
        self.regressor = regressor

    def forward(self, batch: tuple[Tensor, Tensor], generator: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        error = self.regressor(x) - y
        loss = (error / self.regressor.wanted.std).square().mean()
        return loss, {"loss": loss.detach()}


@dataclass(frozen=True)
class Cloned:
    """The driver of `behaviour_cloning`: obs [N, O], goal [N, G] -> action [N, A]."""

    regressor: Regressor
    reach: int

    @property
    def variant(self) -> dict[str, Any]:
        return {"reach": self.reach}

    def __call__(self, obs: np.ndarray, goal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.regressor.act(np.concatenate([obs, goal], axis=1))


@dataclass(frozen=True)
class InverseDynamicsExecutor:
    """The executor of `inverse_dynamics`: the action to where the plan (`follow.target`) is `lookahead` steps on."""

    regressor: Regressor
    lookahead: int
    follow: tracking

    @property
    def variant(self) -> dict[str, Any]:
        kept = {name: getattr(self.follow, name) for name in ("hold", "arrive", "pace")}
        return {"executor": "inverse_dynamics", "lookahead": self.lookahead, **kept}

    def __call__(self, plan: Plan, t: int, obs: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """plan of N, step t >= 0 of it, obs: [N, O], goal: [N, G] -> action [N, A] in [-1, 1]."""
        ahead = self.follow.target(plan, t + self.lookahead - 1, goal)
        return self.regressor.act(np.concatenate([obs, ahead - obs], axis=1))


def behaviour_cloning(observations: np.ndarray, actions: np.ndarray, *, reach: int = 100, seed: int = 0,
                      cache: str | None = None, **training: Any) -> Driver:
    """Goal-conditioned behaviour cloning with hindsight goals (Lynch et al. 2019; Ding et al. 2019), trained here.

    observations: [C, S + 1, O], actions: [C, S, A] of C chains; the first A numbers of an observation are the position.
    The goal of a training pair (o_t, a_t) is the position 1 to `reach` steps later in the same chain, uniformly.
    training: width, depth, steps, batch, lr of `learnt`.
    """
    def draw(step: int, batch: int) -> Pairs:
        chain, t, later = hindsight(observations.shape[:2], batch, reach=reach, seed=seed, step=step)
        goal = observations[chain, later, :actions.shape[2]]
        return np.concatenate([observations[chain, t], goal], axis=1), actions[chain, t]

    checked_demonstrations(observations, actions, reach)
    settings = {"kind": "behaviour cloning", "reach": reach, "data": array_digest(observations, actions)}
    return Cloned(learnt(draw, settings, seed=seed, cache=cache, **training), reach)


def inverse_dynamics(observations: np.ndarray, actions: np.ndarray, *, lookahead: int = 5, hold: bool = True,
                     arrive: float = 0.4, pace: float = 1.0, seed: int = 0, cache: str | None = None,
                     **training: Any) -> InverseDynamicsExecutor:
    """The executor that learnt which action leads from o_t to o_{t + lookahead} (as in Ajay et al. 2023), trained here.

    observations: [C, S + 1, O], actions: [C, S, A] of C chains. lookahead: 1 asks for the next state exactly, and fails
    on plans that are not quite feasible; more gives time to make up for an error. hold, arrive, pace: as in `tracking`.
    """
    def draw(step: int, batch: int) -> Pairs:
        chain, t, _ = hindsight((observations.shape[0], observations.shape[1] - lookahead + 1), batch, reach=1,
                                seed=seed, step=step)
        here = observations[chain, t]
        return np.concatenate([here, observations[chain, t + lookahead] - here], axis=1), actions[chain, t]

    checked_demonstrations(observations, actions, lookahead)
    if lookahead >= observations.shape[1]:
        raise ValueError(f"lookahead={lookahead}: the demonstrations have only {actions.shape[1]} steps each")
    settings = {"kind": "inverse dynamics", "lookahead": lookahead, "data": array_digest(observations, actions)}
    return InverseDynamicsExecutor(learnt(draw, settings, seed=seed, cache=cache, **training), lookahead,
                           tracking(hold=hold, arrive=arrive, pace=pace))


def hindsight(shape: tuple[int, int], batch: int, *, reach: int, seed: int, step: int) -> tuple[np.ndarray, ...]:
    """(chain, t, later) [batch] each: uniform chains and times, and later ones, t < later <= t + reach, within it."""
    draws = philox_uniform(3 * batch, seed=seed, stream=0, step=step).reshape(3, batch)
    chain = (draws[0] * shape[0]).astype(int)
    t = (draws[1] * (shape[1] - 1)).astype(int)
    return chain, t, t + 1 + (draws[2] * np.minimum(reach, shape[1] - 1 - t)).astype(int)


def learnt(draw: Callable[[int, int], Pairs], settings: dict[str, Any], *, seed: int = 0, cache: str | None = None,
           width: int = 256, depth: int = 3, steps: int = 4000, batch: int = 256, lr: float = 1e-3) -> Regressor:
    """The regressor trained on draw(step, batch), normalised by its first batches; read from `cache` if it is there.

    settings: all beside this function's own arguments that the weights depend on, JSON-able; they name the cached file.
    """
    settings = {**settings, "seed": seed, "width": width, "depth": depth, "steps": steps, "batch": batch, "lr": lr}
    x, y = (np.concatenate(part) for part in zip(*(draw(step, batch) for step in range(20)), strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        regressor = Regressor(Affine.fit(x), Affine.fit(y), width=width, depth=depth)
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    file = Path(cache or "") / f"{settings['kind'].replace(' ', '_')}-{name}.safetensors"
    if cache and file.is_file():
        with contextlib.suppress(ValueError):  # damaged: it is made anew
            load_weights(regressor, load_file_sealed(file, "regressor")[0], origin=str(file))
            return regressor.requires_grad_(False)

    def batch_at(step: int) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(part, dtype=torch.float32) for part in draw(step, batch))

    for _ in fit(SquaredError(regressor), batch_at, lr=lr, steps=steps, warmup=min(200, steps // 10), weight_decay=0.0,
                 ema=None, precision="fp32", seed=seed, device="cpu"):
        pass
    if cache:
        save_file_sealed(file, regressor.state_dict(), settings)  # several processes may come here at once
    return regressor.requires_grad_(False)


def array_digest(*arrays: np.ndarray) -> str:
    """A name for the contents of arrays."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
