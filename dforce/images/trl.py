"""What users of TRL's DDPOTrainer have, as it is wanted here: their rewards, prompts and configurations.

TRL is not imported; its last release with a DDPOTrainer is 0.23.1. Every field: docs/from_trl.md.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from dforce.align.on_policy import Ask, Query
from dforce.align.rewards.protocol import Reward
from dforce.config import require_name
from dforce.core.denoiser import Cond

IDLE = ("exp_name run_name logdir tracker_kwargs project_kwargs tracker_project_name accelerator_kwargs allow_tf32 "
        "max_workers log_with mixed_precision").split()  # what is said of runs and machines elsewhere
DEFAULTS: Mapping[str, Any] = {  # of DDPOConfig in TRL 0.23.1
    "seed": 0, "num_epochs": 100, "save_freq": 1, "num_checkpoint_limit": 5, "resume_from": "", "sample_num_steps": 50,
    "sample_eta": 1.0, "sample_guidance_scale": 5.0, "sample_batch_size": 1, "sample_num_batches_per_epoch": 2,
    "train_batch_size": 1, "train_use_8bit_adam": False, "train_learning_rate": 3e-4, "train_adam_beta1": 0.9,
    "train_adam_beta2": 0.999, "train_adam_weight_decay": 1e-4, "train_adam_epsilon": 1e-8,
    "train_gradient_accumulation_steps": 1, "train_max_grad_norm": 1.0, "train_num_inner_epochs": 1, "train_cfg": True,
    "train_adv_clip_max": 5.0, "train_clip_range": 1e-4, "train_timestep_fraction": 1.0,
    "per_prompt_stat_tracking": False, "per_prompt_stat_tracking_buffer_size": 16,
    "per_prompt_stat_tracking_min_count": 16, "async_reward_computation": False, "negative_prompts": "",
    "push_to_hub": False}
COUNTS = ("sample_batch_size", "sample_num_batches_per_epoch", "train_batch_size", "train_gradient_accumulation_steps",
          "sample_num_steps", "num_epochs", "train_num_inner_epochs")
DIRECT = {  # read as they are: field -> key
    "seed": "seed", "num_epochs": "algorithm.epochs", "save_freq": "save_every", "num_checkpoint_limit": "keep_last",
    "sample_num_steps": "steps", "sample_eta": "eta", "sample_guidance_scale": "guidance",
    "train_learning_rate": "algorithm.lr", "train_adam_weight_decay": "algorithm.adamw.weight_decay",
    "train_max_grad_norm": "algorithm.adamw.clip", "train_num_inner_epochs": "algorithm.passes",
    "train_adv_clip_max": "algorithm.limit", "train_timestep_fraction": "algorithm.fraction"}


def reward_from_trl(function: Callable[..., Any]) -> Reward:
    """TRL's reward_function(images [B, C, H, W] in 0..1, prompts, metadata) -> rewards [B], or (rewards, metadata)."""
    def reward(samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any]) -> Any:
        answer = function((samples[:, 0].clamp(-1, 1) + 1) / 2, tuple(prompts), tuple(metadata))
        return answer[0] if isinstance(answer, tuple) else answer
    reward.__qualname__ = getattr(function, "__qualname__", type(function).__name__)
    return reward


