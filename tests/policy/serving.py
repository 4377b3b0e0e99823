"""A policy server in a thread of the test, and what its clients should get from it."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

from dforce.policy.background import served_in_thread
from dforce.policy.server import PolicyServer, ServingLimits

HASHES = {"normalizer": "a" * 64, "checkpoint": "b" * 64}
ABOUT = {"task": "a test", "dt": 0.1, "action_names": ["x", "y"], "hashes": HASHES}


@contextmanager
def serving(policy, *, token=None, **limits):
    """(server, url) of a server that is running, and has ended afterwards."""
    server = PolicyServer(policy, ABOUT, ServingLimits(**{"deadline": 30.0, **limits}), token=token)
    with served_in_thread(server, seconds=20) as url:
        yield server, url


def local(policy, calls):
    """Actions of calls (observation, executed, missing) made here, one robot alone."""
    state, out = policy.reset(1), []
    for observation, executed, missing in calls:
        actions, state = policy.act({name: np.asarray(value)[None] for name, value in observation.items()}, state,
                                    executed=None if executed is None else np.array([executed]),
                                    missing=missing and {name: np.array([each]) for name, each in missing.items()})
        out.append(actions[0])
    return out
