"""DiffusionNFT (Zheng et al. 2025): a forward-process loss that learns from bad samples too."""

import copy
from dataclasses import dataclass

from dforce.align.algorithms.common import Advantage, SampleLearning, Setup, credit_of
from dforce.align.loop import Aligning
from dforce.align.objectives import nft

BUILDABLE = ("NFT",)  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class NFT(SampleLearning):
    """The reference is the policy that sampled. The keys are explained in configs/algorithm/nft.yaml."""

    name = "nft"
    advantage: Advantage = "prompt"
    limit: float = 1.0
    beta: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        return self.learning(setup, nft(beta=self.beta, limit=self.limit), credit_of(self.advantage),
                             reference=copy.deepcopy(setup.sampler.denoiser), traces=False, sync=True)
