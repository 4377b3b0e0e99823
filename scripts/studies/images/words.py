"""A model of words tuned by one reader of text and judged by another, on words that it was never tuned on.

    python scripts/studies/images/words.py WORK [--algorithms nft ddpo_is] [--seeds 0 1 2]

For each algorithm and seed `dforce align image checkpoint=words reward=ocr` tunes the model that ships by what RapidOCR
reads. In the end Tesseract judges words of another list, drawn from the same noise before, after, and as the best of n
by the reward. Rows: means, and differences paired by noise; intervals are of seeds and samples. The study may be
stopped and goes on.
"""

import argparse
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dforce.cli.main import main as dforce
from dforce.data.words import words_of
from dforce.report.rows import Row, difference_row, filter_rows, make_row, read_episodes, read_results, write_results
from dforce.report.statistics import bootstrap_interval
from dforce.report.terminal import terminal_table
from dforce.runs.folder import environment, results_header
from dforce.runs.jobs import Job, claims_in, run_is_done, run_jobs

SETTINGS = {"nft": ("algorithm.decay=cosine",), "ddpo_is": ("algorithm.advantage=batch",),
            "grpo": ("algorithm.lr=3e-4",), "dpok": ()}
MEASURES = {"word_accuracy": "share that Tesseract reads rightly", "reward": "1 - edit distance / letters, by RapidOCR"}
ONE_RUN = ("kl", "diversity_overall_share")  # of samples together, so a number a seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of the tunings")
    parser.add_argument("--algorithms", nargs="+", choices=SETTINGS, default=["nft"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--evaluate", type=int, default=64, help="images of the words that are reported")
    parser.add_argument("--best-of", type=int, default=12)
    parser.add_argument("--report", action="store_true", help="only write what has been tuned so far")
    parser.add_argument("--out", type=Path, default=Path("docs/results/words.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/words.png"))
    given, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    folders = {(name, seed): given.work.resolve() / f"{name}-{seed}" for name in given.algorithms
               for seed in given.seeds}
    jobs = [Job(str(folder), (), partial(run_is_done, folder), partial(
        _tune, folder, (f"algorithm={name}", *SETTINGS[name], f"algorithm.epochs={given.epochs}", f"seed={seed}",
                        f"eval_seed={1000 + 10 * seed}", f"evaluate={given.evaluate}", f"best_of={given.best_of}")))
        for (name, seed), folder in folders.items()]
    outcome = run_jobs([] if given.report else jobs, claims_in(given.work / "locks"))
    for name, error in outcome.failed.items():
        print(f"{name} failed: {error}")
    done = {key: folder for key, folder in folders.items() if run_is_done(folder)}
    rows = [row for name in given.algorithms for row in _rows(name, [f for (of, _), f in done.items() if of == name])]
    write_results(given.out, results_header(environment(), round(time.monotonic() - begin, 1)), rows)
    if done:
        shutil.copyfile(next(iter(done.values())) / "media" / "not_tuned_on.png", given.picture)
    print(terminal_table(rows))


def _tune(folder: Path, words: tuple[str, ...]) -> None:
    again = (f"resume={folder}",) if any((folder / "checkpoints").glob("step_*")) else ()
    if dforce(["align", "image", "checkpoint=words", "reward=ocr", "steps=10", "watch=0", *words, f"out={folder}",
               *again]):
        raise RuntimeError(f"tuning in {folder} failed")


def _rows(algorithm: str, folders: list[Path]) -> Iterator[Row]:
    """Of all seeds of one algorithm, on words that were not tuned on."""
    unseen, variant = set(words_of("report")), {"algorithm": algorithm}
    lines = [{**line, "seed": seed} for seed, folder in enumerate(folders)
             for line in read_episodes(folder / "episodes.jsonl") if line["word"] in unseen]
    methods = list(dict.fromkeys(line["method"] for line in lines))
    values = {(method, key): np.array([line[key] for line in lines if line["method"] == method])
              for method in methods for key in (*MEASURES, "seed")}
    for measure, unit in MEASURES.items():
        for method in methods:
            each, seed = values[method, measure], values[method, "seed"]
            yield make_row("words", method, measure, bootstrap_interval(each, seed, rng=np.random.default_rng(0)),
                           variant=variant, seeds=len(folders), unit=unit, higher=True)
        for other in (method for method in methods if method != "tuned"):
            yield difference_row("words", f"tuned - {other}", measure, values["tuned", measure], values[other, measure],
                                 values[other, "seed"], variant=variant)
    for metric in ONE_RUN:
        shares = [row["value"] for folder in folders for row in filter_rows(
            read_results(folder / "results.json").rows, method="tuned", metric=metric,
            variant={"words": "never tuned on"})]
        if shares:
            yield make_row("words", "tuned", metric, float(np.mean(np.array(shares, dtype=float))), n=len(shares),
                           variant=variant, seeds=len(shares))


if __name__ == "__main__":
    main()
