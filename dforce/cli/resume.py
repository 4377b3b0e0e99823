"""Going on with a run: its configuration as it was, but for what the command line gives now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dforce.config import bounded_yaml, present
from dforce.runs.folder import Invocation, nothing_saved
from dforce.runs.training_run import has_checkpoint
from dforce.train.checkpoint import find


def resumed(cfg: Mapping[str, Any], call: Invocation, keys: frozenset[str], *,
            within: str = "") -> tuple[dict[str, Any], Invocation]:
    """The configuration of the run or checkpoint cfg["resume"], but for what the command line names; else cfg itself.

    keys: what the configuration of such a run has. within: the key under which its checkpoints hold it, "" for none.
    `trust` is never taken from the run: it is the command line's alone.
    Raises ValueError where there is no such run.
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
