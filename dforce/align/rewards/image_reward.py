"""ImageReward (Xu et al. 2023): BLIP reads the prompt beside the image, and layers on its first token give a number."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dforce.align.rewards.clip_rewards import only_file
from dforce.align.rewards.layouts import blip_of_original, linear_layers, transformers_of, under, weights_in
from dforce.align.rewards.preprocess import Preprocess, Texts
from dforce.align.rewards.protocol import Reward, Subject

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the score over the publisher's data
TOKENS = 35       # of a prompt
VISION_HEADS = 16  # of ViT-L


class ImageReward:
    """(score - mean) / std of image and prompt; differentiable in the image."""

    def __init__(self, vision: Any, text: Any, head: Any, tokenizer: Any, texts: Texts, *, rows: int = 16):
        self.vision, self.text, self.head, self.tokenizer, self.texts = vision, text, head, tokenizer, texts
        self.preprocess, self.rows = Preprocess(vision.config.image_size), rows

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        """[B] float32 on the network's device. samples: [B, 1, C, H, W]."""
        device = next(self.vision.parameters()).device
        tokens = self.tokenizer(self.texts(prompts, len(samples)), padding="max_length", truncation=True,
                                max_length=TOKENS, return_tensors="pt").to(device)
        parts = samples.split(self.rows)
        words = tokens["input_ids"].split(self.rows), tokens["attention_mask"].split(self.rows)
        return torch.cat([self._score(self.preprocess(part.to(device)), *each)
                          for part, *each in zip(parts, *words, strict=True)])

    def _score(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=words, attention_mask=mask, encoder_hidden_states=seen,
                         encoder_attention_mask=torch.ones_like(seen[..., 0], dtype=torch.long)).last_hidden_state
        return (self.head(read[:, 0])[:, 0] - MEAN) / STD


def imagereward(subject: Subject, *, folder: str, tokenizer: str | None = None, template: str = "{}",
                rows: int = 16) -> Reward:
    """ImageReward of its folder: ImageReward.pt, med_config.json, and the files of BERT's tokenizer."""
    with transformers_of(folder) as transformers:
        file = only_file(folder, "*.pt")
        tensors = weights_in(file)
        med = json.loads((Path(folder) / "med_config.json").read_text(encoding="utf-8"))
        vision, text = blip_of_original(transformers, under("blip.", tensors), med, heads=VISION_HEADS,
                                        origin=file.name)
        head = linear_layers(under("mlp.", tensors), origin=file.name)
        tokens = transformers.BertTokenizerFast.from_pretrained(tokenizer or folder, local_files_only=True)
    return ImageReward(vision.to(subject.device), text.to(subject.device), head.to(subject.device), tokens,
                       Texts(subject.classes, template), rows=rows)
