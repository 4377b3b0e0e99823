"""Real video for rollouts: their context, the source of their actions, and what they are measured against."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.core.noise import mix
from dforce.data.batch import Batch
from dforce.data.video.clip import ACTIONS, read_array
from dforce.data.video.dataset import VideoClips
from dforce.runs.progress import Advance, no_advance, telling
from dforce.video.model import VideoModel
from dforce.video.stream import Actions
from dforce.video.walker import FILE, MEMORY, Walker, load_walker, save_walker, train_walker

HOLD = 8        # frames that a random action lasts
PARTS = 2**20   # equally likely parts of a normal law
READ_KEYS = ("stride", "held_out", "action_offset", "actions", "fps")  # how the model's training read its clips
BATCH = 8       # windows of a step of training features and probe


class ReferenceClips(NamedTuple):
    """Whole clips: frames [N, T, C, H, W] in -1..1, actions [N, T, A] or None, numbers: which clips of the split."""

    frames: Tensor
    actions: Tensor | None
    numbers: list[int]


class RealVideo:
    """Clips of a data set as a model sees them.

    data: as `dforce train video` takes it. split: "val" for files that training did not see. seed: of the order of
    `clips`. window: frames of the windows that `windows(step)` draws, in whole tokens; None for as many as in training.
    """

    def __init__(self, model: VideoModel, data: str, *, split: str = "val", window: int | None = None, seed: int = 0):
        if split == "val" and data == model.data and model.config.get("held_out") == 0:
            warnings.warn("the training held no clip out (held_out=0): the model is held against clips that it has "
                          "learnt from", stacklevel=2)
            split = "train"
        self.model, self.data, self.split = model, data, split
        # with the seed of training, which may have decided what files were held out
        given = {key: model.config[key] for key in READ_KEYS if model.config.get(key) is not None}
        given["action_scale"] = scale_of(model)
        wanted = max(model.window, 2 * model.stack) if window is None else window
        window = max(model.stack, wanted // model.stack * model.stack)
        self.set = VideoClips(data, frames=window, size=model.shape[1:], stack=model.stack, batch=BATCH,
                              seed=int(model.config.get("seed") or 0), split=split, **given)  # type: ignore[arg-type]
        channels, width = self.set.event_shape[0] // model.stack, self.set.action_width // model.stack
        if channels != model.shape[0]:
            raise ValueError(f"the clips of {data} have {channels} channels, the model {model.shape[0]}")
        if model.actions and width != model.actions:
            raise ValueError(f"the clips of {data} have actions of {width} numbers a frame, the model {model.actions}; "
                             "take the data that it was trained on, or others recorded alike")
        self.seed = seed

    @property
    def width(self) -> int:
        """Numbers of an action of one frame, 0 where the clips have none."""
        return self.set.action_width // self.model.stack

    @property
    def shortest(self) -> int:
        """Frames of the shortest clip, as the model counts them."""
        frames = min((clip.frames - 1) // self.set.stride + 1 for clip in self.set.clips)
        return frames // self.model.stack * self.model.stack

    def windows(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Frames [B, T, C, H, W] and actions [B, T, A] of a step: a function of (seed, step)."""
        return unstacked(self.set.batch_at(step), self.model.stack)

    def clips(self, count: int, frames: int | None = None, *, skip: int = 0) -> ReferenceClips:
        """`count` clips of `frames` frames (None: as all have), in the seed's order, after `skip`; or ValueError."""
        order = self._long(frames or 2)
        chosen = [order[(skip + i) % len(order)] for i in range(count)]
        return self._read(chosen, 0, frames)

    def stretches(self, most: int, frames: int) -> ReferenceClips:
        """Up to `most` stretches of `frames` frames that do not overlap, in the seed's order; or ValueError.

        The first ones begin their clips; then come the second ones of all clips that are long enough, and so on.
        """
        order, span = self._long(frames), frames * self.set.stride
        longest = max(self.set.clips[i].frames for i in order)
        places = [(i, begin) for begin in range(0, longest - span + 1, span) for i in order
                  if begin + span <= self.set.clips[i].frames][:most]
        return self._read([i for i, _ in places], [begin for _, begin in places], frames)

    def _long(self, frames: int) -> list[int]:
        """Numbers of the clips of so many frames or more, in the seed's order."""
        long = [i for i, clip in enumerate(self.set.clips) if clip.frames >= frames * self.set.stride]
        if not long:
            raise ValueError(f"no {self.split} clip of {self.data} has {frames} frames")
        return [long[i] for i in mix(self.seed, 1, torch.arange(len(long))).argsort().tolist()]

    def _read(self, chosen: list[int], start: int | list[int], frames: int | None) -> ReferenceClips:
        if frames is not None:
            frames = -(-frames // self.model.stack) * self.model.stack
        stretch, actions = unstacked(self.set.sequence(chosen, start=start, frames=frames), self.model.stack)
        return ReferenceClips(stretch, actions, chosen)

    def __len__(self) -> int:
        """How many clips the split has."""
        return len(self.set.clips)

    def whole(self, numbers: list[int], most: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Frames [N, T, C, H, W] and actions [N, T, A] of clips by number, as long as the shortest of them, and at most
        `most` frames, in whole tokens."""
        lengths = [(self.set.clips[i].frames - 1) // self.set.stride + 1 for i in numbers]
        frames = min(lengths if most is None else [*lengths, most]) // self.model.stack * self.model.stack
        return unstacked(self.set.sequence(numbers, frames=frames), self.model.stack)


def unstacked(batch: Batch, stack: int) -> tuple[Tensor, Tensor | None]:
    """Frames [B, T, C, H, W] and actions [B, T, A], None for none, of a batch whose tokens are `stack` frames."""
    actions = (batch.cond or {}).get("token", {}).get("action")
    return (batch.x.unflatten(2, (stack, -1)).flatten(1, 2),
            None if actions is None else actions.unflatten(2, (stack, -1)).flatten(1, 2))


def scale_of(model: VideoModel) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by which the model's real actions were normalised; choices are not."""
    mean, std = model.layout.get("action_scale") or ([0.0] * model.actions, [1.0] * model.actions)
    return mean, std


def rollout_actions(kind: str, model: VideoModel, real: RealVideo | None, *, batch: int, context: ReferenceClips | None,
                    frames: int, seed: int, file: Path | None = None, steps: int = 600,
                    advance: Advance = no_advance) -> Actions | None:
    """The actions of `batch` rollouts of `frames` frames after their context; None for a model without actions.

    kind: "data" takes those of the clips that the rollouts begin with, then those of further clips. "random" holds each
    one-hot action for some frames. "walker" is a `Walker`, which must be shown the frames. Anything else is a file, npy
    or npz with `actions`, of [frames] numbers or [frames, A], the same for every rollout.
    file: of the policy of a walker; one that is not there comes with the model, or is trained for `steps` steps.
    advance: told the shares of that training as they are done.
    """
    if kind == "walker":
        return _walker(model, real, context, batch=batch, seed=seed, file=file, steps=steps, advance=advance)
    if not model.actions:
        return None
    before = 0 if context is None else context.frames.shape[1]
    known = None if context is None else context.actions
    if kind == "data":
        if real is None or not real.width:
            raise ValueError("actions=data needs clips with actions; give data=, or actions=random")
        return _table(_from_clips(real, context, batch, before + frames))
    if known is None:
        known = torch.zeros(batch, before, model.actions)
    if kind == "random":
        return _random(known, model, seed)
    return _table(torch.cat([known, _from_file(kind, model, frames).expand(batch, -1, -1)], 1))


def _from_clips(real: RealVideo, context: ReferenceClips | None, batch: int, frames: int) -> Tensor:
    """Actions [B, frames, A] of clip after clip, without those of the first frame of later clips, which are null."""
    start = real.clips(batch) if context is None else context
    rows = []
    for number in start.numbers:
        parts, length, turn = [], 0, 0
        while length < frames:
            i = (number + turn) % len(real)
            _, actions = real.whole([i], max(frames - length + 1, 2 * real.model.stack))
            assert actions is not None
            parts.append(actions[0] if turn == 0 else actions[0, 1:])
            length += len(parts[-1])
            turn += 1
        rows.append(torch.cat(parts)[:frames])
    return torch.stack(rows)


def _walker(model: VideoModel, real: RealVideo | None, context: ReferenceClips | None, *, batch: int, seed: int,
            file: Path | None, steps: int, advance: Advance) -> Walker:
    """The walker of the run, the one that came with the model, or a new one, after the context."""
    if not model.actions or model.real_actions:
        raise ValueError(f"actions=walker chooses among actions, and this model takes "
                         f"{'real numbers' if model.actions else 'none'}; leave actions=data")
    there = [one for one in (file, model.checkpoint / FILE) if one is not None and one.is_file()]
    if there:
        policy = load_walker(there[0], device=model.device)
    elif real is None or not real.width:
        raise ValueError("actions=walker learns from clips with actions; give data=, or actions=random")
    else:
        known = RealVideo(model, real.data, split="train")
        learnt = RealVideo(model, real.data, split="train", window=min(2 * MEMORY, known.shortest))
        windows = telling(learnt.windows, steps, advance)
        policy = train_walker(windows, model.actions, steps=steps, seed=seed, device=model.device)
    if file is not None and not file.is_file():
        save_walker(policy, file)
    frames, actions = (torch.zeros(batch, 0, *model.shape), None) if context is None else context[:2]
    return Walker(policy, frames, torch.zeros(batch, 0, model.actions) if actions is None else actions, seed=seed)


def _random(known: Tensor, model: VideoModel, seed: int) -> Actions:
    """The known actions, then one drawn anew every HOLD frames as a function of (seed, rollout, time): a choice, or
    real numbers from the normal law of those that the model learnt from."""
    batch, before, actions = *known.shape[:2], model.actions

    def actions_at(frame: int, count: int) -> Tensor:
        at = torch.arange(frame, frame + count)
        drawn = mix(seed, 2, torch.arange(batch)[:, None], at[None] // HOLD)
        if model.real_actions:
            parts = mix(seed, 3, drawn[..., None], torch.arange(actions)) % PARTS
            out = torch.special.ndtri((parts + 0.5) / PARTS).float()
        else:
            out = torch.nn.functional.one_hot(drawn % actions, actions).float()
        if frame == 0 and before == 0:
            out[:, 0] = 0  # nothing led to the first frame
        old = min(max(before - frame, 0), count)
        return torch.cat([known[:, frame:frame + old], out[:, old:]], 1)
    return actions_at


def _from_file(name: str, model: VideoModel, frames: int) -> Tensor:
    """[1, frames, A], as the model takes them."""
    file, actions = Path(name), model.actions
    if not file.is_file():
        raise ValueError(f"actions must be data, random, walker, or a file (npy, npz), got {name!r}")
    stored = read_array(file, ACTIONS)
    if stored.dtype.kind not in "iuf" or not np.isfinite(stored).all():
        raise ValueError(f"{file}: actions must be whole or finite real numbers, got {stored.dtype}")
    values = torch.from_numpy(np.array(stored))
    if values.ndim == 1 and not values.is_floating_point():
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < actions:
            raise ValueError(f"{file}: actions lie in 0..{actions - 1}, got {int(values.min())}..{int(values.max())}")
        values = torch.nn.functional.one_hot(values.long(), actions)
    if values.ndim != 2 or values.shape[1] != actions or len(values) < frames:
        raise ValueError(f"{file} must hold whole numbers [{frames}], or [{frames}, {actions}], got {[*values.shape]}")
    mean, std = map(torch.tensor, scale_of(model))
    return (values[None, :frames].float() - mean) / std


def _table(values: Tensor) -> Actions:
    """The actions of a table [B, T, A], whose last one is repeated past its end."""
    def actions_at(frame: int, count: int) -> Tensor:
        return values[:, torch.arange(frame, frame + count).clamp(max=values.shape[1] - 1)]
    return actions_at
