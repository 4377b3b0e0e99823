"""An epoch of DDPO on a pipeline of Stable Diffusion, here and in TRL 0.23.1, the last with a DDPOTrainer: python
scripts/studies/benchmark/against_trl.py --trl PYTHON [--rounds 5] [--rows 4] [--out FILE]

PYTHON: the interpreter of an environment with TRL 0.23.1. Both tune rank-4 adapters of the same random pipeline (1.4
million weights, 16 x 16 latents, guidance 5, eta 1, clip_sample false) on the size of JPEG files, at the same settings,
each in a process of its own on one thread, in turn; ours as `dforce align pipeline` does, with its check on the policy.
Seconds are those of the processes themselves, peak memory is VmHWM, `before` that of the loaded pipeline.
First, TRL's own trajectory is taken as a trace: its log-probs and gradients must be those computed here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1")

import numpy as np
import tiny_sd
import torch
from safetensors.torch import load_file

from dforce.align import AlignObjective, Samples, add_lowrank, policy_gradient, replay, trace_of
from dforce.align.algorithms.common import Setup
from dforce.align.algorithms.ddpo import ImportanceSampling
from dforce.align.loop import tuning_epochs
from dforce.benchmarks.speed.harness import median_row
from dforce.images.pipeline import Pipeline, load_pipeline
from dforce.images.trl import prompts_from_trl, read_trl, reward_from_trl
from dforce.report.rows import Row, make_row, write_results
from dforce.report.table import markdown_table
from dforce.runs.folder import environment, results_header

GUIDANCE, RANK = 5.0, 4
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")
SETTINGS = {  # of DDPOConfig, beside its defaults
    "defaults of TRL": {},
    "8 samples drawn at once, 20 steps": {"sample_num_steps": 20, "sample_batch_size": 8,
                                          "sample_num_batches_per_epoch": 1, "train_gradient_accumulation_steps": 4}}


def adapted(folder: str) -> tuple[Pipeline, Any]:
    """The pipeline, and its network with adapters where TRL puts them."""
    pipeline = load_pipeline(folder)
    net: Any = pipeline.denoiser
    add_lowrank(net, rank=RANK, targets=lambda name, module: name.endswith(ADAPTED))
    return pipeline, net


def ours(folder: str, config: dict[str, Any], rows: int | None) -> Iterator[Any]:
    """Epochs at the settings of a DDPOConfig."""
    pipeline, _ = adapted(folder)
    read = read_trl(config, dims=int(np.prod(pipeline.shape)))
    sampler = pipeline.sampler(read.words["steps"], guidance=read.words["guidance"], eta=read.words["eta"], rows=rows)
    algorithm = ImportanceSampling(**read.under("algorithm"))
    return tuning_epochs(algorithm.prepare(Setup(
        sampler, reward_from_trl(tiny_sd.jpeg_size), prompts_from_trl(tiny_sd.animal, pipeline.encode),
        decode=pipeline.decode, rows=rows)))


def work(folder: str, config: str, rows: int) -> None:
    """Our side: answers every line with an epoch, as trl_worker.py does."""
    torch.set_num_threads(1)
    epochs = ours(folder, json.loads(config), rows)
    for _ in sys.stdin:
        before, begin = peak(), time.process_time()
        next(epochs)
        print(json.dumps({"seconds": time.process_time() - begin, "peak": peak(), "before": before}), flush=True)


def peak() -> float:
    """MB of this process so far; ru_maxrss would also count those of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Worker:
    """A process that answers commands."""

    def __init__(self, *command: str):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)

    def __call__(self, **command: Any) -> dict[str, float]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args!r} ended without an answer")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def agreement(folder: str, theirs: list[str], count: int = 4) -> list[Row]:
    """Log-probs and gradients on TRL's own trajectory, at the weights that sampled it and at others."""
    file, steps = f"{folder}/trajectory.safetensors", 20
    worker = Worker(*theirs, json.dumps({"sample_num_steps": steps, "sample_batch_size": count}))
    worker(do="trajectory", file=file, count=count)
    worker.close()
    got = load_file(file)
    pipeline, net = adapted(folder)
    policy = pipeline.sampler(steps, guidance=GUIDANCE).denoiser
    weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    rows, run = [], got["latents"].transpose(0, 1)
    trace = None
    for when in ("at", "after"):
        for name, weight in weights.items():
            weight.data.copy_(got[f"{when}.weight.{peft_name(name)}"])
        if trace is None:
            trace = trace_of(run, got["timesteps"], policy, pipeline.schedule, log_prob=got["log_probs"].T,
                             reduce="mean", last=1, cond={"static": {"text": got["prompt_embeds"]}})
            with torch.no_grad():
                recorded = replay(trace, policy, pipeline.schedule, rows=16)
            rows.append(agreement_row("at the weights that sampled", "largest difference of the recorded log-prob",
                                      float(((recorded.log_prob - recorded.old) / recorded.dims).abs().max()),
                                      "nats a dimension"))
        objective = AlignObjective(policy, pipeline.schedule, policy_gradient(clip_nats=1e6, rows=8))
        objective.zero_grad()
        advantage = got["advantages"]
        objective(Samples(trace.x[:, -1], trace.cond, advantage, advantage, torch.arange(count), trace))[0].backward()
        now = replay(trace, policy, pipeline.schedule, rows=16).log_prob[..., 0].detach()
        task = "at the weights that sampled" if when == "at" else "at other weights"
        rows.append(agreement_row(task, "largest difference of the log-prob", float(
            (now / trace.dims[..., 0] - got[f"{when}.now"]).abs().max()), "nats a dimension"))
        wanted = torch.cat([got[f"{when}.gradient.{peft_name(name)}"].flatten() for name in weights]).double()
        gradient = torch.cat([weight.grad.flatten() for weight in weights.values()]).double()
        rows.append(agreement_row(task, "relative difference of the gradient",
                                  float((gradient - wanted).norm() / wanted.norm()), "of its norm"))
    return rows


