"""A world model in a browser: a local page whose arrow keys are the actions, and which shows frames as they are made.

The page and its websocket share one port. The browser sends {"held": action or null}, {"again": true} to begin
elsewhere, or {"film": true} for a film of what it saw; the server sends PNG pictures (with actions while a key is held,
without all the time), and {"film": name} before the bytes of a film.
"""

import base64
import io
import json
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dforce.core.loopback import HOST, asks_for, served_names
from dforce.core.noise import Noise
from dforce.data.pixels import to_uint8
from dforce.report.movie import write_frames
from dforce.video.film import Film, enlarge, film_frame
from dforce.video.model import VideoModel
from dforce.video.reference_clips import RealVideo
from dforce.video.stream import Recipe, begin, stream

LARGEST = 4096       # bytes of a message; a larger one closes the socket with code 1009
KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")
WORDS = {"left": "ArrowLeft", "right": "ArrowRight", "forward": "ArrowUp", "up": "ArrowUp", "back": "ArrowDown",
         "down": "ArrowDown"}
FASTEST = 60         # frames a second of a film
PUSH = 1.5           # standard deviations by which a key moves a real action
SIDE = 512           # pixels of the picture
REMEMBERED = 1800    # frames of a visit that its film has, the last ones: two minutes at 15 a second
LONGEST = 0.5        # seconds between looks at whether the server has been asked to end


def keys_of(model: VideoModel) -> dict[str, int]:
    """Key -> number of its action, by the names of the actions where the checkpoint has them, else in order; of real
    actions, of what is less and what more of each number."""
    if model.real_actions:
        return dict(zip(("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp", *map(str, range(1, 10))),
                        range(choices(model)), strict=False))
    names = [str(name).lower() for name in model.layout.get("action_names") or []]
    named = {key: i for i, name in enumerate(names) for word, key in WORDS.items() if word in name}
    rest = [key for key in (*KEYS, *map(str, range(1, 10))) if key not in named]
    free = [i for i in range(model.actions) if i not in named.values()]
    return {**named, **dict(zip(rest, free, strict=False))}


def choices(model: VideoModel) -> int:
    """How many things a key may mean."""
    return 2 * model.actions if model.real_actions else model.actions


