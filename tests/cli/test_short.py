"""fast_dev_run: little of everything, and nothing of what the command line gives is changed."""

from collections.abc import Mapping
from typing import Any

import pytest

from dforce.cli import manual
from dforce.cli.compose import composed
from dforce.cli.main import main
from dforce.cli.short import SHORT, shortened

NAMES = [verb if kind == verb else f"{verb}/{kind}" for verb, kinds in manual.kinds().items() for kind in kinds]


def value(cfg: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (
    "doctor", "benchmark/planning", "data/checkpoint",  # the last reads one file
    "serve/policy")])  # a server serves until it is stopped
@pytest.mark.quick(6)
def test_every_command_has_a_short_form_of_keys_that_it_has(name: str) -> None:
    cfg = composed(name, {"fast_dev_run": True})
    short, changed = shortened(name, cfg)
    assert changed and changed <= set(SHORT[name])
    for key in changed:
        before, after = value(cfg, key), value(short, key)
        assert after == SHORT[name][key] and before != after
    assert shortened(name, composed(name, {})) == (composed(name, {}), frozenset())
    kept = sorted(changed)[0]
    assert value(shortened(name, cfg, {kept})[0], kept) == value(cfg, kept)


def test_what_is_smaller_already_stays() -> None:
    cfg = composed("align/image", {"fast_dev_run": True, "algorithm": "sft", "evaluate": 3, "algorithm.epochs": 1})
    short, changed = shortened("align/image", cfg)
    assert (short["evaluate"], short["algorithm"]["epochs"], short["algorithm"]["samples"]) == (3, 1, 32)
    assert "evaluate" not in changed and "algorithm.samples" in changed
    cfg = composed("align/image", {"fast_dev_run": True, "algorithm": "diffusion_dpo",
                                   "algorithm.preferences": "a.npz"})
    assert "algorithm.samples" not in shortened("align/image", cfg)[1]  # nothing is sampled


def test_what_the_command_line_gives_reaches_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("dforce.cli.commands.align_video.run", lambda cfg, call: seen.append((cfg, call)))
    assert main(["align", "video", "fast_dev_run=true", "algorithm.epochs=7", "watch=100"]) == 0
    (cfg, call), = seen
    assert (cfg["algorithm"]["epochs"], cfg["watch"], cfg["algorithm"]["samples"]) == (7, 100, 32)
    assert call.config == cfg and {"algorithm.epochs", "algorithm.samples", "rollouts"} <= call.given
