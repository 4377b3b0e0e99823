"""Labelled images: sets that packages ship, IDX files, or a folder with one folder of images for each class."""

import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.data.batch import Batch
from dforce.data.draws import philox_uniform
from dforce.data.idx import FASHION, idx_folder, idx_images
from dforce.data.pixels import PictureError, from_uint8, read_picture
from dforce.data.seal import leads_out

HELD_OUT = 0.2             # fraction of digits, and of each class of a folder, that is "test"
STRIP = 0.25               # fraction of a natural image's width, at its right, that test patches are cut from
PATCH, SIDE = 32, 96       # pixels of a patch, and of the shorter side of the image that it is cut from
PATCHES = (400, 100)       # of each natural image: train, test
NATURAL = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "rocket", "immunohistochemistry")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SPLIT, TRAIN, TEST, ORDER, DROP = range(5)  # streams of the counter-based generator

Split = Literal["train", "test", "all"]


class Images(NamedTuple):
    """x: [N, 1, C, H, W] float32 in [-1, 1], an image being a sequence of one token. label: [N] long, of `classes`."""

    x: Tensor
    label: Tensor
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.x.shape[2:])  # type: ignore[return-value]


def load_images(name: str | Path, *, split: Split = "train", seed: int = 0, size: int | None = None) -> Images:
    """Images of a set, in an order that is the same every time.

    name: "digits", the 1,797 real 8x8 digits of scikit-learn; "patches", 32x32 RGB crops of the natural images that
    scikit-image ships, the class being the image; "fashion", the 70,000 28x28 garments of Fashion-MNIST where Debian's
    package puts them; a folder of IDX files like those; or a folder of one folder of image files for each class.
    split: "train" and "test" share no image, and no pixel of a natural image. seed: which images are test, and where
    patches are cut; the shipped models were trained with 0. size: side in pixels that the images of a folder are cut to
    a square and resized to, None where they have one size. Files that cannot be read are skipped, with a warning.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}")
    folder = FASHION if name == "fashion" and not Path(name).is_dir() else Path(name)
    if size is not None and (name in ("digits", "patches") or idx_folder(folder)):
        raise ValueError(f"the images of {name} have a size; size={size} is for folders of image files")
    if name == "digits":
        return _digits(split, seed)
    if name == "patches":
        return _patches(split, seed)
    if idx_folder(folder):
        pixels, label, classes = idx_images(folder, split)
        return Images(_tokens(pixels[..., None]), torch.from_numpy(label), classes)
    if not folder.is_dir():
        more = " (apt-get install dataset-fashion-mnist, or give the folder of its files)" if name == "fashion" else ""
        raise ValueError(f"no images {str(name)!r}: it is neither 'digits', 'patches', 'fashion' nor a folder{more}")
    return _folder(folder, split, seed, size)


class ImageBatches:
    """Shuffled batches: batch s is a function of (seed, s). drop: share of labels made the null class."""

    def __init__(self, images: Images, *, batch: int = 128, seed: int = 0, drop: float = 0.0):
        if not 1 <= batch <= len(images.x):
            raise ValueError(f"batch must lie in 1..{len(images.x)}, the number of images, got {batch}")
        if not 0 <= drop <= 1:
            raise ValueError(f"drop is a share of the labels, in [0, 1], got {drop}")
        self.images, self.batch, self.seed, self.drop = images, batch, seed, drop
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __call__(self, step: int) -> Batch:
        """x [B, 1, C, H, W], cond["static"]["class"] [B] long."""
        epoch, part = divmod(step, len(self.images.x) // self.batch)
        if epoch != self._epoch:
            draws = philox_uniform(len(self.images.x), seed=self.seed, stream=ORDER, step=epoch)
            self._epoch, self._order = epoch, np.argsort(draws, kind="stable")
        index = torch.from_numpy(self._order[part * self.batch:(part + 1) * self.batch])
        label = self.images.label[index]
        if self.drop:
            dropped = philox_uniform(self.batch, seed=self.seed, stream=DROP, step=step) < self.drop
            label = label.masked_fill(torch.from_numpy(dropped), len(self.images.classes))
        whole = torch.ones(self.batch, 1, dtype=torch.bool)
        return Batch(self.images.x[index], whole, {"static": {"class": label}}, whole[:, 0])


def _digits(split: Split, seed: int) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits are scikit-learn's: pip install 'dforce[images]'") from error
    digits = load_digits()
    chosen = _chosen(len(digits.images), split, seed)
    x = torch.from_numpy(digits.images[chosen]).float() / 8 - 1  # 0..16 in the file
    label = torch.from_numpy(digits.target[chosen]).long()
    return Images(x[:, None, None], label, tuple(map(str, range(10))))


def _chosen(count: int, split: Split, seed: int, step: int = 0) -> np.ndarray:
    """Numbers of the images of a split, in a random order. step: another draw under the same seed."""
    order = np.argsort(philox_uniform(count, seed=seed, stream=SPLIT, step=step), kind="stable")
    test = min(max(1, round(HELD_OUT * count)), count - 1)
    return order if split == "all" else order[:test] if split == "test" else order[test:]


def _patches(split: Split, seed: int) -> Images:
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError("the natural images are scikit-image's: pip install 'dforce[images]'") from error
    if split == "all":
        train, test = _patches("train", seed), _patches("test", seed)
        return Images(torch.cat([train.x, test.x]), torch.cat([train.label, test.label]), train.classes)
    x = np.concatenate([_cut(_shrunk(getattr(skimage.data, name)()), number, split, seed)
                        for number, name in enumerate(NATURAL)])
    label = torch.arange(len(NATURAL)).repeat_interleave(len(x) // len(NATURAL))
    return Images(_tokens(x), label, NATURAL)


def _shrunk(image: np.ndarray) -> np.ndarray:
    """An image as RGB, its shorter side SIDE pixels, so that a patch shows an object and not only a texture."""
    from PIL import Image

    picture = Image.fromarray(image).convert("RGB")
    factor = SIDE / min(picture.size)
    return np.asarray(picture.resize([max(SIDE, round(side * factor)) for side in picture.size],
                                     Image.Resampling.LANCZOS))


def _cut(image: np.ndarray, number: int, split: Split, seed: int) -> np.ndarray:
    """Random patches [n, PATCH, PATCH, 3] of natural image `number`, none of whose pixels is in the other split."""
    height, width = image.shape[:2]
    border = width - max(PATCH, round(STRIP * width))
    left, right = (0, border) if split == "train" else (border, width)
    count, stream = (PATCHES[0], TRAIN) if split == "train" else (PATCHES[1], TEST)
    y, x = (philox_uniform(2 * count, seed=seed, stream=stream, step=number).reshape(2, count)
            * np.array([[height - PATCH + 1], [right - left - PATCH + 1]])).astype(int)
    return np.stack([image[i:i + PATCH, left + j:left + j + PATCH] for i, j in zip(y, x, strict=True)])


def _folder(root: Path, split: Split, seed: int, size: int | None) -> Images:
    folders = _inside(sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")), root)
    if not folders:
        raise ValueError(f"{root} holds no folders: put the images of each class into a folder named after it")
    if size is not None and size < 1:
        raise ValueError(f"size is a number of pixels, got {size}")
    pictures, label, sources = [], [], []
    for number, folder in enumerate(folders):
        readable = _pictures(folder, root, size)
        if not readable:
            raise ValueError(f"{folder} holds no image that can be read ({', '.join(SUFFIXES)}): fill it or remove it")
        kept = _chosen(len(readable), split, seed, step=number) if len(readable) > 1 else np.arange(split != "test")
        files = list(readable)
        sources += [files[i] for i in kept]
        pictures += [readable[files[i]] for i in kept]
        label += [number] * len(kept)
    if not pictures:
        raise ValueError(f"{root} has one image a class, all of them in the training split: there is none for {split}")
    if len({picture.shape[:2] for picture in pictures}) > 1:
        one = next(i for i, picture in enumerate(pictures) if picture.shape[:2] != pictures[0].shape[:2])
        shown = " and ".join(f"{sources[i]} is {pictures[i].shape[1]}x{pictures[i].shape[0]}" for i in (0, one))
        raise ValueError(f"the images have several sizes ({shown}): give size=, to which all are cut and resized")
    channels = max(picture.shape[2] for picture in pictures)  # if any picture is RGB, grey ones become RGB
    x = np.stack([np.broadcast_to(picture, (*picture.shape[:2], channels)) for picture in pictures])
    return Images(_tokens(x), torch.tensor(label), tuple(folder.name for folder in folders))


def _inside(paths: list[Path], root: Path) -> list[Path]:
    """The paths without links that lead out of the folder of the data set, with a warning for each."""
    for path in (out := [path for path in paths if path.is_symlink() and leads_out(path, root)]):
        warnings.warn(f"passed over {path}: a link out of {root.name} is not followed; put the file itself there",
                      stacklevel=6)
    return [path for path in paths if path not in out]


def _pictures(folder: Path, root: Path, size: int | None) -> dict[Path, np.ndarray]:
    """The readable images of a folder, by name: [H, W, 3], or [H, W, 1] where grey."""
    from PIL import Image, ImageOps

    readable = {}
    for file in _inside(sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES), root):
        try:
            pixels = read_picture(file)
        except PictureError as error:
            warnings.warn(f"passed over {file}: {error}", stacklevel=5)
            continue
        if size is not None:
            plain = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            pixels = np.asarray(ImageOps.fit(plain, (size, size), Image.Resampling.LANCZOS)).reshape(size, size, -1)
        readable[file] = pixels
    return readable


def _tokens(pixels: np.ndarray) -> Tensor:
    """[N, H, W, C] 0..255 -> [N, 1, C, H, W] in [-1, 1]."""
    return from_uint8(torch.from_numpy(pixels))[:, None].contiguous()
