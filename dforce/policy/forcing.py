"""A policy with memory by Diffusion Forcing: what it sees and does are tokens, absorbed one after another."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.loss import corrupt
from dforce.core.noise import Noise, NoiseSource, mix, no_noise
from dforce.core.sample import Descent, generate
from dforce.core.schedule import Schedule
from dforce.core.tree import State, reset
from dforce.data.normalize import Affine
from dforce.data.token_layout import KIND, TokenLayout
from dforce.guidance.energy import guided
from dforce.policy.protocol import Coders, Observation, encoded_pictures, observation_vectors, picture_numbers
from dforce.policy.window import Windowed

START, MISSING, UNKNOWN, WARM = 1, 2, 3, 4  # salts: streams of noise
ActionEnergy = Callable[[Tensor], Tensor]   # actions [N, chunk, A], in physical units -> log-potential [N]


class ForcingPolicy:
    """Plans a chunk of actions after every observation, remembers what it saw and did, and executes the first of them.

    - An observation that is missing, or not finite, is absorbed as a token of pure noise: the network knows that
      nothing is known of it. Parts of an observation (cameras, joints) are tokens of their own, and may be missing
      alone.
    - Actions are absorbed when the next observation comes, and those that were executed. If fewer were than planned and
      the network was trained on shorter chunks (`cut`), the token holds those; if not, or if none was, it is noise.
    - All noise is a function of (seed, the row's first observation, time), so a row of a batch does what it does alone.

    The state is a value (`dforce.core.tree`), rows of which may be reset, forked and dropped: {"memory": of the
    denoiser, after all that was absorbed, "plan": [N, chunk, A] normalised, "begun", "clock", "stream", "first"}.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, normalizer: Affine, layout: Mapping[str, Any], *,
                 steps: int = 4, execute: int | None = None, sensor_std: float = 0.0, warm_std: float | None = None,
                 regression: bool = False, energy: ActionEnergy | None = None, scale: float = 1.0, seed: int = 0,
                 coders: Coders | None = None):
        """layout: as `WholeEpisodes` has it. steps: of sampling.

        execute: actions of a chunk that are executed before the next observation; None: all.
        sensor_std: noise of observations, in their standard deviations, that the network is told of.
        warm_std: plans begin with what was left of the last one, noised with this standard deviation; None: with noise.
        regression: the network regresses: its actions are the estimate at pure noise, for which zeros stand, and are
            not remembered.
        coders: of the cameras, whose pictures are parts of an observation.
        energy, scale: what plans are tilted by, larger is better (`dforce.guidance.energy.guided`).
        """
        self.tokens = TokenLayout(**layout["tokens"])
        self.schedule, self.regression = schedule, regression
        window, self.first, self.cut = layout["window"], layout["first"], layout["cut"] > 0
        self.denoiser = denoiser if window is None else Windowed(
            denoiser, window * self.tokens.cycle - 1, width=self.tokens.width, cycle=self.tokens.cycle)
        self.execute = self.tokens.chunk if execute is None else execute
        if not 1 <= self.execute <= self.tokens.chunk or self.execute < self.tokens.chunk and not self.cut:
            raise ValueError(f"execute={execute}: this policy plans {self.tokens.chunk} actions"
                             + ("" if self.cut else " and was trained on whole chunks alone; train with cut=0.3"))
        inputs = sum(self.tokens.parts.values())
        self.of_observation, self.of_action = normalizer.part(0, inputs), normalizer.part(inputs, normalizer.width)
        self.sensor, self.warm = schedule.nearest(sensor_std), warm_std and schedule.nearest(warm_std)
        self.energy, self.scale, self.coders = energy, scale, coders
        self.noise: NoiseSource = no_noise if regression else Noise(seed)
        self.levels = schedule.grid(1 if regression else steps).to(schedule.alpha.device)
        self.descend: Callable[..., Tensor] = Descent(schedule, self.levels)

    @property
    def inputs(self) -> dict[str, int | tuple[int, int, int]]:
        """Name of a part of an observation -> its numbers, or (height, width, 3) of a camera's pictures."""
        cameras = {name: (*size, 3) for name, size in self.coders.sizes.items()} if self.coders else {}
        return {**self.tokens.parts, **cameras}

    @torch.no_grad()
    def reset(self, n: int) -> State:
        zeros = self.of_action.mean.new_zeros
        first = zeros(n, self.of_observation.width)
        clock = zeros(n, dtype=torch.long)
        return {"memory": self.denoiser.init_state(n, self._cond(first=first)), "begun": clock.bool(), "clock": clock,
                "stream": clock, "first": first, "plan": zeros(n, self.tokens.chunk, self.tokens.action)}

    @torch.no_grad()
    def act(self, observation: Observation, state: State, *,
            missing: np.ndarray | Mapping[str, np.ndarray] | None = None, executed: np.ndarray | None = None,
            ) -> tuple[np.ndarray, State]:
        """The next actions [N, execute, A], and the state after them.

        observation: [N, O], or a dict of arrays [N, ...], pictures uint8 [N, H, W, 3]; a camera may be left out where
        it is said to be missing. missing: [N] bool, or a dict of them, one for each part.
        executed: [N], how many of the actions returned last time were executed; None: all.
        ValueError for an observation of another shape.
        """
        values, stream = self._values(observation, missing, state)
        return self._absorb(values, stream, state, missing, executed)

    def _absorb(self, values: Tensor, stream: Tensor, state: State, missing: Any,
                executed: Any) -> tuple[np.ndarray, State]:
        """As `act`, of the observation as vectors."""
        blank = self._blank(values, missing)
        values = torch.where(values.isfinite(), values, 0.0)
        state = self._begin(values, stream, state)
        count = self._count(executed, len(values)).to(values.device)
        memory = self._remember(state, count)
        shown = self.of_observation.normalize(values)
        for place, (name, columns) in enumerate(self.tokens.columns.items()):
            x, level = self._shown(self.tokens.padded(shown[:, None, columns]), blank[name], state, place)
            memory = self.denoiser.absorb(x, level, memory, self._cond(place, state["first"]))
        actions, state = self._next(memory, state, count)
        return self.of_action.denormalize(actions).cpu().numpy(), {
            **state, "memory": memory, "clock": state["clock"] + 1, "begun": torch.ones_like(state["begun"])}

    def _next(self, memory: State, state: State, count: Tensor) -> tuple[Tensor, State]:
        """The actions to execute now, [N, execute, A] normalised, and the state with the plan that they are from."""
        plan = self.tokens.actions_of(self._plan(memory, state, count)[:, 0])
        return plan[:, :self.execute], {**state, "plan": plan}

    def _cond(self, place: int = 0, first: Tensor | None = None, count: Tensor | None = None) -> Cond:
        """Conditioning of one token: its kind, and the first observation where the network reads it."""
        assert first is not None
        share = torch.ones(len(first), 1, device=first.device) if count is None else count[:, None] / self.tokens.chunk
        return {"token": {KIND: self.tokens.kind(place, share)}, "static": {"first": first} if self.first else {}}

    def _blank(self, values: Tensor, missing: Any) -> dict[str, Tensor]:
        """Name of a part -> [N] bool, where it is missing or not finite."""
        if missing is not None and not isinstance(missing, Mapping):
            missing = dict.fromkeys(self.tokens.parts, missing)
        blank = {name: ~values[:, columns].isfinite().all(1) for name, columns in self.tokens.columns.items()}
        for name, where in (missing or {}).items():
            if name not in blank or np.shape(where) != (len(values),):
                raise ValueError(f"missing is [{len(values)}] bool, or a dict of such of the parts {list(blank)}, got "
                                 f"{name}: {np.shape(where)}")
            blank[name] = blank[name] | torch.as_tensor(np.asarray(where, dtype=bool), device=values.device)
        return blank

    def _values(self, observation: Observation, missing: Any, state: State) -> tuple[Tensor, Tensor]:
        """The observation as vectors [N, O], and a number for each row [N], from which the noise of an episode follows:
        of what was seen first and not of what coders make of it, whose last bits differ between batches.
        """
        rows, device = len(state["clock"]), state["first"].device
        pictures: dict[str, np.ndarray] = {}
        if self.coders is not None:
            observation, pictures = encoded_pictures(observation, self.coders, rows, missing, device)
        values = torch.from_numpy(observation_vectors(observation, self.tokens.parts, rows)).to(device)
        if state["begun"].all():
            return values, state["stream"]
        plain = torch.where(values.isfinite(), values, 0.0)
        for name in pictures:
            plain[:, self.tokens.columns[name]] = 0.0
        bits = plain.contiguous().view(torch.int32).long()
        odd = 2 * torch.arange(values.shape[1], device=device) + 1
        return values, (mix(bits, odd) * odd).sum(1) + torch.from_numpy(picture_numbers(pictures, rows)).to(device)

    def _begin(self, values: Tensor, stream: Tensor, state: State) -> State:
        """The state in which the rows that have seen nothing yet know their first observation [N, O]."""
        if state["begun"].all():
            return state
        first = self.of_observation.normalize(values)
        fresh = {**self.reset(len(values)), "stream": stream, "first": first}
        if self.first:
            fresh["memory"] = self.denoiser.init_state(len(values), self._cond(first=first))
        return reset(state, fresh, ~state["begun"])

    def _count(self, executed: np.ndarray | None, rows: int) -> Tensor:
        """How many of the last actions were executed, [N]."""
        count = torch.as_tensor(np.full(rows, self.execute) if executed is None else np.array(executed))
        if count.shape != (rows,) or count.is_floating_point() or not 0 <= int(count.min()) <= int(
                count.max()) <= self.tokens.chunk:
            raise ValueError(f"executed is [{rows}] whole numbers in 0..{self.tokens.chunk}, got {executed}")
        return count

    def _remember(self, state: State, count: Tensor) -> State:
        """The memory after the last actions, in the rows that have acted."""
        if not state["begun"].any():
            return state["memory"]
        unknown = (count == 0) | (count < self.tokens.chunk) & (not self.cut) | self.regression
        count = torch.where(unknown, self.tokens.chunk, count)
        x = self.tokens.action_token(state["plan"], count)[:, None]
        x = self._noised(x, unknown, state, self.tokens.cycle - 1, UNKNOWN)
        level = torch.where(unknown, self.schedule.levels, 0)[:, None]
        cond = self._cond(self.tokens.cycle - 1, state["first"], count)
        memory = self.denoiser.absorb(x, level, state["memory"], cond)
        return memory if state["begun"].all() else reset(state["memory"], memory, state["begun"])

    def _shown(self, x: Tensor, blank: Tensor, state: State, place: int) -> tuple[Tensor, Tensor]:
        """An observation token as the network is shown it, and its level [N, 1]."""
        level = torch.full((len(x), 1), self.sensor, device=x.device).masked_fill(blank[:, None], self.schedule.levels)
        alpha = self.schedule(level, x)[0].to(x.dtype)  # a noisy x is (x0 + noise), and x_level = alpha times that
        return self._noised(alpha * x, blank, state, place, MISSING), level

    def _noised(self, x: Tensor, where: Tensor, state: State, place: int, salt: int) -> Tensor:
        """x [N, 1, E], pure noise in the rows `where` [N]."""
        return torch.where(where[:, None, None], self._noise(x, state, place, salt), x) if where.any() else x

    def _noise(self, like: Tensor, state: State, place: int, salt: int) -> Tensor:
        time = state["clock"][:, None] * self.tokens.cycle + place
        return self.noise(0, time, like, salt=salt, sample=state["stream"])

    def _plan(self, memory: State, state: State, count: Tensor) -> Tensor:
        """The action token [N, 1, E] that follows what was absorbed."""
        place = self.tokens.cycle - 1
        x = state["plan"].new_zeros(len(count), 1, self.tokens.width)
        x, matrix, cond = self._noise(x, state, place, START), None, self._cond(place, state["first"])
        if self.warm is not None:
            later = (torch.arange(self.tokens.chunk, device=x.device) + count[:, None]).clamp(max=self.tokens.chunk - 1)
            left = state["plan"].gather(1, later[..., None].expand_as(state["plan"]))
            goes_on = state["begun"] & (count < self.tokens.chunk)
            level = torch.full_like(later[:, :1], self.warm)
            begin = corrupt(self.schedule, self.tokens.padded(left.flatten(1))[:, None], level,
                            self._noise(x, state, place, WARM))
            x = torch.where(goes_on[:, None, None], begin, x)
            matrix = self.levels[:, None, None].minimum(torch.where(goes_on[:, None], level, self.schedule.levels))
        denoiser = self.denoiser
        if self.energy is not None:
            energy = self.energy
            denoiser = guided(denoiser, self.schedule, lambda x0: energy(self.of_action.denormalize(
                self.tokens.actions_of(x0[:, 0]))), self.scale)
            memory = {"inner": memory, "past": None}
        if matrix is None:
            return self.descend(denoiser, x, memory, cond)
        return generate(denoiser, self.schedule, matrix, x, state=memory, cond=cond)
