"""Whether noise-level training adds anything over other ways to imitate: a table of all on the swap task.

    dforce data robot task=swap episodes=300
    python scripts/studies/robots/rivals.py WORK [--out docs/results/robot_rivals.json]

Every method learns from the same demonstrations, for the same number of optimiser steps, with about as many weights,
all but the Diffusion Policies and chunks with the same GRU; what a training took is a row of its own. Every network
plays the same episodes, which nothing was chosen on. Intervals are of networks and episodes; differences are paired by
both. The study may be stopped and goes on; two processes share it. The faults are played by the methods that are given
`--faults`, on fewer episodes.
"""

import argparse
import time
from pathlib import Path

import torch
from compared import CLEAN, Comparison, corruptions, work_off

from dforce.report.rows import write_results
from dforce.report.terminal import terminal_table
from dforce.runs.folder import environment, results_header

BASE, DROPOUT, PLAIN = "Diffusion Forcing", "cloning, observation dropout", "cloning"
HOLD = "imitation.hold=100"  # sequences then last as long as the episodes that are played
LONG = "fit.steps=7000"  # twice as long as the others: after 3,500 steps its positive control still fails
METHODS = {
    BASE: (HOLD,), DROPOUT: ("imitation=cloning", "imitation.levels.dropout=0.3", HOLD),
    PLAIN: ("imitation=cloning", HOLD),
    "cloning, input noise": ("imitation=cloning", "imitation.levels.noise=0.3", HOLD),
    "teacher forcing": ("imitation=teacher_forcing", HOLD),
    "memoryless diffusion": ("imitation=memoryless", "batch=320"),
    "memoryless diffusion, told the beginning": ("imitation=memoryless", "batch=320", "imitation.first=true"),
    "Diffusion Policy": ("imitation=diffusion_policy", LONG),
    "Diffusion Policy, told the beginning": ("imitation=diffusion_policy", "imitation.first=true", LONG),
    "long-context Diffusion Policy": ("imitation=long_context", HOLD),
    "past-token prediction": ("imitation=past_tokens", HOLD),
    "action chunks": ("imitation=chunks",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of trainings and episodes")
    parser.add_argument("--data", default="robot/swap-low-dim-v0", help="of the demonstrations")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--networks", type=int, default=3, help="trainings of each method")
    parser.add_argument("--episodes", type=int, default=200, help="of each network, without faults")
    parser.add_argument("--faults", nargs="*", choices=METHODS, default=[BASE, DROPOUT, PLAIN], metavar="NAME")
    parser.add_argument("--fault-episodes", type=int, default=100, help="of each network, with each fault")
    parser.add_argument("--words", nargs="*", default=[], help="of dforce imitate, for all methods")
    parser.add_argument("--report", action="store_true", help="only write what has been played so far")
    parser.add_argument("--out", type=Path, default=Path("docs/results/robot_rivals.json"))
    given, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    methods = {name: (*METHODS[name], *given.words) for name in dict.fromkeys([BASE, *given.methods])}
    faults = {name: given.fault_episodes for name in corruptions() if name != CLEAN}
    study = Comparison("dforce/Swap-v0", given.data, given.work.resolve(), methods, given.networks, {
        name: {CLEAN: given.episodes, **(faults if name in given.faults else {})} for name in methods})
    if not given.report:
        work_off([*study.jobs(), study.reference_job(given.episodes)], given.work)
    rows = study.rows()
    write_results(given.out, results_header(environment(), round(time.monotonic() - begin, 1)), rows)
    print(terminal_table(rows, metrics=("reached", "held", "reached_difference")))


if __name__ == "__main__":
    main()
