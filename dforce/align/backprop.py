"""Direct reward backpropagation: the gradient of a differentiable reward through the sampler's last steps, K of them
(DRaFT-K, Clark et al. 2024) or a random number (AlignProp, Prabhudesai et al. 2023).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from dforce.align.objectives import AlignObjective, Loss, Result
from dforce.align.on_policy import ASK, SAMPLE, START_SALT, Ask
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise, NoiseSource, seed_of
from dforce.core.schedule import Schedule
from dforce.core.step import Memory, advance, no_memory
from dforce.core.tree import State, private


class RunStarts(NamedTuple):
    """What runs begin in."""

    x: Tensor     # [B, T, *E] pure noise
    cond: Cond | None
    seed: Tensor  # [B] of the noise of their steps
    row: Tensor   # [B] which of the query's prompts each belongs to


def starts(ask: Ask, batch: int, shape: tuple[int, ...], *, seed: int = 0) -> Callable[[int], RunStarts]:
    """batch_at(step) for `dforce.fit`: fresh noise for `batch` runs of tokens `shape` (T, *E), counted by the step."""
    def batch_at(step: int) -> RunStarts:
        cond = ask(batch, torch.Generator().manual_seed(seed_of(seed, step, ASK))).cond
        number = seed_of(seed, step, SAMPLE)
        x = Noise(number)(0, torch.arange(shape[0]), torch.empty(batch, *shape), salt=START_SALT)
        return RunStarts(x, cond, torch.full((batch,), number), torch.arange(batch))
    return batch_at


def through(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, *, last: int, state: State = None,
            cond: Cond | None = None, eta: float = 0.0, order: int = 1, noise: NoiseSource | None = None,
            checkpoint: bool = True) -> Tensor:
    """The end of `dforce.sample`, [B, T, *E], with the graph of the `last` steps alone; checkpoint: recomputed."""
    steps = len(matrix) - 1
    if not 1 <= last <= steps:
        raise ValueError(f"the gradient goes through 1..{steps} steps of this matrix, got last={last}")
    rows = matrix.to(x.device).view(len(matrix), -1, x.shape[1]).expand(-1, len(x), -1)
    noise, tokens, memory = noise or Noise(), torch.arange(x.shape[1], device=x.device), no_memory(x)
    wanted = torch.is_grad_enabled()
    for row in range(steps):
        drawn = noise(row, tokens, x) if eta > 0 else None

        def step(x: Tensor, memory: Memory, level: Tensor, to: Tensor, drawn: Tensor | None) -> tuple[Tensor, Memory]:
            begin = denoiser.init_state(len(x), cond) if state is None else state
            done, after, _ = advance(denoiser, schedule, x, level, to, begin, cond, memory=memory, eta=eta, order=order,
                                     noise=drawn)
            return done.x, after

        arguments = (x, memory, rows[row], rows[row + 1], drawn)
        with torch.set_grad_enabled(wanted and row >= steps - last):
            x, memory = recomputed(step, *arguments, use_reentrant=False) if checkpoint else step(*arguments)
    return x


def direct_reward(reward: Callable[[Tensor, RunStarts], Tensor], matrix: Tensor, *, last: int = 1,
                  random: bool = False, eta: float = 0.0, order: int = 1, checkpoint: bool = True) -> Loss:
    """L = -E[ reward(x0, batch) ] of `RunStarts`, the reward differentiable, [B]. random: through 1..last steps."""
    def loss(objective: AlignObjective, batch: RunStarts, generator: torch.Generator | None) -> Result:
        device = generator.device if generator is not None else None
        depth = int(torch.randint(1, last + 1, (), generator=generator, device=device)) if random else last
        x0 = through(objective.policy, objective.schedule, matrix, batch.x, last=depth, cond=batch.cond, eta=eta,
                     order=order, noise=Noise(int(batch.seed[0])), checkpoint=checkpoint)
        value = reward(x0.clone(), batch._replace(cond=private(batch.cond)))
        if value.shape != x0.shape[:1] or not value.requires_grad:
            raise ValueError(f"this loss takes a differentiable reward, one number for each of {len(x0)} samples; got "
                             f"{[*value.shape]}, {'with' if value.requires_grad else 'without'} gradient. For one that "
                             "cannot be differentiated use policy_gradient")
        return -value.mean(), {"reward": value.detach().mean()}
    return loss
