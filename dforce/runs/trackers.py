"""Trackers of others, by name: the numbers of a run as it goes on, and its images with prompt and reward.

A new one is a class with `numbers`, `pictures` and `close`, and a line in `TRACKERS`. Their packages are imported when
one is wanted. A tracker that fails is left out from then on, which a line says; the run goes on.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dforce.config import require_name


class Shown(NamedTuple):
    """Images of a run. pictures: [B, H, W, 3] or [B, H, W, 1] uint8; captions: of each, prompt and reward."""

    pictures: np.ndarray
    captions: Sequence[str]


class Tracker(Protocol):
    """What a tracker is told."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...

    def pictures(self, step: int, shown: Shown) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in tensorboard/ of the run folder: tensorboard --logdir runs."""

    def __init__(self, folder: Path, config: dict[str, Any], begin: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=begin + 1 if begin else None)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def pictures(self, step: int, shown: Shown) -> None:
        for i, (picture, caption) in enumerate(zip(shown.pictures, shown.captions, strict=True)):
            self.writer.add_image(f"images/{i}", picture, step, dataformats="HWC")
            self.writer.add_text(f"images/{i}", caption, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Logged:
    """wandb and trackio, whose calls are alike. more: further arguments of its `init`."""

    def __init__(self, package: str, folder: Path, config: dict[str, Any], **more: Any):
        self.package: Any = importlib.import_module(package)
        self.run = self.package.init(project="dforce", name=folder.resolve().name, config=config, **more)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.package.log(dict(values), step=step)

    def pictures(self, step: int, shown: Shown) -> None:
        images = [self.package.Image(np.repeat(picture, 3, -1) if picture.shape[-1] == 1 else picture, caption=caption)
                  for picture, caption in zip(shown.pictures, shown.captions, strict=True)]
        self.package.log({f"images/{i}": image for i, image in enumerate(images)}, step=step)

    def close(self) -> None:
        self.package.finish()


TRACKERS: dict[str, Callable[[Path, dict[str, Any], int], Tracker]] = {  # (run folder, configuration, steps done)
    "tensorboard": TensorBoard,
    "trackio": lambda folder, config, begin: _Logged("trackio", folder, config, resume="allow"),
    "wandb": lambda folder, config, begin: _Logged("wandb", folder, config, dir=str(folder), resume="allow",
                                                   id=folder.resolve().name),
}


def need_tracker(name: str | None) -> None:
    """ValueError for a tracker that is not known, ImportError for one whose package is not installed."""
    if name is None:
        return
    require_name(name, TRACKERS, "no tracker")
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"tracker={name} needs its package: pip install {name}; or leave tracker out", name=name)


class Tracking:
    """A tracker whose failures do not end the run. None: nothing is told."""

    def __init__(self, name: str | None, folder: Path, config: dict[str, Any], begin: int):
        self.name, self.tracker = name, None
        if name is not None:
            self._try(lambda: setattr(self, "tracker", TRACKERS[name](folder, config, begin)))

    def numbers(self, step: int, values: Mapping[str, Any]) -> None:
        """The finite numbers among `values`."""
        finite = {name: float(value) for name, value in values.items()
                  if isinstance(value, (int, float)) and math.isfinite(value)}
        self._try(lambda: self.tracker and self.tracker.numbers(step, finite))

    def pictures(self, step: int, shown: Shown) -> None:
        """Images with their captions."""
        self._try(lambda: self.tracker and self.tracker.pictures(step, shown))

    def close(self) -> None:
        """The end of the run."""
        self._try(lambda: self.tracker and self.tracker.close())

    def _try(self, do: Callable[[], Any]) -> None:
        try:
            do()
        except Exception as error:  # packages with servers of their own: any kind
            print(f"note: tracker={self.name} failed and is left out from now on: {type(error).__name__}: "
                  f"{' '.join(str(error).split())[:200]}")
            self.tracker = None
