"""The coders of cameras: trained on pictures alone, kept in the cache, and frozen while a policy is trained."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dforce.data.draws import philox_uniform
from dforce.data.episodes import Episodes, joined_ranges
from dforce.data.seal import cache_root
from dforce.data.token_layout import parts_of
from dforce.nets.pictures import ROWS, CameraCoders, chroma
from dforce.policy.imitation import PictureCoding
from dforce.runs.folder import Ticker
from dforce.train.auxiliary import load_net, save_net, seeded, train_auxiliary
from dforce.train.sealed_file import load_file_sealed, save_file_sealed

FORMAT = 2        # of the coders in the cache
POOL = 16384      # pictures of a camera that it is trained on, and that lie in memory
COLORED = 1024    # of them, in which colours are looked for
PIXELS = 20_000   # that are grouped by colour
REACH = 4.0       # mean squared distances from a pixel to its colour: wider, a large pale table outweighs a cube
SAMPLE = 64       # pictures that tell one data set from another
BLOCK = 2048      # pictures that are encoded between two reads of the file
STREAMS = 71, 72  # of the counters: which pictures are in the pool, which in a batch
# Brightness and two differences of colours: small things of a colour weigh as much as a large grey arm.
COLORS = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]])


def coders_of(coding: PictureCoding, episodes: Episodes, chosen: np.ndarray, *, seed: int = 0) -> CameraCoders:
    """The frozen coders of the cameras, trained on the episodes `chosen`, or as they lie in the cache."""
    file = _place("coders", episodes, [asdict(coding), seed, chosen.tolist()])
    try:
        return load_coders(file)
    except (ValueError, FileNotFoundError):  # there are none, or they are damaged
        coders = _trained(coding, episodes, chosen, seed)
        save_coders(coders, file)
        return coders


def _place(what: str, episodes: Episodes, about: Any) -> Path:
    """The file in the cache that belongs to these pictures and to what else it was made from."""
    rows = np.unique(np.linspace(0, len(episodes.observations) - 1, SAMPLE).astype(np.int64))
    seen = {name: hashlib.sha256(pictures[rows].tobytes()).hexdigest() for name, pictures in episodes.images.items()}
    text = json.dumps([FORMAT, about, episodes.lengths.tolist(), seen])
    return cache_root() / "pictures" / f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def _trained(coding: PictureCoding, episodes: Episodes, chosen: np.ndarray, seed: int) -> CameraCoders:
    sizes = {name: pictures.shape[1:3] for name, pictures in episodes.images.items()}
    coders = seeded(lambda: CameraCoders(sizes, side=coding.side, width=coding.width, colors=coding.colors,
                                         channels=coding.channels), seed)
    with Ticker(coding.steps * len(sizes), "pictures") as ticker:
        for number, (name, pictures) in enumerate(episodes.images.items()):
            pool, episode = _pool(coders, pictures, episodes, chosen, seed=seed, stream=number)
            if coding.colors:
                _find_colors(coders, number, pool, episode, seed)
            loss = _Redrawing(coders, number, pool, episode, coding.batch, seed, ticker.advance)
            train_auxiliary(coders.coders[number], loss, steps=coding.steps, lr=coding.lr, weight_decay=1e-3)
            if not math.isfinite(loss.last):
                raise FloatingPointError(f"the coder of {name} diverged; lower pictures.lr")
    return coders


class _Redrawing:
    """Step -> the weighted error of a coder's drawings of a batch; 1 is the error of drawing the mean picture."""

    def __init__(self, coders: CameraCoders, number: int, pool: Tensor, episode: np.ndarray, batch: int, seed: int,
                 advance: Callable[..., None]):
        self.coder: Any = coders.coders[number]
        self.coders, self.pool, self.batch, self.seed = coders, pool, batch, seed
        self.number, self.advance, self.last = number, advance, 0.0
        small = torch.cat([self._small(pool[rows]) for rows in torch.arange(len(pool)).split(BLOCK)])
        self.mean = small.mean(0)
        colors = _colors(small)
        within = [colors[torch.from_numpy(episode == e)].var(0, correction=0) for e in np.unique(episode)]
        variance = torch.stack(within).mean(0)
        self.weight = variance / variance.square().mean((1, 2), keepdim=True).clamp(min=1e-12)

    def __call__(self, step: int) -> Tensor:
        draws = philox_uniform(self.batch, seed=self.seed, stream=STREAMS[1] + self.number, step=step)
        pictures = self.pool[torch.from_numpy((draws * len(self.pool)).astype(np.int64))]
        drawn = self.coder.draw(self.coder(self.coders.shrunk(pictures)))
        error = _colors(drawn + self.mean - self._small(pictures))
        loss = (self.weight * error.square()).mean()
        self.last = float(loss.detach())
        self.advance(1, note=f"loss {self.last:.3f}")
        return loss

    def _small(self, pictures: Tensor) -> Tensor:
        return F.avg_pool2d(self.coders.shrunk(pictures), 2)