def prompts_from_trl(function: Callable[[], tuple[Any, Any]], encode: Callable[[Sequence[Any]], Cond | None]) -> Ask:
    """TRL's prompt_function() -> (prompt, metadata), called once a prompt. encode: of a `Pipeline`.

    Functions that draw by Python's `random` or torch's global generator are seeded for every epoch, so that a resumed
    run draws as one that was not stopped; the state of both is given back.
    """
    def ask(count: int, generator: torch.Generator) -> Query:
        before = random.getstate()
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        try:
            random.seed(seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                drawn = [function() for _ in range(count)]
        finally:
            random.setstate(before)
        if not all(isinstance(each, tuple) and len(each) == 2 for each in drawn):
            raise ValueError(f"a prompt function answers with (prompt, metadata), got {drawn[0]!r}")
        prompts, metadata = [prompt for prompt, _ in drawn], [value for _, value in drawn]
        return Query(prompts, encode(prompts), metadata)
    return ask


class FromTRL(NamedTuple):
    """A DDPOConfig read: keys and values for `dforce align pipeline`, and one line for each thing that differs."""

    words: dict[str, Any]
    notes: list[str]

    def under(self, name: str) -> dict[str, Any]:
        """The settings below a key: under("algorithm") are those of `ImportanceSampling`."""
        tree: dict[str, Any] = {}
        for key, value in self.words.items():
            if key.startswith(name + "."):
                *path, last = key.split(".")[1:]
                branch = tree
                for part in path:
                    branch = branch.setdefault(part, {})
                branch[last] = value
        return tree


def read_trl(config: Any, *, dims: int, processes: int = 1) -> FromTRL:
    """A `DDPOConfig`, its entries, or a YAML file of them, as settings of `dforce align pipeline`.

    The groups `sample`, `train` and `per_prompt_stat_tracking` of ddpo-pytorch are read, too. dims: numbers of a latent
    (C H W), by which the clip on a mean becomes nats. processes: that the configuration was run with.

    Raises ValueError, one line, for a field that has no meaning here, unknown ones, and batches that do not divide.
    """
    given = _flat(config)
    for name in given:
        require_name(name, [*DEFAULTS, *IDLE], "no field of DDPOConfig")
    value = {**DEFAULTS, **given}
    if wrong := next((name for name in COUNTS if not isinstance(value[name], int) or value[name] < 1), None):
        raise ValueError(f"{wrong} must be a number >= 1, got {value[wrong]!r}")
    _refuse(value)
    samples = value["sample_batch_size"] * value["sample_num_batches_per_epoch"] * processes
    batch = value["train_batch_size"] * value["train_gradient_accumulation_steps"] * processes
    if samples % batch:
        raise ValueError(f"{samples} samples an epoch cannot be dealt into updates of train_batch_size * "
                         f"train_gradient_accumulation_steps = {batch}, as in TRL")
    words = {"algorithm": "ddpo_is"} | {key: value[name] for name, key in DIRECT.items()} | {
        "algorithm.samples": samples, "algorithm.updates": samples // batch, "algorithm.adamw.warmup": 0,
        "algorithm.adamw.betas": [value["train_adam_beta1"], value["train_adam_beta2"]],
        "algorithm.clip_nats": value["train_clip_range"] * dims,
        "algorithm.advantage": "prompt" if value["per_prompt_stat_tracking"] else "batch"}
    if value["per_prompt_stat_tracking"]:
        words["algorithm.buffer"] = value["per_prompt_stat_tracking_buffer_size"]
    if value["negative_prompts"]:
        words["negative"] = value["negative_prompts"]
    return FromTRL(words, [f"{name}={given[name]!r} is not read: {WHERE[name]}" for name in given if name in WHERE])


WHERE = {"mixed_precision": "say dtype= for the weights", "log_with": "name a tracker by its own key",
         "logdir": "the run folder is out=", "max_workers": "a reward that runs elsewhere is a server"}


def _refuse(value: Mapping[str, Any]) -> None:
    """ValueError for the first field that asks for what is not done here."""
    guided = value["sample_guidance_scale"] > 1
    reasons = {
        "resume_from": (bool(value["resume_from"]), "checkpoints of accelerate are not read: load their LoRA weights "
                        "into the pipeline and begin anew"),
        "train_use_8bit_adam": (value["train_use_8bit_adam"], "the optimiser is AdamW in fp32"),
        "train_adam_epsilon": (value["train_adam_epsilon"] != 1e-8, "AdamW's epsilon is 1e-8 here"),
        "train_cfg": (guided and not value["train_cfg"], "training without the guidance of sampling is another policy "
                      "than the one that sampled: its ratios mean nothing"),
        "async_reward_computation": (value["async_reward_computation"], "a reward is asked once an epoch; let it be a "
                                     "server to have it computed elsewhere"),
        "per_prompt_stat_tracking_min_count": (
            value["per_prompt_stat_tracking"] and value["per_prompt_stat_tracking_min_count"] != min(
                16, value["per_prompt_stat_tracking_buffer_size"]), "a prompt has its own from 16 rewards on"),
        "push_to_hub": (value["push_to_hub"], "nothing is uploaded from here")}
    for name, (wrong, reason) in reasons.items():
        if wrong:
            raise ValueError(f"{name}={value[name]!r} has no meaning here: {reason}")


def latent_numbers(folder: str, size: Sequence[int] | None = None) -> int:
    """How many numbers a latent of the Stable Diffusion in a folder has, by its config.json files alone."""
    try:
        unet, vae = (json.loads((Path(folder) / part / "config.json").read_text("utf-8")) for part in ("unet", "vae"))
        shrink = 2 ** (len(vae["block_out_channels"]) - 1)
        side = unet["sample_size"]
        whole = (side, side) if isinstance(side, int) else side
        height, width = [length // shrink for length in size] if size else whole
        return int(vae["latent_channels"]) * int(height) * int(width)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the settings of TRL are of a Stable Diffusion in a folder, with unet/config.json and "
                         f"vae/config.json; in {folder} these cannot be read ({type(error).__name__})") from error


def _flat(config: Any) -> dict[str, Any]:
    """The fields by TRL's names."""
    if isinstance(config, (str, Path)):
        text = Path(config).read_text(encoding="utf-8")
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{config} is no YAML: {' '.join(str(error).split())}") from error
    if is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise ValueError(f"a DDPOConfig, a dict or a YAML file of its fields is wanted, got {type(config).__name__}")
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name == "per_prompt_stat_tracking" and isinstance(value, Mapping):
            flat |= {name: True} | {f"{name}_{key}": each for key, each in value.items()}
        elif name in ("sample", "train") and isinstance(value, Mapping):
            flat |= {f"{name}_{key}": each for key, each in value.items()}
        else:
            flat[str(name)] = value
    return flat
