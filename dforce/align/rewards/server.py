"""A reward that a server of the user's computes: images as PNG in JSON over HTTP; docs/alignment.md has an example."""

import base64
import io
import json
import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import torch
from PIL import Image
from torch import Tensor

from dforce.align.rewards.preprocess import pictures_of
from dforce.align.rewards.protocol import Reward, Subject

FORMAT = 1
LARGEST = 2**20              # bytes of an answer, and
LARGEST_EACH = 2**12         # more for each image
BUSY = (429, 500, 502, 503, 504)  # status codes that are asked again


class ServerReward:
    """POSTs {"format": 1, "prompts", "metadata", "images": [PNG in base64]}; wants {"rewards": [one number each]}.

    timeout: seconds for an answer. retries: more tries where nobody answers, too late, or with a status of BUSY, after
    pause, 2 pause, 4 pause ... seconds. rows: images a request. No proxy is asked. Not differentiable.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, retries: int = 3, pause: float = 1.0, rows: int = 64):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"url must be http://host:port/path or https://..., got {url!r}")
        self.url, self.timeout, self.retries, self.pause, self.rows = url, timeout, retries, pause, rows
        self._open = build_opener(ProxyHandler({})).open

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] | None = None) -> Tensor:
        """[B] float64 on the CPU. samples: [B, 1, C, H, W]. Raises OSError or ValueError, in one line each."""
        values: list[float] = []
        for start in range(0, len(samples), self.rows):
            part = slice(start, start + self.rows)
            values += self._ask(samples[part], list(prompts[part]), list((metadata or [])[part]) or None)
        return torch.tensor(values, dtype=torch.float64)

    def _ask(self, samples: Tensor, prompts: list[Any], metadata: list[Any] | None) -> list[float]:
        about = {"format": FORMAT, "prompts": prompts, "metadata": metadata,
                 "images": [_png(picture) for picture in pictures_of(samples)]}
        try:
            body = json.dumps(about, default=_plain).encode()
        except TypeError as error:
            raise ValueError(f"prompts and metadata go to {self.url} as JSON: {error}") from error
        try:
            answer = json.loads(self._answer(body, LARGEST + LARGEST_EACH * len(samples)))
        except ValueError as error:
            raise ValueError(f"{self.url} answered with something else than JSON: {error}") from error
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list) or not all(isinstance(one, (int, float)) for one in rewards):
            raise ValueError(f'{self.url} must answer with {{"rewards": [numbers]}}, got {str(answer)[:80]}')
        if len(rewards) != len(samples):
            raise ValueError(f"{self.url} answered with {len(rewards)} rewards for {len(samples)} images")
        return [float(one) for one in rewards]

    def _answer(self, body: bytes, most: int) -> bytes:
        request = Request(self.url, body, {"Content-Type": "application/json"})
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._once(request, most)
            except HTTPError as error:
                reason = f"answered with status {error.code}"
                error.close()
                if error.code not in BUSY:
                    break
            except TimeoutError:
                reason = f"did not answer within {self.timeout:g} s"
            except (URLError, HTTPException, OSError) as error:
                late = isinstance(getattr(error, "reason", None), TimeoutError)
                reason = (f"did not answer within {self.timeout:g} s" if late
                          else f"cannot be asked: {getattr(error, 'reason', error) or type(error).__name__}")
        raise ConnectionError(f"the reward server {self.url} {reason} (tries: {attempt + 1}); start it, or give more "
                              "timeout or retries, and go on with resume=")

    def _once(self, request: Request, most: int) -> bytes:
        """One answer, whole within `timeout`, of at most so many bytes."""
        deadline, parts = time.monotonic() + self.timeout, []
        with self._open(request, timeout=self.timeout) as response:
            while part := response.read1(2**16):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
                if sum(map(len, parts)) > most:
                    raise ValueError(f"more than {most} bytes")
        return b"".join(parts)


def server(subject: Subject, *, url: str, timeout: float = 60.0, retries: int = 3, pause: float = 1.0,
           rows: int = 64) -> Reward:
    """`ServerReward` at `url`."""
    return ServerReward(url, timeout=timeout, retries=retries, pause=pause, rows=rows)


def _png(picture: Any) -> str:
    Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _plain(value: Any) -> Any:
    """Whole numbers and arrays of numpy and torch as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON")
