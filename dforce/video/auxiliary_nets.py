"""Files of the small networks that look at video (features, walker)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from dforce.train.auxiliary import Net
from dforce.train.contents import used
from dforce.train.sealed_file import load_file_sealed, save_file_sealed
from dforce.train.state import built_for


def motion_layers(shape: tuple[int, int, int], channels: int, *, what: str) -> list[nn.Module]:
    """Layers from two frames and their difference, [N, 3 C, H, W], to [N, 64]. ValueError for sides not in fours."""
    c, h, w = shape
    if h % 4 or w % 4:
        raise ValueError(f"the {what} halves frames twice: height and width must be multiples of 4, got {h} x {w}")
    return [nn.Conv2d(3 * c, channels, 5, 1, 2), nn.SiLU(), nn.Conv2d(channels, channels, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(2 * channels * (h // 4) * (w // 4), 64)]


def save_net(net: nn.Module, file: str | Path, *, key: str, about: dict[str, Any]) -> Path:
    """One sealed file with the weights, and under `key` the arguments that the network is made with."""
    save_file_sealed(Path(file), net.state_dict(), {key: about})
    return Path(file)


def load_net(file: str | Path, make: Callable[..., Net], *, key: str, what: str, missing: str) -> Net:
    """The frozen network that `save_net` wrote, by make(shape, **others); FileNotFoundError, or ValueError."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(missing.format(file=repr(str(file))))
    weights, about = load_file_sealed(file, what)
    with used(file, what):
        about = dict(about[key])
        shape = tuple(about.pop("shape"))
        net = built_for(lambda: make(shape, **about), weights, origin=f"the weights in {file}")
    return net.eval().requires_grad_(False)
