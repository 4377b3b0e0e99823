"""Rewards that read text: the distance of what is read to what was asked for, and both readers on drawn words."""

import shutil

import pytest
import torch

from dforce.align.rewards.ocr import Ocr, Tesseract, similarity, wanted_text
from dforce.align.rewards.protocol import RewardError, Subject, ask_reward
from dforce.align.rewards.store import named_reward
from dforce.data.words import WORDS, draw_words, tokens_of

FEW = ("HORSE", "CAT", "MILK", "QUIET")


def test_similarity_is_one_less_the_share_of_letters_to_change():
    assert similarity("cat", "CAT") == similarity("C A\nT", "CAT") == 1
    assert similarity("", "CAT") == similarity("DOG", "CAT") == similarity("HIPPOPOTAMUS", "CAT") == 0
    assert similarity("CT", "CAT") == similarity("CAAT", "CAT") == similarity("CUT", "CAT") == pytest.approx(2 / 3)
    assert similarity("KITTEN", "SITTING") == pytest.approx(1 - 3 / 7)  # the textbook's example
    with pytest.raises(ValueError, match="asks for no text"):
        similarity("CAT", " ")


def test_the_wanted_text_a_prompt():
    assert wanted_text("CAT") == wanted_text('a sign that says "CAT" in red') == wanted_text(1, ("DOG", "CAT")) == "CAT"
    for wrong in (2, -1, True, None, 1.0):
        with pytest.raises(ValueError, match="is a text, or the number of one of 2"):
            wanted_text(wrong, ("DOG", "CAT"))


@pytest.mark.parametrize("reader", [Ocr, pytest.param(Tesseract, marks=pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="the system has no tesseract"))])
def test_readers_read_drawn_words_and_miss_wrong_prompts(reader):
    x = tokens_of(draw_words(FEW, seed=1))
    assert reader(exact=True)(x, FEW).tolist() == [1, 1, 1, 1]
    graded, shifted = reader(words=WORDS), [WORDS.index(word) for word in (*FEW[1:], FEW[0])]
    values = graded(x, shifted)
    assert values.tolist() == [similarity(word, WORDS[other]) for word, other in zip(FEW, shifted, strict=True)]
    assert bool((values < 1).all())
    blank = torch.zeros_like(x[:1])
    assert float(graded(blank, ["CAT"])) == 0


def test_the_reward_by_name_and_what_it_refuses():
    tuned, _ = named_reward("ocr", Subject((3, 16, 48), WORDS))
    x = torch.zeros(2, 1, 3, 16, 48)
    for samples, prompts, message in ((x, ["CAT", 400], "is a text, or the number of one of 321"),
                                      (x[:, 0], ["CAT", "DOG"], r"images \[B, 1, C, H, W\]")):
        with pytest.raises(RewardError, match=message):
            ask_reward(tuned, samples, prompts)