def _find_colors(coders: CameraCoders, number: int, pool: Tensor, episode: np.ndarray, seed: int) -> None:
    """Sets the colours of a coder: k-means of pixels drawn by how far they are from the episode's median picture."""
    blobs: Any = coders.coders[number].blobs
    rows = np.arange(0, len(pool), max(1, len(pool) // COLORED))
    seen = torch.cat([chroma(coders.shrunk(pool[part])) for part in torch.from_numpy(rows).split(ROWS)])  # [R, P, 3]
    away = torch.empty(seen.shape[:2])
    for e in np.unique(episode[rows]):
        here = torch.from_numpy(episode[rows] == e)
        away[here] = (seen[here] - seen[here].median(0).values).square().sum(-1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.searchsorted(away.flatten().double().cumsum(0), torch.rand(
        PIXELS, generator=generator, dtype=torch.float64) * away.double().sum()).clamp(max=away.numel() - 1)
    pixels = seen.flatten(0, 1)[chosen]
    tries = [_k_means(pixels, len(blobs.colors), generator) for _ in range(8)]
    colors, spread = min(tries, key=lambda each: each[1])
    blobs.colors.copy_(colors)
    blobs.reach.copy_(torch.tensor(REACH * max(spread, 1e-3)))


def _k_means(pixels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Centres [count, 3], begun as k-means++ does, and the mean squared distance to the nearest."""
    centres = pixels[torch.randint(len(pixels), (1,), generator=generator)]
    while len(centres) < count:
        far = torch.cdist(pixels, centres).min(1).values.square() + 1e-12
        centres = torch.cat([centres, pixels[torch.multinomial(far, 1, generator=generator)]])
    for _ in range(20):
        nearest = torch.cdist(pixels, centres).argmin(1)
        centres = torch.stack([pixels[nearest == k].mean(0) if (nearest == k).any() else centres[k]
                               for k in range(count)])
    return centres, float(torch.cdist(pixels, centres).min(1).values.square().mean())


def _colors(x: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", COLORS, x)


def _pool(coders: CameraCoders, pictures: Any, episodes: Episodes, chosen: np.ndarray, *, seed: int,
          stream: int) -> tuple[Tensor, np.ndarray]:
    """At most POOL pictures of the episodes, uint8 [P, side, side, 3], and the episode of each [P]."""
    begin, length = episodes.first_observation[chosen], episodes.lengths[chosen] + 1
    rows, episode = joined_ranges(begin, begin + length), np.repeat(chosen, length)
    order = np.argsort(philox_uniform(len(rows), seed=seed, stream=STREAMS[0], step=stream), kind="stable")
    kept = np.sort(order[:POOL])
    parts = [coders.shrunk(torch.from_numpy(np.asarray(pictures[rows[part]]))) for part in np.array_split(
        kept, math.ceil(len(kept) / BLOCK))]
    small = [((part + 1) * 127.5).round().to(torch.uint8).movedim(1, -1) for part in parts]
    return torch.cat(small), episode[kept]


def encoded(episodes: Episodes, coders: CameraCoders) -> Episodes:
    """The episodes with numbers in the place of pictures: each camera a part of its own, before the other parts.

    ValueError for cameras, or sizes of pictures, that the coders do not know.
    """
    sizes = {name: tuple(pictures.shape[1:3]) for name, pictures in episodes.images.items()}
    if sizes != coders.sizes:
        raise ValueError(f"the coders are of the cameras {coders.sizes}, height and width, and the data have {sizes}")
    names = episodes.names()[0]
    parts = parts_of(names)
    if [*parts] == ["observation"]:
        names = [f"observation.observation[{i}]" for i in range(len(names))]
    if clash := sorted(set(parts) & set(sizes)):
        raise ValueError(f"{', '.join(clash)} is both a camera and a part of the observations: rename one of them")
    columns = [f"observation.{name}[{i}]" for name in sizes for i in range(coders.numbers)]
    seen = np.concatenate([_numbers(episodes, coders), episodes.observations.astype(np.float32)], 1)
    return replace(episodes, observations=seen, images={},
                   about={**episodes.about, "observation_names": [*columns, *names]})


def _numbers(episodes: Episodes, coders: CameraCoders) -> np.ndarray:
    """Those of all cameras, [N + E, cameras * numbers] float32, or as they lie in the cache."""
    weights = b"".join(value.numpy().tobytes() for value in coders.state_dict().values())
    file = _place("numbers", episodes, [coders.arguments, hashlib.sha256(weights).hexdigest()])
    try:
        return load_file_sealed(file, "numbers of pictures")[0]["numbers"].numpy()
    except ValueError:
        numbers = np.concatenate([_encoded(pictures, partial(coders.encode, name))
                                  for name, pictures in episodes.images.items()], 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file_sealed(file, {"numbers": torch.from_numpy(numbers)}, {})
        return numbers


def _encoded(pictures: Any, encode: Callable[[Tensor], Tensor]) -> np.ndarray:
    """[rows, numbers] float32; pictures are read and encoded a block at a time."""
    rows: Sequence[np.ndarray] = np.array_split(np.arange(len(pictures)), math.ceil(len(pictures) / BLOCK))
    with Ticker(len(rows), "pictures to numbers") as ticker:
        parts = []
        for part in rows:
            parts.append(encode(torch.from_numpy(np.asarray(pictures[part]))).numpy())
            ticker.advance()
    return np.concatenate(parts)


def save_coders(coders: CameraCoders, file: Path) -> None:
    """One sealed file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_net(coders, file, key="coders", about={"shape": [], **coders.arguments})


def load_coders(file: Path) -> CameraCoders:
    """The frozen coders that `save_coders` wrote; FileNotFoundError, or ValueError."""
    return load_net(file, lambda shape, **others: CameraCoders(**others), key="coders", what="coders of cameras",
                    missing="there are no coders of cameras {file}")
