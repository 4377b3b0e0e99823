"""Credit of single steps: what each added to the reward that the run was going to have.

A policy gradient multiplies the score of every step by the advantage of the whole run, most of which other steps
made. With V_s = E[A | x_s] a step is credited with what it changed (generalised advantage estimation, Schulman et
al. 2016; the value function that DPOK takes against the variance, Fan et al. 2023, section 4.3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dforce.align.on_policy import Sampler, Samples
from dforce.core.noise import seed_of
from dforce.core.tree import select

HASH = 32        # numbers that a whole-numbered conditioning is spread over
WIDTH = 256      # random features, and at most so many numbers of a sample
FORGET = 0.8     # weight of the sums of earlier epochs, anew with every epoch, as the policy changes
RIDGE = 0.01     # relative to the mean square of a feature


class StepCredit:
    """Turns advantages of runs [B] into those of their steps [B, S, T], equal for all tokens; `prepare` of `OnPolicy`::

        A_s = sum_k lambda^(k - s) (V_(k+1) - V_k)        V_S = A, the run's own

    lambda 1 takes V off as a baseline, which leaves the expected gradient as it is; below 1: less noise, and some bias
    where V is wrong. V_s is a ridge regression of A on random features (Rahimi & Recht 2008) of x0_hat(x_s) and of the
    static conditioning, one for each step, from all epochs so far, the older the less. An epoch is judged by what was
    learnt before it; the first one keeps its advantages. Costs one network call a step and no reward.
    explained: the share of the advantages' variance that V foresaw in the last epoch, [S].
    """

    def __init__(self, sampler: Sampler, decay: float = 0.8, *, seed: int = 0):
        if not 0 <= decay <= 1:
            raise ValueError(f"lambda of the steps' credit must lie in [0, 1], got {decay}")
        self.sampler, self.decay, self.seed = sampler, decay, seed
        self.explained = torch.zeros(0)
        self._gram: Tensor | None = None    # [S, F, F]
        self._moment: Tensor | None = None  # [S, F]

    def __call__(self, samples: Samples) -> Samples:
        if samples.trace is None:
            raise ValueError("credit for steps takes runs with their steps: OnPolicy(..., traces=True)")
        features, advantage = self._features(samples), samples.advantage.double()
        credit = advantage[:, None].expand(-1, features.shape[1])
        if self._gram is not None:
            credit = self._credit(features, advantage)
        self._learn(features, advantage)
        tokens = samples.trace.x.shape[2]
        return samples._replace(advantage=credit[..., None].expand(-1, -1, tokens).contiguous())

    def _credit(self, features: Tensor, advantage: Tensor) -> Tensor:
        """[B, S] by the values that are known."""
        assert self._gram is not None and self._moment is not None
        size = self._gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        ridge = RIDGE * size[:, None, None] * torch.eye(self._gram.shape[1], dtype=torch.float64, device=size.device)
        weight = torch.linalg.solve(self._gram + ridge, self._moment[..., None])[..., 0]
        value = torch.einsum("bsf,sf->bs", features, weight)
        spread = advantage.var()
        self.explained = 1 - (advantage[:, None] - value).var(0) / spread if spread > 0 else torch.zeros(value.shape[1])
        gain = torch.cat([value[:, 1:], advantage[:, None]], 1) - value
        credit, running = torch.empty_like(gain), torch.zeros_like(advantage)
        for step in range(gain.shape[1] - 1, -1, -1):
            running = gain[:, step] + self.decay * running
            credit[:, step] = running
        return credit

    def _learn(self, features: Tensor, advantage: Tensor) -> None:
        gram = torch.einsum("bsf,bsg->sfg", features, features)
        moment = torch.einsum("bsf,b->sf", features, advantage)
        if self._gram is not None and self._moment is not None:
            gram, moment = gram + FORGET * self._gram, moment + FORGET * self._moment
        self._gram, self._moment = gram, moment

    @torch.no_grad()
    def _features(self, samples: Samples) -> Tensor:
        """[B, S, F] float64 of the states before every step, under the policy that sampled."""
        trace, policy = samples.trace, self.sampler.denoiser
        assert trace is not None
        batch, steps = trace.log_prob.shape[:2]
        state = policy.init_state(batch, trace.cond) if trace.state is None else trace.state
        rows, guesses = torch.arange(batch, device=trace.x.device), []
        for step in range(steps):
            for part in rows.split(self.sampler.rows or batch):
                begin, cond = select((state, trace.cond), part)
                x0, _ = policy(trace.x[part, step], trace.level[part, step], begin, cond)
                guesses.append(x0.flatten(1).double())
        x0 = torch.cat(guesses).view(steps, batch, -1).transpose(0, 1)
        known = _conditioning(samples).double()[:, None].expand(-1, steps, -1)
        if x0.shape[2] > WIDTH:
            x0 = x0 @ self._random(x0.shape[2], WIDTH, 0).to(x0.device)
        plain = torch.cat([x0, known], 2)
        hidden = plain @ self._random(plain.shape[2], WIDTH, 1).to(x0.device)
        bias = self._random(1, WIDTH, 2).to(x0.device)
        return torch.cat([torch.ones_like(plain[..., :1]), plain, (1.5 * hidden + bias).relu()], 2)

    def _random(self, size: int, width: int, stream: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, stream))
        return torch.randn(size, width, generator=generator, dtype=torch.float64) / size**0.5


def _conditioning(samples: Samples) -> Tensor:
    """Static conditioning of each run as numbers, [B, K]; whole numbers as one-hot vectors of length HASH."""
    static = (samples.cond or {}).get("static") or {}
    parts = [F.one_hot(leaf.long() % HASH, HASH).flatten(1).float() if not leaf.is_floating_point()
             else leaf.flatten(1).float() for _, leaf in sorted(static.items())]
    return torch.cat(parts, 1) if parts else samples.x.new_zeros(len(samples.x), 0)
