"""Asks `dforce serve policy` for actions. Needs numpy, msgpack and websockets alone: a robot may have a copy of it."""

import time
from contextlib import ExitStack
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def packed_array(value: Any) -> dict[str, Any]:
    """An array as messages hold it."""
    array = np.asarray(value)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


class PolicyClient:
    """One robot's connection. about: what the server says of its policy.

    url: ws://HOST:PORT. token: as the server has it. expect: hash of the normaliser or of the checkpoint that the robot
    was prepared for; another one is refused. deadline: seconds to wait for actions; None: the server's. hold: actions
    [A] or [C, A] for when they come late; None: the last action, again. ConnectionError where the server refuses.
    late: whether the last answer was held. latency: seconds that it took.
    """

    def __init__(self, url: str, *, token: str | None = None, expect: str | None = None, deadline: float | None = None,
                 hold: Any = None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._open = ExitStack()
            self._socket = self._open.enter_context(connect(url, compression=None, additional_headers={
                **headers, **({"Policy-Hash": expect} if expect else {})}))
            self.about = msgpack.unpackb(self._socket.recv(10))
        except (InvalidStatus, ConnectionClosed) as error:
            raise ConnectionError(_reason(error)) from None
        self.deadline = deadline or self.about["deadline"]
        self._hold, self._held = hold is not None, hold  # given by the user; what is done when actions come late
        self._number, self.late, self.latency = 0, False, 0.0

    def act(self, observation: Any, *, executed: int | None = None, missing: Any = None,
            reset: bool = False) -> np.ndarray:
        """The next actions [C, A]; TimeoutError where there is nothing to hold, ValueError for a refused observation.

        observation: name -> array, or the array of a policy that sees a single part. missing: True, or name -> whether
        that part is. executed: how many of the last actions were; None: all, or none where they were held. reset: an
        episode begins.
        """
        begin, parts = time.monotonic(), self.about["parts"]
        if not isinstance(observation, dict):
            if len(parts) != 1:
                raise ValueError(f"observation is name -> array of {list(parts)}, got {type(observation).__name__}")
            observation = dict.fromkeys(parts, observation)
        message = {"number": self._number + 1, "time": time.time(), "deadline": self.deadline, "reset": reset,
                   "executed": 0 if executed is None and self.late and not reset else executed, "missing": missing,
                   "observation": {name: packed_array(value) for name, value in observation.items()}}
        packed, self._number = msgpack.packb(message), self._number + 1
        try:
            self._socket.send(packed)
            reply: dict[str, Any] = {"number": 0}
            while reply["number"] is not None and reply["number"] < self._number:  # those before came late
                reply = msgpack.unpackb(self._socket.recv(max(0.0, begin + self.deadline - time.monotonic())))
            if "error" in reply:
                raise ValueError(reply["error"])
            array, self.late = reply["actions"], False
            actions = np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])
            self._held = self._held if self._hold else actions[-1]
        except ConnectionClosed as error:
            raise ConnectionError(_reason(error)) from None
        except TimeoutError:
            self.late = True
            if self._held is None:
                raise TimeoutError(f"no actions within {self.deadline} s, and none before them to hold") from None
            actions = np.broadcast_to(self._held, self.about["actions"])
        self.latency = time.monotonic() - begin
        return actions

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._open.close()


def _reason(error: Exception) -> str:
    """The line that a server closed with."""
    response, closed = getattr(error, "response", None), getattr(error, "rcvd", None)
    text = response.body.decode(errors="replace") if response is not None else closed.reason if closed else ""
    return text.strip() or str(error)
