"""Pixels in [-1, 1], for networks, and 0..255, in files, whose shades are scaled from the range of their numbers."""

import os
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
PNG_BITS = 16  # of a grey PNG that Pillow opens as whole numbers


def to_uint8(frames: Tensor) -> np.ndarray:
    """frames [..., C, H, W] in [-1, 1], on any device -> uint8 [..., H, W, C]: clamped to [-1, 1] and rounded."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def from_uint8(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., H, W, C] -> float32 [..., C, H, W] in [-1, 1], on the device of a tensor."""
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(np.array(pixels))  # copied: it may be a file that is mapped read-only
    return (pixels.float() / 127.5 - 1).movedim(-1, -3)


class PictureError(ValueError):
    """An image file cannot be read, or nothing says which of its numbers is white; the message says why."""


def read_picture(file: str | os.PathLike | IO[bytes]) -> np.ndarray:
    """An image file as uint8 [H, W, 1] where it is grey, else [H, W, 3], turned as EXIF says; no transparency.

    16-bit grey is scaled from 0..65535, 12-bit from 0..4095. PictureError for numbers without a stated range, too.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            most = _white(picture)
            turned = ImageOps.exif_transpose(picture)
            if most is None:
                shades = np.asarray(turned.convert("L" if picture.mode in ("1", "L") else "RGB"))
            else:
                shades = np.rint(np.asarray(turned, np.float64) * (255 / most)).clip(0, 255).astype(np.uint8)
                shades = 255 - shades if _tag(picture, PHOTOMETRIC) == 0 else shades
    except PictureError:
        raise
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, OverflowError,
            Image.DecompressionBombError) as error:  # Pillow raises all of them for broken files
        raise PictureError(str(error)) from error
    return shades[..., None] if shades.ndim == 2 else shades


def picture_sides(file: str | os.PathLike) -> list[int]:
    """The two sides of an image, the shorter first, from its header alone. PictureError where that cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return sorted(picture.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(str(error)) from error


def _white(picture: Any) -> int | None:
    """The number that is white where a picture's numbers have more than 8 bits; None where Pillow scales them."""
    bits, kinds = _tag(picture, BITS_PER_SAMPLE), _tag(picture, SAMPLE_FORMAT)
    if picture.mode.startswith("I;16"):
        return 2 ** min(int(bits or 16), 16) - 1
    if picture.mode == "I" and picture.format == "PNG":
        return 2**PNG_BITS - 1
    if picture.mode in ("I", "F") or kinds not in (None, 1):
        kind = "floats" if picture.mode == "F" else "signed or 32-bit integers"
        raise PictureError(f"its pixels are {kind}, and nothing says which number is white: save it with 8 or 16 bits")
    return None


def _tag(picture: Any, number: int) -> Any:
    """A tag of a TIFF, the first of several values; None for other formats and for a tag that is not there."""
    value = getattr(picture, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value
