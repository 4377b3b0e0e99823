"""Training of a policy from demonstrations, and what it becomes: a checkpoint that acts."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dforce.core.files import sha256
from dforce.data import load_episodes
from dforce.data.draws import split_episodes
from dforce.data.episodes import Episodes
from dforce.data.whole_episodes import WholeEpisodes
from dforce.envs.robot import TASKS, make_task
from dforce.nets.pictures import CameraCoders
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.imitation import Imitation, PictureCoding
from dforce.policy.receding import RecedingPolicy
from dforce.runs.folder import RunFolder
from dforce.runs.picture_coding import coders_of, encoded
from dforce.runs.training_run import DenoiserTraining, Prepared, has_checkpoint, other_statistics
from dforce.train.checkpoint import CheckpointError, find, load, load_state

WORLD = ("observations", "image_size", "noise", "span", "objects")  # settings that demonstrations name


@dataclass(frozen=True, kw_only=True)
class ImitationTraining(DenoiserTraining):
    """A training of `dforce imitate`. The keys are explained in configs/verbs/imitate/imitate.yaml."""

    data: str
    chunk: int
    held_out: float
    imitation: Imitation
    subset: str | None = None
    pictures: PictureCoding = PictureCoding()

    def prepare(self) -> Prepared:
        """Data, model and training loop, or ValueError."""
        episodes, coders = self._with_numbers(load_episodes(self.data, subset=self.subset))
        sequences = functools.partial(WholeEpisodes, episodes, chunk=self.chunk, batch=self.batch, seed=self.seed,
                                      held_out=self.held_out, **self.imitation.sequences)
        train, about = sequences(), episodes.about
        held_out = sequences(split="val", normalizer=train.normalizer) if self.held_out else None
        levels: Any = self.imitation.levels
        if "cycle" in inspect.signature(levels).parameters:  # levels that tell observations from actions
            levels = functools.partial(levels, cycle=train.turn)
        training = replace(self, objective=functools.partial(self.objective, levels=levels))
        layout = {**train.layout, "method": self.imitation.name, "policy": self.imitation.acting,
                  "env_settings": {key: about[key] for key in WORLD if about.get(key) is not None},
                  **({} if coders is None else {"cameras": coders.arguments})}
        return training.begin(layout, train.batch_at, what="the data",
                              differing=other_statistics(train.normalizer), normalizer=train.normalizer, coders=coders,
                              shards=train.virtual_shards, validate=held_out and held_out.batch_at)

    def _with_numbers(self, episodes: Episodes) -> tuple[Episodes, CameraCoders | None]:
        """The episodes, numbers in the place of pictures, and the coders of the cameras where there are any."""
        if not episodes.images:
            return episodes, None
        coders = None
        if self.resume and has_checkpoint(Path(self.resume)):
            coders = load(self.resume, trust=self.trust).coders
        if coders is None:
            chosen = split_episodes(len(episodes), self.held_out, self.seed)[0]
            coders = coders_of(self.pictures, episodes, chosen, seed=self.seed)
        return encoded(episodes, coders), coders

    def finish(self, prepared: Prepared, folder: RunFolder, newest: Path) -> None:
        """Says how large the network is, since methods are compared at equal weights."""
        weights = sum(value.numel() for value in load_state(newest).model.values())
        print(f"{self.imitation.name}: {weights:,} weights")


def policy_facts(folder: Path, policy: ForcingPolicy, layout: Mapping[str, Any]) -> dict[str, Any]:
    """What a robot has to know of the policy in a checkpoint: its task, times, names, and hashes that tell another."""
    numbers = b"".join(each.cpu().numpy().tobytes() for part in (policy.of_observation, policy.of_action)
                       for each in (part.mean, part.std))
    hashes = {"normalizer": hashlib.sha256(numbers).hexdigest(), "checkpoint": sha256(folder / "MANIFEST.json")}
    actions = layout["names"][-policy.tokens.action:]
    return {"task": layout.get("env"), "settings": layout["env_settings"], "method": layout["method"],
            "dt": layout.get("dt"), "action_names": actions, "hashes": hashes}


def played_task(layout: Mapping[str, Any], env: str | None = None) -> tuple[str, Callable[..., Any]]:
    """Name of the task that a policy plays, and what makes it, with the settings of the policy's data.

    env: its name, from the user; None: the task of the data. A checkpoint may name a robot task of dforce's alone:
    Gymnasium imports the module of other names. ValueError where none is named.
    """
    of_data = layout.get("env")
    name = env or of_data
    if not name or env is None and name not in TASKS.values():
        raise ValueError(f"the policy's data came from {of_data or 'an environment that they do not name'}, which is "
                         "no task of dforce: name one with env=module:name, whose info has stage, success and "
                         "decision_due, or play episodes with dforce.policy.evaluation.run_policy")
    settings = {key: layout["env_settings"][key] for key in WORLD if key in layout["env_settings"]}
    return name, functools.partial(make_task, name, **settings if name == of_data else {})


def see_it_act(folder: Path) -> str:
    """What plays the policy in a run folder: a command where its task is one of dforce's."""
    layout = json.loads((find(folder) / "layout.json").read_text(encoding="utf-8"))
    command = f"dforce evaluate robot checkpoint={folder}"
    return command if layout.get("env") in TASKS.values() else (
        "dforce.policy.evaluation.run_policy, in an environment of your own (docs/robots.md)")


def load_policy(where: str | Path, *, device: Any = "cpu", raw: bool = False, trust: Any = None,
                **settings: Any) -> tuple[ForcingPolicy, dict[str, Any]]:
    """The policy in a checkpoint of `dforce imitate`, and its layout. where, device, raw, trust: as in `load`.

    settings: of `ForcingPolicy` or `RecedingPolicy`, over those that it was trained with. CheckpointError for another
    kind of model.
    """
    bundle = load(where, device=device, raw=raw, trust=trust)
    if bundle.layout.get("kind") != "policy" or bundle.normalizer is None:
        raise CheckpointError(f"{where} is no policy: those are made by `dforce imitate`")
    acting = {**bundle.layout["policy"], **settings}
    kind = RecedingPolicy if "stride" in bundle.layout else ForcingPolicy
    policy = kind(bundle.denoiser, bundle.schedule, bundle.normalizer, bundle.layout, coders=bundle.coders, **acting)
    return policy, bundle.layout
