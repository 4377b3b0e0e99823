"""Policies that plan further than they act: a plan is followed for a while, or averaged with the plans before it."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser
from dforce.core.sample import Descent
from dforce.core.schedule import Schedule
from dforce.core.tree import State, reset
from dforce.data.normalize import Affine
from dforce.guidance.wrapper import clipped
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.protocol import Observation
from dforce.policy.window import Windowed


class RecedingPolicy(ForcingPolicy):
    """Acts `stride` actions at a time, as the layout says, and plans a chunk anew after `execute` actions (Chi et al.
    2023, section 3), or at every observation, and averages what the plans say of an action (Zhao et al. 2023, section
    IV-A). Of what it does nothing is remembered, of what it sees, as much as its network remembers.

    The state has beside that of `ForcingPolicy` "used": [N], actions of the plan that are done; "last": [N, O], what
    was seen last; "votes": [N, chunk], for `ensemble`: plans that are averaged in each action of "plan".
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, normalizer: Affine, layout: Mapping[str, Any], *,
                 execute: int | None = None, order: Literal[1, 2] = 2, spacing: Literal["log_snr", "index"] = "log_snr",
                 clip: float | None = None, ensemble: float | None = None, lost: Literal["noise", "last"] = "noise",
                 steps: int = 4, regression: bool = False, **settings: Any):
        """execute: actions of a plan; None: all that come after its observation. settings: as of `ForcingPolicy`.

        order, spacing: of sampling. clip: bound of the size of estimated actions, normalised; None for none.
        ensemble: w of the average of plans, in which number i, the oldest being 0, has the weight exp(-w i).
        lost: in place of a missing observation stand noise, at the level of noise, or its parts as they were seen last.
        """
        super().__init__(denoiser, schedule, normalizer, layout, steps=steps, regression=regression, **settings)
        self.execute, self.past, self.window = int(layout["stride"]), int(layout["past"]), layout["window"]
        ahead = self.tokens.chunk - self.past
        self.replan = ahead if execute is None and ensemble is None else self.execute if execute is None else execute
        if not self.execute <= self.replan <= ahead or ensemble is not None and self.replan != self.execute:
            raise ValueError(f"execute={execute}: this policy acts {self.execute} actions at a time and plans {ahead}, "
                             f"so it takes {self.execute}..{ahead}; with an ensemble {self.execute}")
        if self.warm is not None:
            raise ValueError("warm_std is for policies that act on every plan; leave it out")
        self.ensemble, self.lost = ensemble, lost
        if not regression:
            self.descend = Descent(schedule, schedule.grid(steps, spacing).to(self.levels.device), order)
        if self.window:
            self.denoiser = Windowed(denoiser, self.window * len(self.tokens.parts), width=self.tokens.width,
                                     cycle=self.tokens.cycle)
        self.denoiser = self.denoiser if clip is None else clipped(self.denoiser, -clip, clip)

    def reset(self, n: int) -> State:
        state = super().reset(n)
        votes = {"votes": state["clock"][:, None].expand(-1, self.tokens.chunk)} if self.ensemble is not None else {}
        last = self.of_observation.mean.expand(n, -1)
        return {**state, "used": torch.full_like(state["clock"], self.replan), "last": last, **votes}

    def act(self, observation: Observation, state: State, *,
            missing: np.ndarray | Mapping[str, np.ndarray] | None = None, executed: np.ndarray | None = None,
            ) -> tuple[np.ndarray, State]:
        """The next actions [N, stride, A], and the state after them; arguments as of `ForcingPolicy`.

        What is missing before anything was seen is, with lost="last", the mean, or the middle, of the data.
        """
        values, stream = self._values(observation, missing, state)
        if self.lost == "last":
            for name, blank in self._blank(values, missing).items():
                columns = self.tokens.columns[name]
                values[:, columns] = torch.where(blank[:, None], state["last"][:, columns], values[:, columns])
            state, missing = {**state, "last": values}, None
        return self._absorb(values, stream, state, missing, executed)

    def _begin(self, values: Tensor, stream: Tensor, state: State) -> State:
        return {**super()._begin(values, stream, state), "last": state["last"]}

    def _remember(self, state: State, count: Tensor) -> State:
        """Nothing of what was done, for plans overlap in training: noise, or no token where a window has none."""
        return state["memory"] if self.window else super()._remember(state, torch.zeros_like(count))

    def _next(self, memory: State, state: State, count: Tensor) -> tuple[Tensor, State]:
        used = torch.where(state["begun"], state["used"] + count, self.replan)
        due = (used >= self.replan) | (self.ensemble is not None)
        votes: State = {}
        plan, after = state["plan"], torch.arange(self.execute, device=used.device)
        if due.any():
            plan = self.tokens.actions_of(self._plan(memory, state, count)[:, 0])
            if self.ensemble is not None:
                plan, votes = self._averaged(plan, state, torch.where(state["begun"], count, 0))
            plan = reset(state["plan"], plan, due)
        used = torch.where(due, 0, used)
        place = (self.past + used[:, None] + after).clamp(max=self.tokens.chunk - 1)
        actions = plan.gather(1, place[..., None].expand(-1, -1, self.tokens.action))
        return actions, {**state, "plan": plan, "used": used, **votes}

    def _averaged(self, plan: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """The average of the plan and of those before it, whose first `count` [N] actions are over, and its votes."""
        assert self.ensemble is not None
        later = torch.arange(self.tokens.chunk, device=plan.device) + count[:, None]
        known, later = later < self.tokens.chunk, later.clamp(max=self.tokens.chunk - 1)
        old = state["plan"].gather(1, later[..., None].expand_as(plan))
        votes = state["votes"].gather(1, later) * known
        weights = torch.exp(-self.ensemble * torch.arange(self.tokens.chunk + 1, device=plan.device))
        before = torch.cat([weights.new_zeros(1), weights.cumsum(0)])[votes][..., None]
        new = weights[votes][..., None]
        return (before * old + new * plan) / (before + new), {"votes": votes + 1}
