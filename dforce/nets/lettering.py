"""A network of pictures of one word: ink on a background, the letters told and placed along the width."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.nets.embed import GROUPS, LevelFeatures, check_sizes
from dforce.nets.image import Residual

BUILDABLE = ("LetteringNet",)  # by name, in a configuration

State = dict[str, Tensor]

CODES = 28      # 0 for no letter, 26 letters, 27 in every place for no text (classifier-free guidance)
HEADS = 4
SPAN = 0.85     # of the width that a word is taken to cover; attention corrects it
COLOURS = 3
SHAPES, ACROSS = 8, 8  # channels and columns of the learnt shape of a letter


class LetteringNet(nn.Module):
    """A U-Net of one token, an RGB image [B, 1, 3, H, W] of a word: out = background + mask * (ink - background).

    Two colours and a mask [H, W] in 0..1 are predicted, so it takes predict="x0". It sees the image relative to the
    mean of its border, and along the line of colours from there to the mean of its middle. Embeddings and learnt shapes
    of the letters lie beside the pixels where each letter of a centred word would be, so that a shape need only be
    moved a little; at a quarter of the resolution all positions see one another and the letters (attention).

    event_shape: (3, H, W), H and W multiples of 4. static: {"text": L}, places of the text: cond["static"]["text"],
    [B, L] codes of letters, 0 after the last one, 27 everywhere for no text. width, coarse: channels at half and at a
    quarter of the resolution. letters: size of their embeddings. depth: residual blocks before and after the attention.
    State: {"text": [B, L]}. Not causal: an image has no past.
    """

    causal = False
    recurrent = False

    def __init__(self, event_shape: tuple[int, ...], *, static: Mapping[str, int] | None = None, width: int = 32,
                 coarse: int = 64, letters: int = 32, depth: int = 1):
        super().__init__()
        self.event_shape, static = tuple(event_shape), dict(static or {})
        check_sizes(width, (1,))
        check_sizes(coarse, (1,))
        channels, height, across = self.event_shape if len(self.event_shape) == 3 else (0, 0, 0)
        if channels != COLOURS or height % 4 or across % 4 or set(static) != {"text"}:
            raise ValueError("this network draws words, RGB images (3, H, W) with H and W multiples of 4, of a 'text'; "
                             f"got event_shape={self.event_shape}, static={static}")
        self.places, features, grid = static["text"], 4 * width, (height // 4, across // 4)
        self.level = LevelFeatures()
        self.embed = nn.Sequential(nn.Linear(self.level.dim, features), nn.SiLU(), nn.Linear(features, features))
        self.text = _Letters(self.places, letters)
        self.word = nn.Linear(self.places * letters, features)
        self.colour = nn.Linear(2 * COLOURS, features)
        self.shapes = nn.Embedding(CODES, SHAPES * height // 2 * ACROSS)
        self.first = nn.Conv2d(4 * (1 + COLOURS) + letters + SHAPES, width, 3, padding=1)
        self.fine = Residual(width, width, features)
        self.coarsen = nn.Conv2d(width, coarse, 2, stride=2)
        self.placed = nn.Conv2d(letters, coarse, 1)
        self.before = nn.ModuleList(Residual(coarse, coarse, features) for _ in range(depth))
        self.attention = _Attention(coarse, letters, grid)
        self.after = nn.ModuleList(Residual(coarse, coarse, features) for _ in range(depth))
        self.refine = nn.Conv2d(coarse, 4 * width, 1)
        self.join = Residual(2 * width, width, features)
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))
        self.paint = nn.Sequential(nn.Linear(features + 2 * COLOURS, features), nn.SiLU(),
                                   nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 2 * COLOURS))

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The texts of `batch` images, or none. Raises ValueError for wrong codes and for other conditioning."""
        static = dict((cond or {}).get("static") or {})
        if unknown := sorted(set(static) - {"text"}):
            raise ValueError(f"built for cond['static'] of ['text'], got also {unknown}")
        text = static.get("text")
        if text is None:
            return {"text": torch.full((batch, self.places), CODES - 1, device=self.word.weight.device)}
        if text.shape != (batch, self.places) or text.is_floating_point() or text.dtype == torch.bool:
            raise ValueError(f"cond['static']['text'] must be integers [{batch}, {self.places}], got {text.dtype} "
                             f"{[*text.shape]}")
        if text.numel() and not 0 <= int(text.min()) <= int(text.max()) < CODES:
            raise ValueError(f"codes of letters lie in 0..{CODES - 1}, got {int(text.min())}..{int(text.max())}")
        return {"text": text.long()}

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, 1, 3, H, W], label [B, 1] -> out [B, 1, 3, H, W]; the state comes back as it is."""
        if tuple(x.shape[1:]) != (1, *self.event_shape):
            raise ValueError(f"this network takes one token, an image [B, 1, {', '.join(map(str, self.event_shape))}], "
                             f"got {[*x.shape]}")
        z, codes = x[:, 0], state["text"]
        letters = self.text(codes)
        seen, means = _relative(z)
        embedding = F.silu(self.embed(self.level(label[:, 0])) + self.word(letters.flatten(1)) + self.colour(means))
        height, across = z.shape[2] // 2, z.shape[3] // 2
        lines = _along(letters, codes, across).expand(-1, -1, height, -1)
        shapes = _shapes_along(self.shapes(codes).unflatten(2, (SHAPES, height, ACROSS)), codes, across)
        h = self.first(torch.cat([F.pixel_unshuffle(seen, 2), lines, shapes], 1))
        fine = h = self.fine(h, embedding)
        h = self.coarsen(h) + self.placed(_along(letters, codes, across // 2))
        for block in self.before:
            h = block(h, embedding)
        h = self.attention(h, letters)
        for block in self.after:
            h = block(h, embedding)
        h = self.join(torch.cat([F.pixel_shuffle(self.refine(h), 2), fine], 1), embedding)
        mask = F.pixel_shuffle(self.last(h), 2).sigmoid()
        background, ink = self.paint(torch.cat([embedding, means], 1))[..., None, None].chunk(2, 1)
        return (background + mask * (ink - background))[:, None], state


class _Letters(nn.Module):
    """Codes [B, L] -> embeddings [B, L, size] of each letter, its place and the length of the word."""

    def __init__(self, places: int, size: int):
        super().__init__()
        self.letter, self.length = nn.Embedding(CODES, size), nn.Embedding(places + 1, size)
        self.place = nn.Parameter(0.5 * torch.randn(places, size))
        for table in (self.letter, self.length):
            nn.init.normal_(table.weight, std=0.5)
        self.mix = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, codes: Tensor) -> Tensor:
        h = self.letter(codes) + self.place + self.length(_length(codes))
        return h + self.mix(h)


class _Attention(nn.Module):
    """Every position of a map [B, C, h, w] sees all positions and the letters [B, L, size]."""

    def __init__(self, channels: int, size: int, grid: tuple[int, int]):
        super().__init__()
        self.norm, self.position = nn.GroupNorm(GROUPS, channels), nn.Parameter(0.3 * torch.randn(1, channels, *grid))
        self.query, self.inside = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.letters, self.out = nn.Linear(size, 2 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, letters: Tensor) -> Tensor:
        y = (self.norm(h) + self.position).flatten(2).transpose(1, 2)
        key, value = torch.cat([self.inside(y), self.letters(letters)], 1).chunk(2, -1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query(y), key, value))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return h + self.out(seen).transpose(1, 2).view(h.shape)


def _length(codes: Tensor) -> Tensor:
    """[B, 1] letters of each word; 0 for no text."""
    return ((codes > 0) & (codes < CODES - 1)).sum(1, keepdim=True)


def _places(codes: Tensor, columns: int) -> Tensor:
    """[B, L, columns]: how far each column is from the middle of a letter's place, in places; far for no letter."""
    length = _length(codes)
    number, column = torch.arange(codes.shape[1], device=codes.device), torch.arange(columns, device=codes.device)
    step = SPAN / length.clamp(min=1)
    center = 0.5 + (number - (length - 1) / 2) * step
    away = ((column + 0.5) / columns - center[..., None]) / step[..., None]
    return away.masked_fill((number >= length)[..., None], columns)