def action_of(model: VideoModel, held: int | None) -> Tensor:
    """The action [A] while the key of this number is held: that choice, or one real number PUSH deviations away."""
    action = torch.zeros(model.actions)
    if held is not None and model.real_actions:
        action[held // 2] = PUSH if held % 2 else -PUSH
    elif held is not None:
        action[held] = 1
    return action


class World:
    """The rollout of one visitor. held: number of the action whose key is held, None for none."""

    def __init__(self, model: VideoModel, recipe: Recipe, real: RealVideo | None, *, context: int, seed: int):
        self.model, self.recipe, self.real = model, recipe.checked(model.stack), real
        self.context, self.seed = context, seed
        self.held: int | None = None
        self.seen: deque[np.ndarray] = deque(maxlen=REMEMBERED)  # uint8 [H, W, C]
        self.visits = -1
        self.first = self.again()

    def again(self) -> Tensor:
        """Begins anew from the next clip; returns the last frame of its context [C, H, W], or the first one made."""
        self.visits += 1
        if self.real is None or not self.context:
            frames, known = torch.zeros(1, 0, *self.model.shape), None
        else:
            clip = self.real.clips(1, self.context, skip=self.visits)
            frames, known = clip.frames, clip.actions
        before = frames.shape[1]

        def actions(frame: int, count: int) -> Tensor:
            now = action_of(self.model, self.held).expand(1, count, -1)
            old = min(max(before - frame, 0), count)
            return now if known is None else torch.cat([known[:, frame:frame + old], now[:, old:]], 1)

        state = begin(self.model, self.recipe, frames, actions)
        self._frames = stream(self.model, self.recipe, state, batch=1, actions=actions, context=before,
                              noise=Noise(self.seed + self.visits))
        if not before:
            held, self.held = self.held, None  # no action leads to the first frame
            first = self.step()[-1]
            self.held = held
            return first
        self.seen.append(to_uint8(frames[0, -1]))
        return frames[0, -1]

    def step(self) -> Tensor:
        """The next frames [chunk, C, H, W], made with the action that is held now."""
        made = next(self._frames)[0][0]
        self.seen.extend(to_uint8(made))
        return made

    def film(self, fps: float) -> tuple[str, bytes]:
        """Name and bytes of a film of the frames seen, an mp4, or a gif where PyAV is missing."""
        pictures = (film_frame(frame[None], None, 0) for frame in self.seen)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "dforce.mp4"
            if find_spec("av") is None:
                file = write_frames(file.with_suffix(".gif"), pictures, fps=max(1, round(fps)))
            else:
                with Film(file, fps=fps) as film:
                    for picture in pictures:
                        film.write(picture)
            return file.name, file.read_bytes()


def png(frame: Tensor) -> bytes:
    """A frame [C, H, W] in -1..1, enlarged."""
    out = io.BytesIO()
    Image.fromarray(enlarge(to_uint8(frame), SIDE)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def serve(model: VideoModel, recipe: Recipe, real: RealVideo | None, *, port: int, context: int = 0, seed: int = 0,
          fps: float = 15, host: str | None = None, ready: Callable[[Any], None] | None = None) -> None:
    """Serves until interrupted; OSError where the port (0 for a free one) is taken. context: real frames that a visit
    begins with. fps: at most. ready: called with the server once it listens; `shutdown()` of it ends this.
    Answers only who asks for a loopback name with this port, or for `host`, NAME or NAME:PORT, in Host and in Origin.
    """
    from websockets.sync.server import serve as listen

    page = files("dforce.video").joinpath("world.html").read_text("utf-8")
    first = png(World(model, recipe, real, context=context, seed=seed).first)  # what every visit begins with
    page = page.replace("KEYS_OF_ACTIONS", json.dumps(keys_of(model)))
    page = page.replace("FIRST_FRAME", "data:image/png;base64," + base64.b64encode(first).decode())
    ending = threading.Event()

    def handler(connection: Any) -> None:
        _visit(connection, World(model, recipe, real, context=context, seed=seed), fps, ending)

    def request(connection: Any, query: Any) -> Any:
        names = served_names(connection.local_address[1], [host] if host else [])
        if not asks_for(names, query.headers):
            return connection.respond(403, f"only pages of {', '.join(names)} may steer; host=NAME adds a name\n")
        if "websocket" in map(str.lower, query.headers.get_all("Upgrade")):
            return None
        answer = connection.respond(200 if query.path == "/" else 404, page if query.path == "/" else "no such page\n")
        if query.path == "/":
            del answer.headers["Content-Type"]
            answer.headers["Content-Type"] = "text/html; charset=utf-8"
        return answer

    with listen(handler, HOST, port, process_request=request, max_size=LARGEST) as server:
        print(f"open http://{HOST}:{server.socket.getsockname()[1]}/ and hold an arrow key; Ctrl-C ends", flush=True)
        if ready is not None:
            ready(server)
        try:
            server.serve_forever()
        finally:
            ending.set()


def _visit(connection: Any, world: World, fps: float, ending: threading.Event) -> None:
    """Receives messages and sends frames until the visitor leaves."""
    from websockets.exceptions import ConnectionClosed

    alone = not world.model.actions  # there is no key to wait for
    try:
        connection.send(png(world.first))
        while not ending.is_set():
            moving = alone or world.held is not None
            try:
                _hear(connection, world, connection.recv(timeout=0 if moving else LONGEST), fps)
                continue  # whatever else has been said comes first
            except TimeoutError:
                pass
            if moving:
                for frame in world.step():
                    due = time.monotonic() + 1 / fps
                    connection.send(png(frame))
                    time.sleep(max(0.0, due - time.monotonic()))
    except ConnectionClosed:
        pass


def _hear(connection: Any, world: World, message: Any, fps: float) -> None:
    """Obeys one message of the visitor; answers an unknown one with an error."""
    try:
        said = json.loads(message)
        held = said.get("held")
        known = held is None or type(held) is int and 0 <= held < choices(world.model)
    except (ValueError, AttributeError, RecursionError):
        known = False
    if not known:
        connection.send(json.dumps({"error": f"say {{\"held\": 0..{choices(world.model) - 1} or null}} or "
                                             f"{{\"again\": true}} or {{\"film\": true}}, got {str(message)[:80]}"}))
    elif said.get("film"):
        name, film = world.film(min(fps, FASTEST))
        connection.send(json.dumps({"film": name}))
        connection.send(film)
    elif said.get("again"):
        connection.send(png(world.again()))
    else:
        world.held = held
