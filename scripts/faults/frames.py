"""Frames that nobody should send to a policy server: each is answered by a line or by actions, and disturbs nobody."""

import random
from collections.abc import Iterator

import msgpack
import mutations
import numpy as np
import tally
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dforce.core.denoiser import Precond
from dforce.core.schedule import linear
from dforce.data.normalize import Affine
from dforce.nets.recurrent import RecurrentNet
from dforce.policy.background import served_in_thread
from dforce.policy.client import PolicyClient, packed_array
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.server import PolicyServer, ServingLimits

KIND = "frames to a policy server"
PARTS = {"eye": 12, "joint": 3}
LAYOUT = {"tokens": {"parts": PARTS, "action": 2, "chunk": 2}, "window": None, "first": False, "cut": 0}


def policy() -> ForcingPolicy:
    """One that has learnt nothing."""
    torch.manual_seed(0)
    net = RecurrentNet((12,), token={"kind": 3}, width=8)
    return ForcingPolicy(Precond(net, linear(100), "x0"), linear(100), Affine.identity(17), LAYOUT, steps=1)


def message(draw: random.Random) -> bytes:
    """A good frame, other ones each time."""
    arrays = {name: packed_array(np.array([draw.gauss(0, 1) for _ in range(width)], np.float32))
              for name, width in PARTS.items()}
    return msgpack.packb({"number": draw.randrange(9), "time": draw.random(), "deadline": 1.0, "reset": False,
                          "executed": draw.randrange(3), "missing": {"eye": False}, "observation": arrays})


def answered(url: str, frame: bytes) -> tuple[str, str]:
    """Outcome of a frame on a connection of its own, and what was said."""
    with connect(url, compression=None) as link:
        link.recv(10)
        try:
            link.send(frame)
            reply = msgpack.unpackb(link.recv(10))
        except ConnectionClosed as closed:
            end = closed.rcvd
            return tally.REPORTED if end and end.code in (1007, 1009) else tally.RAW, str(end)
        except TimeoutError:
            return tally.LOST, "no answer"
    if "error" in reply:
        return tally.RAW if "\n" in reply["error"] or len(reply["error"]) > 400 else tally.REPORTED, reply["error"]
    actions = np.frombuffer(reply["actions"]["data"], reply["actions"]["dtype"])
    return tally.HARMLESS if len(actions) == 4 and np.isfinite(actions).all() else tally.SILENT, "actions"


def faults(count: int, seed: int = 0) -> Iterator[tally.Fault]:
    """Mutated frames; all the while another client's actions must be those of local calls, bit for bit."""
    draw, local = random.Random(seed), policy()
    about = {"task": "faults", "dt": 0.1, "hashes": {"normalizer": "0", "checkpoint": "0"}}
    server, state = PolicyServer(policy(), about, ServingLimits(deadline=10.0)), local.reset(1)
    with served_in_thread(server) as url, PolicyClient(url, deadline=30) as bystander:
        for number in range(count):
            way, frame = mutations.mutated(message(draw), message(draw), draw)
            outcome, text = answered(url, frame)
            seen = {name: np.full((1, width), draw.gauss(0, 1), np.float32) for name, width in PARTS.items()}
            wanted, state = local.act(seen, state)
            if not np.array_equal(bystander.act({name: value[0] for name, value in seen.items()}), wanted[0]):
                outcome, text = tally.LOST, "another client got other actions"
            yield tally.Fault(KIND, f"{number}, {way}: {text}", outcome)
