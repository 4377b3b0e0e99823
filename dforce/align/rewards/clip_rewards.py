"""Rewards of CLIP's features: how well an image and its prompt agree, and how much people like an image."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dforce.align.rewards.layouts import (
    clip_of_open_clip,
    linear_layers,
    pretrained,
    transformers_of,
    weights_in,
)
from dforce.align.rewards.preprocess import Preprocess, Texts, preprocess_of
from dforce.align.rewards.protocol import Reward, Subject
from dforce.train.contents import used

HPS_HEADS = 16, 16  # of ViT-H-14, vision and text


class Agreement:
    """scale * cos(features of image, features of prompt) by a `CLIPModel`; differentiable. floor: least cosine."""

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess, texts: Texts, *, scale: float,
                 floor: float = -1.0, rows: int = 16):
        self.model, self.tokenizer, self.preprocess, self.texts = model, tokenizer, preprocess, texts
        self.scale, self.floor, self.rows = scale, floor, rows

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        """[B] float32 on the network's device. samples: [B, 1, C, H, W]."""
        texts = self.texts(prompts, len(samples))
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        of_text = text_features(self.model, self.tokenizer, list(numbers))[[numbers[text] for text in texts]]
        of_image = image_features(self.model, self.preprocess, samples, self.rows)
        return self.scale * (of_image * of_text).sum(-1).clamp(min=self.floor)


class Liking:
    """Linear layers on the normalised image features of a `CLIPModel`, whatever the prompt; differentiable."""

    def __init__(self, model: Any, preprocess: Preprocess, head: Callable[[Tensor], Tensor], *, rows: int = 16):
        self.model, self.preprocess, self.head, self.rows = model, preprocess, head, rows

    def __call__(self, samples: Tensor, prompts: Sequence[Any] = (), metadata: Sequence[Any] = ()) -> Tensor:
        """[B] float32 on the network's device. samples: [B, 1, C, H, W]."""
        return self.head(image_features(self.model, self.preprocess, samples, self.rows))[:, 0]


def image_features(model: Any, preprocess: Preprocess, samples: Tensor, rows: int) -> Tensor:
    """[B, D] of length 1, `rows` images at a time."""
    device = next(model.parameters()).device
    parts = [model.visual_projection(model.vision_model(pixel_values=preprocess(part.to(device))).pooler_output)
             for part in samples.split(rows)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def text_features(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """[N, D] of length 1. Texts beyond what the network takes are cut."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt",
                       max_length=model.config.text_config.max_position_embeddings)
    tokens = {key: tokens[key].to(next(model.parameters()).device) for key in ("input_ids", "attention_mask")}
    return torch.nn.functional.normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)


def clip_score(subject: Subject, *, folder: str | None = None, hub: str | None = None, tokenizer: str | None = None,
               template: str = "{}", scale: float = 2.5, rows: int = 16) -> Reward:
    """CLIPScore, 2.5 max(cos, 0) (Hessel et al. 2021), of any `CLIPModel` in transformers' layout."""
    model, tokens, preprocess = _clip(subject, folder, hub, tokenizer)
    return Agreement(model, tokens, preprocess, Texts(subject.classes, template), scale=scale, floor=0.0, rows=rows)


def pickscore(subject: Subject, *, folder: str | None = None, hub: str | None = None, tokenizer: str | None = None,
              template: str = "{}", rows: int = 16) -> Reward:
    """PickScore, exp(logit_scale) cos (Kirstain et al. 2023), of a fine-tuned `CLIPModel` in transformers' layout."""
    model, tokens, preprocess = _clip(subject, folder, hub, tokenizer)
    return Agreement(model, tokens, preprocess, Texts(subject.classes, template),
                     scale=float(model.logit_scale.exp()), rows=rows)


def hpsv2(subject: Subject, *, folder: str, tokenizer: str | None = None, template: str = "{}",
          rows: int = 16) -> Reward:
    """HPSv2 and 2.1, cos (Wu et al. 2023), of the one .pt file in the folder: open_clip's ViT-H-14."""
    with transformers_of(folder) as transformers:
        file = only_file(folder, "*.pt")
        model = clip_of_open_clip(transformers, weights_in(file, within="state_dict"), heads=HPS_HEADS,
                                  origin=file.name).to(subject.device)
        tokens = _tokenizer(transformers, tokenizer or folder, hub=False)
    preprocess = Preprocess(model.config.vision_config.image_size, "pad")
    return Agreement(model, tokens, preprocess, Texts(subject.classes, template), scale=1.0, rows=rows)


def aesthetic(subject: Subject, *, folder: str | None = None, hub: str | None = None, head: str | None = None,
              rows: int = 16) -> Reward:
    """LAION's aesthetic score, linear layers on CLIP ViT-L/14: of two files, the linear and the "MLP" one.

    head: the .pth file; None: the only one in the folder of CLIP.
    """
    source = source_of(folder, hub)
    with transformers_of(source) as transformers:
        model = pretrained(transformers.CLIPModel, source, hub=hub is not None).to(subject.device)
        preprocess = _preprocess(source, model)
    with used(Path(head or source), "reward in"):
        file = Path(head) if head else only_file(source, "*.pth")
        layers = linear_layers(weights_in(file), origin=file.name).to(subject.device)
        if layers[0].in_features != model.config.projection_dim:
            raise ValueError(f"{file.name} takes {layers[0].in_features} features, and this CLIP has "
                             f"{model.config.projection_dim}")
    return Liking(model, preprocess, layers, rows=rows)


def source_of(folder: str | None, hub: str | None) -> str:
    """The one of the two that is given. ValueError unless it is one."""
    if (folder is None) == (hub is None):
        raise ValueError("a published reward is read from a folder, or from a hub by its name: give folder or hub")
    return folder or hub or ""


def only_file(folder: str, pattern: str) -> Path:
    """The one file in the folder that fits. ValueError unless there is exactly one."""
    files = sorted(Path(folder).glob(pattern))
    if len(files) != 1:
        raise ValueError(f"one file {pattern} is wanted in it, there are {len(files)}: "
                         f"{', '.join(file.name for file in files) or 'none'}")
    return files[0]


def _clip(subject: Subject, folder: str | None, hub: str | None, tokenizer: str | None) -> tuple[Any, Any, Preprocess]:
    source = source_of(folder, hub)
    with transformers_of(source) as transformers:
        model = pretrained(transformers.CLIPModel, source, hub=hub is not None).to(subject.device)
        return (model, _tokenizer(transformers, tokenizer or source, hub=hub is not None and tokenizer is None),
                _preprocess(source, model))


def _tokenizer(transformers: Any, source: str, *, hub: bool) -> Any:
    return transformers.CLIPTokenizerFast.from_pretrained(source, local_files_only=not hub)


def _preprocess(source: str, model: Any) -> Preprocess:
    return preprocess_of(Path(source), model.config.vision_config.image_size)
