"""What cameras see as a few numbers a picture, from which the picture can be drawn again: tokens of a policy."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 8  # sides must be multiples of it: pictures are halved three times
ROWS = 128  # pictures that are encoded at a time, which bounds the memory
DARK, FAINT, LEAST = 0.06, 1e-3, 1.0  # brightness, likeness and area (pixels) below which colours count for little


class ColorBlobs(nn.Module):
    """Where colours are in pictures [N, 3, side, side]: [N, 3 K], of each of K colours the mean x and y, in -1..1, and
    the logarithm of its area. colors [K, 3], as `chroma` has them, and reach, the squared distance at which another
    colour counts for 1/e, are buffers that training sets.
    """

    colors: Tensor
    reach: Tensor

    def __init__(self, side: int, count: int):
        super().__init__()
        self.side = side
        self.register_buffer("colors", torch.zeros(count, 3))
        self.register_buffer("reach", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        near = torch.exp(-torch.cdist(chroma(x), self.colors).square() / self.reach)    # [N, side^2, K]
        near = near / (near.sum(-1, keepdim=True) + FAINT)
        across = torch.linspace(-1, 1, self.side, device=x.device)
        place = torch.stack([across.repeat(self.side), across.repeat_interleave(self.side)], 1)
        area = near.sum(1)
        mean = torch.einsum("npk,pq->nkq", near, place) / (area + LEAST)[..., None]
        return torch.cat([mean, torch.log1p(area)[..., None]], -1).flatten(1)


def chroma(x: Tensor) -> Tensor:
    """Colours of pictures [N, 3, H, W] in [-1, 1], [N, H W, 3]: two differences of colours in shares of the brightness,
    which light hardly changes, and a little of the brightness."""
    red, green, blue = ((x + 1) / 2).flatten(2).unbind(1)
    bright = (red + green + blue) / 3 + DARK
    return torch.stack([(red - green) / bright, (blue - (red + green) / 2) / bright, 0.15 * bright.log()], -1)


class PictureCoder(nn.Module):
    """forward(x) -> numbers [N, 3 colors + width] of pictures [N, 3, side, side] in [-1, 1], those of `ColorBlobs` and
    `width` of a convolutional net; draw(numbers) -> pictures of half the side, without their mean in training.
    """

    def __init__(self, side: int, width: int, colors: int, channels: int):
        super().__init__()
        if side % GRID or min(side, width, channels) < 1 or colors < 0:
            raise ValueError(f"pictures are halved three times: side must be a multiple of {GRID}, got side={side}, "
                             f"width={width}, colors={colors}, channels={channels}")
        self.blobs = ColorBlobs(side, colors)
        c, inner, grid = 2 * channels, 128, side // GRID
        self.encoder = nn.Sequential(
            nn.Conv2d(3, channels, 5, 2, 2), nn.ReLU(), nn.Conv2d(channels, c, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(c, c, 3, 1, 1), nn.ReLU(), nn.Conv2d(c, c, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(c * grid**2, inner), nn.ReLU(), nn.Linear(inner, width))
        self.draw = nn.Sequential(
            nn.Linear(3 * colors + width, inner), nn.ReLU(), nn.Linear(inner, c * grid**2), nn.ReLU(),
            nn.Unflatten(1, (c, grid, grid)), nn.ConvTranspose2d(c, c, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(c, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.blobs(x), self.encoder(x)], 1)


class CameraCoders(nn.Module):
    """A `PictureCoder` for each camera of a robot.

    sizes: camera -> (height, width) of its pictures, which are averaged down, or enlarged, to `side` x `side`.
    width, colors: a picture becomes 3 colors + width numbers. channels: of the first layer.
    """

    def __init__(self, sizes: Mapping[str, Sequence[int]], *, side: int, width: int, colors: int, channels: int):
        super().__init__()
        self.sizes = {name: (int(height), int(across)) for name, (height, across) in sizes.items()}
        self.side, self.numbers = side, 3 * colors + width
        self.others = {"side": side, "width": width, "colors": colors, "channels": channels}
        self.coders = nn.ModuleList(PictureCoder(**self.others) for _ in self.sizes)

    @property
    def arguments(self) -> dict:
        """What the coders are made with, JSON-able."""
        return {"sizes": {name: [*size] for name, size in self.sizes.items()}, **self.others}

    def shrunk(self, pictures: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> [N, 3, side, side] in [-1, 1]."""
        x = pictures.movedim(-1, -3).float() / 127.5 - 1
        return x if x.shape[-2:] == (self.side, self.side) else F.interpolate(x, (self.side, self.side), mode="area")

    @torch.no_grad()
    def encode(self, camera: str, pictures: Tensor) -> Tensor:
        """uint8 [N, H, W, 3], of the camera's size -> [N, numbers] float32."""
        coder = self.coders[list(self.sizes).index(camera)]
        return torch.cat([coder(self.shrunk(part)) for part in pictures.split(ROWS)])
