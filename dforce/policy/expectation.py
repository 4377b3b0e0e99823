"""What a policy expects to see: observations drawn by its own network, after all that it absorbed."""

import numpy as np
import torch

from dforce.core.tree import State
from dforce.policy.forcing import ForcingPolicy

EXPECTED = 5  # salt: the stream of noise that these draws begin with


@torch.no_grad()
def expected_observations(policy: ForcingPolicy, state: State, count: int) -> np.ndarray:
    """The next observations [count, N, O] in physical units, one draw of each, all actions of the plans being executed.

    An observation that was drawn is absorbed as if it had been seen, and acted upon. state: as `act` returned it, which
    it stays. ValueError for a policy that regresses: it has learnt actions alone.
    """
    if policy.regression:
        raise ValueError("this policy regresses actions and has not learnt what it will see")
    out = []
    for _ in range(count):
        memory = policy._remember(state, torch.full_like(state["clock"], policy.execute))
        tokens = []
        for place, width in enumerate(policy.tokens.parts.values()):
            like = state["plan"].new_zeros(len(state["clock"]), 1, policy.tokens.width)
            cond = policy._cond(place, state["first"])
            x = policy.descend(policy.denoiser, policy._noise(like, state, place, EXPECTED), memory, cond)
            memory = policy.denoiser.absorb(x, torch.zeros_like(x[..., 0], dtype=torch.long), memory, cond)
            tokens.append(x[:, 0, :width])
        values = policy.of_observation.denormalize(torch.cat(tokens, 1)).cpu().numpy()
        out.append(values)
        _, state = policy.act({name: values[:, columns] for name, columns in policy.tokens.columns.items()}, state)
    return np.stack(out)
