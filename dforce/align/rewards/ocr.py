"""Readers of text in images as rewards: RapidOCR, which tuning asks, and Tesseract, the judge that no tuning asks."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dforce.align.rewards.protocol import Subject, Watched
from dforce.data.pixels import to_uint8

BUILDABLE = ("ocr",)  # by name, in a configuration

BATCH = 16      # images that RapidOCR reads at once
HEIGHT = 48     # pixels of a line of text for RapidOCR's recognition network
NARROW = 144    # and the least width of one: shorter lines are padded
ENLARGED = 4    # times, before Tesseract reads an image
BORDER = 6      # pixels in the colour of the corner around it, before it is enlarged
SECONDS = 600   # that Tesseract has for all images of a call
LINE = "7"      # Tesseract's page segmentation: one line of text
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Reader:
    """The part that both have: a reward of what `read` reads, [B] strings, against the text of each prompt.

    exact: 1 for the right text and 0 for any other; else 1 - edit distance / length of the text, at least 0 (Liu et al.
    2025, Flow-GRPO). Case and spaces do not count. words: texts of prompts that are numbers.
    """

    def __init__(self, *, words: Sequence[str] = (), exact: bool = False):
        self.words, self.exact = tuple(words), exact

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        """[B] float64. samples: [B, 1, C, H, W] in [-1, 1], C = 1 or 3; clamped, as files are."""
        if samples.ndim != 5 or samples.shape[1] != 1 or samples.shape[2] not in (1, 3):
            raise ValueError(f"text is read in images [B, 1, C, H, W] with C = 1 or 3, got {[*samples.shape]}")
        if len(prompts) != len(samples):
            raise ValueError(f"every sample has its prompt, got {len(prompts)} prompts for {len(samples)} samples")
        x = samples.detach()[:, 0].float().cpu().expand(-1, 3, -1, -1)
        wanted = [wanted_text(prompt, self.words) for prompt in prompts]
        scores = [similarity(seen, text) for seen, text in zip(self.read(to_uint8(x)), wanted, strict=True)]
        return torch.tensor([float(score == 1) if self.exact else score for score in scores], dtype=torch.float64)

    def read(self, pictures: np.ndarray) -> list[str]:
        """uint8 [B, H, W, 3] -> what is read in each."""
        raise NotImplementedError


class Ocr(_Reader):
    """How like its prompt the text is that RapidOCR's recognition network reads; an image is one line of text."""

    def __init__(self, *, words: Sequence[str] = (), exact: bool = False):
        super().__init__(words=words, exact=exact)
        self._network: Any = None

    def read(self, pictures: np.ndarray) -> list[str]:
        if not len(pictures):
            return []
        if self._network is None:
            self._network = _recogniser()
        from rapidocr.ch_ppocr_rec import TextRecInput

        return list(self._network(TextRecInput(img=[picture[..., ::-1] for picture in pictures])).txts)


class Tesseract(_Reader):
    """How like its prompt the text is that the system's `tesseract` reads: capital letters in one line."""

    def read(self, pictures: np.ndarray) -> list[str]:
        program = shutil.which("tesseract")
        if program is None:
            raise OSError("there is no tesseract on this machine: apt-get install tesseract-ocr")
        with tempfile.TemporaryDirectory(prefix="dforce-ocr-") as folder:
            files = [Path(folder) / f"{i:06d}.png" for i in range(len(pictures))]
            for file, picture in zip(files, pictures, strict=True):
                _enlarged(picture).save(file)
            names = Path(folder) / "names.txt"
            names.write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
            # two threads of Tesseract are slower than one (its own advice)
            out = subprocess.run([program, str(names), "stdout", "--psm", LINE, "--dpi", "150", "-c",
                                  f"tessedit_char_whitelist={CAPITALS}"], capture_output=True, text=True,
                                 timeout=SECONDS, env={**os.environ, "OMP_THREAD_LIMIT": "1"})
        pages = out.stdout.split("\f")  # between pages; some versions end with one as well
        if len(pages) == len(pictures) + 1 and not pages[-1].strip():
            pages.pop()
        if out.returncode or len(pages) != len(pictures):
            raise OSError(f"tesseract read {len(pages)} of {len(pictures)} images: {out.stderr.strip()[-200:]}")
        return [page.strip() for page in pages]


def ocr(subject: Subject, *, exact: bool) -> Watched:
    """`Ocr` of the prompts' texts, watched by `Tesseract` where the system has it."""
    held_out = Tesseract(words=subject.classes, exact=exact) if shutil.which("tesseract") else None
    return Watched(Ocr(words=subject.classes, exact=exact), held_out)


def wanted_text(prompt: Any, words: Sequence[str] = ()) -> str:
    """The text that a prompt asks for: what it has in double quotes, else all of it; a number is that of a word."""
    if isinstance(prompt, int) and not isinstance(prompt, bool) and 0 <= prompt < len(words):
        prompt = words[prompt]
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt for a reader of text is a text, or the number of one of {len(words)}, got "
                         f"{prompt!r}")
    quoted = re.search('"([^"]+)"', prompt)
    return quoted.group(1) if quoted else prompt


def similarity(seen: str, wanted: str) -> float:
    """1 - edit distance / length of `wanted`, in 0..1; case and white space do not count."""
    first, second = ("".join(text.split()).lower() for text in (seen, wanted))
    if not second:
        raise ValueError(f"the prompt {wanted!r} asks for no text")
    before = list(range(len(second) + 1))  # edit distance of the begun `first` to each beginning of `second`
    for i, letter in enumerate(first, 1):
        row = [i]
        for j, other in enumerate(second, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
        before = row
    return max(0.0, 1 - before[-1] / len(second))


def _recogniser() -> Any:
    """RapidOCR's recognition network, whose weights are in its package, on one thread."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError("the reward ocr reads with RapidOCR: pip install 'dforce[ocr]'") from error
    engine = "EngineConfig.onnxruntime"
    whole = RapidOCR(params={f"{engine}.intra_op_num_threads": 1, f"{engine}.inter_op_num_threads": 1,
                             "Global.log_level": "error", "Rec.rec_img_shape": [3, HEIGHT, NARROW],
                             "Rec.rec_batch_num": BATCH})
    return whole._load_rec_model()


def _enlarged(picture: np.ndarray) -> Image.Image:
    corner = tuple(int(value) for value in picture[0, 0])
    image = ImageOps.expand(Image.fromarray(picture), BORDER, fill=corner)
    return image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.BICUBIC)
