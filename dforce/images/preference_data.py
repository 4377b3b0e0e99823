"""Preferences of public layouts as the files that `dforce train reward` and preference losses read."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dforce.align.preferences import Pairs, write_pairs
from dforce.align.rewards.ratings import Ratings, write_ratings
from dforce.config import nearest
from dforce.config.values import fits
from dforce.core.denoiser import Cond
from dforce.data.pixels import from_uint8
from dforce.images.pipeline import Pipeline, load_pipeline
from dforce.images.preference_files import PicturePairs, read_preferences
from dforce.nets.autoencoder import Decode
from dforce.runs.folder import RunFolder


@dataclass(frozen=True)
class PreferenceData:
    """A run of `dforce data preferences`. The keys are explained in configs/verbs/data/preferences.yaml."""

    source: str | None
    size: Any
    grey: bool
    classes: list[str] | None
    user: str | int | None
    pipeline: str | None
    rows: int | None
    fast_dev_run: bool = False

    def run(self, folder: RunFolder) -> None:
        """pairs.npz or ratings.npz in the run folder."""
        if not self.source:
            raise ValueError("source is needed: a .parquet or .jsonl file, or a folder with metadata.jsonl")
        sides = self.size if isinstance(self.size, list) and len(self.size) == 2 else [self.size]
        if self.size is not None and not all(fits(side, int) for side in sides):
            raise ValueError(f"size is [height, width] in pixels, or one number, got {self.size!r}")
        if self.pipeline and self.classes:
            raise ValueError("a pipeline takes prompts as text: leave classes out")
        pipeline = load_pipeline(self.pipeline) if self.pipeline else None
        given = read_preferences(self.source, self._fitted, user=self.user, limit=self.rows)
        if not isinstance(given, PicturePairs):
            write_ratings(folder.path / "ratings.npz",
                          Ratings(pipeline_tokens(pipeline, _tokens(given.picture)), torch.tensor(given.rating)))
            print(f"{len(given.rating)} ratings; to learn from them: dforce train reward data={folder.path}")
            return
        win, lose = (pipeline_tokens(pipeline, _tokens(side)) for side in (given.win, given.lose))
        weight = (~torch.tensor(given.tie) & (win != lose).flatten(1).any(1)).float()
        write_pairs(folder.path / "pairs.npz", Pairs(win, lose, self._cond(given.text, pipeline), weight))
        print(f"{len(win)} pairs, {int(len(win) - weight.sum())} of them ties; to learn from them: dforce train reward "
              f"data={folder.path}, or algorithm=diffusion_dpo algorithm.preferences={folder.path}/pairs.npz")

    def _fitted(self, picture: np.ndarray) -> np.ndarray:
        """[H, W, C], cut to the wanted shape and resized, in RGB or grey."""
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
        image = image.convert("L" if self.grey else "RGB")
        if self.size is not None:
            height, width = self.size if isinstance(self.size, (list, tuple)) else (self.size, self.size)
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels[..., None] if self.grey else pixels

    @torch.no_grad()
    def _cond(self, texts: list[str], pipeline: Pipeline | None) -> Cond | None:
        if pipeline is not None:
            unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            cond, rows = pipeline.encode(list(unique)), torch.tensor([unique[text] for text in texts])
            return {"static": {name: value[rows].cpu() for name, value in cond["static"].items()}} if cond else None
        if self.classes is None:
            return None
        if wrong := Counter(text for text in texts if text not in self.classes):
            raise ValueError(f"the prompt {next(iter(wrong))!r} of {wrong.total()} pairs is none of the "
                             f"classes{nearest(next(iter(wrong)), self.classes)}")
        return {"static": {"class": torch.tensor([self.classes.index(text) for text in texts])}}


@torch.no_grad()
def pipeline_tokens(pipeline: Pipeline | None, x: Tensor) -> Tensor:
    """Images [N, 1, C, H, W] as the tokens of a pipeline: latents where it has an autoencoder."""
    if pipeline is None:
        return x
    tokens = pipeline.decode.encode(x) if isinstance(pipeline.decode, Decode) else x
    if tokens.shape[2:] != torch.Size(pipeline.shape):
        raise ValueError(f"images of {[*x.shape[2:]]} become tokens of {[*tokens.shape[2:]]}, and this pipeline makes "
                         f"{[*pipeline.shape]}: give size")
    return tokens.float().cpu()


def _tokens(pictures: list[np.ndarray]) -> Tensor:
    shapes = Counter(picture.shape[:2] for picture in pictures)
    if len(shapes) > 1:
        raise ValueError(f"the pictures have {len(shapes)} sizes, among them {[*shapes][0]}, {[*shapes][1]}: give size")
    return from_uint8(np.stack(pictures))[:, None].contiguous()
