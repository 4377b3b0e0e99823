"""`dforce align image`: what it leaves in its folder, that it goes on exactly, and what bad input is answered by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from dforce.align import Ratings, fit_rating, load_adapters, merge, save_reward
from dforce.cli.main import main
from dforce.data.images import load_images
from dforce.images import class_cond, draw, load_classifier, load_model
from dforce.images.tuning_report import TunedModel
from dforce.report.rows import filter_rows, read_results
from dforce.train.checkpoint import find, load, verify
from tests.align.published_folders import clip_model, clip_tokenizer
from tests.align.test_reward_server import brightness, serving

SMALL = ["algorithm.epochs=2", "algorithm.samples=20", "algorithm.updates=2", "steps=4", "evaluate=20", "best_of=2",
         "watch=20", "watch_every=1", "device=cpu"]
METRICS = {"reward", "held_out_reward", "class_accuracy", "diversity", "diversity_overall"}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def align(*words: str, small: bool = True) -> int:
    return main(["align", "image", *(SMALL if small else []), *words])


def weights(where: str | Path) -> dict[str, torch.Tensor]:
    return dict(load(where).denoiser.state_dict())


def looks(folder: str) -> list[dict]:
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "watch_kl" in line]


def test_what_a_run_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    assert align("algorithm=dpok", "algorithm.kl=0.2", "out=a") == 0
    text = capsys.readouterr().out
    assert "dforce sample image checkpoint=a" in text and "best of 2" in text
    for file in ("index.html", "media/watch.png", "media/before_after.png", "episodes.jsonl"):
        assert Path("a", file).stat().st_size > 0
    rows = read_results("a/results.json").rows
    for method in ("base", "tuned", "best of 2"):
        assert {row["metric"] for row in filter_rows(rows, method=method)} >= METRICS
    best, base = (filter_rows(rows, method=method, metric="reward")[0] for method in ("best of 2", "base"))
    assert best["value"] > base["value"] and best["n"] == 20                       # candidate 0 is the base's own image
    (gap,) = filter_rows(rows, method="tuned - base", metric="reward_difference")
    (tuned,) = filter_rows(rows, method="tuned", metric="reward")
    assert gap["value"] == pytest.approx(tuned["value"] - base["value"])
    (nats,) = filter_rows(rows, method="tuned", metric="kl")
    assert nats["value"] > 0
    seen = looks("a")
    assert [look["queries"] for look in seen] == [0, 20, 40] and seen[0]["watch_kl"] == 0 < seen[1]["watch_kl"]
    record = json.loads((find("a") / "state.json").read_text())["extra"]["aligned"]
    assert record["algorithm"] == "dpok" and record["base"] == "digits" and record["queries"] == 40


@pytest.mark.slow
def test_the_tuned_model_is_one_like_any_other() -> None:
    assert align("algorithm=rwr", "out=a") == 0
    model, base = load_model("a"), load_model("digits")
    assert (model.shape, model.classes, model.data) == (base.shape, base.classes, base.data)
    labels = torch.arange(4)
    assert not torch.equal(draw(model, labels, steps=4), draw(base, labels, steps=4))
    assert main(["sample", "image", "checkpoint=a", "per_class=1", "steps=4", "out=s"]) == 0
    assert align("checkpoint=a", "algorithm=filtered", "out=b") == 0              # and it can be tuned again
    assert set(weights("b")) == set(weights("digits"))


@pytest.mark.slow
def test_low_rank_adapters_are_in_the_weights_and_beside_them() -> None:
    assert align("lowrank=2", "out=a") == 0
    (folder,) = Path("a/checkpoints").glob("adapters_*")
    base = load_model("digits").denoiser
    names = load_adapters(folder, base)
    merge(base)
    merged = weights("a")
    own = dict(base.named_parameters())
    assert names and set(merged) == set(weights("digits"))
    for name, value in merged.items():
        torch.testing.assert_close(value, own[name].detach() if name in own else value, rtol=0, atol=1e-6)
    assert not torch.equal(merged[f"{names[0]}.weight"], weights("digits")[f"{names[0]}.weight"])


@pytest.mark.parametrize("more", [["algorithm.kl=0.1", "algorithm.kl_target=1.0"],
                                  pytest.param(["lowrank=2"], marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_been_stopped(more: list[str]) -> None:
    quick = ["algorithm.samples=20", "algorithm.updates=2", "steps=4", "evaluate=0", "watch=0", "device=cpu", *more]
    assert align("algorithm.epochs=3", "out=whole", *quick, small=False) == 0
    assert align("algorithm.epochs=1", "out=part", *quick, small=False) == 0
    assert align("resume=part", "algorithm.epochs=3", small=False) == 0
    for (name, one), other in zip(weights("whole").items(), weights("part").values(), strict=True):
        assert torch.equal(one, other), name
    lines = [[json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
             for out in ("whole", "part")]
    assert [line["reward"] for line in lines[0]] == [line["reward"] for line in lines[1]]


@pytest.mark.slow
def test_classes_never_tuned_on_are_judged_too() -> None:
    assert align("classes=[3,7]", "out=a") == 0
    rows = read_results("a/results.json").rows
    for classes in ("tuned on", "never tuned on"):
        found = filter_rows(rows, metric="reward", variant={"classes": classes})
        assert {row["method"] for row in found} >= {"base", "tuned"}
    drawn = [json.loads(line) for line in Path("a/episodes.jsonl").read_text().splitlines()]
    assert {line["class"] for line in drawn} == set("0123456789")
    assert Path("a/media/not_tuned_on.png").is_file()


@pytest.mark.slow
def test_several_rewards_at_once_are_each_measured() -> None:
    assert main(["align", "image", "rewards={jpeg: 1, class: 0.5}", "fast_dev_run=true", "steps=4", "out=a"]) == 0
    rows = read_results("a/results.json").rows
    assert {row["method"] for row in rows} >= {"base", "tuned", "best of 2 by jpeg", "tuned - best of 2 by jpeg"}
    both = {row["metric"]: row["value"] for row in filter_rows(rows, method="base")}
    assert both["jpeg"] < -1 and both["class"] <= 0 and set(both) >= {"reward", "jpeg", "class", "class_accuracy"}
    assert {"watch_jpeg", "watch_class", "watch_reward"} <= set(looks("a")[0])
    for words in (["rewards={}"], ["rewards={jpg: 1}"]):
        assert main(["align", "image", *words, "out=b"]) == 2


@pytest.mark.slow
def test_a_published_reward_is_read_from_its_folder_and_another_judges(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    clip_model(clip_tokenizer(folder)).save_pretrained(folder)
    pick = f"{{folder: {folder}, template: 'the digit {{}}'}}"
    settings, few = f"reward_settings={{pickscore: {pick}, clip: {{folder: {folder}}}}}", ["evaluate=10", "watch=0"]
    assert align("reward=pickscore", "held_out_reward=clip", "algorithm=draft", settings, "out=a", *few) == 0
    tuned = {row["metric"]: row["value"] for row in filter_rows(read_results("a/results.json").rows, method="tuned")}
    assert -15 < tuned["reward"] < 15 and 0 <= tuned["held_out_reward"] <= 2.5
    assert align("rewards={pickscore: 2, jpeg: 1}", "vote=rank", settings, "out=b", *few) == 0
    for words, told in ((["reward=pickscore"], "give folder or hub"), (["vote=rank"], "is of several rewards"),
                        (["reward_settings={clap: {}}"], "did you mean 'clip'")):
        assert align(*words, "out=c") == 2 and told in capsys.readouterr().err
    assert not Path("c").exists()


@pytest.mark.slow
def test_a_run_goes_on_when_its_reward_server_is_up_again(capsys) -> None:
    def tires(request, number):
        return brightness(request) if number < 3 else 503

    words = ["algorithm.samples=20", "algorithm.updates=2", "algorithm.epochs=3", "steps=4", "evaluate=0", "watch=0",
             "reward=server", "device=cpu"]
    with serving(tires) as (url, _):
        assert align(*words, f"reward_settings={{server: {{url: '{url}', retries: 0}}}}", "out=a", small=False) == 2
    assert "answered with status 503" in (told := capsys.readouterr().err) and "has those of epoch" in told
    stopped = find("a").name
    with serving(brightness) as (url, _):
        assert align("resume=a", f"reward_settings={{server: {{url: '{url}'}}}}", small=False) == 0
        assert align(*words, f"reward_settings={{server: {{url: '{url}'}}}}", "out=b", small=False) == 0
    assert stopped < find("a").name == find("b").name
    for (name, one), other in zip(weights("a").items(), weights("b").values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_it_stops_at_the_largest_kl(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "image", "kl_max=1e-6", "out=b", *SMALL, "algorithm.epochs=9"]) == 0
    assert "stopped after epoch" in capsys.readouterr().out
    assert looks("b")[-1]["epoch"] < 9 and find("b").name != "step_00000018"


BAD = """
import math
asked = []
def reward(samples, prompts, metadata):
    asked.append(1)
    if len(asked) > 4:          # one look of the watch and an epoch, each with one question, and then one more of both
        {what}
    return samples.mean((1, 2, 3, 4))
