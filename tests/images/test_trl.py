"""What TRL's users bring: configurations read field by field, rewards and prompts in their own form."""

from __future__ import annotations

import json
import random
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dforce.align import replay
from dforce.align.algorithms.ddpo import ImportanceSampling
from dforce.align.lora_diffusers import load_lora
from dforce.align.rewards.protocol import RewardError, ask_reward
from dforce.cli.commands.align_pipeline import with_trl
from dforce.cli.compose import composed
from dforce.core.noise import Noise
from dforce.guidance.wrapper import module_inside
from dforce.images.pipeline import load_pipeline
from dforce.images.trl import latent_numbers, prompts_from_trl, read_trl, reward_from_trl
from dforce.runs.folder import Invocation


@dataclass
class Given:
    """As DDPOConfig: a dataclass whose to_dict flattens."""

    num_epochs: int = 7
    train_clip_range: float = 2e-4

    def to_dict(self):
        return self.__dict__


def test_the_defaults_of_trl_are_settings_of_importance_sampling() -> None:
    read = read_trl({}, dims=4 * 64 * 64)
    assert read.notes == [] and {key: read.words[key] for key in ("steps", "eta", "guidance", "seed", "algorithm")} == {
        "steps": 50, "eta": 1.0, "guidance": 5.0, "seed": 0, "algorithm": "ddpo_is"}
    algorithm = ImportanceSampling(**read.under("algorithm"))
    assert (algorithm.epochs, algorithm.samples, algorithm.updates, algorithm.passes) == (100, 2, 2, 1)
    assert (algorithm.lr, algorithm.limit, algorithm.advantage, algorithm.fraction) == (3e-4, 5.0, "batch", 1.0)
    assert algorithm.clip_nats == pytest.approx(1.6384)  # of a density ratio, where TRL's is of a mean over dimensions
    assert algorithm.adamw == {"betas": [0.9, 0.999], "weight_decay": 1e-4, "clip": 1.0, "warmup": 0}


def test_batches_accumulation_and_processes_make_samples_and_updates() -> None:
    given = {"sample_batch_size": 8, "sample_num_batches_per_epoch": 4, "train_batch_size": 4,
             "train_gradient_accumulation_steps": 2, "train_num_inner_epochs": 3}
    words = read_trl(given, dims=4, processes=2).words
    assert (words["algorithm.samples"], words["algorithm.updates"], words["algorithm.passes"]) == (64, 4, 3)
    with pytest.raises(ValueError, match="cannot be dealt"):
        read_trl({**given, "train_gradient_accumulation_steps": 3}, dims=4)


