"""Learnt rewards as sealed folders, reward.json and model.safetensors; and every reward by its name."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn

from dforce.align.rewards.builtin import per_frame
from dforce.align.rewards.layouts import under
from dforce.align.rewards.learnt import BradleyTerry
from dforce.align.rewards.network import RewardNet, flat
from dforce.align.rewards.protocol import Reward, Subject, Watched
from dforce.align.rewards.published import PUBLISHED, REFUSED, published_reward
from dforce.align.rewards.ratings import MeanRating, RatingHead
from dforce.config import build, check_numbers, nearest, option, options, require_name, resolve
from dforce.train.atomic_folder import CheckpointError, sealed, verified, write_tensors
from dforce.train.contents import used
from dforce.train.state import built_for

FOLDER = "reward"  # in a run folder
FORMAT = 1
GROUP = "image_reward"  # not `reward`: a key of that name takes folders and functions too, which no group does


def save_reward(folder: str | Path, model: BradleyTerry | MeanRating, *, encoder: str | None = None,
                about: Mapping[str, Any] | None = None) -> Path:
    """Writes a learnt reward, replacing one of the same name whole or not at all. about: JSON-able.

    The network of a `BradleyTerry` has to be a `RewardNet`. Of a `MeanRating` the encoder is saved where it is one, or
    `flat`; of any other the name `encoder` and a digest of its weights are, and who loads brings it.
    """
    config, tensors = _pairs_parts(model) if isinstance(model, BradleyTerry) else _rating_parts(model, encoder)
    text = json.dumps({**config, "about": dict(about or {})}, indent=1) + "\n"
    size = sum(tensor.nbytes for tensor in tensors.values()) + len(text)
    with sealed(Path(folder), about={"kind": "reward", "format": FORMAT}, needed=size) as inside:
        (inside / "reward.json").write_text(text, encoding="utf-8")
        write_tensors(inside / "model.safetensors", tensors)
    return Path(folder)


def load_reward(where: str | Path, *, encoder: Any = None) -> BradleyTerry | MeanRating:
    """The reward of a folder that `save_reward` wrote, or of a run folder that has one; frozen, in evaluation mode.

    encoder: the one a `MeanRating` was fitted on, where that is not in the folder. Raises CheckpointError where there
    is no such folder, it is damaged, or the encoder is missing or another.
    """
    folder = find_reward(where)
    config = _described(folder)
    with used(folder, "reward"):
        tensors = load_file(folder / "model.safetensors")
        if config["kind"] == "bradley_terry":
            offset = float(config["offset"])
            if not math.isfinite(offset):
                raise ValueError(f"its offset is {offset}")
            return BradleyTerry(_net(config["net"], tensors, folder), offset=offset)
        about = config["head"]
        head = built_for(lambda: RatingHead(about["features"], hidden=about["hidden"]), under("head.", tensors),
                         origin=f"the head in {folder}")
        head.eval().requires_grad_(False)
        return MeanRating(_encoder(config["encoder"], under("encoder.", tensors), encoder, folder), head)


def _described(folder: Path) -> dict[str, Any]:
    """What reward.json says, after every file is compared with its digest. Raises CheckpointError."""
    if verified(folder, "reward.json", "model.safetensors").get("format") != FORMAT:
        raise CheckpointError(f"{folder} was written by another version of dforce")
    with used(folder, "reward"):
        config = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("kind") not in ("bradley_terry", "rating"):
            raise ValueError("reward.json describes no reward")
        check_numbers({key: config.get(key) for key in ("net", "head", "encoder")})
        return config


def find_reward(where: str | Path) -> Path:
    """The folder that `load_reward` would read."""
    for folder in (Path(where), Path(where) / FOLDER):
        if (folder / "reward.json").is_file():
            return folder
    raise CheckpointError(f"there is no learnt reward at {str(where)!r}: give a run folder of `dforce train reward`, "
                          f"or the {FOLDER}/ folder in it")


def needed_encoder(where: str | Path) -> str | None:
    """The name of the encoder that `load_reward` has to be given, None if it needs none. Raises CheckpointError."""
    folder = find_reward(where)
    about = _described(folder).get("encoder") or {}
    return about.get("name") if about.get("kind") == "other" else None


def _pairs_parts(model: BradleyTerry) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not isinstance(model.net, RewardNet):
        raise ValueError(f"only a RewardNet can be saved, got a {type(model.net).__name__}")
    return {"kind": "bradley_terry", "net": model.net.config, "offset": model.offset}, model.net.state_dict()


def _rating_parts(model: MeanRating, name: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {f"head.{key}": value for key, value in model.head.state_dict().items()}
    if isinstance(model.encoder, RewardNet):
        about: dict[str, Any] = {"kind": "net", "net": model.encoder.config}
        tensors |= {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
    elif model.encoder is flat:
        about = {"kind": "flat"}
    elif name:
        about = {"kind": "other", "name": name, "digest": weights_digest(model.encoder)}
    else:
        raise ValueError(f"this encoder, a {type(model.encoder).__name__}, is not saved with the head: give its name, "
                         "encoder=..., by which it is found again")
    return {"kind": "rating", "head": {"features": model.head.size, "hidden": model.head.hidden},
            "encoder": about}, tensors


def _encoder(about: Mapping[str, Any], tensors: Mapping[str, Tensor], given: Any, folder: Path) -> Any:
    if about["kind"] != "other":
        return flat if about["kind"] == "flat" else _net(about["net"], tensors, folder)
    if given is None:
        raise CheckpointError(f"the reward {folder} is a head on the encoder {about['name']!r}, which is not in the "
                              "folder: load_reward(..., encoder=...)")
    if weights_digest(given) != about["digest"]:
        raise CheckpointError(f"this encoder is not the {about['name']!r} of the reward {folder}: its weights differ")
    return given


def _net(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> RewardNet:
    net = built_for(lambda: RewardNet(**config), tensors, origin=f"the weights in {folder}")
    return net.eval().requires_grad_(False)


def weights_digest(encoder: Any) -> str:
    """sha256 of the names and values of a module's weights; of a function, of its name."""
    digest = hashlib.sha256(type(encoder).__qualname__.encode())
    if not isinstance(encoder, nn.Module):
        digest.update(getattr(encoder, "__qualname__", "").encode())
        return digest.hexdigest()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Rewards(NamedTuple):
    """What is tuned on, and what watches it."""

    name: str
    tuned: Reward
    held_out: Reward | None   # the same wish by another instrument
    parts: dict[str, Reward]  # that `tuned` is made of, where there are several


