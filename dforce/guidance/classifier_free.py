"""Classifier-free guidance: a denoiser with its conditioning and the same without one, combined."""

from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.tree import State
from dforce.guidance.wrapper import Wrapper


class classifier_free(Wrapper):
    """Classifier-free guidance (Ho & Salimans 2022): x0 = x0(null) + scale (x0(cond) - x0(null)).

    scale: 1 is the conditional denoiser.
    null: the conditioning that training put in place of a dropped one, None where the network takes none; "static"
        entries [B, ...] (a negative prompt for each row) or [1, ...], "token" entries [1, 1, ...], for all tokens.
    State: {"cond": ..., "null": ...}, the states with and without conditioning.
    Raises ValueError for token entries of another shape.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null: Cond | None = None):
        super().__init__(denoiser)
        for name, value in ((null or {}).get("token") or {}).items():
            if value.shape[:2] != (1, 1):
                raise ValueError(f"null['token'][{name!r}] must be one entry for all tokens, [1, 1, ...], "
                                 f"got {[*value.shape]}")
        self.scale, self.null = scale, null

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        null = {**(self.null or {})}
        null["static"] = {name: value.expand(batch, *value.shape[1:]) if len(value) == 1 else value
                          for name, value in (null.get("static") or {}).items()}
        return {"cond": self.denoiser.init_state(batch, cond), "null": self.denoiser.init_state(batch, null)}

    def _without(self, cond: Cond | None) -> Cond:
        """`null` in the shapes of `cond`: samplers show any part of a sequence, in any number of copies."""
        null, present = (self.null or {}).get("token") or {}, (cond or {}).get("token") or {}
        return {"token": {name: null[name].expand_as(value) for name, value in present.items() if name in null}}

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        return {"cond": self.denoiser.absorb(x, level, state["cond"], cond),
                "null": self.denoiser.absorb(x, level, state["null"], self._without(cond))}

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        with_cond, after = self.denoiser(x, level, state["cond"], cond)
        without, null = self.denoiser(x, level, state["null"], self._without(cond))
        return without + self.scale * (with_cond - without), {"cond": after, "null": null}
