"""What is written in an image: optical character recognition as a reward, and another reader as its judge."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from dforce.align.rewards.preprocess import Texts, pictures_of

Reader = Callable[[Any], str]  # a picture, uint8 [H, W, 3] -> what is written in it, on one line
TESSERACT_HEIGHT = 64          # pixels that it wants of a line; smaller pictures are enlarged for it
TESSERACT_SECONDS = 60


class Reading:
    """How nearly an image says what its prompt does: 1 - Levenshtein distance / letters of the longer, in [0, 1].

    reader: picture -> text. score: "distance", or "exact", 1 for the very word and 0 for any other. What is wanted is
    between the first pair of double quotes of a prompt where there is one (as in Flow-GRPO's prompts), else the prompt.
    case: do capitals count. Blanks never do. Not differentiable.
    """

    def __init__(self, reader: Reader, *, texts: Texts | None = None, score: Literal["distance", "exact"] = "distance",
                 case: bool = False):
        self.reader, self.texts, self.score, self.case = reader, texts or Texts(), score, case

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        """[B] float64 on the CPU. samples: [B, 1, C, H, W]."""
        wanted = self.texts(prompts, len(samples))
        return torch.tensor([self._value(self.reader(picture), quoted(text))
                             for picture, text in zip(pictures_of(samples), wanted, strict=True)], dtype=torch.float64)

    def _value(self, read: str, wanted: str) -> float:
        read, wanted = ("".join((text if self.case else text.casefold()).split()) for text in (read, wanted))
        if not wanted:
            raise ValueError("a prompt of no letters cannot be read in an image")
        return float(read == wanted) if self.score == "exact" else 1 - edits(read, wanted) / max(len(read), len(wanted))


def quoted(prompt: str) -> str:
    """What stands between the first pair of double quotes, the whole prompt where there is none."""
    parts = prompt.split('"')
    return parts[1] if len(parts) > 2 else prompt


def edits(one: str, other: str) -> int:
    """Levenshtein's distance: letters to insert, remove or replace."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, wanted in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != wanted))
    return row[-1]


def rapidocr_reader() -> Reader:
    """RapidOCR's recognition of one line, by the network that its package ships, on one thread; no text is sought."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError("the reward ocr reads with rapidocr: pip install 'dforce[ocr]'", name="rapidocr") from error
    engine = RapidOCR(params={"Global.log_level": "error", "Global.text_score": 0.0,
                              "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                              "EngineConfig.onnxruntime.inter_op_num_threads": 1})

    def read(picture: Any) -> str:
        found = engine(picture[..., ::-1].copy(), use_det=False, use_cls=False, use_rec=True)
        return " ".join(found.txts or ())
    return read


def tesseract_reader(language: str = "eng") -> Reader:
    """The system's tesseract on one line of text, another reader than any that is tuned on."""
    program = shutil.which("tesseract")
    if program is None:
        raise ValueError("there is no program tesseract here, which this reward reads with: install tesseract-ocr")

    def read(picture: Any) -> str:
        image = Image.fromarray(picture)
        scale = max(1, -(-TESSERACT_HEIGHT // image.height))
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
        with tempfile.TemporaryDirectory() as folder:
            image.save(file := Path(folder) / "line.png")
            done = subprocess.run([program, str(file), "stdout", "--psm", "7", "-l", language], capture_output=True,
                                  text=True, timeout=TESSERACT_SECONDS, env={**os.environ, "OMP_THREAD_LIMIT": "1"})
        if done.returncode:
            raise ValueError(f"tesseract failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
        return " ".join(done.stdout.split())
    return read
