"""Success over how long something has to be remembered: a curve for each way to imitate.

    python scripts/studies/robots/spans.py WORK [--task remember_place] [--spans 20 60 100]

In these tasks a cue is shown once; `span` dark steps later one of three discs is to be touched, so who guesses is right
in a third. Every span has demonstrations, trainings and fresh episodes of its own. The study may be stopped and goes
on; two processes share it.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from compared import CLEAN, Comparison, command, work_off

from dforce.envs import ROBOT_TASKS
from dforce.report.plots.benchmark import Point, sweep_panels
from dforce.report.rows import Row, filter_rows, write_results
from dforce.report.terminal import terminal_table
from dforce.runs.folder import environment, results_header
from dforce.runs.jobs import Job, run_is_done, slug

TAIL, HOLD = 20, 40  # steps of rest in the demonstrations, and behind their end
METHODS = {
    "Diffusion Forcing": (f"imitation.hold={HOLD}",),
    "cloning, observation dropout": ("imitation=cloning", "imitation.levels.dropout=0.3", f"imitation.hold={HOLD}"),
    "cloning": ("imitation=cloning", f"imitation.hold={HOLD}"),
    "memoryless diffusion": ("imitation=memoryless", "batch=320", f"imitation.hold={-TAIL}"),
    "Diffusion Policy": ("imitation=diffusion_policy", f"imitation.hold={-TAIL}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of trainings and episodes")
    parser.add_argument("--task", default="remember_place", choices=("remember_place", "remember_color", "count"))
    parser.add_argument("--spans", type=int, nargs="+", default=[20, 60, 100])
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--networks", type=int, default=1, help="trainings of each method at each span")
    parser.add_argument("--episodes", type=int, default=100, help="of each network")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--report", action="store_true", help="only write what has been played so far")
    parser.add_argument("--out", type=Path, default=Path("docs/results/robot_spans.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/robot_spans.png"))
    given, begin, jobs, studies = parser.parse_args(), time.monotonic(), [], []
    torch.set_num_threads(1)
    for span in given.spans:
        work, data = given.work.resolve() / f"{given.task}-{span}", f"robot/study-{slug(given.task)}-{span}-v0"
        folder = work / "data"
        jobs.append(Job(str(folder), (), partial(run_is_done, folder), partial(
            command, "data", "robot", f"task={given.task}", f"span={span}", f"episodes={given.demonstrations}",
            f"tail={TAIL}", f"name={data}", f"out={folder}")))
        methods = {name: (*words, f"fit.steps={given.steps}", "fit.device=cpu")
                   for name, words in METHODS.items() if name in given.methods}
        studies.append(Comparison(ROBOT_TASKS[given.task], data, work, methods, given.networks, dict.fromkeys(
            methods, {CLEAN: given.episodes}), variant={"span": span}, needs=(str(folder),)))
        jobs += studies[-1].jobs()
    if not given.report:
        work_off(jobs, given.work)
    rows = [row for study in studies for row in study.rows()]
    write_results(given.out, results_header(environment(), round(time.monotonic() - begin, 1)), rows)
    picture(rows, given.picture)
    print(terminal_table(rows, metrics=("reached",)))


def picture(rows: list[Row], out: Path) -> None:
    """Success over span, a curve a method."""
    curves = {name: [Point(row["variant"]["span"], float(row["value"] or 0), row["low"], row["high"])
                     for row in filter_rows(rows, method=name, metric="reached")] for name in METHODS}
    task, = {row["task"] for row in rows}
    sweep_panels({task: {name: points for name, points in curves.items() if points}},
                 xlabel="dark steps between cue and use", ylabel="share of successes",
                 references={task: {"guessing": 1 / 3}}).savefig(out)


if __name__ == "__main__":
    main()
