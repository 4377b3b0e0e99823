"""Configurations inside a command: composed anew, with what suits a model or comes with it; suites from their files."""

from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from dforce.cli import manual
from dforce.config import Node, bounded_yaml, nearest, option, options, present
from dforce.runs.folder import Invocation, nothing_saved
from dforce.runs.training_run import has_checkpoint
from dforce.train.checkpoint import find

Usual = Mapping[str, Mapping[str, Any]]
FOLDER = Path(str(files("dforce.configs"))) / "suites"


def composed(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The plain configuration of `dforce <name>` with changes: dotted keys, choices of groups, ~keys to delete."""
    overrides = [key if key.startswith("~") else f"{key}={_grammar(value)}" for key, value in changes.items()]
    if GlobalHydra.instance().is_initialized():  # inside a command: the user's --config-dir counts
        cfg = compose(manual.file_of(name), overrides)
    else:
        with initialize_config_module("dforce.configs", version_base="1.3"):
            cfg = compose(manual.file_of(name), overrides)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return plain


def _grammar(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_grammar, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_grammar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


def suited(node: Node, usual: Usual, given: Collection[str] = ()) -> Node:
    """An algorithm's node with the settings usual for `all` or for it that it has, but for the keys given."""
    names = [name for name in options("algorithm") if option("algorithm", name)["_target_"] == node["_target_"]]
    chosen = {key: value for name in ("all", *names) for key, value in (usual.get(name) or {}).items()}
    return {**node, **{key: value for key, value in chosen.items() if key in node and key not in given}}


def with_usual(cfg: Mapping[str, Any], call: Invocation) -> tuple[dict[str, Any], Invocation]:
    """The configuration with cfg["usual"] in its algorithm, where the command line says nothing else."""
    given = [key.removeprefix("algorithm.") for key in call.given if key.startswith("algorithm.")]
    changed = {**cfg, "algorithm": suited(cfg["algorithm"], cfg["usual"], given)}
    return changed, call._replace(config=changed)


def shipped_suite(task: str, size: str) -> Path:
    """configs/suites/<task>-<size>.yaml, or ValueError; for a maze of one's own that of medium, as long."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    name = "maze2d-medium" if task.startswith("maze2d-custom") else task
    if f"{name}-{size}" not in known:
        raise ValueError(f"no configuration for task={name} size={size}{nearest(f'{name}-{size}', known)}; or give "
                         "one of your own, suite=FILE")
    return FOLDER / f"{name}-{size}.yaml"


def changed_suite(file: Path, change: Mapping[str, Any]) -> dict[str, Any]:
    """The text of a suite, merged over the shipped one or the file beside it that its `base` names, and changed."""
    merged: Any = OmegaConf.to_container(OmegaConf.merge(_with_base(file), dict(change)), resolve=True)
    return merged


def _with_base(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} is no file; give a YAML in the shape of those in {FOLDER}")
    text = yaml.safe_load(bounded_yaml(file)) or {}
    base = text.pop("base", None)
    if base is None:
        return OmegaConf.create(text)
    beside = file.with_name(f"{base}.yaml")
    return OmegaConf.merge(_with_base(beside if beside.is_file() else FOLDER / f"{base}.yaml"), text)


def resumed(cfg: Mapping[str, Any], call: Invocation, keys: frozenset[str], *,
            within: str = "") -> tuple[dict[str, Any], Invocation]:
    """The configuration of the run or checkpoint cfg["resume"], but for what the command line names; else cfg itself.

    keys: what the configuration of such a run has. within: the key under which its checkpoints hold it, "" for none.
    `trust` is the command line's alone. ValueError where there is no such run.
    """
    resume = cfg.get("resume")
    if not resume:
        return dict(cfg), call
    where = Path(resume)
    if where.is_dir() and nothing_saved(where) and not (where / "config.yaml").is_file():
        print(f"{where} was killed before its configuration was written: it begins at step 0, as given here")
        cfg = {**cfg, "out": cfg.get("out") or resume}
        return cfg, call._replace(config=cfg, out=cfg["out"])
    file = (find(where) if has_checkpoint(where) else where) / "config.yaml"  # what trained, not what was tried since
    before = present(OmegaConf.to_container(OmegaConf.create(bounded_yaml(file)))) if file.is_file() else {}
    before = before.get(within, before) if within else before
    if not keys <= set(before):
        raise ValueError(f"resume={resume} is no run folder (nor a checkpoint) of dforce "
                         f"{call.verb.replace('/', ' ')}: {file} "
                         f"{'describes something else' if before else 'does not exist'}")
    _check_groups(cfg, before, resume)
    merged = OmegaConf.create({**cfg, **before})  # keys that are newer than the run have their defaults
    for key in sorted(call.given):
        if _target(before.get(key)) is not None and _target(before.get(key)) == _target(cfg.get(key)):
            continue  # algorithm=rwr of a run of rwr: its settings stay, but for those that are given beside
        OmegaConf.update(merged, key, OmegaConf.select(OmegaConf.create(dict(cfg)), key), merge=False, force_add=True)
    checkpoint = (where / "MANIFEST.json").is_file()
    merged.resume, merged.out = resume, cfg.get("out") or (None if checkpoint else resume)
    merged.trust = cfg.get("trust")
    plain: Any = OmegaConf.to_container(merged, resolve=True)
    return plain, call._replace(config=plain, out=plain["out"])


def _target(node: Any) -> Any:
    return node.get("_target_") if isinstance(node, Mapping) else None


def _check_groups(cfg: Mapping[str, Any], before: Mapping[str, Any], resume: Any) -> None:
    """ValueError for a run from before one of its keys became a group with settings of its own."""
    old = [key for key in cfg if _target(cfg[key]) is not None and isinstance(before.get(key), str)]
    if old:
        raise ValueError(f"resume={resume}: that run is of an earlier dforce, where {old[0]} was a word and its "
                         f"settings lay beside it; start a new one from its checkpoint, with {old[0]}.<key>=...")
