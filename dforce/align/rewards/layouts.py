"""Weights of published rewards in their own layouts, put into the networks of transformers."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dforce.train.contents import used
from dforce.train.state import built_for

CLIP_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
              "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # open_clip -> transformers
CLIP_REST = {"visual.class_embedding": "vision_model.embeddings.class_embedding",
             "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
             "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
             "visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
             "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
             "positional_embedding": "text_model.embeddings.position_embedding.weight",
             "ln_final": "text_model.final_layer_norm", "logit_scale": "logit_scale"}
BLIP_BLOCK = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv",
              "attn.proj": "self_attn.projection", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}  # timm -> transformers
BLIP_REST = {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
             "patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm"}


@contextmanager
def transformers_of(source: str) -> Iterator[Any]:
    """The package transformers, inside; what cannot be read from `source` is a CheckpointError of one line."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("published rewards need transformers: pip install 'dforce[align]'",
                          name="transformers") from error
    with used(Path(source), "reward in"):
        yield transformers


def pretrained(kind: Any, source: str, *, hub: bool) -> Any:
    """A network of transformers from a folder, or from a hub where `hub` says so: frozen, in evaluation mode.

    Runs no code that comes with it. ValueError where weights are missing, which transformers would draw at random.
    """
    if not hub and not Path(source).is_dir():
        raise ValueError("there is no such folder")
    model, info = kind.from_pretrained(source, local_files_only=not hub, trust_remote_code=False,
                                       output_loading_info=True, dtype=torch.float32)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"its weights lack {len(missing)} tensors, the first {missing[0]}")
    return model.eval().requires_grad_(False)


def weights_in(file: Path, *, within: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .pt or .pth file, under the key `within` if given, in float32; nothing else is unpickled."""
    if not file.is_file():
        raise ValueError("there is no such file")
    given = torch.load(file, map_location="cpu", weights_only=True)
    given = given.get(within, given) if within and isinstance(given, dict) else given
    if not isinstance(given, dict) or not given or not all(isinstance(value, Tensor) for value in given.values()):
        raise ValueError("it holds no names with tensors")
    return {str(name): value.float() if value.is_floating_point() else value for name, value in given.items()}


def clip_of_open_clip(transformers: Any, tensors: Mapping[str, Tensor], *, heads: tuple[int, int], origin: str) -> Any:
    """A `CLIPModel` of the weights of an open_clip CLIP with plain towers and GELU. heads: of vision and of text."""
    converted: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in ("visual.proj", "text_projection"):
            converted[f"{'visual' if name == 'visual.proj' else 'text'}_projection.weight"] = value.T.contiguous()
            continue
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if block is None:
            converted[_renamed(name, CLIP_REST)] = value
            continue
        place = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}."
        if block[3].startswith("attn.in_proj_"):
            kind = block[3].removeprefix("attn.in_proj_")
            for part, each in zip("qkv", value.chunk(3), strict=True):
                converted[f"{place}self_attn.{part}_proj.{kind}"] = each.clone()
        else:
            converted[place + _renamed(block[3], CLIP_BLOCK)] = value
    converted.pop("attn_mask", None)
    patch, grid = tensors["visual.conv1.weight"], tensors["visual.positional_embedding"]
    width, text = patch.shape[0], tensors["positional_embedding"]
    projected = tensors["text_projection"].shape[1]
    config = transformers.CLIPConfig(
        vision_config={"hidden_size": width, "num_attention_heads": heads[0], "hidden_act": "gelu",
                       "patch_size": patch.shape[2], "image_size": patch.shape[2] * round((len(grid) - 1) ** 0.5),
                       **_sizes(tensors, "visual.transformer.resblocks", "mlp.c_fc.weight")},
        text_config={"hidden_size": text.shape[1], "num_attention_heads": heads[1], "hidden_act": "gelu",
                     "max_position_embeddings": len(text), "vocab_size": len(tensors["token_embedding.weight"]),
                     "eos_token_id": 2,  # transformers then takes the largest token, as open_clip does
                     **_sizes(tensors, "transformer.resblocks", "mlp.c_fc.weight")},
        projection_dim=projected)
    return built_for(lambda: transformers.CLIPModel(config), converted, origin=origin).eval().requires_grad_(False)


def blip_of_original(transformers: Any, tensors: Mapping[str, Tensor], med: Mapping[str, Any], *, heads: int,
                     origin: str) -> tuple[Any, Any]:
    """`BlipVisionModel` and `BlipTextModel` of Salesforce's BLIP: visual_encoder.* and text_encoder.*.

    med: med_config.json, of the text. heads: of the vision.
    """
    vision = {}
    for name, value in under("visual_encoder.", tensors).items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        vision[f"encoder.layers.{block[1]}.{_renamed(block[2], BLIP_BLOCK)}" if block
               else _renamed(name, BLIP_REST)] = value
    patch, grid = vision["embeddings.patch_embedding.weight"], vision["embeddings.position_embedding"]
    seen = transformers.BlipVisionConfig(
        hidden_size=patch.shape[0], num_attention_heads=heads, patch_size=patch.shape[2], layer_norm_eps=1e-6,
        image_size=patch.shape[2] * round((grid.shape[1] - 1) ** 0.5),
        **_sizes(tensors, "visual_encoder.blocks", "mlp.fc1.weight"))
    text = under("text_encoder.", tensors)
    text.pop("embeddings.position_ids", None)
    known = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
             "layer_norm_eps", "max_position_embeddings")
    words = transformers.BlipTextConfig(
        **{key: med[key] for key in known if key in med}, encoder_hidden_size=patch.shape[0], is_decoder=True,
        vocab_size=len(text["embeddings.word_embeddings.weight"]))
    return (built_for(lambda: transformers.BlipVisionModel(seen), vision, origin=origin).eval().requires_grad_(False),
            built_for(lambda: transformers.BlipTextModel(words, add_pooling_layer=False), text,
                      origin=origin).eval().requires_grad_(False))


def linear_layers(tensors: Mapping[str, Tensor], *, origin: str) -> nn.Sequential:
    """Linear layers one after another, no activation between: those of layers.N.weight, or the only one."""
    names = [name.removesuffix("weight") for name in tensors if name.endswith("weight")]
    names.sort(key=lambda name: int((re.findall(r"\d+", name) or ["0"])[-1]))
    shapes = [(name, *tensors[f"{name}weight"].shape) for name in names]
    fits = all(len(shape) == 3 for shape in shapes) and all(
        one[1] == other[2] for one, other in zip(shapes, shapes[1:], strict=False))
    wanted = {name + kind for name in names for kind in ("weight", "bias")}
    if not fits or not shapes or shapes[-1][1] != 1 or set(tensors) != wanted:
        raise ValueError(f"{origin} holds no linear layers that end in one number: {', '.join(list(tensors)[:8])}")
    renamed = {f"{i}.{kind}": tensors[name + kind] for i, name in enumerate(names) for kind in ("weight", "bias")}
    return built_for(lambda: nn.Sequential(*(nn.Linear(into, out) for _, out, into in shapes)), renamed,
                     origin=origin).eval().requires_grad_(False)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _sizes(tensors: Mapping[str, Tensor], blocks: str, hidden: str) -> dict[str, int]:
    count = 1 + max(_numbers(tensors, blocks), default=-1)
    return {"num_hidden_layers": count, "intermediate_size": len(tensors[f"{blocks}.0.{hidden}"])}


def _numbers(names: Iterable[str], blocks: str) -> list[int]:
    matches = (re.match(rf"{re.escape(blocks)}\.(\d+)\.", name) for name in names)
    return [int(match[1]) for match in matches if match]
