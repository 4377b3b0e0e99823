"""Calls of a policy for many clients, in the order in which they ask, one at a time or several in one call."""

import asyncio
from typing import NamedTuple

import numpy as np
import torch

from dforce.core.tree import State, leaves, map_state, select
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.messages import Request


class _Job(NamedTuple):
    request: Request
    state: State
    answer: "asyncio.Future[tuple[np.ndarray, State]]"


class Batching:
    """Acts for clients whose states the clients' connections keep.

    rows: clients of one call. With 1 the actions are, bit for bit, those of a local call: a product of several rows
    rounds otherwise than that of one. gather: seconds to wait for further clients while there are fewer than `rows`.
    """

    def __init__(self, policy: ForcingPolicy, *, rows: int = 1, gather: float = 0.0):
        self.policy, self.rows, self.gather = policy, rows, gather
        self.clients = 0  # that may ask
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()

    async def act(self, request: Request, state: State) -> tuple[np.ndarray, State]:
        """The actions [C, A] of one client and its state after them; ValueError where the policy refuses."""
        answer: asyncio.Future[tuple[np.ndarray, State]] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait(_Job(request, state, answer))
        return await answer

    async def run(self) -> None:
        """Computes until it is cancelled."""
        while True:
            jobs = [await self._jobs.get()]
            if len(jobs) + self._jobs.qsize() < min(self.rows, self.clients):
                await asyncio.sleep(self.gather)
            while len(jobs) < self.rows and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            self.compute([job for job in jobs if not job.answer.done()])  # whose client is still there
            await asyncio.sleep(0)  # the others' messages come in

    def compute(self, jobs: list[_Job]) -> None:
        """Answers jobs; one that the policy refuses is refused alone."""
        alike: dict[tuple[torch.Size, ...], list[_Job]] = {}
        for job in jobs:
            alike.setdefault(tuple(leaf.shape for leaf in leaves(job.state)), []).append(job)
        for some in alike.values():
            try:
                self._together(some)
            except Exception as error:  # of the policy, or of an energy: the server goes on
                if len(some) == 1:
                    some[0].answer.set_exception(ValueError(f"the policy refuses: {' '.join(str(error).split())}"))
                else:
                    for job in some:
                        self.compute([job])

    def _together(self, jobs: list[_Job]) -> None:
        requests = [job.request for job in jobs]
        observation, missing = ({name: np.concatenate([np.atleast_1d(getattr(each, field)[name]) for each in requests])
                                 for name in self.policy.tokens.parts} for field in ("observation", "missing"))
        executed = np.array([self.policy.execute if each.executed is None else each.executed for each in requests])
        state = jobs[0].state if len(jobs) == 1 else map_state(lambda *rows: torch.cat(rows), *(
            job.state for job in jobs))
        actions, state = self.policy.act(observation, state, missing=missing, executed=executed)
        if not np.isfinite(actions).all():
            raise ValueError("its actions are not finite; the observation lies too far from those it learnt from")
        for row, job in enumerate(jobs):
            job.answer.set_result((actions[row], state if len(jobs) == 1 else select(state, torch.tensor([row]))))
