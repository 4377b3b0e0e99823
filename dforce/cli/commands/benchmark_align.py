"""`dforce benchmark align`: ways of alignment on one small model, compared; goes on where it stopped."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dforce.benchmarks.align.runs import AlignBenchmark, align_jobs
from dforce.benchmarks.align.tables import align_tables, draw_all
from dforce.config import read
from dforce.report.table import markdown_table
from dforce.report.terminal import terminal_table
from dforce.runs.folder import Invocation, RunFolder
from dforce.runs.job_run import Deadline, do_jobs, publish, run_graph
from dforce.runs.jobs import Outcome


def run(cfg: Any, call: Invocation) -> None:
    """Does what is left of the benchmark, in this process; others may work in the same folder. See the YAML."""
    late = Deadline(cfg["limit"])
    torch.set_num_threads(cfg["threads"])
    bench = read(cfg, AlignBenchmark)

    def work(folder: RunFolder) -> Outcome:
        here = replace(bench, folder=folder.path)
        return do_jobs(align_jobs(here), folder, late=late, report=lambda: report(here, folder),
                       clock=time.process_time)

    run_graph(call, work, names=3)


def report(bench: AlignBenchmark, folder: RunFolder) -> None:
    """results.json, episodes.jsonl, tables and pictures of all that is there, whoever made it."""
    tables = align_tables(bench)
    if tables.lines and publish(folder, tables.rows, tables.lines, lambda: markdown_table(tables.rows),
                                partial(draw_all, tables.rows)):
        print(terminal_table([row for row in tables.rows if row["task"] in bench.tasks],
                             metrics=["reward", "accuracy", "diversity", "kl"]))
