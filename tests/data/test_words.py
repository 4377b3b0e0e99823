"""Pictures of words: their lists, their codes, and that a picture is a function of (seed, step, its place)."""

import numpy as np
import pytest
import torch

from dforce.data.words import (
    CONTRAST,
    NULL,
    SHAPE,
    WORDS,
    WordBatches,
    codes_of,
    draw_words,
    random_words,
    tokens_of,
    word_images,
    words_from,
    words_of,
)


def test_the_lists_are_of_whole_words_and_share_none():
    parts = [set(words_of(split)) for split in ("tune", "test", "report")]
    assert set.union(*parts) == set(words_of("all")) == set(WORDS) and len(WORDS) == len(set(WORDS))
    assert sum(map(len, parts)) == len(WORDS) and min(map(len, parts)) >= 60
    with pytest.raises(ValueError, match="tune, test, report or all"):
        words_of("train")


def test_codes_are_letters_and_back():
    codes = codes_of(["CAT", "zebra"])
    assert codes.tolist() == [[3, 1, 20, 0, 0], [26, 5, 2, 18, 1]] and words_from(codes) == ["CAT", "ZEBRA"]
    assert words_from(codes_of(WORDS)) == list(WORDS)
    assert words_from(torch.full((1, 5), NULL)) == [""]
    for wrong in ("AB", "SCHOOL", "C4T", "", None, "ÄHRE"):
        with pytest.raises(ValueError, match="3 to 5 letters from A to Z"):
            codes_of([wrong])


def test_random_words_are_none_of_the_lists_and_of_all_lengths():
    words = random_words(3000, seed=0)
    assert not set(words) & set(WORDS)
    shares = np.bincount([len(word) for word in words], minlength=6)[3:] / len(words)
    assert shares == pytest.approx(1 / 3, abs=0.04)
    assert {letter for word in words for letter in word} == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_a_picture_is_one_word_in_two_colours_that_differ():
    pictures = draw_words(WORDS, seed=0).astype(float)
    background, weights = pictures[:, 0, 0], np.array([0.299, 0.587, 0.114])
    away = np.abs(pictures - background[:, None, None])
    ink = pictures.reshape(len(pictures), -1, 3)[np.arange(len(pictures)), away.sum(3).reshape(len(pictures), -1)
                                                 .argmax(1)]
    contrast = np.abs((ink - background) @ weights) / 255
    assert contrast.min() > 0.8 * CONTRAST  # a thin stroke need not reach the colour of the ink
    border = np.concatenate([away[:, 0], away[:, -1]], 1).sum(2)
    assert (border == 0).mean() > 0.95      # letters lie within
    edge = pictures - background[:, None, None]  # every pixel lies between the two colours
    share = (edge * (ink - background)[:, None, None]).sum(3) / ((ink - background) ** 2).sum(1)[:, None, None]
    assert share.min() > -0.02 and np.abs(edge - share[..., None] * (ink - background)[:, None, None]).max() < 2


def test_batches_are_functions_of_seed_and_step():
    first = WordBatches(batch=8, seed=3, drop=0.5)(5)
    again = WordBatches(batch=8, seed=3, drop=0.5)(5)
    assert first.x.shape == (8, 1, *SHAPE) and torch.equal(first.x, again.x)
    text = first.cond["static"]["text"]
    assert torch.equal(text, again.cond["static"]["text"])
    assert not torch.equal(first.x, WordBatches(batch=8, seed=4)(5).x)
    dropped = (text == NULL).all(1)
    assert 0 < int(dropped.sum()) < 8 and not (text[~dropped] == NULL).any()
    words = random_words(8, seed=3, step=5)
    assert torch.equal(first.x, tokens_of(draw_words(words, seed=3, step=5)))
    assert torch.equal(text[~dropped], codes_of(words)[~dropped])


def test_held_out_pictures_are_batched_in_their_order():
    images = word_images("test", each=2, seed=1)
    batch = WordBatches(batch=3, images=images)(1)
    assert torch.equal(batch.x, images.x[3:6])
    assert words_from(batch.cond["static"]["text"]) == [WORDS[i] for i in images.label[3:6]]
    assert set(images.label.tolist()) == {WORDS.index(word) for word in words_of("test")}