def test_a_dataclass_a_file_and_the_groups_of_ddpo_pytorch_are_read_alike(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("num_epochs: 7\ntrain: {clip_range: 2.0e-4, adam_beta1: 0.8}\n"
                                          "sample: {num_steps: 10}\nper_prompt_stat_tracking: {buffer_size: 32}\n")
    read = read_trl(tmp_path / "config.yaml", dims=100)
    assert read.words["algorithm.epochs"] == read_trl(Given(), dims=100).words["algorithm.epochs"] == 7
    assert read.words["algorithm.clip_nats"] == read_trl(Given(), dims=100).words["algorithm.clip_nats"] == 2e-4 * 100
    assert read.words["algorithm.adamw.betas"] == [0.8, 0.999] and read.words["steps"] == 10
    assert (read.words["algorithm.advantage"], read.words["algorithm.buffer"]) == ("prompt", 32)
    assert read_trl({"logdir": "x", "tracker_project_name": "y"}, dims=1).notes == [
        "logdir='x' is not read: the run folder is out="]


@pytest.mark.parametrize("given, match", [
    ({"train_cfg": False}, "another policy"), ({"train_use_8bit_adam": True}, "AdamW in fp32"),
    ({"resume_from": "logs"}, "not read"), ({"train_adam_epsilon": 1e-6}, "1e-8"), ({"push_to_hub": True}, "uploaded"),
    ({"async_reward_computation": True}, "server"), ({"train_clip_rang": 1e-4}, "train_clip_range"),
    ({"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_min_count": 4}, "16 rewards"),
    ({"sample_batch_size": 0}, "number >= 1"), ([1], "got list")])
def test_a_field_without_a_meaning_here_is_refused_with_the_reason(given, match) -> None:
    with pytest.raises(ValueError, match=match) as error:
        read_trl(given, dims=4)
    assert "\n" not in str(error.value)
    assert read_trl({"train_cfg": False, "sample_guidance_scale": 1.0}, dims=4).words["guidance"] == 1.0


def test_a_reward_of_trl_sees_images_in_0_to_1_and_may_answer_with_metadata() -> None:
    seen = {}

    def brightness(images, prompts, metadata):
        seen.update(shape=images.shape, low=images.min(), high=images.max(), prompts=prompts, metadata=metadata)
        return images.mean((1, 2, 3)), {"any": 1}

    samples = torch.tensor([-1.2, 0.0, 1.1]).view(3, 1, 1, 1, 1).expand(3, 1, 3, 2, 2)
    reward = reward_from_trl(brightness)
    assert ask_reward(reward, samples, ["a", "b", "c"], [1, 2, 3]).tolist() == [0.0, 0.5, 1.0]
    assert seen["shape"] == (3, 3, 2, 2) and (seen["low"], seen["high"]) == (0, 1)
    assert (seen["prompts"], seen["metadata"]) == (("a", "b", "c"), (1, 2, 3))
    plain = reward_from_trl(lambda images, prompts, metadata: [1.0, 2.0, 3.0])
    assert ask_reward(plain, samples, ["a"] * 3).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(RewardError, match="brightness"):
        ask_reward(reward_from_trl(brightness), samples[..., 0], ["a"] * 3)


def test_a_prompt_function_of_trl_draws_again_what_it_drew_and_disturbs_nothing() -> None:
    ask = prompts_from_trl(lambda: (random.choice("abcdefgh"), {"number": float(torch.rand(()))}),
                           lambda prompts: {"static": {"text": torch.tensor([ord(each) for each in prompts])}})
    random.seed(1)
    before, number = random.getstate(), torch.get_rng_state()
    one, other = (ask(6, torch.Generator().manual_seed(seed)) for seed in (3, 3))
    assert one.prompts == other.prompts and one.metadata == other.metadata and len(set(one.prompts)) > 1
    assert one.cond["static"]["text"].tolist() == [ord(each) for each in one.prompts]
    assert ask(6, torch.Generator().manual_seed(4)).prompts != one.prompts
    assert random.getstate() == before and torch.equal(torch.get_rng_state(), number)
    with pytest.raises(ValueError, match="a prompt function answers"):
        prompts_from_trl(lambda: "cat", lambda prompts: None)(1, torch.Generator())


def test_a_file_of_trl_sets_what_the_command_line_leaves_open(tmp_path) -> None:
    folder = tmp_path / "pipeline"
    for part, config in (("unet", {"sample_size": 8}), ("vae", {"latent_channels": 4, "block_out_channels": [8, 8]})):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    assert latent_numbers(str(folder)) == 4 * 8 * 8 and latent_numbers(str(folder), (32, 16)) == 4 * 16 * 8
    file = tmp_path / "ddpo.yaml"
    file.write_text("num_epochs: 3\nsample_num_steps: 9\ntrain_clip_range: 0.01\n")
    cfg = composed("align/pipeline", {"pipeline": str(folder), "trl": str(file), "steps": 5})
    changed, call = with_trl(cfg, Invocation("align/pipeline", "", cfg, frozenset({"pipeline", "trl", "steps"})))
    assert changed["steps"] == 5 and changed["algorithm"]["epochs"] == 3 and call.config == changed
    assert changed["algorithm"]["clip_nats"] == pytest.approx(2.56) and changed["guidance"] == 5.0
    other = composed("align/pipeline", {"pipeline": str(folder), "trl": str(file), "algorithm": "rwr"})
    with pytest.raises(ValueError, match="has the settings of algorithm=ddpo_is"):
        with_trl(other, call)
    with pytest.raises(ValueError, match="cannot be read"):
        latent_numbers(str(tmp_path))


def test_before_an_update_a_log_ratio_is_exactly_0_in_the_batch_shape_that_sampled(sd_folder) -> None:
    pipeline = load_pipeline(sd_folder)
    sampler = pipeline.sampler(3, guidance=5.0)
    trace = sampler.record(3, pipeline.encode(["a cat", "a dog", "a zebra"]), Noise(0))
    with torch.no_grad():
        now = replay(trace, sampler.denoiser, sampler.schedule, rows=3)
    assert (trace.dims > 0).any() and torch.equal(now.log_prob, now.old)


def test_the_worked_example_tunes_with_the_functions_of_trl_and_writes_adapters(sd_folder, tmp_path, monkeypatch,
                                                                                capsys) -> None:
    (tmp_path / "ddpo.yaml").write_text("num_epochs: 1\nsample_num_steps: 2\nlogdir: logs\n")
    script = Path(__file__).parents[2] / "scripts" / "examples" / "ddpo_jpeg.py"
    monkeypatch.setattr("sys.argv", [str(script), str(sd_folder), "--config", str(tmp_path / "ddpo.yaml"), "--out",
                                     str(tmp_path / "out")])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "epoch 1: reward -" in said and "logdir='logs' is not read" in said
    tuned = load_lora(tmp_path / "out", module_inside(load_pipeline(sd_folder).denoiser))
    assert tuned and all(name.endswith(("to_q", "to_k", "to_v", "to_out.0")) for name in tuned)
