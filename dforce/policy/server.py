"""A policy for robots over a websocket: each connection is an episode with a state of its own; docs/robots.md.

`GET /healthz` answers {"alive", "clients", "replies", "late", "refused", "p50", "p99"}, the last two in milliseconds.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from dforce.core.loopback import HOST, LOOPBACK, asks_for, served_names
from dforce.policy.batching import Batching
from dforce.policy.client import packed_array
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.messages import Request, blank, checked, largest, unpacked

BUFFER = 1 << 16  # bytes of replies that wait for one client, in the kernel and here
STOPPED = "the server was stopped"
REASON = 120      # bytes of the reason that a connection is closed with
TIMED = 10_000    # latest replies whose latency is told


@dataclass(frozen=True)
class ServingLimits:
    """What one server grants. clients: at a time. rows, gather: as `Batching` takes them. deadline: seconds until a
    reply is late. idle: seconds between two messages of a client. slow: seconds in which it must read a reply."""

    deadline: float
    clients: int = 32
    rows: int = 1
    gather: float = 0.002
    idle: float = 60.0
    slow: float = 5.0


@dataclass
class ServingRecord:
    """What a server did. refused: messages and connections. seconds: of the latest replies."""

    replies: int = 0
    late: int = 0
    refused: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=TIMED))

    def percentiles(self) -> dict[str, float | None]:
        """Milliseconds, None before the first reply."""
        return {f"p{share}": round(1000 * float(np.percentile(self.seconds, share)), 3) if self.seconds else None
                for share in (50, 99)}


class PolicyServer:
    """about: what clients are told of the policy, its `hashes` among it. token: None for none. hosts: names that
    clients may call it by, beside those of this machine."""

    def __init__(self, policy: ForcingPolicy, about: Mapping[str, Any], limits: ServingLimits, *,
                 token: str | None = None, hosts: Sequence[str] = ()):
        self.policy, self.limits, self.hosts = policy, limits, hosts
        self.parts = policy.inputs
        self.about = {**about, "protocol": 1, "parts": dict(self.parts), "actions": [policy.execute,
                      policy.tokens.action], "chunk": policy.tokens.chunk, "deadline": limits.deadline}
        self.token = token and f"Bearer {token}".encode()
        self.batching = Batching(policy, rows=limits.rows, gather=limits.gather)
        self.record, self.connections = ServingRecord(), set[Any]()

    def warm_up(self, calls: int = 5) -> float:
        """Seconds of the last of some calls on zeros: the first ones, which are slow, happen before a client waits."""
        for rows in {1, self.limits.rows}:
            state = self.policy.reset(rows)
            for _ in range(calls):
                begin = time.perf_counter()
                _, state = self.policy.act({name: blank(each).repeat(rows, 0) for name, each in self.parts.items()},
                                           state)
        return time.perf_counter() - begin

    async def run(self, host: str, port: int, ready: Callable[[int], None]) -> None:
        """Serves until it is cancelled, and tells every client so. ready: called with the port, which 0 leaves open."""
        from websockets.asyncio.server import serve

        quiet = logging.getLogger("dforce.policy.server")
        quiet.setLevel(logging.CRITICAL + 1)  # what strangers send is no error of the server
        helpers = [asyncio.create_task(each()) for each in (self.batching.run, self._watch)]
        try:
            async with serve(self._visit, host, port, process_request=self._request, compression=None, logger=quiet,
                             max_size=largest(self.parts), max_queue=4, open_timeout=5, close_timeout=1) as server:
                try:
                    ready(server.sockets[0].getsockname()[1])
                    await asyncio.gather(*helpers)
                finally:
                    await asyncio.gather(*(each.close(1001, STOPPED) for each in [*self.connections]))
        finally:
            for helper in helpers:
                helper.cancel()

    def _request(self, connection: Any, query: Any) -> Any:
        """Who is refused before there is a connection, in one line; None: nobody."""
        names = served_names(connection.local_address[1], self.hosts)
        given, wanted = query.headers.get_all("Authorization"), query.headers.get_all("Policy-Hash")
        hashes = self.about["hashes"]
        if query.headers.get_all("Origin") or not asks_for(names, query.headers):
            status, line = 403, f"robots are served, not browsers, and by the names {', '.join(names)} alone"
        elif query.path == "/healthz":
            return connection.respond(200, json.dumps(self.health()))
        elif self.token and not (len(given) == 1 and hmac.compare_digest(given[0].encode(errors="replace"),
                                                                         self.token)):
            status, line = 401, "this server wants its token: Authorization: Bearer TOKEN"
        elif any(each not in hashes.values() for each in wanted):
            status, line = 409, f"another policy is wanted, {wanted[0][:80]}; served is {hashes}"
        elif len(self.connections) >= self.limits.clients:
            status, line = 503, f"all {self.limits.clients} places are taken"
        else:
            return None
        self.record.refused += 1
        return connection.respond(status, line + "\n")

    def health(self) -> dict[str, Any]:
        """What /healthz answers."""
        record = self.record
        return {"alive": True, "clients": len(self.connections), "replies": record.replies, "late": record.late,
                "refused": record.refused, **record.percentiles()}

    async def _visit(self, connection: Any) -> None:
        """One client from its first message to its last."""
        from websockets.exceptions import ConnectionClosed

        if len(self.connections) >= self.limits.clients:  # several came at once
            await connection.close(1013, f"all {self.limits.clients} places are taken")
            return
        self.connections.add(connection)
        self.batching.clients += 1
        _bound(connection.transport)
        with contextlib.suppress(ConnectionClosed):
            try:
                await self._send(connection, self.about)
                await self._converse(connection)
            except ValueError as error:
                self.record.refused += 1
                await connection.close(1007, str(error).encode()[:REASON].decode(errors="ignore"))
            except asyncio.CancelledError:
                await connection.close(1001, STOPPED)
                raise
            finally:
                self.connections.discard(connection)
                self.batching.clients -= 1

    async def _converse(self, connection: Any) -> None:
        """Answers one message after another. ValueError for what is no message."""
        state, number = self.policy.reset(1), None
        while True:
            try:
                async with asyncio.timeout(self.limits.idle):
                    message = await connection.recv()
            except TimeoutError:
                return await connection.close(1008, f"no message for {self.limits.idle:g} s")
            begin, fields = time.perf_counter(), unpacked(message)
            try:
                request = checked(fields, self.parts, execute=self.policy.execute, number=number)
                actions, state = await self.batching.act(request, self.policy.reset(1) if request.reset else state)
            except ValueError as error:
                self.record.refused += 1
                number = number + 1 if number is not None and fields["number"] == number else number
                await self._send(connection, {"number": _number(fields), "error": str(error)})
                continue
            number = request.number + 1
            await self._send(connection, self._reply(request, actions, time.perf_counter() - begin))

    def _reply(self, request: Request, actions: np.ndarray, seconds: float) -> dict[str, Any]:
        record = self.record
        late = seconds > (self.limits.deadline if request.deadline is None else request.deadline)
        record.replies, record.late = record.replies + 1, record.late + late
        record.seconds.append(seconds)
        absorbed = [name for name, value in request.observation.items()
                    if request.missing[name] or not np.isfinite(value).all()]
        return {"number": request.number, "time": request.time, "actions": packed_array(actions), "latency": seconds,
                "late": late, "missing": absorbed, "dt": self.about.get("dt")}

    async def _send(self, connection: Any, message: Mapping[str, Any]) -> None:
        """Sends, or drops a client that does not read."""
        try:
            async with asyncio.timeout(self.limits.slow):
                await connection.send(msgpack.packb(message))
        except TimeoutError:
            self.record.refused += 1
            connection.transport.abort()

    async def _watch(self) -> None:
        """Drops clients who make the server write, by pings, and do not read."""
        while True:
            await asyncio.sleep(1)
            for connection in [*self.connections]:
                if connection.transport.get_write_buffer_size() > 4 * BUFFER:
                    connection.transport.abort()


def _bound(transport: Any) -> None:
    """No more than BUFFER bytes wait in the kernel for a client."""
    import socket

    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)


def _number(fields: Mapping[str, Any]) -> int | None:
    """The number of a message, where it is one that msgpack can send back."""
    number = fields["number"]
    return number if isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**53 else None


def serve_policy(server: PolicyServer, *, host: str = HOST, port: int = 8765) -> None:
    """Serves until it is interrupted; the KeyboardInterrupt then says what it did.

    ValueError for another address than the loopback one without a token.
    """
    if f"[{host}]" not in LOOPBACK and host not in LOOPBACK and not server.token:
        raise ValueError(f"host={host} can be reached by others, so a token is needed: put it into the environment "
                         "variable DFORCE_TOKEN, or into a file and give token_file=")
    took = server.warm_up()

    def ready(port: int) -> None:
        print(f"serving {server.about['task']} at ws://{host}:{port}, {1000 * took:.1f} ms a call; normaliser "
              f"{server.about['hashes']['normalizer']}", flush=True)

    try:
        asyncio.run(server.run(host, port, ready))
    except KeyboardInterrupt:
        record = server.record
        raise KeyboardInterrupt(f"{STOPPED}: {record.replies} replies, {record.late} late, {record.refused} refused, "
                                f"p50 and p99 {', '.join(f'{each} ms' for each in record.percentiles().values())}"
                                ) from None
