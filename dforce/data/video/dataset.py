"""Video clips of any format as batches of tokens: batch s is a function of (seed, split, s) and of nothing else.

A token is `stack` consecutive frames joined along their channels. action[t] is the action that led to frame t. It is
zero, which no one-hot action is, at the first frame of a clip and where no action is stored.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dforce.data.batch import Batch
from dforce.data.columns import checked_rows
from dforce.data.draws import SPLIT, TRAIN, VAL, check_window, philox_uniform, shard_count, shard_rows
from dforce.data.pixels import from_uint8
from dforce.data.video.clip import BadClip, Clip, resized
from dforce.data.video.index import describe
from dforce.data.video.select import Scale, Selection, clips_of_split

REDRAWS = 20  # windows that are tried for a row before an error: then hardly any clip can be read

Row = tuple[np.ndarray, np.ndarray, int, bool]  # frames [F, H, W, C], actions [F, A], frames that are data, first


class VideoClips:
    """Windows of `frames` frames, `stride` stored ones apart, `stack` to a token: x [B, T, stack * C, H, W].

    event_shape: (stack * C, H, W). action_width: numbers in a token's action, stack * stride * A: the actions of all
    stored frames since the token before, in order. layout: what the numbers mean. clips: of this split. skipped: name
    -> reason; it grows where a file cannot be read later. len(clips): number of windows. virtual_shards: as in
    `Windows`.

    sequential: row b of batch s + 1 continues row b of batch s, through all clips in an order drawn from the seed;
    `first` is True where a clip begins. The end of a clip that fills no window is padded with its last frame, mask
    False, and so is a window that cannot be read; where not sequential, another one is drawn in its place.
    """

    def __init__(self, data: str | os.PathLike | Sequence[Clip], *, frames: int,
                 size: int | tuple[int, int] | None = None, stride: int = 1, stack: int = 1, batch: int = 16,
                 seed: int = 0, split: Literal["train", "val"] = "train", held_out: float = 0.05,
                 action_offset: int | None = None, actions: int | None = None, fps: float | None = None,
                 action_scale: Scale | None = None, cache: bool | str | os.PathLike = False, virtual_shards: int = 8,
                 sequential: bool = False, device: torch.device | str = "cpu",
                 advance: Callable[[float], object] = lambda share: None):
        """data: folder, film, Minari data set, "balls", or clips. frames: of a window, a multiple of stack.

        size: height and width in pixels; None for the clips' size. held_out: share of the files in `split="val"`, where
        no folder is called so; see `of_split`. action_offset: the action that led to frame t is number
        t - action_offset: 0 in TECO's files and those made here, 1 in Minari, -1 as the paper's code reads Minecraft.
        actions: number of discrete actions, None for as many as occur. action_scale: mean and standard deviation that
        real actions are normalised by, None for theirs. fps: to read films at, None for their own. cache: decode once,
        to `size`, and keep the frames in the cache folder (True) or in this one. advance: told the shares of opening
        and decoding.
        """
        check_window(split, frames=frames, stack=stack, stride=stride, batch=batch, virtual_shards=virtual_shards)
        self.frames, self.stack, self.stride, self.batch, self.seed = frames, stack, stride, batch, seed
        self.sequential, self.split, self.device = sequential, split, torch.device(device)
        self.virtual_shards = shard_count(batch, virtual_shards)
        self._set(clips_of_split(
            data, span=(frames - 1) * stride + 1, size=size, split=split, held_out=held_out, seed=seed,
            offset=action_offset, classes=actions, fps=fps, cache=cache, scale=action_scale, advance=advance))
        self._number()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch_at(self, step: int, *, shards: tuple[int, int] | None = None) -> Batch:
        """Batch number `step`, or the rows of it in virtual shards lo..hi-1 (`shards=(lo, hi)`).

        x: [B, T, stack * C, H, W] in [-1, 1]. cond["token"]["action"]: [B, T, action_width] if there are actions.
        """
        rows = shard_rows(shards, self.virtual_shards, self.batch)
        if self.sequential:
            batch = self.gather((rows * len(self) // self.batch + step) % len(self))
            return batch if step else batch._replace(first=torch.ones_like(batch.first))
        stream = TRAIN if self.split == "train" else VAL
        draws = philox_uniform(REDRAWS * self.batch, seed=self.seed, stream=stream, step=step)
        return self.gather((draws.reshape(REDRAWS, -1)[:, rows] * len(self)).astype(np.int64))

    def gather(self, index: np.ndarray | Tensor | Sequence[int]) -> Batch:
        """Windows by number. index: [B] in 0..len(self)-1, or [R, B]: row r + 1 is used where row r cannot be read.

        One that cannot be read has mask False everywhere; ValueError where none of R > 1 can be read.
        """
        index = np.atleast_2d(np.asarray(index, dtype=np.int64))
        rows = []
        for tries in index.T:
            row = next((row for number in tries if (row := self._window(int(number))) is not None), None)
            if row is None and len(index) > 1:
                raise ValueError(f"{len(tries)} windows in a row cannot be read; {self._report()}")
            rows.append(row or (np.zeros((self.frames, *self.size, self.layout["channels"]), np.uint8),
                                np.zeros((self.frames, self.action_width // self.stack), np.float32), 0, True))
        video, action, real, first = (np.stack(column) for column in zip(*rows, strict=True))
        return self._batch(video, action, real, first)

    def sequence(self, clips: Sequence[int], *, start: int | Sequence[int] = 0, frames: int | None = None) -> Batch:
        """Whole clips by number, from stored frame `start` on (one for all, or one each), as windows are; frames: None
        for the shortest clip's."""
        chosen, begins = [self.clips[i] for i in clips], np.broadcast_to(start, len(clips))
        longest = min((clip.frames - begin - 1) // self.stride + 1 for clip, begin in zip(chosen, begins, strict=True))
        frames = longest // self.stack * self.stack if frames is None else frames
        if frames < 1 or frames % self.stack or frames > longest:
            raise ValueError(f"{frames} frames from {start} on: the clips have {longest} there, a token {self.stack}")
        stored, video = begins[:, None] + self.stride * np.arange(frames), []
        for clip, numbers in zip(chosen, stored, strict=True):
            try:
                video.append(self._read(clip, numbers))
            except BadClip as error:
                raise ValueError(f"{clip.name}: {error}") from error
        action = np.stack([self._actions(i, numbers) for i, numbers in zip(clips, stored, strict=True)])
        return self._batch(np.stack(video), action, np.full(len(chosen), frames), np.ones(len(chosen), bool))

    def poses(self, clips: Sequence[int], *, start: int = 0, frames: int) -> Tensor | None:
        """Poses of the camera at the frames of `sequence`: [B, frames, P] float32; None where they are not stored."""
        stored = start + self.stride * np.arange(frames)
        chosen = [self.clips[i] for i in clips]
        poses = [checked_rows(pose, clip.frames, f"{clip.name}: pose")[stored] for clip in chosen
                 if (pose := clip.poses()) is not None]
        return torch.from_numpy(np.stack(poses)).float() if len(poses) == len(clips) else None

    def statistics(self, clips: int = 64) -> dict[str, Any]:
        """Of up to `clips` clips drawn from the seed, pixels in [-1, 1]: mean and std [C], brightness, and the speed,
        the root mean square of the difference between a frame and the next.
        """
        order = np.argsort(philox_uniform(len(self.clips), seed=self.seed, stream=SPLIT, step=2), kind="stable")[:clips]
        sums, moved, count, steps = np.zeros((2, self.layout["channels"])), 0.0, 0, 0
        for clip in (self.clips[i] for i in order):
            try:
                video = self._read(clip, np.arange(0, clip.frames, self.stride)).astype(np.float64) / 127.5 - 1
            except BadClip as error:
                self._leave_out(clip, error)
                continue
            sums += [video.sum((0, 1, 2)), (video**2).sum((0, 1, 2))]
            count += video[..., 0].size
            moved, steps = moved + (np.diff(video, axis=0) ** 2).sum(), steps + video[1:].size
        mean, square = sums / max(count, 1)
        std = np.sqrt(np.maximum(square - mean**2, 0))
        return {"mean": mean.tolist(), "std": std.tolist(), "brightness": float(mean.mean()),
                "speed": float(np.sqrt(moved / max(steps, 1))), "clips": len(order)}

    def log(self) -> dict[str, int]:
        """Numbers for the log of a run: clips in use, and clips left out so far."""
        bad = sum(clip.name in self.skipped for clip in self.clips)
        return {"clips": len(self.clips) - bad, "clips_left_out": len(self.skipped)}

    def _report(self) -> str:
        return describe(self.skipped, self.looked_at)

    def _set(self, chosen: Selection) -> None:
        """Keeps the clips of the split, and describes the numbers of a token."""
        self.clips, self.size, self._table = chosen.clips, chosen.size, chosen.actions
        self.skipped, self.looked_at = chosen.skipped, chosen.looked_at
        for note in [*chosen.notes, *([self._report()] if self.skipped else [])]:
            warnings.warn(note, stacklevel=3)
        channels = self.clips[0].channels
        self.event_shape = (self.stack * channels, *self.size)
        self.action_width = self.stack * self.stride * chosen.width
        self.layout: dict[str, Any] = {
            "kind": "video", "dataset": chosen.title, "frames": self.frames, "stack": self.stack, "stride": self.stride,
            "size": list(self.size), "channels": channels, "actions": chosen.width, "action_width": self.action_width,
            "action_offset": chosen.offset, "range": [-1.0, 1.0], **({"fps": chosen.fps} if chosen.fps else {}),
            **({"action_scale": [*chosen.scale]} if chosen.scale else {})}

    def _number(self) -> None:
        """Numbers the windows: clip _order[i] has the windows _begins[i].._ends[i] - 1."""
        lengths = np.array([(clip.frames - 1) // self.stride + 1 for clip in self.clips])  # with the stride
        if self.sequential:
            drawn = philox_uniform(len(self.clips), seed=self.seed, stream=SPLIT, step=1)
            self._order = np.argsort(drawn, kind="stable")
            count = (lengths - self.stack) // self.frames + 1
        else:
            self._order = np.arange(len(self.clips))
            count = np.array([clip.frames for clip in self.clips]) - (self.frames - 1) * self.stride
        self._ends = np.cumsum(count[self._order])
        self._begins = np.concatenate([[0], self._ends[:-1]])

    def _window(self, number: int) -> Row | None:
        """One window; None where its clip cannot be read."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        i, offset = int(self._order[place]), number - int(self._begins[place])
        clip = self.clips[i]
        begin = offset * self.frames * self.stride if self.sequential else offset
        stored = begin + self.stride * np.arange(self.frames)
        inside = stored < clip.frames
        try:
            if clip.name in self.skipped:
                return None
            video = self._read(clip, stored[inside])
        except BadClip as error:
            self._leave_out(clip, error)
            return None
        padding = np.repeat(video[-1:], len(stored) - len(video), axis=0)
        action = self._actions(i, stored) * inside[:, None]
        return np.concatenate([video, padding]), action, int(inside.sum()), offset == 0 or not self.sequential

    def _read(self, clip: Clip, stored: np.ndarray) -> np.ndarray:
        return resized(clip.read(stored), self.size)

    def _actions(self, clip: int, stored: np.ndarray) -> np.ndarray:
        """[F, stride * A]: for each frame, the actions since the frame before."""
        table = self._table[clip]
        if table is None:
            return np.zeros((len(stored), self.action_width // self.stack), np.float32)
        source = stored[:, None] - np.arange(self.stride - 1, -1, -1)
        known = (source >= 0) & (source < len(table))
        return (table[source.clip(0, len(table) - 1)] * known[..., None]).reshape(len(stored), -1)

    def _batch(self, video: np.ndarray, action: np.ndarray, real: np.ndarray, first: np.ndarray) -> Batch:
        size, frames = video.shape[:2]
        tokens = frames // self.stack
        x = from_uint8(torch.from_numpy(video).to(self.device))
        x = x.reshape(size, tokens, *self.event_shape)
        mask = torch.from_numpy(np.arange(1, tokens + 1) * self.stack <= real[:, None]).to(self.device)
        cond: dict[str, dict[str, Tensor]] = {}
        if self.action_width:
            given = torch.from_numpy(action.reshape(size, tokens, self.action_width)).float()
            cond = {"token": {"action": given.to(self.device)}}
        return Batch(x, mask, cond, torch.from_numpy(first).to(self.device))

    def _leave_out(self, clip: Clip, error: BadClip) -> None:
        self.skipped[clip.name] = str(error)
        warnings.warn(f"{clip.name} is left out from now on: {error}", stacklevel=4)