"""


@pytest.mark.parametrize("name, what, message", [
    ("nan", "return [math.nan] * len(samples)", "not finite"),
    pytest.param("shape", "return samples.mean()", "one number for each", marks=pytest.mark.slow),
    ("raises", "raise OSError('the scorer is down')", "the scorer is down")])
@pytest.mark.quick(1)
def test_a_reward_that_fails_in_mid_run(name: str, what: str, message: str, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"bad_{name}.py").write_text(BAD.format(what=what))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [f"reward=bad_{name}.reward", f"trust=bad_{name}", "out=a", "save_every=100"]
    assert main(["align", "image", *words, *SMALL, "algorithm.epochs=9"]) == 2
    error = capsys.readouterr().err
    assert message in error and "epoch 2" in error and "step_00000004" in error and "Traceback" not in error
    verify(find("a"))                                                                # the weights before it were kept
    assert Path("a/STATUS").read_text().startswith("failed") and Path("a/index.html").is_file()


def test_bad_input_is_told_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("empty.npz", win=np.zeros((0, 1, 1, 8, 8)), lose=np.zeros((0, 1, 1, 8, 8)))
    np.savez("wide.npz", win=np.zeros((2, 1, 1, 9, 9)), lose=np.ones((2, 1, 1, 9, 9)))
    for words, message in (
            (["algorithm=rwr", "algorithm.kl=0.1"], "is a key of algorithm=ddpo_is"),
            (["kl=0.1"], "did you mean 'algorithm.kl'"),
            (["beta=2"], "algorithm.beta is a key of algorithm=d3po"),
            (["algorithm=dpokk"], "did you mean 'dpok'"), (["reward=jpg"], "did you mean 'jpeg'"),
            (["classes=[ten]"], "no class 'ten'"), (["sde=flwo"], "did you mean 'flow'"),
            (["checkpoint=nosuch"], "neither a checkpoint"), (["checkpoint=maze2d-umaze"], "no image model"),
            (["kl_max=3", "watch=0"], "kl_max takes a watch"), (["reward=os.system"], "outside"),
            (["algorithm=diffusion_dpo", "algorithm.preferences=empty.npz"], "no preference pairs"),
            (["algorithm=diffusion_dpo", "algorithm.preferences=none.npz"], "none.npz"),
            (["algorithm=diffusion_dpo", "algorithm.preferences=wide.npz"], "another model")):
        assert align(*words, "out=a", small=False) == 2, words
        assert message in capsys.readouterr().err, words
        assert not Path("a").exists(), words
    assert main(["align", "vidoe", "checkpoint=digits"]) == 2
    assert "image" in capsys.readouterr().err


def test_a_head_on_a_classifier_is_a_reward_by_its_folder() -> None:
    digits = load_images("digits")
    ratings = Ratings(digits.x[:60], digits.label[:60].float())
    save_reward("run/reward", fit_rating(load_classifier("digits"), ratings, steps=3, device="cpu").model,
                encoder="digits")
    assert align("reward=run", "algorithm.epochs=1", "algorithm.samples=12", "steps=3", "evaluate=0", "watch=0",
                 "device=cpu", "out=a", small=False) == 0
    assert np.isfinite(json.loads(Path("a", "metrics.jsonl").read_text().splitlines()[0])["reward"])


def test_images_are_asked_for_by_number_as_many_of_each_as_goes() -> None:
    tuned = TunedModel(**{**dict.fromkeys(TunedModel._fields), "prompts": range(10), "cond": class_cond})
    query = tuned.ask([2, 5])(6, torch.Generator().manual_seed(0))
    assert sorted(query.prompts) == [2, 2, 2, 5, 5, 5] and query.metadata is None
    assert list(query.cond) == ["static"] and query.cond["static"]["class"].tolist() == list(query.prompts)
    generator = torch.Generator().manual_seed(1)
    drawn = [each for _ in range(20) for each in tuned.ask(range(10))(3, generator).prompts]
    assert set(drawn) == set(range(10))                            # of more than are wanted, others every time
