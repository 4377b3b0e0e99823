"""Every number that a configuration may hold has a domain: what lies outside is refused before anything is built."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dforce.cli import manual
from dforce.cli.compose import composed
from dforce.cli.main import main
from dforce.config import check, check_like, check_numbers
from dforce.config.domains import DOMAINS, FINITE

ROOT = Path(__file__).resolve().parents[2]
FILES = [file for file in sorted((ROOT / "configs").glob("**/*.yaml")) if file.parent.name != "suites"]
VERBS = [verb if kind == verb else f"{verb}/{kind}" for verb, kinds in manual.kinds().items() for kind in kinds]
BAD = [float("nan"), float("inf"), -float("inf"), -1, 0, 1e30, 99999999999999999999999]
WORDS = set("""beside checkpoint cut_at data device dtype encoder env held_out_reward host i3d ignore latents lora lpips
    maze measure methods models name negative networks only out pipeline preferences prompts resume reward
    reward_node reward_settings rewards sde selector subset source suite
    token_file tracker trl trust user vote""".split())  # null, and no number


def numbers(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of all numbers of a configuration, and of the nulls that may be one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, (*where, key))
    elif isinstance(value, list) and value and isinstance(value[0], (int, float)):
        yield where
    elif isinstance(value, (int, float)) and not isinstance(value, bool) or value is None and where[-1] in DOMAINS:
        yield where


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "configs")))
def test_every_number_of_a_configuration_has_a_stated_domain(file: Path) -> None:
    config = yaml.safe_load(file.read_text()) or {}
    for where in numbers(config):
        assert where[-1] in DOMAINS, where
    nulls = {key for key, value in config.items() if value is None}
    assert nulls <= WORDS | set(DOMAINS), nulls - WORDS - set(DOMAINS)


@pytest.mark.parametrize("name", VERBS)
def test_what_lies_outside_its_domain_is_named_with_its_key(name: str) -> None:
    if name == "doctor":
        return
    config = composed(name, {})
    text = manual.text_of(name)
    check(config)
    for where in numbers(config):
        node = config
        for key in where[:-1]:
            node = node[key]
        usual = node[where[-1]]
        for value in BAD:
            node[where[-1]] = value
            right = value in DOMAINS.get(where[-1], FINITE)
            try:
                check(config)
                check_like(config, text)
            except ValueError as error:
                assert ".".join(where) in str(error) and "\n" not in str(error)
                assert not right or "must be" in str(error)  # of another type: 1e30 is no whole number
            else:
                assert right, (where, value)
        node[where[-1]] = usual


@pytest.mark.parametrize("word", ["fit.clip=nan", "fit.lr=inf", "fit.clip=-1", "fit.clip=0", "fit.weight_decay=-1",
                                  "fit.warmup=-5", "save_every=-1", "net.width=-4", "net.width=0", "net.width=10000000",
                                  "schedule.levels=10000000000", "seed=99999999999999999999999", "seed=-1"])
def test_a_number_out_of_its_domain_is_one_line_and_nothing_is_written(word: str, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", word]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"^dforce: {word.partition('=')[0]} must be (at least|above) ", error, re.M), error
    assert "Traceback" not in error and not list(tmp_path.iterdir())


def test_numbers_of_a_trusted_package_are_its_own() -> None:
    inner = {"_target_": "dforce.core.loss.min_snr", "gamma": 1}
    check_numbers({"reward": {"_target_": "mine.Red", "lr": -1.0, "inner": inner}})
    with pytest.raises(ValueError, match="reward.inner.gamma must be above 0"):
        check_numbers({"reward": {"_target_": "mine.Red", "inner": {**inner, "gamma": 0}}})
