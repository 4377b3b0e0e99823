"""One episode of a data set as a run's page: pictures, observations and actions over time, task and success."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from dforce.config import bounded_yaml
from dforce.data import Episodes, load_episodes
from dforce.data.token_layout import parts_of
from dforce.report.movie import write_frames
from dforce.report.plots.traces import traces
from dforce.report.rows import make_row
from dforce.runs.folder import RunFolder

TALL, COLUMNS, RIM = 240, 8, 4  # pixels of a picture's height, at about; pictures of a camera in a row; pixels
FILMED, FPS = 600, 10   # frames of a film at most; frames a second where the data do not say
PANELS = 8              # parts of observations that are drawn


@dataclass(frozen=True)
class EpisodeReport:
    """Settings of `dforce report episode`. The keys are explained in configs/verbs/report/episode.yaml."""

    data: str
    number: int = 0
    subset: str | None = None
    infos: tuple[str, ...] = field(default=())
    film: bool = True

    def load(self) -> Episodes:
        """All episodes, with `success` among the infos where they have it. ValueError where the episode is none."""
        source = data_of(self.data)
        episodes = None
        if not self.infos:
            with suppress(ValueError):
                episodes = load_episodes(source, infos=("success",), subset=self.subset)
        episodes = episodes or load_episodes(source, infos=self.infos, subset=self.subset)
        if not 0 <= self.number < len(episodes):
            raise ValueError(f"{source} has no episode {self.number}: they are numbered from 0 to {len(episodes) - 1}")
        return episodes

    def write(self, folder: RunFolder, episodes: Episodes, before: str = "") -> str:
        """Pictures and results; returns what the page says first. before: what it says before that."""
        e, about = self.number, episodes.about
        observations, actions, rewards = episodes.episode(e)
        steps = slice(int(episodes.first_step[e]), int(episodes.first_step[e] + episodes.lengths[e]))
        infos = {name: values[steps] for name, values in episodes.infos.items()}
        success = np.flatnonzero(infos["success"]) if "success" in infos else None
        name = str(about.get("dataset", Path(self.data).name))
        time = f" in {len(actions) * about['dt']:,.3g} seconds" if about.get("dt") else ""
        said = [f"{before}Episode {e} of the {len(episodes):,} of {name}: {len(actions):,} steps{time}"]
        said += [f'task: "{task}"' for task in _tasks(about, infos)]
        if success is not None:
            said.append(f"success from step {success[0]} on" if len(success) else "no success")
        said += [f"sum of rewards {rewards.sum():.3g}"] if rewards.any() else []
        rows = [make_row(name, "demonstration", "steps", float(len(actions)), n=1)]
        if rewards.any():
            rows.append(make_row(name, "demonstration", "return", float(rewards.sum()), n=1))
        if success is not None:
            rows.append(make_row(name, "demonstration", "success", float(len(success) > 0), n=1, higher=True))
        folder.episodes([{"episode": e, **{row["metric"]: row["value"] for row in rows}}])
        folder.results(rows, data=str(self.data), summary="; ".join(said) + ".")
        captions = self._film(folder, episodes) if episodes.images else {}
        mark = ("success", int(success[0])) if success is not None and len(success) else None
        traces(_groups(episodes, e, infos), dt=about.get("dt"), mark=mark).savefig(folder.media / "traces.png")
        folder.captions({**captions, "traces.png": "Observations, actions and further values over time."})
        return "; ".join(said)

    def _film(self, folder: RunFolder, episodes: Episodes) -> dict[str, str]:
        """A row of pictures for each camera, and all cameras side by side as a film; their captions."""
        begin, count = int(episodes.first_observation[self.number]), int(episodes.lengths[self.number]) + 1
        chosen = np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int)
        strips = [np.concatenate([_framed(frame) for frame in _sized(images[begin + chosen])], 1)
                  for images in episodes.images.values()]
        wide = max(strip.shape[1] for strip in strips)
        Image.fromarray(np.concatenate([np.pad(strip, ((0, 0), (0, wide - strip.shape[1]), (0, 0)), constant_values=255)
                                        for strip in strips])).save(folder.media / "cameras.png")
        cameras = ", ".join(episodes.images)
        captions = {"cameras.png": f"What the cameras saw ({cameras}, downwards), from the first to the last "
                                   "observation."}
        if not self.film:
            return captions
        stride, dt = -(-count // FILMED), episodes.about.get("dt")
        frames = (_side_by_side([_sized(images[begin + t:begin + t + 1])[0] for images in episodes.images.values()])
                  for t in range(0, count, stride))
        fps = max(1, round(1 / (dt * stride))) if dt else FPS
        film = write_frames(folder.media / "film.mp4", (frame[:frame.shape[0] // 2 * 2, :frame.shape[1] // 2 * 2]
                                                        for frame in frames), fps=fps)
        pace = "as fast as it was" if dt else "at a pace that the data do not tell"
        return {**captions, film.name: f"The episode {pace}; from left to right {cameras}."}


def data_of(source: str) -> str:
    """The data set that `source` is; of a run folder, the one that it trained on or made."""
    config = Path(source).expanduser() / "config.yaml"
    if not config.is_file():
        return source
    content = yaml.safe_load(bounded_yaml(config))
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, str):
        raise ValueError(f"{source} is a run that was given no data set: give the data set itself, or a run of "
                         "dforce imitate")
    return data


def _tasks(about: dict[str, Any], infos: dict[str, np.ndarray]) -> list[str]:
    """The tasks of an episode in words, as far as the data tell."""
    if "task_index" in infos and about.get("tasks"):
        return [str(about["tasks"][i]) for i in np.unique(infos["task_index"]) if i < len(about["tasks"])]
    return [str(about["task"])] if about.get("task") else []


def _groups(episodes: Episodes, e: int, infos: dict[str, np.ndarray]) -> dict[str, tuple[list[str], np.ndarray]]:
    """The panels: each part of the observation, the actions, rewards and numbers of infos."""
    observations, actions, rewards = episodes.episode(e)
    observed, acted = episodes.names()
    groups: dict[str, tuple[list[str], np.ndarray]] = {}
    begin = 0
    for part, width in (parts_of(observed) if observed else {}).items():
        names = [name.removeprefix(f"observation.{part}").strip("[]") for name in observed[begin:begin + width]]
        if len(groups) < PANELS:
            groups[part] = names, observations[:, begin:begin + width]
        begin += width
    groups["actions"] = acted, actions
    if rewards.any():
        groups["reward"] = ["reward"], rewards[:, None]
    flat = {name: values.reshape(len(values), -1) for name, values in infos.items()
            if name not in ("task_index", "success")}
    return groups | {name: ([f"{name}[{i}]" for i in range(values.shape[1])], values) for name, values in flat.items()}


def _framed(frame: np.ndarray) -> np.ndarray:
    """A picture with a white rim at the right and below."""
    return np.pad(frame, ((0, RIM), (0, RIM), (0, 0)), constant_values=255)


def _side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures [H, W, 3] of any sizes as one, white below the lower ones."""
    tall = max(len(picture) for picture in pictures)
    return np.concatenate([np.pad(picture, ((0, tall - len(picture)), (0, 0), (0, 0)), constant_values=255)
                           for picture in pictures], 1)


def _sized(frames: np.ndarray) -> np.ndarray:
    """Pictures [n, H, W, 3] enlarged or thinned by whole numbers, to a height near TALL."""
    height = frames.shape[1]
    if height > TALL:
        step = round(height / TALL)
        return frames[:, ::step, ::step]
    return frames.repeat(TALL // height, 1).repeat(TALL // height, 2)
