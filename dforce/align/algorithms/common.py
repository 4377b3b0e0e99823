"""What algorithms of alignment share: the settings that all have, what they are given, how they are put together."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from dforce.align.advantage import Credit, GroupAdvantage, PerPromptStats, standardised
from dforce.align.loop import Aligning, KLControl
from dforce.align.lora import has_adapters, without_adapters
from dforce.align.objectives import AlignObjective, Loss, Result, policy_gradient
from dforce.align.on_policy import Ask, OnPolicy, Sampler
from dforce.align.rewards.protocol import Reward
from dforce.align.value import StepCredit
from dforce.config import require_name
from dforce.core.denoiser import Denoiser
from dforce.guidance.wrapper import module_inside

BUFFER = 64  # rewards of a prompt that its mean and std are taken from
COUNTS = ("epochs", "samples", "updates", "passes", "group")
Advantage = Literal["prompt", "batch", "group"]
# Of `fit`. Weight decay would pull at the weights whatever the reward says; warmup None: the updates of one epoch
ADAMW: Mapping[str, Any] = {"betas": [0.9, 0.999], "weight_decay": 0.0, "clip": 1.0, "warmup": None}


class Setup(NamedTuple):
    """What an algorithm is put together for."""

    sampler: Sampler  # of the policy; the module inside its denoiser is what learns
    reward: Reward
    ask: Ask          # what samples are asked for
    decode: Callable[[Tensor], Tensor] | None = None  # tokens -> what the reward takes
    seed: int = 0
    batches: Callable[..., OnPolicy] = OnPolicy  # what makes the samples of an epoch, of these
    rows: int | None = None   # rows, checkpoint: memory of replaying traces, as in `replay`
    checkpoint: bool = False


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The settings that every algorithm has; one is a dataclass that adds its own, explained in configs/algorithm."""

    name: ClassVar[str]  # as its file in configs/algorithm
    epochs: int = 40
    samples: int = 256
    lr: float = 3e-4
    decay: Literal["constant", "cosine"] = "constant"
    adamw: Mapping[str, Any] = field(default_factory=lambda: dict(ADAMW))

    def __post_init__(self) -> None:
        for key in self.adamw:
            require_name(key, ADAMW, "no setting of adamw")
        for key in COUNTS:
            if hasattr(self, key) and not (isinstance(getattr(self, key), int) and getattr(self, key) >= 1):
                raise ValueError(f"{key} must be a number >= 1, got {getattr(self, key)!r}")

    def prepare(self, setup: Setup) -> Aligning:
        """Loss, source of batches and options of `fit` for this setup; the reference is `reference_of` the policy."""
        raise NotImplementedError


def reference_of(policy: Denoiser) -> Denoiser:
    """The policy as it is now: beneath its adapters if it has any, else a copy that does not learn."""
    if has_adapters(module_inside(policy)):
        return without_adapters(policy)
    reference = moving_copy(policy)
    module_inside(reference).requires_grad_(False).eval()
    return reference


def moving_copy(policy: Denoiser) -> Denoiser:
    """A copy of the policy that may be moved: its own copy of what learns, and the same weights where nothing does."""
    frozen = [weight for weight in module_inside(policy).parameters() if not weight.requires_grad]
    return copy.deepcopy(policy, {id(weight): weight for weight in frozen})


def credit_of(advantage: str, buffer: int = BUFFER) -> Credit:
    """A reward against those of its prompt (the last `buffer`), of the batch, or of its group."""
    kinds: dict[str, Callable[[], Credit]] = {"prompt": lambda: PerPromptStats(buffer, min(16, buffer)),
                                              "batch": lambda: standardised, "group": GroupAdvantage}
    require_name(str(advantage), kinds, "no advantage")
    return kinds[advantage]()


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Algorithm):
    """DDPO and its kin: the KL to the reference is measured wherever it is steered or weighed."""

    group: int = 1
    limit: float = 5.0
    fraction: float = 1.0
    kl: float = 0.0
    kl_target: float | None = None
    gae: float | None = None

    def gradient(self, setup: Setup, credit: Credit, *, clip_nats: float | None = None, **source: Any) -> Aligning:
        """The algorithm put together. source: more of `OnPolicy`."""
        control = KLControl(self.kl, self.kl_target)

        def loss(objective: AlignObjective, batch: Any, generator: Any) -> Result:
            value, logs = policy_gradient(kl_weight=control.weight, clip_nats=clip_nats, fraction=self.fraction,
                                          rows=setup.rows, checkpoint=setup.checkpoint)(objective, batch, generator)
            if "kl" in logs:
                control.see(logs["kl"])
            return value, logs

        reference = reference_of(setup.sampler.denoiser) if self.kl > 0 else None
        steps = None if self.gae is None else StepCredit(setup.sampler, self.gae, seed=setup.seed)
        made = on_policy(self, setup, loss, credit, reference=reference, limit=self.limit, prepare=steps, **source)
        return replace(made, control=control, value=steps)


@dataclass(frozen=True, kw_only=True)
class SampleLearning(Algorithm):
    """Those that deal the samples of an epoch into updates and learn from them without their steps' probabilities."""

    updates: int = 8
    passes: int = 1
    group: int = 1
    lr: float = 1e-4

    def learning(self, setup: Setup, loss: Loss, credit: Credit, **more: Any) -> Aligning:
        """The algorithm put together. more: of `on_policy`."""
        return on_policy(self, setup, loss, credit, updates=self.updates, passes=self.passes, **more)


def on_policy(algorithm: Any, setup: Setup, loss: Loss, credit: Credit, *, reference: Denoiser | None = None,
              updates: int = 1, passes: int = 1, sync: bool = False,
              weight: Callable[[Tensor], Tensor] = lambda advantage: advantage, **source: Any) -> Aligning:
    """An algorithm that samples anew every epoch; sync: the reference moves along. source: more of `OnPolicy`."""
    objective = AlignObjective(setup.sampler.denoiser, setup.sampler.schedule, loss, reference=reference)
    batches = setup.batches(setup.sampler, setup.reward, setup.ask, samples=algorithm.samples, group=algorithm.group,
                            updates=updates, passes=passes, decode=setup.decode, seed=setup.seed,
                            credit=lambda reward, prompts, group: weight(credit(reward, prompts, group)),
                            before=(lambda epoch: objective.sync()) if sync else None, **source)
    made = aligning(algorithm, objective, batches, updates * passes, lambda epochs: epochs * algorithm.samples)
    return replace(made, credit=credit if isinstance(credit, PerPromptStats) else None)


def aligning(algorithm: Algorithm, objective: AlignObjective, source: Callable[[int], Any], per_epoch: int,
             queries: Callable[[int], int]) -> Aligning:
    """per_epoch: optimiser steps of an epoch. queries: epochs done -> rewards asked for until then."""
    adamw = {**ADAMW, **algorithm.adamw}
    options = {**adamw, "betas": tuple(adamw["betas"]), "lr": algorithm.lr, "decay": algorithm.decay, "ema": None,
               "warmup": per_epoch if adamw["warmup"] is None else adamw["warmup"],  # an average would lag behind
               "precision": "fp32"}
    return Aligning(algorithm.name, asdict(algorithm), objective, source, per_epoch, options, queries)
