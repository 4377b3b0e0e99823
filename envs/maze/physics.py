"""Steps of many MuJoCo simulations of one model, whose state is (position, velocity), as with slide joints."""
from __future__ import annotations

from typing import Any

import numpy as np


class Physics:
    """Batched steps of a model whose physics has no memory beyond position and velocity, on one thread."""

    def __init__(self, model: Any):
        import mujoco
        from mujoco import rollout

        self.model, self.data, self._rollout = model, mujoco.MjData(model), rollout.rollout
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        if model.nq != model.nv or size != 1 + model.nq + model.nv:
            raise ValueError(f"the model has {model.nq} positions, {model.nv} velocities and a state of {size} numbers;"
                             " want time, positions and as many velocities, nothing else")

    def step(self, state: np.ndarray, control: np.ndarray, *, substeps: int) -> np.ndarray:
        """States [N, nq + nv] after `substeps` steps under one control [N, nu] each."""
        if not len(state):
            return state.copy()
        first = np.concatenate([np.zeros((len(state), 1)), state], axis=1)      # time, on which nothing depends
        held = np.repeat(control[:, None], substeps, axis=1)
        states, _ = self._rollout(self.model, self.data, first, held)
        return states[:, -1, 1:].copy()
