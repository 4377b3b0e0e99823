"""Low-rank adapters in the layout of diffusers: a plain pipeline loads what is written, and its files are read back."""

import json
import math
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dforce.align.lora import adapter_state, hang_adapters
from dforce.align.lora_peft import peft_layers
from dforce.core.files import replacing
from dforce.nets.diffusers import PretrainedNet

LORA_FILE = "pytorch_lora_weights.safetensors"
INSIDE_PEFT = "base_model.model."  # what a PeftModel puts before the names of its network
_KEY = re.compile(r"(?P<part>unet|transformer)\.(?P<layer>.+)\.(?P<factor>lora_A|lora_B|lora\.down|lora\.up)\.weight")
_FACTORS = {"lora_A": "a", "lora.down": "a", "lora_B": "b", "lora.up": "b"}


def save_lora(folder: str | Path, network: nn.Module) -> Path:
    """The adapters of a pipeline's network, ours or of peft, as the file in `folder` that `load_lora_weights` reads.

    alpha / rank is multiplied into B: readers that find no alpha take a scale of 1. ValueError without adapters.
    """
    start, net = _pretrained(network)
    factors = {name: (tensors["a"], tensors["b"]) for name, tensors in _factors(network).items()}
    if not factors:
        raise ValueError("this network has no adapters to save; add_lowrank(network) hangs them on")
    tensors = {}
    for name, (a, b) in factors.items():
        layer = f"{net.call.folder}.{name.removeprefix(start).removeprefix(INSIDE_PEFT)}"
        tensors[f"{layer}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{layer}.lora_B.weight"] = b.detach().cpu().contiguous()
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder) / LORA_FILE) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    return Path(folder) / LORA_FILE


def load_lora(where: str | Path, network: nn.Module) -> list[str]:
    """Hangs the adapters of such a file, or of the one in a folder, on a pipeline's network; names of their modules.

    ValueError, one line, for what is not reproduced: adapters of the text encoder, DoRA, rank-stabilised scales,
    other layouts, and files of another network.
    """
    place = Path(where) / LORA_FILE if Path(where).is_dir() else Path(where)
    if not place.is_file():
        raise FileNotFoundError(f"there is no {place}, adapters as a pipeline's save_lora_weights writes them")
    start, net = _pretrained(network)
    try:
        with safe_open(place, framework="pt") as file:
            stored, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        config = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    except Exception as error:  # safetensors has an error of its own
        raise ValueError(f"{place} cannot be read as safetensors: {error}") from error
    tensors, ranks = {}, dict[str, tuple[int, float]]()
    for key, value in stored.items():
        match = _KEY.fullmatch(key)
        if match is None and not key.endswith(".alpha"):
            raise ValueError(f"{place} holds {key}, which is not read: adapters of a unet or transformer in the layout "
                             "of diffusers (lora_A and lora_B, or lora.down and lora.up) are")
        if match is None:
            continue
        if match["part"] != net.call.folder:
            raise ValueError(f"{place} adapts a {match['part']}, and this pipeline has a {net.call.folder}")
        name = start + match["layer"]
        tensors[f"{name}.lowrank.{_FACTORS[match['factor']]}"] = value.float()
        if _FACTORS[match["factor"]] == "a":
            alpha = stored.get(f"{match['part']}.{match['layer']}.alpha")
            ranks[name] = len(value), len(value) * _scale(config, match["part"], match["layer"], len(value),
                                                          None if alpha is None else float(alpha), str(place))
    return hang_adapters(network, tensors, ranks, str(place))


def _scale(config: dict[str, Any], part: str, layer: str, rank: int, alpha: float | None, origin: str) -> float:
    """alpha / rank of one layer: of its entry `.alpha`, of peft's configuration in the file, or 1."""
    if any(config.get(f"{part}.{name}") for name in ("use_dora", "use_rslora")):
        raise ValueError(f"{origin} has use_dora or use_rslora, which is not reproduced")
    if alpha is None and f"{part}.lora_alpha" in config:
        patterns = config.get(f"{part}.alpha_pattern") or {}
        alpha = next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)),
                     config[f"{part}.lora_alpha"])
    scale = 1.0 if alpha is None else float(alpha) / rank
    if not math.isfinite(scale):
        raise ValueError(f"{origin} has an alpha of {alpha} for {layer}")
    return scale


def _factors(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Name of a module -> its factors "a" and "b", the scale within b."""
    out: dict[str, dict[str, Tensor]] = {}
    for name, value in adapter_state(network).items():
        layer, _, factor = name.rpartition(".lowrank.")
        adapter: Any = network.get_submodule(f"{layer}.lowrank")
        out.setdefault(layer, {})[factor] = value * (adapter.scale if factor == "b" else 1.0)
    for layer, module in peft_layers(network).items():
        if not hasattr(module, "lora_A") or len(module.active_adapters) != 1:
            raise ValueError(f"{layer} has the adapters {module.active_adapters} of a {type(module).__name__}; one, of "
                             "LoRA, is written")
        active = module.active_adapters[0]
        out[layer] = {"a": module.lora_A[active].weight, "b": module.lora_B[active].weight * module.scaling[active]}
    return out


def _pretrained(network: nn.Module) -> tuple[str, PretrainedNet]:
    """(what stands before the names of its layers, the network of diffusers inside)."""
    for name, module in network.named_modules():
        if isinstance(module, PretrainedNet):
            return (f"{name}." if name else "") + "module.", module
    raise ValueError(f"{type(network).__name__} holds no network of diffusers, whose layout this is")
