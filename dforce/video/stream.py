"""Endless streams of frames by a model and a sampling recipe, in constant memory and constant time a frame."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.matrix import pyramid
from dforce.core.noise import NoiseSource, no_noise
from dforce.core.rollout import Recent, rollout
from dforce.core.tree import State, map_state
from dforce.guidance.history import fractional, history_guided, vanilla
from dforce.guidance.wrapper import clipped
from dforce.video.baselines import WindowPast, sliding_window
from dforce.video.model import VideoModel

Actions = Callable[[int, int], Tensor]  # (frame, count) -> actions [B, count, A] that lead to frame, frame + 1, ...
METHODS = ("forcing", "sliding", "regression")
FEWEST = 3  # steps a frame in which history guidance above 1 holds: 1 and 2 were measured to collapse
AT_ONCE = 64  # tokens of context absorbed in one call


class Recipe(NamedTuple):
    """How frames are sampled; see configs/verbs/rollout/rollout.yaml. "forcing" without noise is teacher forcing."""

    method: Literal["forcing", "sliding", "regression"] = "forcing"
    steps: int = 10
    order: int = 2
    eta: float = 0.0
    spacing: Literal["log_snr", "index"] = "log_snr"
    chunk: int | None = None
    delay: int | None = None
    stabilise_std: float = 0.04
    mode: Literal["label", "noise"] = "label"
    clamp: float | None = 1.0
    refresh: tuple[int, ...] | None = None
    keep: int = 8
    history: float = 1.0
    history_std: float | None = None

    def fitting(self, given: Collection[str], *, latents: bool) -> tuple[Recipe, list[str]]:
        """The recipe with what does not go together changed, but for the keys in `given`, and lines that say so.

        latents: frames are made as latents.
        """
        recipe, lines = self, []
        if recipe.history > 1 and recipe.steps < FEWEST:
            free = "history" not in given
            lines = [f"history={recipe.history:g} collapses in fewer than {FEWEST} steps a frame, got "
                     f"steps={recipe.steps}: " + ("history=1 is taken" if free else "give history=1, or more steps")]
            recipe = recipe._replace(history=1.0) if free else recipe
        if latents and recipe.clamp is not None and "clamp" not in given:
            recipe = recipe._replace(clamp=None)
            lines.append("clamp=null is taken: this model makes latents, which have no largest size")
        return recipe, lines

    def checked(self, stack: int) -> Recipe:
        """The recipe with its chunk filled in, for tokens of `stack` frames. ValueError for what does not fit."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        size = stack if self.chunk is None else self.chunk
        counts = {"chunk": (size,), "keep": (self.keep,), "refresh": self.refresh or ()}
        for name, values in counts.items():
            bad = [value for value in values if value < stack or value % stack]
            if bad:
                raise ValueError(f"{name} is a number of frames in whole tokens of {stack}, at least one; got {bad[0]}")
        if self.refresh is not None and len(self.refresh) != 2:
            raise ValueError(f"refresh is [every, window], two numbers of frames, got {list(self.refresh)}")
        if self.refresh is not None and self.method == "sliding":
            raise ValueError("a sliding window carries no state, so there is none to refresh; leave refresh=null")
        if self.clamp is not None and self.clamp <= 0:
            raise ValueError(f"clamp is the largest size of a pixel, above 0 (frames lie in -1..1), got {self.clamp}")
        if self.delay is not None and self.delay < 0:
            raise ValueError(f"delay is a number of rows >= 0, or null for autoregressive, got {self.delay}")
        if self.method != "forcing" and self.history != 1:
            raise ValueError(f"history guidance shows a carried past at several levels, and method={self.method} has "
                             "none that was trained so; leave history=1")
        return self._replace(chunk=size)


def denoiser_of(model: VideoModel, recipe: Recipe) -> Denoiser:
    """The model's denoiser with the recipe's history guidance and clamp around it."""
    denoiser: Denoiser = model.denoiser
    if recipe.history != 1:
        weight, std = recipe.history, recipe.history_std
        denoiser = history_guided(denoiser, model.schedule, vanilla(weight) if std is None else fractional(weight, std))
    return denoiser if recipe.clamp is None else clipped(denoiser, -recipe.clamp, recipe.clamp)