def agreement_row(task: str, metric: str, value: float, unit: str) -> Row:
    return make_row(f"TRL's trajectory, {task}", "ours against TRL 0.23.1", metric, value, n=1, unit=unit, higher=False)


def peft_name(name: str) -> str:
    """`net.module.….to_q.lowrank.a` as peft names it."""
    place, _, factor = name.rpartition(".lowrank.")
    return f"{place.removeprefix('net.module.')}.lora_{factor.upper()}.default.weight"


def compare(folder: str, theirs: list[str], task: str, config: dict[str, Any], rows: int, rounds: int) -> list[Row]:
    """Epochs in turn, the first of each, which also prepares caches, left out."""
    text = json.dumps(config)
    workers = {"TRL 0.23.1": Worker(*theirs, text),
               "ours": Worker(sys.executable, __file__, "--work", folder, text, "--rows", str(rows))}
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for index in range(rounds + 1):
        for name in workers if index % 2 == 0 else reversed(workers):
            answers[name].append(workers[name](do="epoch"))
        print(task, {name: each[-1] for name, each in answers.items()}, flush=True)
    for worker in workers.values():
        worker.close()
    seconds = {name: np.array([each["seconds"] for each in given[1:]]) for name, given in answers.items()}
    result: list[Row] = []
    for name, values in seconds.items():
        variant = {"rows": rows} if name == "ours" else {"beside": f"rows={rows}"}
        last, first = answers[name][-1], answers[name][0]
        result += [median_row(task, name, "time of an epoch", values, variant=variant, unit="CPU s", higher=False),
                   make_row(task, name, "peak memory", last["peak"], n=1, variant=variant, unit="MB", higher=False),
                   make_row(task, name, "before", first["before"], n=1, variant=variant, unit="MB", higher=False)]
    ratio = seconds["TRL 0.23.1"] / seconds["ours"]
    return [*result, median_row(task, "ours", "speed-up", ratio, variant={"rows": rows}, unit="times TRL", higher=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="Python of the environment with TRL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4, help="steps of runs in memory at once")
    parser.add_argument("--tasks", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--work", nargs=2, help="be our side, for a pipeline and a configuration")
    parser.add_argument("--out", type=Path)
    args, begin = parser.parse_args(), time.monotonic()
    if args.work:
        return work(args.work[0], args.work[1], args.rows)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tiny_sd.build(Path(folder))
        theirs = [args.trl, str(Path(__file__).with_name("trl_worker.py")), folder]
        rows = agreement(folder, theirs)
        print(markdown_table(rows))
        for task in args.tasks:
            rows += compare(folder, theirs, task, SETTINGS[task], args.rows, args.rounds)
    print(markdown_table(rows))
    if args.out:
        header = results_header(environment(), round(time.monotonic() - begin, 1))
        load = f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
        write_results(args.out, header | {"note": f"seconds are each process's own, on one thread, in turn; {load}"},
                      rows)


if __name__ == "__main__":
    main()
