"""Pixels as networks see them and as files hold them: one to one, the nearest, and what is outside clamped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.data.pixels import from_uint8, to_uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_there_and_back_is_every_value_and_every_place(channels) -> None:
    shades = np.stack([np.roll(np.arange(256), i) for i in range(channels)], -1).astype(np.uint8)
    pixels = shades.reshape(1, 2, 8, 16, channels)  # [B, T, H, W, C]
    x = from_uint8(pixels)
    assert x.dtype == torch.float32 and x.shape == (1, 2, channels, 8, 16)
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(x[0, 1, 0], torch.from_numpy(pixels[0, 1, :, :, 0].astype(np.float32)) / 127.5 - 1)
    assert np.array_equal(to_uint8(x), pixels) and to_uint8(x).dtype == np.uint8
    assert np.array_equal(to_uint8(x.double()), pixels)


def test_the_nearest_shade_is_taken_and_what_is_outside_clamped() -> None:
    x = torch.tensor([-7.0, -1.001, -1, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0, 1 - 0.49 / 127.5, 1, 1.001, torch.inf])
    assert to_uint8(x.view(-1, 1, 1, 1)).flatten().tolist() == [0, 0, 0, 0, 1, 128, 255, 255, 255, 255]
    halves = (2 * torch.arange(255) + 1).double() / 255 - 1  # between two shades, of which the even one is taken
    exact = (halves + 1) * 127.5 % 1 == 0.5
    taken = torch.from_numpy(to_uint8(halves.view(1, 1, -1))).flatten()
    assert exact.sum() > 200 and (taken[exact] % 2 == 0).all() and ((taken - torch.arange(255)) < 2).all()


def test_a_file_that_is_mapped_to_be_read_only_and_a_tensor_are_the_same(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    pixels.tofile(tmp_path / "frames.u8")
    mapped = np.memmap(tmp_path / "frames.u8", np.uint8, "r", shape=pixels.shape)
    assert torch.equal(from_uint8(mapped), from_uint8(torch.from_numpy(pixels)))
    x = from_uint8(pixels)
    pixels[:] = 0
    assert x.max() > 0  # the pixels were not taken over
