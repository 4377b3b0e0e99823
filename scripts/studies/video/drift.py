"""Who drifts? Diffusion Forcing, teacher forcing, full sequence and regression, on one network and data set.

python scripts/studies/video/drift.py [--data balls] [--methods forcing teacher ...] [--seeds 0 1 2] [--steps 2000]
    [--frames 1000] [--samples 16] [--ablate] [--way forcing guided steps=5 history=1.5] [--device cuda]
    [--rollout film=false ...] [--features FILE] [--out runs/drift] [-- override of dforce train video ...]

Trains a network for every method and seed by `dforce train video` (run folders in OUT/models), rolls each out by
`dforce rollout` in its own best form (OUT/rollouts), and puts what these measured into OUT/results.json, with
pictures.
What is there already is kept, what was begun is gone on with; whatever is stopped, the same command continues it.
All are measured in the same features and, where there are actions, alike. Methods train for equal arithmetic: a
step that costs twice the FLOPs of Diffusion Forcing's is taken half as often.

--ablate adds rows of the checkpoint of Diffusion Forcing that differ in the rollout alone (stabilisation, clamp,
refresh, order; names pick some); the trainings `rising` and `carry` differ in the levels, and in carrying the state
over. --way adds a rollout: training, name, overrides. Several processes may share OUT, each with methods or seeds of
its own and the same --features; then --finished, which runs nothing, puts all together. --device: of trainings and
rollouts, the GPU if there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from seeds import methods_over_time, over_seeds, same

from dforce.benchmarks.speed.cost import flops
from dforce.cli.main import main as dforce
from dforce.config import read
from dforce.report.rows import Row, read_episodes, read_results, write_results
from dforce.report.table import markdown_table
from dforce.runs.folder import environment, results_header
from dforce.train.checkpoint import CheckpointError, build_denoiser, find, model_of
from dforce.video.training import VideoTraining

FORCING = "dforce.train.objectives.ForcingObjective"
TRAININGS: dict[str, list[str]] = {  # name -> what it changes in configs/verbs/train/video.yaml
    "forcing": [],
    "teacher": ["objective._target_=dforce.video.baselines.TwoCall", "~objective.levels", "~objective.jolt"],
    "full sequence": ["objective.levels._target_=dforce.core.loss.shared", "objective.levels.power=1"],
    "regression": ["objective._target_=dforce.video.baselines.next_frame_regression", "~objective.levels",
                   "~objective.weight", "~objective.jolt"],
    "rising": ["objective.levels._target_=dforce.core.loss.rising"],
    "carry": ["carry=true"],
}


class Way(NamedTuple):
    """A rollout of a training: a name that tells it from the others of its method, and its overrides."""

    training: str
    name: str
    overrides: list[str]


REFRESH = "refresh=[4,8]"
WAYS = [
    Way("forcing", "", []), Way("forcing", "refreshed", [REFRESH]),
    Way("teacher", "", ["stabilise_std=0"]), Way("teacher", "refreshed", ["stabilise_std=0", REFRESH]),
    Way("full sequence", "", ["method=sliding"]), Way("regression", "", ["method=regression", "stabilise_std=0"]),
    Way("rising", "", []), Way("carry", "", []),
]
ABLATIONS = [
    Way("forcing", "std 0", ["stabilise_std=0"]), Way("forcing", "std 0.02", ["stabilise_std=0.02"]),
    Way("forcing", "std 0.1", ["stabilise_std=0.1"]),
    Way("forcing", "std 0.1, noised", ["stabilise_std=0.1", "mode=noise"]),
    Way("forcing", "no clamp", ["clamp=null"]), Way("forcing", "no clamp, refreshed", ["clamp=null", REFRESH]),
    Way("forcing", "std 0, no clamp", ["stabilise_std=0", "clamp=null"]),
    Way("forcing", "std 0, refreshed", ["stabilise_std=0", REFRESH]), Way("forcing", "order 1", ["order=1"]),
    Way("teacher", "no clamp", ["stabilise_std=0", "clamp=null"]), Way("teacher", "std 0.04", []),
]


def slug(text: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in text).strip("-")


@cache
def cost(overrides: tuple[str, ...]) -> int:
    """FLOPs of a training step, forward and backward, of `dforce train video` with these overrides."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("dforce.configs", version_base="1.3"):
        cfg = compose("verbs/train/video", [*overrides, "fit.device=cpu"])
    training = read(cfg, VideoTraining, model=model_of(cfg))
    prepared = training.prepare()
    denoiser = build_denoiser(training.model, prepared.about["layout"])
    objective = training.objective(denoiser, denoiser.schedule).to("meta")  # shapes alone tell: nothing is computed
    batch = prepared.data.batch_at(0).to("meta")
    return flops(lambda: objective(batch)[0].backward())


def steps_of(args: argparse.Namespace, training: str) -> int:
    """Steps that cost what `args.steps` of Diffusion Forcing cost."""
    common = f"data={args.data}", *args.overrides
    changes = tuple(change for change in TRAININGS[training] if not change.startswith("carry"))  # costs nothing more
    return max(1, round(args.steps * cost(common) / cost((*common, *changes))))


def train(args: argparse.Namespace, training: str, seed: int) -> Path:
    """The run folder of a finished training. SystemExit where it fails, or is stopped."""
    folder = args.out / "models" / f"{slug(training)}-{seed}"
    if _word(folder) == "done":
        return folder
    steps = steps_of(args, training)
    command = ["train", "video", f"data={args.data}", f"seed={seed}", f"fit.steps={steps}", *args.overrides,
               *TRAININGS[training], f"out={folder}"]
    begun = _has_checkpoint(folder)
    if folder.exists() and not begun:
        folder.rename(folder.with_name(f"{folder.name}.old-{int(time.time())}"))
    _run([*(["train", "video", f"resume={folder}"] if begun else command), f"fit.device={args.device}"])
    return folder