@torch.no_grad()
def begin(model: VideoModel, recipe: Recipe, context: Tensor, actions: Actions | None = None) -> State:
    """The state, on the model's device, after the clean real frames `context` [B, N, C, H, W], whole tokens or none."""
    recipe, tokens = recipe.checked(model.stack), model.tokens(context.to(model.device))
    size, time = tokens.shape[:2]
    keep, denoiser = recipe.keep // model.stack, denoiser_of(model, recipe)
    if recipe.method == "sliding":
        known = _cond(model, actions, time - min(time, keep), min(time, keep))
        return WindowPast(tokens[:, -keep:], (known or {}).get("token") or {} if time else {})
    state = denoiser.init_state(size, None)
    for start in range(0, time, AT_ONCE):
        part = tokens[:, start:start + AT_ONCE]
        level = torch.zeros(part.shape[:2], dtype=torch.long, device=part.device)
        state = denoiser.absorb(part, level, state, _cond(model, actions, start, part.shape[1]))
    if recipe.refresh is None:
        return state
    window = min(time, recipe.refresh[1] // model.stack)
    known = _cond(model, actions, time - window, window) if window else None
    return Recent(state, tokens[:, time - window:], (known or {}).get("token") or {})


def stream(model: VideoModel, recipe: Recipe, state: State, *, batch: int, actions: Actions | None = None,
           context: int = 0, noise: NoiseSource | None = None, first: int = 0) -> Iterator[tuple[Tensor, State]]:
    """Chunks of frames [B, chunk, C, H, W], nominally in -1..1, and the state after each, without end.

    state: from `begin`, or one that was yielded. actions: called when the turn of a chunk has come.
    context: frames before the stream, from which `actions` counts. first: number of chunks that were yielded before.
    """
    recipe, state = recipe.checked(model.stack), map_state(lambda leaf: leaf.to(model.device), state)
    size, before = (recipe.chunk or model.stack) // model.stack, context // model.stack

    def cond(chunk: int) -> Cond | None:
        return _cond(model, actions, before + chunk * size, size)

    denoiser = denoiser_of(model, recipe)
    if recipe.method == "sliding":
        chunks = sliding_window(denoiser, model.schedule, model.schedule.grid(recipe.steps, recipe.spacing), state,
                                new=size, keep=recipe.keep // model.stack, cond=cond, eta=recipe.eta,
                                order=recipe.order, noise=noise, first=first)
    else:
        every, window = recipe.refresh or (0, 0)
        refresh = None if recipe.refresh is None else (every // model.stack, window // model.stack)
        if recipe.method == "regression":
            matrix, noise = torch.tensor([[model.schedule.levels], [0]]).expand(2, size), no_noise
            if size > 1:
                raise ValueError("regression predicts one token from those before it: chunk must be one token, "
                                 f"{model.stack} frames, got {recipe.chunk}")
        else:
            grid = model.schedule.grid(recipe.steps, recipe.spacing)
            matrix = pyramid(grid, size, recipe.steps if recipe.delay is None else recipe.delay)
        chunks = rollout(denoiser, model.schedule, matrix, state, model.event, batch=batch, cond=cond, eta=recipe.eta,
                         order=recipe.order, noise=noise, stabilise_std=recipe.stabilise_std, mode=recipe.mode,
                         refresh=refresh, first=first)
    for x, after in chunks:
        yield model.frames(x), after


def continued(model: VideoModel, recipe: Recipe, context: Tensor, frames: int, *, actions: Actions | None = None,
              noise: NoiseSource | None = None, advance: Callable[[float], object] = lambda share: None) -> Tensor:
    """The `frames` frames [B, frames, C, H, W] after the real ones `context` [B, N, C, H, W], on the model's device.

    advance: told the share of each chunk, 1 in all.
    """
    state = begin(model, recipe, context, actions)
    chunks = stream(model, recipe, state, batch=len(context), actions=actions, context=context.shape[1], noise=noise)
    made, count = [], max(-(-frames // (recipe.chunk or model.stack)), 1)
    for x, _ in islice(chunks, count):
        made.append(x)
        advance(1 / count)
    return torch.cat(made, 1)[:, :frames]


def _cond(model: VideoModel, actions: Actions | None, token: int, count: int) -> Cond | None:
    """The conditioning of tokens token..token + count - 1."""
    if not model.actions:
        return None
    if actions is None:
        raise ValueError(f"the model takes actions of {model.actions} numbers a frame; say which")
    return model.cond(actions(token * model.stack, count * model.stack).to(model.device))
