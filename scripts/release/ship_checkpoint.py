"""Make a trained model part of the package:
python scripts/release/ship_checkpoint.py RUN NAME [planner.KEY=VALUE ...] [recipe.KEY=VALUE ...]

The settings are those that `dforce plan`, or `dforce rollout`, takes with this model unless it is told others. The
newest checkpoint of the run folder goes to dforce/pretrained/NAME: averaged weights and the normaliser, no optimiser
state. The command and commit of the run go into its state.json. An image model's classifier goes to
dforce/pretrained/NAME-classifier.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from dforce.images.classifier import FOLDER, load_classifier, save_classifier
from dforce.train.checkpoint import PRETRAINED, find, load, model_of, save
from dforce.train.state import TrainingState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("settings", nargs="*", help="planner.delay=5 and the like")
    parser.add_argument("--command", help="what made the run, where its env.json does not tell it whole")
    args = parser.parse_args()
    settings: dict[str, dict[str, Any]] = {}
    for word in args.settings:
        key, _, value = word.partition("=")
        whose, _, name = key.partition(".")
        settings.setdefault(whose, {})[name] = yaml.safe_load(value)
    if settings.keys() - {"planner", "recipe"}:
        parser.error(f"settings begin with planner. or recipe., got {args.settings}")
    bundle = load(args.run)
    env = json.loads((args.run / "env.json").read_text(encoding="utf-8"))
    weights = {f"denoiser.{name}": value for name, value in bundle.denoiser.state_dict().items()}
    config = model_of(bundle.config)
    config |= settings
    training = {key: value for key, value in bundle.config.items() if key not in ("out", "resume")}
    use = "dforce plan"
    if bundle.layout.get("kind") == "video":
        use, data = "dforce rollout", str(training.get("data", ""))
        training["data"] = bundle.layout["dataset"] = Path(data).name  # clips lie where their owner put them
        config |= {"frames": training.get("frames")} | ({"data": data} if data == "balls" else {})
    command = args.command or " ".join(word for word in env["command"].split() if not word.startswith("out="))
    made = {"training": training, "command": command, **{key: env[key] for key in ("commit", "time")}}
    folder = save(PRETRAINED / args.name, TrainingState(bundle.step, weights, {}, {}, {}), config=config,
                  layout=bundle.layout, normalizer=bundle.normalizer, extra=made)
    if (source := args.run / FOLDER).is_dir():
        about = json.loads((source / "classifier.json").read_text(encoding="utf-8"))["about"]
        print(save_classifier(PRETRAINED / f"{args.name}-{FOLDER}", load_classifier(source), about=about))
    if "classes" in bundle.layout:
        use = "dforce sample image"
    if bundle.layout.get("kind") == "policy":
        use = "dforce evaluate robot"
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    print(f"{folder}: {size:.1f} MB, from {find(args.run)}; `{use} checkpoint={args.name}`")


if __name__ == "__main__":
    main()