def rollout(args: argparse.Namespace, way: Way, seed: int, model: Path, features: Path | None) -> Path:
    """The run folder of a finished rollout."""
    folder = _folder(args, way, seed)
    if _word(folder) == "done":
        return folder
    window = _window(model)
    if "method=sliding" in way.overrides:
        half = max(1, window // 2)
        way = way._replace(overrides=[*way.overrides, f"keep={half}", f"chunk={window - half}"])
    where = [] if features is None else [f"features={features}"]
    sizes = [f"{key}={getattr(args, key)}" for key in ("frames", "samples", "context", "window")]
    _run(["rollout", f"checkpoint={model}", *sizes, f"seed={args.rollout_seed}", *where, *args.rollout,
          *way.overrides, f"device={args.device}", f"out={folder}", "resume=true"])
    return folder


def _folder(args: argparse.Namespace, way: Way, seed: int) -> Path:
    return args.out / "rollouts" / f"{slug(f'{way.training} {way.name}')}-{seed}"


def _window(model: Path) -> int:
    from dforce.video.model import load_video
    return load_video(model).window


def _word(folder: Path) -> str:
    file = folder / "STATUS"
    return file.read_text(encoding="utf-8").split(":")[0].strip() if file.is_file() else ""


def _has_checkpoint(folder: Path) -> bool:
    try:
        return bool((folder / "checkpoints").is_dir() and find(folder))
    except CheckpointError:
        return False


def _run(command: list[str]) -> None:
    print("dforce", *command, flush=True)
    code = dforce(command)
    if code:
        raise SystemExit(code)


def collect(args: argparse.Namespace, done: dict[tuple[str, str], list[Path]], begin: float) -> list[Row]:
    """Rows of all rollouts, pooled over seeds; OUT/results.json, OUT/brightness.png and OUT/change.png."""
    rows_by_name: dict[str, Row] = {}  # real video is the same beside all methods, and stands once
    lines: list[dict] = []
    for (training, name), folders in done.items():
        each = [[_named(row, training, name) for row in read_results(folder / "results.json").rows]
                for folder in folders]
        for one in over_seeds(each):
            rows_by_name.setdefault(same(one), one)
        lines += [line | {"method": training, "rollout": name, "seed": int(folder.name.rsplit("-", 1)[1])}
                  for folder in folders for line in read_episodes(folder / "episodes.jsonl")]
    rows = list(rows_by_name.values())
    header = results_header(environment(), round(time.monotonic() - begin, 1))
    write_results(args.out / "results.json", header, rows)
    (args.out / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for metric in ("brightness", "change"):
        curves = {f"{training} {name}".strip(): _curve(folders, metric) for (training, name), folders in done.items()}
        longest = min(len(curve[0]) for curve in curves.values())
        frames = (np.arange(longest) + 0.5) * args.window
        methods_over_time(frames.tolist(), {name: curve[:, :longest] for name, curve in curves.items()}, ylabel=metric,
                          title="mean over rollouts, spread over seeds").savefig(args.out / f"{metric}.png")
    return rows


def _curve(folders: list[Path], metric: str) -> np.ndarray:
    """[seeds, windows]."""
    curves = [json.loads((folder / "curves.json").read_text(encoding="utf-8"))[metric] for folder in folders]
    return np.array([np.mean(each, 0) for each in curves])


def _named(row: Row, training: str, name: str) -> Row:
    """Under the name of its training and rollout; of real video, which is nobody's, only the frames are told."""
    if row["method"] == "real video":
        return row | {"variant": {key: value for key, value in row["variant"].items() if key == "frames"}}
    return row | {"variant": {**row["variant"], "rollout": name}, "method": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of dforce train video, for all methods")
    parser.add_argument("--data", default="balls")
    parser.add_argument("--methods", nargs="+", default=["forcing", "teacher", "full sequence", "regression"],
                        choices=TRAININGS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=2000, help="of Diffusion Forcing; others by their cost")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--context", type=int, default=4)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--rollout-seed", type=int, default=100)
    parser.add_argument("--ablate", nargs="*", choices=[way.name for way in ABLATIONS], help="no names: all")
    parser.add_argument("--names", nargs="+", help="of the rollouts to do, '' the plain one; none: all")
    parser.add_argument("--way", nargs="+", action="append", default=[], metavar="WORD")
    parser.add_argument("--rollout", nargs="+", default=[], help="overrides of dforce rollout, for all methods")
    parser.add_argument("--features", type=Path, help="to measure in; none: those that the first rollout trains")
    parser.add_argument("--device", default="null", help="none: the GPU if there is one")
    parser.add_argument("--finished", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/drift"))
    args, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    done: dict[tuple[str, str], list[Path]] = {}
    features: Path | None = args.features
    more = [Way(training, name, overrides) for training, name, *overrides in args.way]
    if args.ablate is not None:
        more += [way for way in ABLATIONS if not args.ablate or way.name in args.ablate]
    for seed, way in product(args.seeds, sorted(WAYS + more, key=lambda way: list(TRAININGS).index(way.training))):
        if args.names and way.name not in args.names:
            continue
        if way.training not in args.methods or (args.finished and _word(_folder(args, way, seed)) != "done"):
            continue
        folder = rollout(args, way, seed, train(args, way.training, seed), features)
        features = features or folder / "features.safetensors"
        done.setdefault((way.training, way.name), []).append(folder)
        if not args.finished:
            collect(args, done, begin)
    if not done:
        raise SystemExit(f"nothing that was asked for is finished in {args.out}")
    collect(args, done, begin)
    print(markdown_table(read_results(args.out / "results.json").rows))


if __name__ == "__main__":
    main()
