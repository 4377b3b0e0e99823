"""A reward server of the user's: the example of docs/alignment.md answers, and whatever goes wrong is one line."""

import base64
import io
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dforce.align.rewards.preprocess import pictures_of
from dforce.align.rewards.protocol import RewardError, Subject, ask_reward
from dforce.align.rewards.published import published_reward
from dforce.align.rewards.server import ServerReward

DOCS = Path(__file__).parents[2] / "docs/alignment.md"


def images(count=5):
    return torch.rand(count, 1, 3, 6, 8, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2


@contextmanager
def serving(answer):
    """The address of a server that answers every request with answer(request, number): JSON, bytes, or a status."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = answer(asked[-1], len(asked))
            self.send_response(reply if isinstance(reply, int) else 200)
            self.end_headers()
            if not isinstance(reply, int):
                self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

        def log_message(self, *about):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()


def brightness(request, number=1):
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in request["images"]]
    return {"rewards": [float(picture.mean()) for picture in pictures]}


def test_a_server_sees_images_prompts_and_metadata() -> None:
    with serving(brightness) as (url, asked):
        reward = published_reward("server", Subject((3, 6, 8), settings={"server": {"url": url, "rows": 2}}))
        found = ask_reward(reward, images(), ["cat", 1, torch.tensor(2), "dog", "owl"], [None, {"k": 1}, 2, 3, "four"])
    assert found.tolist() == [float(picture.mean()) for picture in pictures_of(images())]
    assert [request["format"] for request in asked] == [1, 1, 1]
    assert [request["prompts"] for request in asked] == [["cat", 1], [2, "dog"], ["owl"]]
    assert asked[0]["metadata"] == [None, {"k": 1}]


def test_the_example_in_the_docs_answers() -> None:
    code = re.search(r"```python\n(# reward_server\.py.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None and code[1].count("\n") <= 30
    names: dict = {"__name__": "example"}
    exec(code[1], names)
    server = HTTPServer(("127.0.0.1", 0), names["Answers"])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        found = ServerReward(f"http://127.0.0.1:{server.server_port}")(images(), ["cat"] * 5)
    finally:
        server.shutdown()
        server.server_close()
    assert found.tolist() == pytest.approx([picture[..., 0].mean() / 255 for picture in pictures_of(images())])


@pytest.mark.parametrize(("reply", "message"), [
    (500, r"answered with status 500 \(tries: 3\); start it"), (404, r"answered with status 404 \(tries: 1\)"),
    (b"<html>", "answered with something else than JSON"), ({"reward": [1]}, 'must answer with {"rewards": '),
    ({"rewards": [1, None]}, 'must answer with {"rewards": '), ({"rewards": [1.0]}, "1 rewards for 5 images"),
    ({"rewards": [0, float("nan"), 0, 0, 0]}, "is not finite for 1 of 5 samples"),
    (b"9" * 2_000_000, "something else than JSON: more than")])
def test_a_wrong_answer_is_one_line(reply, message) -> None:
    with serving(lambda request, number: reply) as (url, _):
        with pytest.raises(RewardError, match=message) as error:
            ask_reward(ServerReward(url, retries=2, pause=0.01), images(), list("abcde"))
    assert "\n" not in str(error.value)


def test_a_server_that_was_busy_is_asked_again() -> None:
    with serving(lambda request, number: brightness(request) if number > 2 else 503) as (url, asked):
        begin = time.monotonic()
        assert ask_reward(ServerReward(url, pause=0.05), images(2), ["a", "b"]).shape == (2,)
        assert time.monotonic() - begin > 0.05 + 0.1 and len(asked) == 3


def test_a_server_that_is_slow_or_down_is_told_of() -> None:
    def late(request, number):
        time.sleep(0.5)
        return brightness(request)

    with serving(late) as (url, _):
        with pytest.raises(RewardError, match=r"did not answer within 0.1 s \(tries: 2\)"):
            ask_reward(ServerReward(url, timeout=0.1, retries=1, pause=0.01), images(), list("abcde"))
    with pytest.raises(RewardError, match=r"cannot be asked: .*refused \(tries: 2\); start it, .* go on with resume="):
        ask_reward(ServerReward(url, retries=1, pause=0.01), images(), list("abcde"))


def test_an_address_and_metadata_that_cannot_be_sent_are_refused() -> None:
    for url in ("ftp://host/", "localhost:80", "file:///etc/passwd", "http://"):
        with pytest.raises(ValueError, match="url must be http://host:port/path"):
            ServerReward(url)
    with pytest.raises(RewardError, match="go to http://127.0.0.1:9 as JSON: a object is no JSON"):
        ask_reward(ServerReward("http://127.0.0.1:9"), images(1), [object()])
