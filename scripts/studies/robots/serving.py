"""What a policy server costs beside the policy: milliseconds of a call from a client on the same machine.

    python scripts/studies/robots/serving.py --out docs/results/robot_serving.json

The server is a process of its own, the clients are threads of this one. "no policy": one that answers zeros at once, so
that all of a call is the server's, the client's and the sockets'. "swap": the one that ships, with 1, 8 and 32 clients,
each on an episode of its own, whose actions are compared with local calls; n is calls of all clients together.
"""

import argparse
import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from dforce.policy.client import PolicyClient
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.server import PolicyServer, ServingLimits
from dforce.report.rows import Row, make_row, write_results
from dforce.runs.folder import environment, results_header
from dforce.runs.imitation import load_policy

PICTURES = {"observation": 10, "front": 64 * 64 * 3, "top": 64 * 64 * 3}
PLAIN = {"observation": 10}
FEW, MANY = 160, 1000  # calls of "swap" and of "no policy"


class Nothing:
    """Acts without a policy: zeros, at once."""

    execute = 5

    def __init__(self, parts: dict[str, int]):
        self.inputs = {name: width if width == 10 else (64, 64, 3) for name, width in parts.items()}
        self.tokens = type("Tokens", (), {"parts": parts, "action": 4, "chunk": 5})

    def reset(self, n: int) -> Any:
        return None

    def act(self, observation: Any, state: Any, **how: Any) -> tuple[np.ndarray, Any]:
        return np.zeros((len(observation["observation"]), 5, 4), np.float32), state


def serve(kind: str, rows: int) -> None:
    """Serves until it is killed; prints its port."""
    policy: Any = load_policy("swap")[0] if kind == "swap" else Nothing(PLAIN if kind == "plain" else PICTURES)
    server = PolicyServer(policy, {"task": kind, "dt": 0.1, "hashes": {}}, ServingLimits(deadline=60.0, rows=rows))
    server.warm_up()
    asyncio.run(server.run("127.0.0.1", 0, lambda port: print(port, flush=True)))


def observed(client: int, step: int, parts: dict[str, int]) -> dict[str, np.ndarray]:
    """What a client sees: numbers near those of the task, pictures of noise."""
    rng = np.random.default_rng([client, step])
    return {name: (0.1 * rng.normal(size=width)).astype(np.float32) if width == 10 else
            rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name, width in parts.items()}


def talked(url: str, clients: int, calls: int, parts: dict[str, int]) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Seconds of all calls, and the actions of each client."""
    seconds: list[float] = []
    actions: list[list[np.ndarray]] = [[] for _ in range(clients)]

    def talk(client: int) -> None:
        with PolicyClient(url, deadline=60) as link:
            for step in range(calls):
                actions[client].append(link.act(observed(client, step, parts)))
                seconds.append(link.latency)

    threads = [threading.Thread(target=talk, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(seconds), actions


def local(policy: ForcingPolicy, client: int, calls: int) -> tuple[list[float], list[np.ndarray]]:
    """The same calls without a server."""
    state, seconds, actions = policy.reset(1), [], []
    for step in range(calls):
        observation = observed(client, step, PLAIN)["observation"][None]
        begin = time.perf_counter()
        done, state = policy.act(observation, state)
        seconds.append(time.perf_counter() - begin)
        actions.append(done[0])
    return seconds, actions


def measured(kind: str, clients: int, calls: int, rows: int = 1) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """`talked` with a server of this kind."""
    words = [sys.executable, __file__, "--serve", kind, "--rows", str(rows)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = f"ws://127.0.0.1:{int(process.stdout.readline())}"
            return talked(url, clients, calls, PICTURES if kind == "pictures" else PLAIN)
        finally:
            process.kill()


def timed(method: str, seconds: Any, **variant: Any) -> list[Row]:
    """Rows of the middle and of the slowest of 100 calls."""
    print(method, variant, len(seconds), 1000 * np.percentile(seconds, [50, 99]), flush=True)
    return [make_row("serving a policy", method, f"latency_p{share}", 1000 * float(np.percentile(seconds, share)),
                     n=len(seconds), unit="ms", higher=False, variant=variant) for share in (50, 99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    parser.add_argument("--serve", choices=["plain", "pictures", "swap"])
    parser.add_argument("--rows", type=int, default=1)
    args, about, begin, rows = parser.parse_args(), environment(), time.monotonic(), list[Row]()
    if args.serve:
        return serve(args.serve, args.rows)
    for kind, shown in (("plain", "10 numbers"), ("pictures", "10 numbers, two 64 x 64 pictures")):
        rows += timed("no policy", measured(kind, 1, MANY)[0], clients=1, observation=shown)
    policy, _ = load_policy("swap")
    rows += timed("swap, local calls", local(policy, 0, FEW)[0], clients=1)
    for clients, batch in ((1, 1), (8, 1), (32, 1), (32, 16)):
        calls = max(10, FEW // clients)
        seconds, actions = measured("swap", clients, calls, batch)
        method = "swap" if batch == 1 else f"swap, batch={batch}"
        rows += timed(method, seconds, clients=clients)
        equal = [np.array_equal(actions[client], local(policy, client, calls)[1]) for client in range(clients)]
        rows.append(make_row("serving a policy", method, "equal to local calls", float(np.mean(equal)), n=clients,
                             unit="share", higher=True, variant={"clients": clients}))
    if args.out:
        write_results(args.out, results_header(about, round(time.monotonic() - begin, 1)), rows)


if __name__ == "__main__":
    main()
