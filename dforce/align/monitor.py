"""A monitor of reward over-optimisation: what a policy has become, measured in the same noise every time."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dforce.align.on_policy import Ask, Query, Sampler
from dforce.align.rewards.protocol import Reward, ask_reward
from dforce.align.rewards.store import Rewards
from dforce.align.trace import kl
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise, NoiseSource
from dforce.core.tree import map_state, private
from dforce.data.pixels import to_uint8
from dforce.report.statistics import ERROR, Z95
from dforce.runs.trackers import Shown

SHOWN = 8  # images of a look that are kept to be shown
Measure = Callable[[Tensor, Query], Tensor | float]  # (samples [B, T, *E], what was asked for) -> [B], or a number


def reward_measures(rewards: Rewards) -> dict[str, Measure]:
    """"reward", each of its parts by name, and "held_out", the same wish by another instrument, where there is one."""
    def value_of(reward: Reward) -> Measure:
        return lambda x, query: ask_reward(reward, x, query.prompts, query.metadata, where="the watch")

    named = {"reward": rewards.tuned, **rewards.parts}
    return {name: value_of(reward) for name, reward in named.items()} | (
        {"held_out": value_of(rewards.held_out)} if rewards.held_out is not None else {})


class Monitor:
    """look() -> the mean of every measure over `samples` runs of the policy of now, and "kl" [nats of a whole run].

    A measure that answers for each sample also has an "<measure>_error": half the 95% interval of its mean. sampler:
    its denoiser is the policy, with the weights that it has then. reference: what the KL is to, where the sampler has
    log-probabilities. ask: the same every time. decode: from tokens to what the measures take. A reward that rises
    while diversity and the other measures fall is being exploited.
    """

    def __init__(self, sampler: Sampler, reference: Denoiser, ask: Ask, measures: Mapping[str, Measure], *,
                 samples: int = 100, seed: int = 0, decode: Callable[[Tensor], Tensor] | None = None):
        if samples < 1:
            raise ValueError(f"a monitor draws at least one sample, got {samples}")
        self.sampler, self.reference, self.measures, self.decode = sampler, reference, dict(measures), decode
        self.samples, self.noise = samples, Noise(seed)
        self.shown: Shown | None = None
        self.query = ask(samples, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def look(self, advance: Callable[[float], object] | None = None) -> dict[str, float]:
        """The law of the samples does not depend on how often one looks: all randomness is the monitor's own.

        advance: told the shares of the sampling as they are done, 1 in all.
        """
        sampler, device = self.sampler._replace(advance=advance), self.sampler.schedule.alpha.device
        cond = map_state(lambda leaf: leaf.to(device), self.query.cond) if self.query.cond else None
        kl_of_run: dict[str, float] = {}
        if has_density(sampler):
            x, nats = divergence(sampler, self.reference, self.samples, cond, self.noise, rows=sampler.rows)
            kl_of_run["kl"] = float(nats.mean())
        else:
            x = sampler.tokens(self.samples, cond, self.noise)
        x = self.decode(x) if self.decode else x
        measured: dict[str, float] = {}
        for name, measure in self.measures.items():
            values = torch.as_tensor(measure(x.clone(), private(self.query))).double()
            measured[name] = float(values.mean())
            if name == "reward" and x.ndim == 5 and x.shape[1] == 1 and x.shape[2] in (1, 3):
                self.shown = Shown(to_uint8(x[:SHOWN, 0].float().cpu().clamp(-1, 1)), [
                    f"{prompt} · {value:.4g}" for prompt, value in zip(self.query.prompts[:SHOWN], values.tolist(),
                                                                       strict=False)])
            if values.ndim and len(values) > 1:
                measured[name + ERROR] = float(Z95 * values.std() / len(values) ** 0.5)
        return {**measured, **kl_of_run}


@torch.no_grad()
def divergence(sampler: Sampler, reference: Denoiser, batch: int, cond: Cond | None, noise: NoiseSource, *,
               rows: int | None = None) -> tuple[Tensor, Tensor]:
    """What `batch` runs of the sampler end in, [B, T, *E], and the KL of each to the reference, [B] nats of a run."""
    trace = sampler.record(batch, cond, noise)
    nats = kl(trace, sampler.denoiser, reference, sampler.schedule, rows=rows)
    return trace.x[:, -1], nats.sum((1, 2))


def has_density(sampler: Sampler) -> bool:
    """Can runs of this sampler be replayed: does some step of it have a log-probability?"""
    noisy = sampler.eta > 0 or sampler.std is not None or sampler.min_std > 0
    return sampler.order == 1 and noisy
