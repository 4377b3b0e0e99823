"""Rewards: what a JPEG weighs, log-probabilities of classes, images' rewards over the frames of a video."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dforce.align import (
    ClassLogProb,
    Jpeg,
    RewardError,
    Spread,
    ask_reward,
    class_index,
    jpeg_compressibility,
    jpeg_incompressibility,
    per_frame,
)
from dforce.align.rewards.builtin import main_directions, spread_of_class
from dforce.align.rewards.protocol import Subject
from dforce.data.images import load_images


def images(count=6, channels=1, height=8, width=8):
    return torch.rand(count, 1, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --------------------------------------------------------------------------------------------------------------- JPEG

@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_weighs_what_its_file_does(channels) -> None:
    x = images(4, channels, 16, 16)
    found = Jpeg(quality=80, size=None)(x)
    for image, value in zip(x[:, 0], found.tolist(), strict=True):
        array = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(array[..., 0] if channels == 1 else array).save(file, "JPEG", quality=80)
        assert value == -len(file.getvalue()) / 1000


def test_the_stated_size_is_that_of_the_longer_side() -> None:
    x = images(3)
    larger = nn.functional.interpolate(x[:, 0], size=(64, 64), mode="bilinear", align_corners=False)[:, None]
    assert torch.equal(jpeg_compressibility(x, [], []), Jpeg(size=None)(larger))
    wide = images(2, 3, 8, 16)
    larger = nn.functional.interpolate(wide[:, 0], size=(32, 64), mode="bilinear", align_corners=False)[:, None]
    assert torch.equal(Jpeg()(wide), Jpeg(size=None)(larger))


def test_smooth_images_are_small_noise_is_large_and_the_sign_turns_it() -> None:
    flat, noise = torch.zeros(1, 1, 1, 8, 8), images(1)
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 1, 8, 8)
    kilobytes = jpeg_incompressibility(torch.cat([flat, ramp, noise]), [], [])
    assert kilobytes[0] == pytest.approx(0.378) and kilobytes[0] < kilobytes[1] < kilobytes[2]
    assert torch.equal(jpeg_compressibility(torch.cat([flat, ramp, noise]), [], []), -kilobytes)


def test_an_image_is_weighed_alone_and_clamped_as_on_a_screen() -> None:
    x = images(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(jpeg_compressibility(x)[order], jpeg_compressibility(x[order]))
    assert jpeg_compressibility(x[3:4]) == jpeg_compressibility(x)[3]
    loud = (x * 3).requires_grad_()
    assert torch.equal(jpeg_compressibility(loud), jpeg_compressibility(loud.detach().clamp(-1, 1)))


@pytest.mark.slow
def test_the_digits_weigh_what_is_known_of_them() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits().images
    x = torch.tensor(digits / 8 - 1).float()[:, None, None]
    found = jpeg_compressibility(x)
    assert float(found.mean()) == pytest.approx(-1.308, abs=0.005) and float(found.std()) > 0.05
    begin = time.process_time()
    jpeg_compressibility(x[:256])
    assert time.process_time() - begin < 0.5  # 0.06 s on an idle core


def test_what_is_no_image_is_refused() -> None:
    for shape in ((2, 8, 8), (2, 1, 2, 8, 8), (2, 3, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"images \[B, 1, C, H, W\] with C = 1 or 3, got \[2"):
            Jpeg()(torch.zeros(shape))
    with pytest.raises(ValueError, match="96x80 pixels are larger than the stated size 64: give size=96"):
        Jpeg()(torch.zeros(1, 1, 1, 96, 80))
    with pytest.raises(RewardError, match="jpeg_compressibility raised ValueError: .*not finite"):
        ask_reward(jpeg_compressibility, torch.full((1, 1, 1, 8, 8), torch.nan), [0])
    for options, told in (({"quality": 0}, "1..95"), ({"size": 0}, "at least one pixel"), ({"sign": 0}, "negative")):
        with pytest.raises(ValueError, match=told):
            Jpeg(**options)


# ------------------------------------------------------------------------------------------------ class log-probability

class Linear(nn.Module):
    def __init__(self, classes=("zero", "one", "two")):
        super().__init__()
        self.classes = classes
        self.inner = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))

    def forward(self, x):
        return self.inner(x)


def test_class_log_prob_is_minus_the_cross_entropy() -> None:
    torch.manual_seed(0)
    classifier, x = Linear(), torch.randn(5, 1, 1, 2, 2)
    classifier.train()
    label = torch.tensor([0, 2, 1, 1, 0])
    reward = ClassLogProb(classifier)
    wanted = -nn.functional.cross_entropy(classifier.eval()(x), label, reduction="none")
    classifier.train()
    for prompts in (label.tolist(), label, label.numpy(), [classifier.classes[i] for i in label]):
        torch.testing.assert_close(reward(x, prompts, []), wanted)
    assert classifier.training  # asked in evaluation mode, and left as it was
    x.requires_grad_()
    reward(x, label.tolist()).sum().backward()
    assert x.grad.abs().sum() > 0
    every = torch.stack([reward(x, [i] * 5) for i in range(3)])
    torch.testing.assert_close(every.exp().sum(0), torch.ones(5))


def test_prompts_that_name_no_class_are_refused() -> None:
    reward, x = ClassLogProb(Linear(None), labels=("a", "b", "c")), torch.zeros(2, 1, 1, 2, 2)
    assert class_index(["1", "0"], ("1", "0")).tolist() == [0, 1]  # names come before numbers
    for prompt in (3, -1, "d", 1.5, None, True):
        with pytest.raises(ValueError, match=r"is no class: there are a, b, c or 0\.\.2"):
            reward(x, ["a", prompt])
    with pytest.raises(ValueError, match="3 prompts for 2 samples"):
        reward(x, [0, 1, 2])
    with pytest.raises(ValueError, match=r"logits \[2, classes\], got \[2\]"):
        ClassLogProb(lambda x: x.flatten(1).mean(1))(x, [0, 0])


# -------------------------------------------------------------------------------------------------------------- videos

def test_a_video_is_worth_the_mean_of_its_frames() -> None:
    video = torch.rand(3, 5, 1, 8, 8) * 2 - 1
    reward = per_frame(jpeg_compressibility)
    wanted = torch.stack([jpeg_compressibility(video[:, t:t + 1]) for t in range(5)]).mean(0)
    torch.testing.assert_close(reward(video, ["a"] * 3, [None] * 3), wanted)
    with pytest.raises(ValueError, match="per_frame"):
        jpeg_compressibility(video)


def test_every_frame_is_judged_by_the_prompt_of_its_video() -> None:
    seen = {}

    def by_prompt(x, prompts, metadata):
        seen.update(shape=[*x.shape], metadata=metadata)
        return [float(prompt) for prompt in prompts]

    x = torch.zeros(2, 3, 1, 4, 4)
    assert ask_reward(per_frame(by_prompt), x, [1, 2], [{"n": 1}, {"n": 2}]).tolist() == [1, 2]
    assert seen == {"shape": [6, 1, 1, 4, 4], "metadata": [{"n": 1}] * 3 + [{"n": 2}] * 3}
    with pytest.raises(RewardError, match=r"per_frame.*each of 6 frames, got \[2\]"):
        ask_reward(per_frame(lambda x, prompts, metadata: np.zeros(2)), x, [1, 2])


def test_spread_is_the_diversity_of_every_prompt() -> None:
    x = torch.rand(12, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = [0, 1] * 6
    found = Spread()(x, prompts)
    for prompt in (0, 1):
        own = x[prompt::2].flatten(1).double()
        pairs = [(own[i] - own[j]).square().sum() for i in range(6) for j in range(6) if i != j]
        assert torch.isclose(found[prompt::2].mean(), torch.stack(pairs).mean())      # its mean is the diversity
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(Spread()(x[order], [prompts[i] for i in order]), found[order])
    assert torch.equal(Spread()(x * 5, prompts), Spread()((x * 5).clamp(-1, 1), prompts))  # of what can be seen
    with pytest.raises(ValueError, match="two samples of every prompt"):
        Spread()(x[:3], prompts[:3])


def test_speckle_does_not_pay_for_spread() -> None:
    real = load_images("digits")
    prompts = real.label[:400].tolist()
    clean = 0.5 * real.x[:400]  # what is clamped shrinks: nothing is
    watched = spread_of_class(Subject((1, 8, 8), real.classes, "digits"), share=0.9)
    plain = watched.held_out
    assert plain is not None
    sides = torch.zeros(8, 8)  # no digit reaches the columns at the sides
    sides[:, 0] = sides[:, -1] = 1
    for where, most in ((sides, 0.02), (torch.ones(8, 8), 0.4)):
        noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * where
        gain = [(reward(clean + noise, prompts) - reward(clean, prompts)).mean() for reward in (watched.tuned, plain)]
        assert gain[0] < most * gain[1] and gain[1] > 0
    along = main_directions(clean, 0.9)
    assert torch.allclose(along.T @ along, torch.eye(along.shape[1], dtype=torch.float64), atol=1e-9)
    beyond = torch.randn(400, 64, generator=torch.Generator().manual_seed(1)).double()
    beyond -= beyond @ along @ along.T
    x = (0.1 * torch.randn(400, 64, generator=torch.Generator().manual_seed(2))).double()
    assert torch.allclose(Spread(along)(x + 0.01 * beyond, prompts), Spread(along)(x, prompts))
    assert torch.allclose(Spread(torch.eye(64))(x, prompts), Spread()(x, prompts))


def test_spread_is_of_classes() -> None:
    with pytest.raises(ValueError, match="these have none"):
        spread_of_class(Subject((1, 8, 8)), share=0.9)
    with pytest.raises(ValueError, match=r"the shape \[1, 8, 8\] where this model makes \[3, 9, 9\]"):
        spread_of_class(Subject((3, 9, 9), ("a",), "digits"), share=0.9)