def _along(letters: Tensor, codes: Tensor, columns: int) -> Tensor:
    """[B, size, 1, columns]: embeddings where each letter of a centred word would be, one going over into the next."""
    share = (1 - _places(codes, columns).abs()).clamp(min=0)
    return torch.einsum("blc,bls->bsc", share.to(letters.dtype), letters)[:, :, None]


def _shapes_along(shapes: Tensor, codes: Tensor, columns: int) -> Tensor:
    """Shapes [B, L, channels, H, n], n columns a place -> the word that they make, [B, channels, H, columns]."""
    count = shapes.shape[-1]
    at = (_places(codes, columns) + 0.5) * count - 0.5  # which column of its shape each column of the word is
    share = (1 - (at[..., None] - torch.arange(count, device=codes.device)).abs()).clamp(min=0)
    return torch.einsum("blcn,blshn->bshc", share.to(shapes.dtype), shapes)


def _relative(z: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] -> [B, 4, H, W], how far along the line from border to middle and from the border; means.

    Means [B, 6]: of the middle, and of the border one pixel wide.
    """
    height, across = z.shape[2:]
    border = torch.cat([z[:, :, 0], z[:, :, -1], z[..., 0], z[..., -1]], 2).mean(2)
    middle = z[:, :, height // 5:height - height // 5, across // 8:across - across // 8].mean((2, 3))
    line = F.normalize(middle - border, dim=1, eps=1e-4)
    away = z - border[..., None, None]
    return torch.cat([(away * line[..., None, None]).sum(1, keepdim=True), away], 1), torch.cat([middle, border], 1)
