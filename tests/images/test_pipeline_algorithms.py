"""Every algorithm of alignment makes an update of a pipeline of diffusers under guidance, through low-rank adapters."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from dforce.align import Query
from dforce.align.algorithms.common import Setup
from dforce.align.algorithms.ddpo import DPOK, GRPO, ImportanceSampling, ScoreFunction
from dforce.align.algorithms.dpo import D3PO, DiffusionDPO
from dforce.align.algorithms.draft import DRaFT
from dforce.align.algorithms.weighted import NFT, Filtered, RewardWeighted, Supervised
from dforce.align.loop import tuning_epochs
from dforce.align.lora import adapter_state, add_lowrank
from dforce.align.rewards.builtin import Brightness
from dforce.guidance.wrapper import module_inside
from dforce.images.pipeline import load_pipeline
from dforce.images.tuned_pipeline import ATTENTION

WORDS = ["a cat", "a dog"]
FEW = {"epochs": 1, "samples": 4, "lr": 1e-3}
EACH = {"updates": 1, "group": 2}
ALGORITHMS = {
    "ddpo_sf": ScoreFunction(**FEW), "ddpo_is": ImportanceSampling(**FEW, **EACH), "dpok": DPOK(**FEW, updates=1),
    "grpo": GRPO(**FEW, **EACH), "rwr": RewardWeighted(**FEW, **EACH), "filtered": Filtered(**FEW, updates=1, keep=0.5),
    "sft": Supervised(**FEW, updates=1, keep=0.5), "diffusion_dpo": DiffusionDPO(**FEW, **EACH, pairs=1),
    "d3po": D3PO(**FEW, **EACH, pairs=1), "nft": NFT(**FEW, **EACH), "draft": DRaFT(**FEW, updates=1)}
QUICK = ("ddpo_is", "diffusion_dpo", "d3po", "draft")


def one_epoch(pipe, algorithm):
    """(what the update measured, adapters before, after) of a pipeline under guidance 5."""
    pipeline = load_pipeline(pipe, size=(16, 16))
    pipeline = pipeline._replace(denoiser=copy.deepcopy(pipeline.denoiser))
    sampler = pipeline.sampler(2, guidance=5.0)
    network = module_inside(sampler.denoiser)
    add_lowrank(network, rank=2, targets=lambda name, _: name.endswith(ATTENTION),
                generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in adapter_state(network).items()}
    setup = Setup(sampler, Brightness(), lambda count, generator: Query(
        words := (WORDS * count)[:count], pipeline.encode(words)), decode=pipeline.decode)
    (epoch,) = tuning_epochs(algorithm.prepare(setup), device="cpu")
    return epoch.metrics, before, adapter_state(network)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                  for name in ALGORITHMS])
def test_an_update_by(name, sd_pipe) -> None:
    metrics, before, after = one_epoch(sd_pipe, ALGORITHMS[name])
    assert math.isfinite(metrics["loss"]) and all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)
    if name in ("diffusion_dpo", "d3po"):
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.slow
def test_preferences_begin_at_log_2_in_every_family(any_pipe) -> None:
    for name in ("diffusion_dpo", "d3po"):
        metrics, _, _ = one_epoch(any_pipe, ALGORITHMS[name])
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-4)
