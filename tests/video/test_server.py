"""Steering a world model over a real websocket, and by a real browser where one is installed."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from dforce.data.pixels import to_uint8
from dforce.video.model import load_video
from dforce.video.server import World, keys_of, png, serve
from dforce.video.stream import Recipe
from tests.small_video import save_model

client = pytest.importorskip("websockets.sync.client")
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed
RECIPE = Recipe(steps=2, refresh=(4, 4))


@contextmanager
def served(model, host=None):
    """The port of a server that is running, and has ended afterwards."""
    there, servers = threading.Event(), []
    thread = threading.Thread(target=serve, args=(model, RECIPE, None), daemon=True, kwargs={
        "port": 0, "fps": 1000, "host": host, "ready": lambda server: (servers.append(server), there.set())})
    thread.start()
    assert there.wait(20)
    try:
        yield servers[0].socket.getsockname()[1]
    finally:
        servers[0].shutdown()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    return load_video(save_model(folder, shape=(3, 8, 8), actions=3, data=""))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))[32::64, 32::64]


@pytest.mark.slow
def test_a_visitor_sees_the_frames_that_its_keys_make(model):
    world = World(model, RECIPE, None, context=0, seed=0)
    wanted, first = [], pixels(png(world.first))
    assert np.ptp(first) > 0                                                    # a picture, no grey
    for action in (0, 0, 2):
        world.held = action
        wanted.append(to_uint8(world.step()[0]))
    with served(model) as port, client.connect(f"ws://127.0.0.1:{port}/steer", proxy=None) as link:
        assert np.array_equal(pixels(link.recv(timeout=20)), first)          # what it begins with, and it waits
        with pytest.raises(TimeoutError):
            link.recv(timeout=0.3)
        link.send(json.dumps({"held": 0}))
        assert np.array_equal(pixels(link.recv(timeout=20)), wanted[0])
        assert np.array_equal(pixels(link.recv(timeout=20)), wanted[1])
        for nonsense in ("{", "[1]", '{"held": 3}', '{"held": true}', '{"held": "left"}'):
            link.send(nonsense)
        errors = 0
        while errors < 5:
            message = link.recv(timeout=20)
            errors += isinstance(message, str) and "say" in json.loads(message)["error"]
        link.send(json.dumps({"again": True}))
        elsewhere = pixels(png(world.again()))
        later = [link.recv(timeout=20) for _ in range(200)]                   # whatever was made before it was heard
        assert any(isinstance(each, bytes) and np.array_equal(pixels(each), elsewhere) for each in later)
        link.send(json.dumps({"held": None}))


def test_the_film_has_what_was_seen(model, tmp_path):
    world = World(model, RECIPE, None, context=0, seed=0)
    world.held = 1
    seen = [to_uint8(frame) for frame in (world.first, *world.step(), *world.step())]
    assert all(map(np.array_equal, world.seen, seen)) and len(world.seen) == 3
    with served(model) as port, client.connect(f"ws://127.0.0.1:{port}/steer", proxy=None) as socket:
        socket.recv(timeout=20)
        socket.send(json.dumps({"held": 1}))
        for _ in range(6):
            socket.recv(timeout=20)
        socket.send(json.dumps({"held": None}))
        socket.send(json.dumps({"film": True}))
        while not isinstance(message := socket.recv(timeout=20), str):
            pass
        name = json.loads(message)["film"]
        (tmp_path / name).write_bytes(socket.recv(timeout=20))
    film = iio.imread(tmp_path / name)
    assert name.endswith(".mp4") and len(film) >= 7                            # the first frame and all after it
    wanted = seen[0].repeat(16, 0).repeat(16, 1).astype(float)
    assert film[0].shape == wanted.shape and np.abs(film[0] - wanted).mean() < 8


def test_an_action_changes_the_next_frame_and_visitors_do_not_share_a_world(model):
    first, other = (World(model, RECIPE, None, context=0, seed=0) for _ in range(2))
    first.held, other.held = 0, 1
    assert not torch.equal(first.step(), other.step())
    again = World(model, RECIPE, None, context=0, seed=0)
    again.held = 0
    first.again()
    assert not torch.equal(first.step(), again.step())                          # a new place, new noise


def test_the_page_and_who_may_ask(model):
    with served(model) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            text = page.read().decode()
            assert page.headers["Content-Type"].startswith("text/html") and '"ArrowLeft": 0' in text
        first = World(model, RECIPE, None, context=0, seed=0).first
        assert base64.b64encode(png(first)).decode() in text and "A world model: a network makes every" in text
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/etc/passwd")


def answered(port, host, origin=None, more=""):
    """The status line that a websocket's handshake gets, whatever its headers say."""
    lines = [f"GET /steer HTTP/1.1{more}", *([f"Host: {host}"] if host else []),
             *([f"Origin: {origin}"] if origin else []), "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall("\r\n".join(lines).encode())
        return link.recv(4096).split(b"\r\n")[0].decode().split(" ")[1]


def test_only_pages_of_this_machine_may_steer(model):
    with served(model, host="box.lan:8443") as port:
        here = [f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"LOCALHOST:{port}", "box.lan:8443"]
        for host in here:
            assert answered(port, host) == "101"                                # no browser: no Origin
            assert answered(port, host, f"http://{host}") == "101"
        rebound = f"rebind.example:{port}"                                      # a name that leads to 127.0.0.1
        for host, origin in ((rebound, f"http://{rebound}"), (rebound, None), (here[0], f"http://{rebound}"),
                             (here[0], "null"), (here[0], "http://localhost"), (f"localhost:{port + 1}", None),
                             ("localhost", None), ("", None), (here[0], f"http://localhost.:{port}"),
                             (here[0], "http://["), (f"{here[0]}\r\nHost: {rebound}", None),
                             (here[0], f"http://{here[0]}\r\nOrigin: http://{rebound}"), ("box.lan", None)):
            assert answered(port, host, origin) in ("403", "400"), (host, origin)


def test_messages_that_are_no_request_are_answered(model):
    deep = "[" * 2000 + "]" * 2000
    with served(model) as port:
        with client.connect(f"ws://127.0.0.1:{port}/steer", proxy=None) as link:
            link.recv(timeout=20)
            for nonsense in (deep, '{"a":' * 600, "[]", "7", '"held"', "null", b"\xff\x00", b"{", "9" * 4000, "",
                             '{"held": 1e999}', '{"held": ' + "9" * 400 + "}", '{"held": NaN}', '{"held": []}'):
                link.send(nonsense)
                assert "say" in json.loads(link.recv(timeout=20))["error"], nonsense[:20]
            link.send(json.dumps({"again": True}))
            assert isinstance(link.recv(timeout=20), bytes)                     # the socket still works
            link.send("x" * 10_000)
            with pytest.raises(ConnectionClosed) as closed:
                link.recv(timeout=20)
            assert closed.value.rcvd.code == 1009                               # too large: said so


def test_keys_follow_the_names_of_actions(model):
    assert keys_of(model) == {"ArrowLeft": 0, "ArrowRight": 1, "ArrowUp": 2}
    named = model._replace(layout={"action_names": ["move_forward", "turn_right", "turn_left"]})
    assert keys_of(named) == {"ArrowUp": 0, "ArrowRight": 1, "ArrowLeft": 2}
    assert keys_of(model._replace(layout={"action_names": ["fire", "turn_left", "jump"]})) == {
        "ArrowLeft": 1, "ArrowRight": 0, "ArrowUp": 2}


# The page's own script, with as much of a browser around it as it asks for
DRIVER = """
const port = process.argv[2], wait = (ms) => new Promise((done) => setTimeout(done, ms));
const html = await (await fetch(`http://127.0.0.1:${port}/`)).text();
const script = html.split("<script>")[1].split("</script>")[0];
const heard = {}, parts = {};
const part = () => ({ dataset: {}, classList: { toggle() {} }, append() {}, textContent: "" });
const document = { getElementById: (id) => parts[id] ??= part(), createElement: part, querySelectorAll: () => [] };
const url = { createObjectURL: (blob) => { parts.view.size = blob.size; return "x"; }, revokeObjectURL() {} };
new Function("document", "location", "addEventListener", "URL", script)(
  document, { host: `127.0.0.1:${port}` }, (name, then) => { heard[name] = then; }, url);
const frames = () => parts.view.dataset.frames || 0;
const until = async (yes) => { for (let i = 0; i < 400 && !yes(); i++) await wait(50); };
await until(() => frames() === 1);
const before = frames();
heard.keydown({ key: "ArrowUp", preventDefault() {} });
await until(() => frames() > 5);
heard.keyup({ key: "ArrowUp" });
await wait(1500);
const held = frames();
await wait(500);
heard.keydown({ key: " ", preventDefault() {} });
await until(() => frames() > held);
console.log(JSON.stringify({ before, held, after: frames(), size: parts.view.size, said: parts.said.textContent }));
process.exit(0);
"""


@pytest.mark.slow
def test_the_script_of_the_page_steers(model, tmp_path):
    node = shutil.which("node")
    sockets = "process.exit(typeof WebSocket === 'undefined' ? 1 : 0)"
    flag = "--experimental-websocket"
    if not node or subprocess.run([node, flag, "-e", sockets], capture_output=True).returncode:
        pytest.skip("no node with websockets is installed")
    (tmp_path / "driver.mjs").write_text(DRIVER)
    with served(model) as port:
        command = [node, flag, tmp_path / "driver.mjs", str(port)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["before"] == 1 and seen["held"] > 5                            # it waits, then goes while a key is held
    assert seen["after"] == seen["held"] + 1 and seen["size"] > 100             # stands still, then begins elsewhere


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="no browser is installed")
def test_a_browser_steers(model):
    sync_api = pytest.importorskip("playwright.sync_api")
    with served(model) as port, sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("img[data-frames='1']")
        page.keyboard.down("ArrowUp")
        page.wait_for_function("document.getElementById('view').dataset.frames > 5")
        page.keyboard.up("ArrowUp")
        browser.close()
