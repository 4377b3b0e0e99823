"""Everything that is done to dforce to see whether it holds, and a table of what became of it.

python scripts/faults [--short] [--only kills mutations hostile] [--work FOLDER] [--out docs/results/faults.json]

kills: 50 SIGKILLs over all verbs that train. mutations: 1,000 changed files of everything that is written and read.
hostile: configuration nodes, files, resealed checkpoints, frames to a policy server, data and numbers that are wrong.
With --work, a call goes on where the one before was stopped. Exits with 1 where a fault was used in silence, ended in a
raw error, or lost work.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import hostile
import kills
import mutations
import tally

from dforce.report.rows import write_results
from dforce.runs.folder import environment, results_header

OLD = Path(__file__).parents[2] / "tests" / "train" / "checkpoint_of_0_1"
COUNT = {"kills": 50, "mutations": 1000}
FEW = {"kills": 6, "mutations": 110}


def injected(args: argparse.Namespace, work: Path) -> list[tally.Fault]:
    """All faults of the parts asked for, those of earlier calls included."""
    count, everything = FEW if args.short else COUNT, []
    for part in args.only:
        log = work / f"{part}.jsonl"
        done = len(log.read_text("utf-8").splitlines()) if log.is_file() else 0
        place = Path(tempfile.mkdtemp(dir=work))
        os.environ.update(MINARI_DATASETS_PATH=f"{place}/minari", DFORCE_CACHE=f"{place}/cache")
        if part == "hostile":
            log.unlink(missing_ok=True)
            new = hostile.faults(place, OLD, every=9 if args.short else 1)
        else:
            module = kills if part == "kills" else mutations
            new = module.faults(place, max(0, count[part] - done), args.seed + done) if done < count[part] else iter(())
        everything += tally.kept(log, new)
    return everything


def main() -> int:
    """Injects, prints the table, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="+", choices=["kills", "mutations", "hostile"],
                        default=["hostile", "mutations", "kills"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work")
    parser.add_argument("--out")
    args, begin = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(args.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        faults = injected(args, work)
    print(tally.table(faults))
    if args.out:
        header = results_header(environment(), round(time.monotonic() - begin, 1))
        write_results(args.out, header, tally.rows_of(faults))
    return int(any(fault.outcome not in (tally.REPORTED, tally.HARMLESS) for fault in faults))


if __name__ == "__main__":
    sys.exit(main())
