"""Low-rank adapters (LoRA, Hu et al. 2021): W x + (alpha / rank) B A x, W frozen, A and B learnt.

An adapter hangs on the nn.Linear or nn.Conv2d it belongs to, so no weight is renamed: the checkpoint of the base fits
as before, and the adapter's own are named `...lowrank.a` and `...lowrank.b`. B = 0 at the start, which leaves every
output as it was (but for nn.GRU, which rounds differently in the last digit once it is frozen).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dforce.align.lora_peft import peft_disabled, peft_layers
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.tree import State
from dforce.guidance.wrapper import Wrapper, module_inside
from dforce.train.atomic_folder import CheckpointError, sealed, verified, write_tensors
from dforce.train.contents import used
from dforce.train.state import check_weights

FORMAT = 1
FILE = "adapters.safetensors"
Targets = Callable[[str, nn.Module], bool]


class Adapter(nn.Module):
    """Factors a: [rank, in, ...], b: [out, rank, ...], float32; on: in use; kept: the base's weight while merged."""

    def __init__(self, module: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None):
        super().__init__()
        shape = module.weight.shape
        device, dtype = module.weight.device, torch.promote_types(module.weight.dtype, torch.float32)
        a = torch.randn(rank, *shape[1:], generator=generator) / shape[1:].numel() ** 0.5
        b = torch.zeros(shape[0], rank, *(1,) * (len(shape) - 2))
        self.a, self.b = nn.Parameter(a.to(device, dtype)), nn.Parameter(b.to(device, dtype))
        self.rank, self.alpha, self.on = rank, alpha, True
        self.kept: Tensor | None = None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, module: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
        """What is added to the output of `module` for its input x."""
        if isinstance(module, nn.Conv2d):
            return self.scale * F.conv2d(module._conv_forward(x.to(self.a.dtype), self.a, None), self.b)
        return self.scale * F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)

    def delta(self) -> Tensor:
        """The same as a change of the base's weight."""
        return self.scale * (self.b.flatten(1) @ self.a.flatten(1)).view(len(self.b), *self.a.shape[1:])


