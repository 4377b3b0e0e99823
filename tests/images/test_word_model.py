"""The model of words that ships: words as classes, words beyond the list, and what readers make of its samples."""

import shutil
from pathlib import Path

import pytest
import torch

from dforce.cli.main import main
from dforce.data.words import NULL, WORDS, codes_of, words_of
from dforce.images.judge import readings
from dforce.images.model import draw, guided_by_class, load_model
from dforce.report.rows import filter_rows, read_results


@pytest.fixture(scope="module")
def words():
    return load_model("words")


def test_labels_become_texts_and_come_back(words):
    labels = torch.tensor([3, 0, len(WORDS) - 1])
    cond = words.cond(labels)
    assert torch.equal(cond["static"]["text"], codes_of([WORDS[label] for label in labels]))
    assert torch.equal(words.labels(cond), labels)
    with_null = words.cond(torch.tensor([len(words.classes), 3]))["static"]["text"]
    assert with_null[0].eq(NULL).all() and torch.equal(with_null[1], codes_of([WORDS[3]])[0])


def test_any_word_may_be_asked_for(words):
    assert words.choice(None, "report") == [WORDS.index(word) for word in words_of("report")]
    more = words.telling(["CAT", "QXZ"])
    assert more.choice(["QXZ", "CAT", 0], "report") == [len(WORDS), WORDS.index("CAT"), 0]
    assert words.telling(None) is words and words.telling([0, 1]).classes == words.classes
    with pytest.raises(ValueError, match="3 to 5 letters from A to Z"):
        words.telling("SCHOOLS")
    digits = load_model("digits")
    assert digits.telling(["QXZ"]) is digits and digits.choice(None, "report") == list(range(10))


def test_a_word_is_drawn_alike_whatever_its_number(words):
    more = words.telling(["QXZ", "CAT"])
    number = torch.tensor([WORDS.index("CAT")])
    twice = more._replace(classes=("CAT",))
    torch.testing.assert_close(draw(more, number, steps=3), draw(twice, torch.tensor([0]), steps=3))
    assert not torch.allclose(draw(more, number, steps=3), draw(more, torch.tensor([len(WORDS)]), steps=3), atol=1e-3)
    assert guided_by_class(words, 1.0) is words.denoiser
    assert not torch.allclose(draw(words, number, steps=3, scale=3.0), draw(words, number, steps=3), atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tesseract") is None, reason="the system has no tesseract")
def test_the_shipped_words_are_read(words):
    labels = torch.tensor(words.choice(None, "report"))
    right = readings(words, draw(words, labels, seed=0, steps=20, eta=1.0, order=1), labels)["word_accuracy"]
    assert float(right.mean()) > 0.4
    shifted = readings(words, draw(words, labels, seed=0, steps=20, eta=1.0, order=1), labels.roll(1))["word_accuracy"]
    assert float(shifted.mean()) < 0.05


@pytest.mark.slow
def test_words_are_drawn_and_tuned_by_commands(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "image", "checkpoint=words", "classes=[CAT,QXZ]", "per_class=2", "steps=3", "out=s"]) == 0
    assert Path("s/media/samples.png").is_file()
    assert main(["align", "image", "checkpoint=words", "reward=ocr", "algorithm=nft", "algorithm.epochs=1",
                 "algorithm.samples=8", "algorithm.updates=2", "steps=3", "evaluate=6", "best_of=2", "watch=0",
                 "classes=[CAT,DOG]", "out=a"]) == 0
    rows = read_results("a/results.json").rows
    for part in ("tuned on", "never tuned on"):
        assert {row["method"] for row in filter_rows(rows, metric="reward", variant={"words": part})} == {
            "base", "tuned", "best of 2"}
    assert main(["train", "image", "data=words", "out=t"]) == 2  # the default network is told classes
    assert main(["sample", "image", "checkpoint=words", "classes=[WORDIER]", "out=u"]) == 2