def named_reward(name: str, subject: Subject, *, trust: Any = None) -> Watched:
    """The reward of this name for what is tuned. ValueError for what there is not."""
    for settled in subject.settings or {}:
        require_name(settled, PUBLISHED, "reward_settings are for published rewards, there is no")
    if name in options(GROUP):
        return build(option(GROUP, name))(subject)
    if name in PUBLISHED or name in REFUSED:
        return Watched(published_reward(name, subject))
    if Path(name).is_dir():
        needed = needed_encoder(name)
        learnt = load_reward(name, encoder=subject.encoder(needed) if needed and subject.encoder else None)
        return Watched(lambda x, prompts, metadata: learnt(x.clamp(-1, 1).cpu(), prompts, metadata))  # as files are
    if "." in name:
        return Watched(resolve(name, trust=trust))
    raise ValueError(f"no reward {name!r}{nearest(name, [*options(GROUP), *PUBLISHED])}; or a run folder of `dforce "
                     "train reward`, or a function of a package of yours, mine.rewards.bright, with trust=mine")


def reward_of_frames(reward: Any, subject: Subject, *, trust: Any = None) -> Rewards:
    """A reward of images, by its name or by a node that builds one, as one of videos: the mean over the frames."""
    if not isinstance(reward, Mapping):
        tuned, held_out = named_reward(str(reward), subject, trust=trust)
        return Rewards(str(reward), per_frame(tuned), per_frame(held_out) if held_out else None, {})
    function = build(dict(reward), trust=trust)
    if not callable(function):
        raise ValueError(f"{reward['_target_']} builds a {type(function).__name__}, which is no reward: a function "
                         "(images, prompts, metadata) -> [B] is wanted, or _partial_: true before one that exists")
    return Rewards(str(reward["_target_"]), per_frame(function), None, {})