def _add(module: Any, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """The hook: a plain function, so that a deep copy of the module finds its own adapter."""
    adapter = module.lowrank
    return out + adapter(module, arguments[0]).to(out.dtype) if adapter.on and adapter.kept is None else out


def add_lowrank(model: nn.Module, *, rank: int = 4, alpha: float | None = None, targets: Targets | None = None,
                generator: torch.Generator | None = None) -> list[str]:
    """Hangs an adapter on the nn.Linear and nn.Conv2d of `model` and freezes everything else. Returns their names.

    targets(name, module) chooses among them; None: all (recurrent cores have none and stay frozen). alpha: None for
    `rank`, scale 1. A is normal with variance 1 / inputs; the outputs stay as they were until B moves.
    """
    if rank < 1:
        raise ValueError(f"rank must be >= 1, got {rank}")
    if _adapters(model):
        raise ValueError("this model has adapters already; fold(model) keeps their effect and takes them off")
    if peft_layers(model):
        raise ValueError("this model has adapters of peft already: tune those, or put them into the weights before, by "
                         "fuse_lora() and unload_lora_weights() of its pipeline")
    chosen = [(name, module) for name, module in model.named_modules()
              if _fits(module) and (targets is None or targets(name, module))]
    if not chosen:
        raise ValueError("no nn.Linear or ungrouped nn.Conv2d of this model was chosen for an adapter")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _, module in chosen:
        module.lowrank = Adapter(module, rank, rank if alpha is None else alpha, generator)
        module.register_forward_hook(_add)
    return [name for name, _ in chosen]


def _fits(module: nn.Module) -> bool:
    """Modules that are called: attention's output projection is a Linear whose weight is used past its forward."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear) and type(module).__name__ != "NonDynamicallyQuantizableLinear"


def _adapters(model: nn.Module) -> dict[str, tuple[Any, Adapter]]:
    """name -> (module, its adapter)."""
    return {name: (module, module.lowrank) for name, module in model.named_modules()
            if isinstance(getattr(module, "lowrank", None), Adapter)}


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its own base."""
    adapters = [adapter for _, adapter in _adapters(model).values()]
    if any(adapter.kept is not None for adapter in adapters):
        raise ValueError("the adapters are merged into the weights; unmerge(model) first")
    before = [adapter.on for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.on = False
        with peft_disabled(model):
            yield
    finally:
        for adapter, on in zip(adapters, before, strict=True):
            adapter.on = on


class without_adapters(Wrapper):
    """The denoiser as it was before its adapters, guidance included: a reference that costs no memory."""

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser)
        self.model = module_inside(denoiser)

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        with disabled(self.model):
            return self.denoiser.init_state(batch, cond)

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        with disabled(self.model):
            return self.denoiser.absorb(x, level, state, cond)

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        with disabled(self.model):
            return self.denoiser(x, level, state, cond)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Puts the adapters into the weights: no cost at sampling. `unmerge` gives the weights back bit for bit."""
    for module, adapter in _adapters(model).values():
        if adapter.kept is None:
            adapter.kept = module.weight.detach().clone()
            module.weight.copy_(module.weight + adapter.delta().to(module.weight.dtype))


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Takes merged adapters out again."""
    for module, adapter in _adapters(model).values():
        if adapter.kept is not None:
            module.weight.copy_(adapter.kept)
            adapter.kept = None


def fold(model: nn.Module) -> None:
    """Puts the adapters into the weights for good and takes them off: a plain model, all of it learning again."""
    merge(model)
    for module, _ in _adapters(model).values():
        for key in [key for key, hook in module._forward_hooks.items() if hook is _add]:
            del module._forward_hooks[key]
        del module.lowrank
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def has_adapters(model: nn.Module) -> bool:
    """Has the model adapters, ours or of peft, beneath which it is its own base?"""
    return bool(_adapters(model) or peft_layers(model))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights alone, by their names in the model."""
    return {f"{name}.lowrank.{factor}": getattr(adapter, factor).detach()
            for name, (_, adapter) in _adapters(model).items() for factor in ("a", "b")}


def save_adapters(folder: str | Path, model: nn.Module) -> Path:
    """A sealed folder of the adapters alone. Raises ValueError if there are none, CheckpointError if a disk refuses."""
    adapters = _adapters(model)
    if not adapters:
        raise ValueError("this model has no adapters to save; add_lowrank(model) hangs them on")
    tensors = adapter_state(model)
    ranks = {name: [adapter.rank, adapter.alpha] for name, (_, adapter) in adapters.items()}
    size = sum(value.nbytes for value in tensors.values())
    with sealed(Path(folder), about={"kind": "adapters", "format": FORMAT, "adapters": ranks}, needed=size) as place:
        write_tensors(place / FILE, tensors)
    return Path(folder)


def load_adapters(folder: str | Path, model: nn.Module) -> list[str]:
    """Hangs saved adapters on `model`, or refills those there; returns the names of their modules. Or raises."""
    about = verified(Path(folder), FILE)
    if about.get("kind") != "adapters" or about.get("format") != FORMAT:
        raise CheckpointError(f"{folder} holds no adapters of format {FORMAT}, but kind {about.get('kind')!r}, format "
                              f"{about.get('format')!r}")
    with used(Path(folder), "adapters"):
        tensors = load_file(Path(folder) / FILE)
        ranks = {name: (int(rank), float(alpha)) for name, (rank, alpha) in about["adapters"].items()}
        if not all(rank >= 1 and math.isfinite(alpha) for rank, alpha in ranks.values()):
            raise ValueError("a rank is below 1, or an alpha not finite")
    return hang_adapters(model, tensors, ranks, str(folder))


def hang_adapters(model: nn.Module, tensors: Mapping[str, Tensor], ranks: Mapping[str, tuple[int, float]],
                  origin: str) -> list[str]:
    """Adapters of these weights, named as in `adapter_state`, on `model`, or in place of those there; ValueError.

    ranks: name of a module -> (rank, alpha) of its adapter. origin: where they come from, for the error.
    """
    _compare(model, tensors, ranks, origin)
    if not _adapters(model):
        add_lowrank(model, targets=lambda name, _: name in ranks)
    for name, (_, adapter) in _adapters(model).items():
        rank, alpha = ranks[name]
        adapter.rank, adapter.alpha = rank, alpha
        for factor in ("a", "b"):
            value = tensors[f"{name}.lowrank.{factor}"].to(getattr(adapter, factor))
            setattr(adapter, factor, nn.Parameter(value))
    return list(_adapters(model))


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], ranks: Mapping[str, tuple[int, float]],
             origin: str) -> None:
    """ValueError unless there is a fitting module for every adapter, and no adapter of another name."""
    modules: dict[str, Any] = {name: module for name, module in model.named_modules() if _fits(module)}
    lost = sorted(set(ranks) - set(modules))
    present = sorted(set(_adapters(model)) ^ set(ranks)) if _adapters(model) else []
    if lost or present:
        raise ValueError(f"{origin} belongs to another model: it has adapters for {', '.join((lost or present)[:4])}, "
                         "which this one has not (or the other way round)")
    wanted = {}
    for name, (rank, _) in ranks.items():
        shape = modules[name].weight.shape
        wanted[f"{name}.lowrank.a"] = torch.empty(int(rank), *shape[1:], device="meta")
        wanted[f"{name}.lowrank.b"] = torch.empty(shape[0], int(rank), *(1,) * (len(shape) - 2), device="meta")
    check_weights(wanted, tensors, origin)
