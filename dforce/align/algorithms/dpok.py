"""DPOK (Fan et al. 2023): policy gradients held back by the KL to the reference."""

from dataclasses import dataclass

from dforce.align.algorithms.ddpo import ImportanceSampling

BUILDABLE = ("DPOK",)  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class DPOK(ImportanceSampling):
    """Importance sampling and a weight on the KL. The keys are explained in configs/algorithm/dpok.yaml."""

    name = "dpok"
    kl: float = 0.03
