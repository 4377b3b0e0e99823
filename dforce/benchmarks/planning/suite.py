"""The parts of a planning benchmark, read from YAML and checked before anything runs: see configs/suites/."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dforce.config import check, nearest, require_name
from dforce.runs.jobs import slug

KEYS = {"seeds", "episodes", "tune", "scales", "train", "models", "executors", "methods", "pairs", "curves", "learning",
        "fast"}  # scales: for ${scales} in the methods' `tune`, so that a suite on it changes all of them at once
METHOD_KEYS = {"model", "planner", "driver", "tune", "executors", "replan_every", "shrink", "episodes"}


class MethodNode(NamedTuple):
    """One method of a suite."""

    name: str
    model: str | None           # name of a training, None for those that need none
    node: dict[str, Any]        # constructor of the planner or driver
    drives: bool                # the node is a driver, obs -> action, and not a planner
    tune: dict[str, list[Any]] | str | None  # values tried; or the method whose choice is taken; None: node as it is
    executors: tuple[str, ...]  # names, () for a driver
    replan_every: int | None
    shrink: bool
    episodes: int

    @property
    def trials(self) -> list[dict[str, Any]]:
        """All combinations of the values to try."""
        tune = self.tune if isinstance(self.tune, dict) else {}
        return [dict(zip(tune, values, strict=True)) for values in itertools.product(*tune.values())] if tune else []


class ModelNode(NamedTuple):
    """One network: overrides of configs/verbs/train/train.yaml, and how many training seeds it gets."""

    name: str
    overrides: dict[str, Any]
    seeds: int


class Suite(NamedTuple):
    """A benchmark of one task. Training seed s is evaluated from the starts of seed s, s = 0 .. seeds - 1.

    pairs: methods compared start by start, each `method` (under all executors that both have) or `method / executor`.
    curves: pictures, name -> {over: a key of the variants, methods}. learning: {methods, episodes} at every checkpoint.
    """

    seeds: int
    episodes: int
    tune_seed: int
    tune_episodes: int
    models: dict[str, ModelNode]
    executors: dict[str, dict[str, Any]]
    methods: dict[str, MethodNode]
    pairs: list[tuple[str, str]]
    curves: dict[str, dict[str, Any]]
    learning: dict[str, Any]

    def runs(self, method: MethodNode) -> range:
        """The seeds that a method is evaluated on: those of its network."""
        return range(self.models[method.model].seeds if method.model else self.seeds)


def read_suite(text: Mapping[str, Any], *, methods: Sequence[str] | None = None, models: Sequence[str] | None = None,
               seeds: int | None = None, episodes: int | None = None, tune_episodes: int | None = None,
               fast: bool = False, trust: str | None = None, files: Sequence[Path] = ()) -> Suite:
    """The suite of a configuration `text` from `files`; the other arguments narrow or replace what it says.

    A method or model that is null is left out, with its pairs. methods, models: names to keep (None: all). fast: one
    seed, few episodes, and the sizes under the key `fast`.
    """
    _known(text, KEYS, "the benchmark")
    gone = {name for kind in ("models", "methods") for name, node in text[kind].items() if node is None}
    text = {**text, **{kind: {name: node for name, node in text[kind].items() if node is not None}
                       for kind in ("models", "methods")}}
    check(dict(text), trust=trust, files=files)
    if fast:
        text, seeds, episodes, tune_episodes = shrunk(text), seeds or 1, episodes or 4, tune_episodes or 2
    seeds, episodes = seeds or text["seeds"], episodes or text["episodes"]
    tune = {"seed": 1001, "episodes": 50, **text.get("tune", {})}
    if tune["seed"] in range(seeds):
        raise ValueError(f"tune.seed={tune['seed']} is one of the {seeds} seeds that are reported; tune on another")
    trainings = {name: _model(name, node, text.get("train", {}), seeds) for name, node in text["models"].items()}
    nodes = {name: _method(name, node, text, episodes) for name, node in text["methods"].items()}
    _references(nodes, trainings, text["executors"])
    chosen = _chosen(nodes, trainings, methods, models)
    needed = {method.model for method in chosen.values()} if models is None else set(models)
    pairs = [_pair(pair, nodes) for pair in text.get("pairs", []) if not gone & {side(name)[0] for name in pair}]
    pairs = [(a, b) for a, b in pairs if {side(a)[0], side(b)[0]} <= set(chosen)]
    return Suite(seeds, episodes, tune["seed"], tune_episodes or tune["episodes"],
                 {name: node for name, node in trainings.items() if name in needed}, dict(text["executors"]), chosen,
                 pairs, _curves(text.get("curves", {}), nodes, gone),
                 _learning(text.get("learning", {}), nodes, gone, chosen))


def _known(node: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in node:
        require_name(str(key), keys, f"{where} has no key")


def _model(name: str, node: Mapping[str, Any], shared: Mapping[str, Any], seeds: int) -> ModelNode:
    overrides = {**shared, **node}
    return ModelNode(name, overrides, min(seeds, overrides.pop("seeds", seeds)))


def _method(name: str, node: Mapping[str, Any], text: Mapping[str, Any], episodes: int) -> MethodNode:
    where = f"methods.{name}"
    _known(node, METHOD_KEYS, where)
    if ("planner" in node) == ("driver" in node):
        raise ValueError(f"{where} must have a planner or a driver, one of the two; it has {sorted(node)}")
    drives = "driver" in node
    if drives and {"executors", "replan_every", "shrink"} & set(node):
        raise ValueError(f"{where} drives itself: it takes no executors, replan_every or shrink")
    executors = () if drives else tuple(node.get("executors", text["executors"]))
    return MethodNode(name, node.get("model"), dict(node["driver" if drives else "planner"]), drives, node.get("tune"),
                      executors, node.get("replan_every"), bool(node.get("shrink", False)),
                      min(node.get("episodes", episodes), episodes))


def _references(methods: dict[str, MethodNode], models: Mapping[str, Any], executors: Mapping[str, Any]) -> None:
    """Every name that a method mentions exists; tuned methods have equally many trials."""
    counts = {name: len(method.trials) for name, method in methods.items() if isinstance(method.tune, dict)}
    for method in methods.values():
        where = f"methods.{method.name}"
        if method.model is not None:
            require_name(method.model, models, f"{where}: no model")
        for name in method.executors:
            require_name(name, executors, f"{where}: no executor")
        if isinstance(method.tune, str) and method.tune not in counts:
            raise ValueError(f"{where}: {method.tune!r} is no method that is tuned{nearest(method.tune, counts)}")
    if len(set(counts.values())) > 1:
        raise ValueError(f"every tuned method gets the same number of trials, got {counts}")
    for names in (methods, models, executors):
        if any({",", "/"} & set(name) for name in names):
            raise ValueError(f"names have no ',' and no '/', which separate them elsewhere: {list(names)}")
        slugs = [slug(name) for name in names]
        if len(set(slugs)) < len(slugs):
            raise ValueError(f"names must differ in letters or digits, for they name files: {list(names)}")


def _chosen(methods: dict[str, MethodNode], models: Mapping[str, Any], wanted: Sequence[str] | None,
            wanted_models: Sequence[str] | None) -> dict[str, MethodNode]:
    for kind, known, names in (("method", methods, wanted), ("model", models, wanted_models)):
        for name in names or ():
            require_name(name, known, f"the benchmark has no {kind}")
    chosen = {name: method for name, method in methods.items() if wanted is None or name in wanted}
    if wanted_models is not None:
        chosen = {name: method for name, method in chosen.items() if method.model in wanted_models}
    for method in list(chosen.values()):
        if isinstance(method.tune, str) and method.tune not in chosen:
            raise ValueError(f"method {method.name!r} takes its settings from {method.tune!r}: keep that one as well")
    return chosen


def _pair(pair: Sequence[str], methods: Mapping[str, MethodNode]) -> tuple[str, str]:
    """Both sides exist; ValueError if not."""
    if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"pairs: each must be two names, [method, method], either with ' / executor'; got {pair!r}")
    for method, executor in map(side, pair):
        require_name(method, methods, "pairs: no method")
        if executor is not None:
            require_name(executor, methods[method].executors, f"pairs: method {method!r} has no executor")
    return pair[0], pair[1]


def _curves(curves: Mapping[str, Any], methods: Mapping[str, Any], gone: set[str]) -> dict[str, dict[str, Any]]:
    curve_nodes = {}
    for name, curve in curves.items():
        _known(curve, {"over", "methods"}, f"curves.{name}")
        curve_nodes[name] = {**curve, "methods": _existing(curve["methods"], methods, gone, f"curves.{name}")}
    return curve_nodes


def _learning(learning: Mapping[str, Any], methods: Mapping[str, MethodNode], gone: set[str],
              chosen: Mapping[str, Any]) -> dict[str, Any]:
    _known(learning, {"methods", "episodes"}, "learning")
    wanted = _existing(learning.get("methods", []), methods, gone, "learning")
    for name in wanted:
        if methods[name].model is None:
            raise ValueError(f"learning: {name!r} has no network, and nothing of it changes in training")
    return {"methods": [name for name in wanted if name in chosen], "episodes": learning.get("episodes", 50)}


def _existing(names: Sequence[str], methods: Mapping[str, Any], gone: set[str], where: str) -> list[str]:
    """The names without those left out; ValueError for one that never was."""
    for name in names:
        if name not in gone:
            require_name(name, methods, f"{where}: no method")
    return [name for name in names if name not in gone]


def side(name: str) -> tuple[str, str | None]:
    """One side of a pair, `method / executor` or `method`, as (method, executor or None for any)."""
    method, _, executor = (part.strip() for part in name.partition(" / "))
    return method, executor or None


def label(method: str, executor: str) -> str:
    """The name in rows, which says who executes, for a score is of both: `method, executor`; a driver's name alone."""
    return f"{method}, {executor}" if executor else method


def split_label(name: str) -> tuple[str, str]:
    """(method, executor) of a label, the executor "" for a driver. A difference `a - b, executor` comes apart alike."""
    method, _, executor = name.rpartition(", ") if ", " in name else (name, "", "")
    return method, executor


def shrunk(text: Mapping[str, Any]) -> dict[str, Any]:
    """The same suite, small: `fast.train` joins every training, keys of `fast.nodes` replace those of any node."""
    small = text.get("fast", {})
    _known(small, {"train", "nodes"}, "fast")
    nodes = small.get("nodes", {})

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            replaced = nodes if "_target_" in value else {}
            return {key: replaced[key] if key in replaced else walk(inner) for key, inner in value.items()}
        return [walk(inner) for inner in value] if isinstance(value, list) else value

    cut = {key: walk(text[key]) for key in ("methods", "executors")}
    for node in cut["methods"].values():
        left = 2  # trials
        for key, values in node["tune"].items() if isinstance(node.get("tune"), dict) else ():
            node["tune"][key] = values[:left]
            left = left if len(values) < left else 1
    models = {name: {**node, **small.get("train", {})} for name, node in text["models"].items()}
    return {**text, **cut, "models": models}
