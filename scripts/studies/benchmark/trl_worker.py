"""TRL's side of against_trl.py, a process that answers commands, lines of JSON: PYTHON trl_worker.py FOLDER CONFIG

It runs in the environment of TRL 0.23.1 and imports no dforce. CONFIG: JSON of DDPOConfig's entries.
"""

import json
import os
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_sd import animal, jpeg_size  # noqa: E402
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline  # noqa: E402

SPREAD = 0.02  # of the adapters in a trajectory, whose second factor would else be 0


def peak() -> float:
    """MB of this process so far; ru_maxrss would also count those of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def adapters(trainer: DDPOTrainer) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in trainer.sd_pipeline.unet.named_parameters() if weight.requires_grad}


def gradients(trainer: DDPOTrainer, samples: dict, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the mean loss over all steps of all samples, and their log-probs, [B, S], by the weights of now."""
    weights, count, nats = adapters(trainer), samples["timesteps"].shape[1], list[Any]()
    embeds = torch.cat([samples["negative_prompt_embeds"], samples["prompt_embeds"]])
    original = trainer.sd_pipeline.scheduler_step

    def kept(*given: Any, **more: Any) -> Any:
        nats.append(original(*given, **more))
        return nats[-1]

    trainer.sd_pipeline.scheduler_step = kept
    for step in range(count):
        loss, *_ = trainer.calculate_loss(
            samples["latents"][:, step], samples["timesteps"][:, step], samples["next_latents"][:, step],
            samples["log_probs"][:, step], advantages, embeds)
        (loss / count).backward()
    del trainer.sd_pipeline.scheduler_step
    result = {f"gradient.{name}": weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
    trainer.optimizer.zero_grad()
    return {**result, "now": torch.stack([step.log_probs.detach() for step in nats], 1)}


def trajectory(trainer: DDPOTrainer, file: str, count: int) -> None:
    """Writes a run of `count` samples: all that its losses are made of, and their gradients."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in adapters(trainer).values():
            weight.normal_(std=SPREAD)
    samples = trainer._generate_samples(1, count)[0][0]
    advantages, tensors = torch.randn(count, dtype=torch.float64), dict[str, torch.Tensor]()
    trainer.config.train_clip_range = 1.0  # a clip would show rounding at its edge
    for when in ("at", "after"):  # the weights that sampled, and others
        tensors |= {f"{when}.{name}": value for name, value in gradients(trainer, samples, advantages).items()}
        tensors |= {f"{when}.weight.{name}": weight.detach().clone() for name, weight in adapters(trainer).items()}
        with torch.no_grad():
            for weight in adapters(trainer).values():
                weight.add_(torch.randn_like(weight), alpha=SPREAD / 20)
    tensors |= {name: samples[name] for name in ("timesteps", "log_probs", "prompt_embeds", "negative_prompt_embeds")}
    tensors["latents"] = torch.cat([samples["latents"], samples["next_latents"][:, -1:]], 1)
    save_file({name: value.contiguous() for name, value in {**tensors, "advantages": advantages}.items()}, file)


def main() -> None:
    folder, config = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    random.seed(0)
    answers, sys.stdout = sys.stdout, sys.stderr
    PartialState()  # the logger of the pipeline asks for it
    pipeline = DefaultDDPOStableDiffusionPipeline(folder, use_lora=True)
    trainer = DDPOTrainer(DDPOConfig(mixed_precision="no", save_freq=10**9,
                                     project_kwargs={"project_dir": str(Path(folder) / "logs")}, **config),
                          jpeg_size, animal, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    for line in sys.stdin:
        command = json.loads(line)
        before = peak()
        begin = time.process_time()
        if command["do"] == "epoch":
            trainer.step(0, 0)
        else:
            trajectory(trainer, command["file"], command["count"])
        print(json.dumps({"seconds": time.process_time() - begin, "peak": peak(), "before": before}), file=answers,
              flush=True)


if __name__ == "__main__":
    main()
