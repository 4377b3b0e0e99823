"""IDX files: Fashion-MNIST's layout, and files that declare what they do not hold."""

import gzip
import struct

import numpy as np
import pytest
import torch

from dforce.data.idx import FASHION, GARMENTS, read_idx
from dforce.data.images import load_images


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder, rng, *, labels=4):
    """A small set of 6 and 3 images, as MNIST is laid out; returns its pixels by part."""
    parts = {}
    for part, count in (("train", 6), ("t10k", 3)):
        pixels = rng.integers(0, 256, (count, 5, 7), dtype=np.uint8)
        label = (np.arange(count) % labels).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(label))
        parts[part] = pixels, label
    return parts


def test_a_folder_of_idx_files_is_a_set_of_images(tmp_path):
    parts = write_set(tmp_path, np.random.default_rng(0))
    for split, part in (("train", "train"), ("test", "t10k")):
        images = load_images(tmp_path, split=split)
        pixels, label = parts[part]
        assert images.shape == (1, 5, 7) and torch.equal(images.label, torch.from_numpy(label).long())
        assert torch.equal(((images.x[:, 0, 0] + 1) * 127.5).round(), torch.from_numpy(pixels).float())
    assert len(load_images(tmp_path, split="all").x) == 9
    assert load_images(tmp_path, split="test").classes == load_images(tmp_path).classes == ("0", "1", "2", "3")
    with pytest.raises(ValueError, match="size=8 is for folders of image files"):
        load_images(tmp_path, size=8)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda raw: raw[:-1], "holds 209"), (lambda raw: raw + b"x", "holds more"),
    (lambda raw: raw[:6], "among its sizes"), (lambda raw: b"\x89PNG" + raw, "it begins with 89 50 4e 47"),
    (lambda raw: b"", "it begins with"),
    (lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "of which it can hold")])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_does_not_hold_what_it_declares_is_refused_by_name(tmp_path, spoil, message, packed):
    raw = spoil(idx(np.zeros((6, 5, 7), np.uint8)))
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(ValueError, match=f"{path.name} is no whole IDX file.*{message}"):
        read_idx(path)


def test_damaged_packing_and_parts_that_do_not_fit_are_refused(tmp_path):
    write_set(tmp_path, np.random.default_rng(0))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for damaged in (whole[:-20], b"plain" + whole):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no whole IDX file"):
            load_images(tmp_path)
    file.write_bytes(gzip.compress(idx(np.zeros((7, 5, 7), np.uint8))))
    with pytest.raises(ValueError, match="do not belong together"):
        load_images(tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_where_debian_puts_it():
    images = load_images("fashion", split="test")
    assert images.shape == (1, 28, 28) and images.classes == GARMENTS
    assert images.label.bincount().tolist() == [1000] * 10
