"""A policy tuned on what its episodes return, beside the policy begun with."""

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dforce.align.algorithms.common import PolicyGradient, Setup
from dforce.align.episodes import EpisodeMonitor, EpisodePlayer, EpisodesOnPolicy
from dforce.align.on_policy import Query, Sampler
from dforce.align.trace import replay
from dforce.align.tuning_run import PreparedTuning, TuningRun, checkpoint_store, resumed_state
from dforce.core.noise import Noise
from dforce.guidance.wrapper import module_inside
from dforce.policy.evaluation import BLOCK
from dforce.policy.forcing import ForcingPolicy
from dforce.report.rows import Row, difference_row, make_row
from dforce.report.statistics import bootstrap_interval, wilson_interval
from dforce.report.terminal import terminal_table
from dforce.runs.checkpoint_defaults import no_checkpoint
from dforce.runs.folder import RunFolder
from dforce.runs.imitation import load_policy, played_task
from dforce.runs.progress import bar
from dforce.train.checkpoint import find, load, model_of
from dforce.train.precision import device_of

TUNED_ON = 1_000_000_000  # starts that are tuned on have seeds from here on
START = "start"
TUNED, SERVED = "as in tuning", "as it is served"  # ways to sample


@dataclass(frozen=True, kw_only=True)
class PolicyTuning(TuningRun):
    """A run of `dforce align policy`. The keys are explained in configs/verbs/align/policy.yaml."""

    checkpoint: str | None
    env: str | None
    steps: int
    spacing: Literal["index", "log_snr"]
    starts: int | None
    copies: int
    raw: bool = False

    def prepare(self) -> PreparedTuning:
        """Policy, episodes and algorithm, or ValueError."""
        if not self.checkpoint:
            raise no_checkpoint("imitate")
        if not isinstance(self.algorithm, PolicyGradient) or self.algorithm.gae is not None:
            raise ValueError("plans have the returns of their episodes: algorithm is ddpo_is, ddpo_sf, dpok or grpo, "
                             "without gae")
        if self.eta <= 0 or self.min_std:
            raise ValueError(f"plans are recorded with noise in their steps: eta > 0 and min_std=0, got "
                             f"eta={self.eta}, min_std={self.min_std}")
        device, player = device_of(self.device), self._player(self.checkpoint, TUNED)
        policy, base = player.policy, copy.deepcopy(player.policy.denoiser)
        module_inside(base).requires_grad_(False)
        self.adapted(module_inside(policy.denoiser).requires_grad_(True))
        _keep_memory(player, self._held_out(1, 2))
        assert player.levels is not None
        sampler = Sampler(policy.denoiser, policy.schedule, player.levels[:, None].to(device), (1, policy.tokens.width),
                          eta=self.eta, rows=self.rows)
        aligning = self.algorithm.prepare(Setup(sampler, player, self._ask, seed=self.seed, rows=self.rows,  # type: ignore[arg-type]
                                                batches=EpisodesOnPolicy))  # whose reward is the player
        seeds = self._held_out(self.watch, 1)
        monitor = EpisodeMonitor(player, base, seeds, sampler=sampler, seed=self.eval_seed) if self.watch else None
        bundle = load(find(self.checkpoint), trust=self.trust)
        store = checkpoint_store(bundle, lambda config: {**model_of(bundle.config), **config})
        return PreparedTuning(aligning, monitor, store, self.record(self.checkpoint, aligning),
                              resumed_state(aligning, self.resume), bundle.layout)

    def finish(self, prepared: PreparedTuning, folder: RunFolder) -> None:
        """Episodes of both policies from the same starts, sampled as in tuning and as they are served."""
        rows: list[Row] = []
        method, seeds = str(prepared.data["method"]), self._held_out(self.evaluate, 0)
        task = str(self.env or prepared.data["env"])
        with bar("play") as advance:
            for sampling in (TUNED, SERVED):
                played = {name: self._player(str(where), sampling)(
                    seeds, Noise(self.eval_seed), lambda share: advance(share / 4)) for name, where in (
                        (method, self.checkpoint), (f"{method}, tuned", folder.path))}
                variant = {"sampling": sampling, "algorithm": prepared.aligning.name}
                for name, each in played.items():
                    returns = bootstrap_interval(each.returns.numpy(), rng=np.random.default_rng(0))
                    rows += [make_row(task, name, "return", returns, variant=variant, higher=True),
                             make_row(task, name, "reached", wilson_interval(int(each.success.sum()), len(seeds)),
                                      variant=variant, higher=True)]
                before, after = played.values()
                rows += [difference_row(task, "tuned - base", "return", after.returns.numpy(), before.returns.numpy(),
                                        variant=variant),
                         difference_row(task, "tuned - base", "reached", after.success.astype(float),
                                        before.success.astype(float), variant=variant)]
        change = next(row for row in rows if row["metric"] == "return_difference")
        folder.results(rows, summary=f"{task}: tuning by {prepared.aligning.name} changed the return of an episode, "
                       f"sampled as in tuning, by {change['value']:+.2f} [95% interval {change['low']:+.2f} to "
                       f"{change['high']:+.2f}], {change['n']} starts.", checkpoints=[str(self.checkpoint)],
                       first_seed=seeds[0])
        print(terminal_table(rows, metrics=("return", "reached", "return_difference")))

    def _player(self, where: str, sampling: str) -> EpisodePlayer:
        """Episodes of the policy in a checkpoint."""
        policy, layout = load_policy(where, device=device_of(self.device), raw=self.raw, trust=self.trust)
        if policy.regression or policy.energy is not None:
            raise ValueError(f"{where} regresses its actions: they have no probabilities to be tuned")
        return EpisodePlayer(policy, played_task(layout, self.env)[1], copies=self.copies, eta=self.eta,
                             levels=self._levels(policy) if sampling == TUNED else None)

    def _levels(self, policy: ForcingPolicy) -> torch.Tensor:
        return policy.schedule.grid(self.steps, self.spacing).to(policy.levels.device)

    def _ask(self, count: int, generator: torch.Generator) -> Query:
        """Starts of episodes, seeds that no evaluation has."""
        largest = 2**30 if self.starts is None else self.starts
        seeds = TUNED_ON + torch.randint(largest, (count,), generator=generator)
        return Query([START] * count, None, seeds.tolist())

    def _held_out(self, count: int, stream: int) -> list[int]:
        return [BLOCK * (self.eval_seed + stream + 1) + number for number in range(count)]


def _keep_memory(player: EpisodePlayer, seeds: list[int]) -> None:
    """Weights that only decide what is remembered do not learn: plans are judged in the memory that they were made in.

    Which these are, the gradient of an episode's plans says.
    """
    trace, policy = player(seeds, Noise(0)).trace, player.policy
    weights = [each for each in module_inside(policy.denoiser).parameters() if each.requires_grad]
    now = replay(trace, policy.denoiser, policy.schedule)  # type: ignore[arg-type]
    for weight, slope in zip(weights, torch.autograd.grad(now.log_prob.sum(), weights, allow_unused=True), strict=True):
        weight.requires_grad_(slope is not None)
