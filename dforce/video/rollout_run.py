"""A rollout as a run: generated frames and their film, gone on with where they stopped, measured against real video."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.noise import Noise
from dforce.core.tree import State, leaves
from dforce.data.pixels import from_uint8, to_uint8
from dforce.report.brief import few_metrics
from dforce.report.rows import Row
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder
from dforce.runs.progress import Ticker, bar
from dforce.video.copying import copying_sentence
from dforce.video.evaluation import MetricSettings, evaluate_rollout, yardstick
from dforce.video.film import FILMED, LOOKS, Film, film_frame, strip
from dforce.video.metrics.measure import RowMaker, closeness
from dforce.video.model import VideoModel
from dforce.video.recording import Record
from dforce.video.reference_clips import RealVideo, ReferenceClips, rollout_actions
from dforce.video.stream import Actions, Recipe, begin, stream
from dforce.video.walker import FILE, Walker

FEW = 8  # held-out clips: with fewer, the summary says how many
CAPTIONS = {
    "strip.png": "Generated frames by their number; a row is a rollout.",
    "drift.png": "Statistics of the frames over time, beside real video."}


@dataclass(frozen=True)
class RolloutRun:
    """A run of `dforce rollout`. The keys are explained in configs/verbs/rollout/rollout.yaml."""

    model: VideoModel
    recipe: Recipe  # how frames are sampled, checked for the model
    settings: MetricSettings  # how they are measured
    frames: int
    samples: int
    context: int | None
    data: str | None
    actions: str | None
    seed: int
    measure: bool | None
    film: bool
    fps: float
    save_every: int
    raw: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if min(self.frames, self.samples, self.save_every) < 1:
            raise ValueError(f"frames, samples and save_every are at least 1, got {self.frames}, {self.samples}, "
                             f"{self.save_every}")
        if self.model.latents is not None and self.recipe.clamp is not None:
            raise ValueError("this model makes latents, which have no largest size: give clamp=null")
        if not self.data_set and (self.context or self.measure or self._needs_clips(self.actions)):
            raise ValueError("the checkpoint does not say what it learnt from: give data=, or go without "
                             "(measure=false context=0 actions=random)")

    @property
    def data_set(self) -> str:
        """Real video for the context and to measure against, "" where none is known."""
        return self.data or self.model.data

    @property
    def has_walker(self) -> bool:
        """Does a walker come with the model? It needs no real video to learn from."""
        return (self.model.checkpoint / FILE).is_file()

    @property
    def context_frames(self) -> int:
        """Frames that rollouts begin with, in whole tokens."""
        return self.model.context_frames(self.context if self.data_set else 0)

    @property
    def action_source(self) -> str:
        """Where actions come from, as `rollout_actions` takes it."""
        alone = "walker" if self.has_walker and self.model.actions else "random"
        return self.actions or ("data" if self.data_set else alone)

    @property
    def measured(self) -> bool:
        """Is the rollout held against real video?"""
        return bool(self.data_set) if self.measure is None else self.measure

    def _needs_clips(self, source: str | None) -> bool:
        """Do actions of this source take real video?"""
        return source == "data" and self.model.actions > 0 or source == "walker" and not self.has_walker

    def serve(self, port: int, host: str | None) -> None:
        """Serves the model to a browser until Ctrl-C: keys are the actions, nothing is measured. host: of `serve`."""
        from dforce.video.server import serve

        real = RealVideo(self.model, self.data_set, seed=self.seed) if self.context_frames or self.data else None
        with contextlib.suppress(KeyboardInterrupt):
            serve(self.model, self.recipe, real, port=port, context=self.context_frames, seed=self.seed, fps=self.fps,
                  host=host)

    def run(self, folder: RunFolder) -> None:
        """Rolls out, films and measures; all of it goes into the folder."""
        real = self.real_video()
        start = real.clips(self.samples, self.context_frames) if real and self.context_frames else None
        with bar("actions") as advance:
            actions = rollout_actions(self.action_source, self.model, real, batch=self.samples, context=start,
                                      frames=self.frames, seed=self.seed, file=folder.path / FILE,
                                      steps=self.settings.feature_steps, advance=advance)
        record = Record(folder.path, shape=(self.samples, *self.model.shape[1:], self.model.shape[0]),
                        actions=self.model.actions, settings=self.decisive(start), resume=self.resume)
        beside = _beside(real, start, self.frames)
        speed = self.generate(record, folder, start, actions, beside)
        made = record.frames()[:self.frames]
        strip(np.asarray(made[:, :FILMED]), LOOKS, folder.media / "strip.png")
        folder.captions({"rollout.mp4": self.caption(beside), **CAPTIONS})
        variant = variant_of(self.recipe) | ({"actions": "walker"} if isinstance(actions, Walker) else {})
        maker = RowMaker(self.model.data or "video", self.recipe.method, variant)
        rows: list[Row] = [maker.row("frames per second", speed, n=1, unit="1/s", higher=True)] if speed else []
        if real is not None and self.measured:
            with bar("features") as advance:
                yard = yardstick(self.model, real, len(made), self.settings, advance)
            with bar("measure") as advance:
                rows += evaluate_rollout(folder, yard, made, record.actions_fed(), maker._replace(task=real.data),
                                         start=start, advance=advance)
        said = self.summary(len(made), rows, real, start)
        folder.results(rows, summary=said)
        print(said, terminal_table(few_metrics(rows)) if rows else "All frames were there already, and nothing is "
              "measured.", sep="\n")

    def summary(self, frames: int, rows: list[Row], real: RealVideo | None, start: ReferenceClips | None) -> str:
        """What came out, in sentences: first how many rollouts broke off."""
        begun = len(set(start.numbers)) if start is not None else self.samples
        again = f"They begin in {_clips(begun)} only, so intervals are too narrow." if begun < self.samples else ""
        few = f"Held out: {_clips(len(real))} only." if rows and real is not None and len(real) < FEW else ""
        return " ".join(filter(None, [
            f"{self.samples} rollouts of {frames} frames, generated after {self.context_frames} real ones"
            f"{closeness(rows)}.", few, again, copying_sentence(rows)]))

    def caption(self, beside: np.ndarray | None) -> str:
        """What the film shows. beside: the real frames above the generated ones."""
        if beside is None:
            return "The rollouts, all of it generated."
        more = ", and are told the same actions" if self.action_source == "data" and self.model.actions else ""
        again = f" The {len(beside)} real frames are shown again and again." if len(beside) < self.frames else ""
        return f"Above: real video. Below: the rollouts, generated. They begin after the same frames{more}.{again}"

    def real_video(self) -> RealVideo | None:
        """Real clips that the model has not seen, if anything needs them."""
        needed = self.measured or self._needs_clips(self.action_source) or self.context_frames or self.data
        return RealVideo(self.model, self.data_set, seed=self.seed) if needed and self.data_set else None

    def decisive(self, start: ReferenceClips | None) -> dict[str, Any]:
        """What decides the frames of a rollout: it is only gone on with if none of it has changed."""
        seal = hashlib.sha256((self.model.checkpoint / "MANIFEST.json").read_bytes()).hexdigest()[:16]
        context = None if start is None else hashlib.sha256(start.frames.numpy().tobytes()).hexdigest()[:16]
        return {**self.recipe._asdict(), "model": seal, "raw": self.raw, "context": context,
                "seed": self.seed, "actions": self.action_source}

    def generate(self, record: Record, folder: RunFolder, start: ReferenceClips | None, actions: Actions | None,
                 beside: np.ndarray | None) -> float | None:
        """Generates until `record` holds all frames; returns frames a second of all rollouts, None if none was left."""
        context = torch.zeros(self.samples, 0, *self.model.shape) if start is None else start.frames
        state = record.state if record.chunks else begin(self.model, self.recipe, context, actions)
        if isinstance(actions, Walker) and record.chunks:
            actions.recall(record)
        chunk = self.recipe.chunk or self.model.stack
        done = first = saved = record.chunks * chunk
        with Film(folder.media / "rollout.mp4", fps=self.fps) if self.film else contextlib.nullcontext() as film, \
                Ticker(max(self.frames - done, 0), "rollout") as ticker:
            if film is not None:  # a film cannot be appended to
                for number, shown in enumerate(record.frames()):
                    film.write(film_frame(shown, beside, number))
            began = last = time.monotonic()
            for x, pixels, after in self._chunks(record, state, context.shape[1], actions):
                if film is not None:
                    for t in range(chunk):
                        film.write(film_frame(pixels[:, t], beside, done + t))
                done, now = done + chunk, time.monotonic()
                speed = self.samples * (done - first) / (now - began)
                ticker.advance(chunk, note=f"{speed:.1f} frames/s")
                if done - saved >= self.save_every or done >= self.frames:
                    folder.log(done, **_numbers(x, after),
                               frames_per_second=self.samples * (done - saved) / (now - last))
                    record.save(after, chunks=done // chunk, frames=done)
                    saved, last = done, now
        return speed if done > first else None

    def _chunks(self, record: Record, state: State, context: int,
                actions: Actions | None) -> Iterator[tuple[Tensor, np.ndarray, State]]:
        """Frames, their pixels and the state after, chunk by chunk, until the record, which they go to, is full."""
        chunk = self.recipe.chunk or self.model.stack
        done = record.chunks * chunk
        chunks = stream(self.model, self.recipe, state, batch=self.samples, actions=actions, context=context,
                        noise=Noise(self.seed), first=record.chunks)
        while done < self.frames:
            x, after = next(chunks)
            pixels = to_uint8(x)
            record.append(pixels, None if actions is None else actions(context + done, chunk))
            if isinstance(actions, Walker):
                actions.see(from_uint8(pixels))  # as the record will show it
            done += chunk
            yield x, pixels, after


def _clips(count: int) -> str:
    return f"{count} clip{'s' * (count > 1)}"


def variant_of(recipe: Recipe) -> dict[str, Any]:
    """What a row of results says of the recipe: the settings that its method reads."""
    common: dict[str, Any] = {"steps": recipe.steps, "order": recipe.order, "clamp": recipe.clamp}
    if recipe.method == "sliding":
        return {**common, "chunk": recipe.chunk, "keep": recipe.keep}
    refresh = "none" if recipe.refresh is None else f"{recipe.refresh[0]}:{recipe.refresh[1]}"
    common |= {"stabilise_std": recipe.stabilise_std, "refresh": refresh}
    common |= {"mode": recipe.mode} if recipe.stabilise_std else {}
    return common | ({"history": recipe.history, "history_std": recipe.history_std} if recipe.history != 1 else {})


def _beside(real: RealVideo | None, start: ReferenceClips | None, frames: int) -> np.ndarray | None:
    """Real frames to be shown beside the generated ones, uint8 [T, B, H, W, C]: what follows the context."""
    if real is None or start is None:
        return None
    before = start.frames.shape[1]
    whole, _ = real.whole(start.numbers[:FILMED], before + frames)
    return to_uint8(whole[:, before:].transpose(0, 1)) if whole.shape[1] > before else None


def _numbers(x: Tensor, state: State) -> dict[str, float]:
    """What is logged of a chunk: how bright and how different frames are, and how large the latent is."""
    numbers = {"brightness": float((x.mean() + 1) / 2), "contrast": float(x.std()),
               "outside": float((x.abs() > 1).float().mean())}
    carried = [leaf.float().flatten() for leaf in leaves(state) if leaf.is_floating_point() and leaf.numel()]
    return numbers | ({"latent_rms": float(torch.cat(carried).square().mean().sqrt())} if carried else {})
