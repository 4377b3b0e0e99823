"""Films of three kinds, as somebody might bring them: shapes on a texture under a panning camera, a turning box, and
walks through Doom's mazes.

python scripts/studies/video/own_clips.py KIND FOLDER [--clips 40] [--frames 120] [--seed 0]

KIND is pan, solid or doom. FOLDER gets one lossless clip a file, npz with video uint8 [T, 48, 64, 3], without actions.
Films of different seeds share nothing. Prints the error of keeping the last frame and of the best linear predictor
from the past at 24x32 pixels, the marks that a model of these clips is to be held against.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dforce.data.generate.video import doom

HEIGHT, WIDTH, WORLD = 48, 64, 192
PAST, SIDE = 3, 5  # frames that the linear predictor sees, and the square of pixels around each


def texture(rng: np.random.Generator, side: int = WORLD) -> np.ndarray:
    """Periodic colours [side, side, 3] in 0..1 with an amplitude that falls as the inverse of the frequency."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    spectrum = np.fft.fft2(rng.standard_normal((3, side, side))) / np.maximum(frequency, 1 / side)
    field = np.fft.ifft2(spectrum).real
    field = (field - field.mean((1, 2), keepdims=True)) / field.std((1, 2), keepdims=True)
    return np.clip(rng.uniform(0.25, 0.75, 3) + 0.15 * field.transpose(1, 2, 0), 0, 1)


def pan(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A camera that drifts over a texture, and three shapes that move on it: [T, H, W, 3] in 0..1."""
    ground, corner, speed = texture(rng), rng.uniform(0, WORLD, 2), rng.normal(0, 0.6, 2)
    places, velocities = rng.uniform(0, (HEIGHT, WIDTH), (3, 2)), rng.normal(0, 1, (3, 2))
    colours, sizes, kinds = rng.uniform(0, 1, (3, 3)), rng.uniform(5, 9, 3), rng.permutation(3)
    down, right = np.mgrid[:HEIGHT, :WIDTH]
    film = np.empty((frames, HEIGHT, WIDTH, 3))
    for frame in film:
        speed = 0.95 * speed + rng.normal(0, 0.2, 2)
        corner, places = corner + speed, places + velocities
        velocities = np.where((places < 0) & (velocities < 0) | (places > (HEIGHT, WIDTH)) & (velocities > 0),
                              -velocities, velocities)
        frame[:] = ground[np.ix_(*((start + np.arange(n)).astype(int) % WORLD
                                   for start, n in zip(corner, (HEIGHT, WIDTH), strict=True)))]
        for place, colour, size, kind in zip(places, colours, sizes, kinds, strict=True):
            y, x = down - place[0], right - place[1]
            inside = [np.hypot(y, x) < size, np.maximum(abs(y), abs(x)) < 0.9 * size,
                      (y < 0.8 * size) & (y > 2 * abs(x) - size)][kind]
            frame[inside] = colour
    return film


def solid(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A box of six colours that turns before a plain wall, seen from afar: [T, H, W, 3] in 0..1."""
    half, wall, colours = rng.uniform(0.5, 1, 3), rng.uniform(0, 1, 3), rng.uniform(0, 1, (6, 3))
    axis, angle, speed = rng.standard_normal(3), rng.uniform(0, 6), rng.uniform(0.04, 0.12) * rng.choice([-1, 1])
    axis /= np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    y, x = (1.7 * (2 * np.mgrid[:HEIGHT, :WIDTH] + 1 - np.array([HEIGHT, WIDTH])[:, None, None]) / HEIGHT)
    origins = np.stack([x, y, np.zeros_like(x)], -1)
    film = np.empty((frames, HEIGHT, WIDTH, 3))
    for number, frame in enumerate(film):
        turn = angle + speed * number
        rotation = np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * cross @ cross
        ray, points = rotation.T @ (0, 0, 1), origins @ rotation  # in the box's axes
        near = (-np.sign(ray) * half - points) / np.where(abs(ray) < 1e-9, 1e-9, ray)
        far = (np.sign(ray) * half - points) / np.where(abs(ray) < 1e-9, 1e-9, ray)
        face, hit = near.argmax(-1), near.max(-1) < far.min(-1)
        shade = 0.35 + 0.65 * abs(ray)
        lit = colours[face + 3 * (np.sign(ray)[face] > 0)] * shade[face][..., None]
        frame[:] = np.where(hit[..., None], lit, wall)
    return film


def walks(folder: Path, clips: int, frames: int, seed: int) -> None:
    """Walks through mazes, four of each, without their actions."""
    with TemporaryDirectory() as work:
        for _ in doom(work, mazes=-(-clips // 4), test_mazes=0, clips=4, frames=frames, size=HEIGHT,
                      seed=seed):
            pass
        files = sorted(Path(work).rglob("*.npz"))[:clips]
        for number, file in enumerate(files):
            with np.load(file) as stored:
                save(folder, number, stored["video"])


def save(folder: Path, number: int, video: np.ndarray) -> None:
    np.savez(folder / f"{number:03}.npz", video=video)


def linear_error(films: Tensor) -> tuple[float, float]:
    """Root mean square errors of the last frame kept, and of the best linear predictor of each film [N, T, C, H, W].

    A pixel is predicted from the square around it in the frames before, alike in all places and colours of a film, by
    least squares on its first half; both errors are of its second half.
    """
    kept, fitted = [], []
    for film in films:
        seen = [F.pad(film[PAST - 1 - ago:-1 - ago], (SIDE // 2,) * 4, mode="replicate").unfold(2, SIDE, 1).unfold(
            3, SIDE, 1).flatten(4).flatten(1, 3) for ago in range(PAST)]
        past, truth = torch.cat([*seen, torch.ones(*seen[0].shape[:2], 1)], -1), film[PAST:].flatten(1)
        half = len(truth) // 2
        weights = torch.linalg.lstsq(past[:half].flatten(0, 1).double(), truth[:half].reshape(-1, 1).double(),
                                     driver="gelsd").solution
        fitted.append((past[half:].double() @ weights).squeeze(-1) - truth[half:])
        kept.append(film[PAST - 1:-1].flatten(1)[half:] - truth[half:])
    return tuple(float(torch.stack(each).square().mean().sqrt()) for each in (kept, fitted))  # type: ignore[return-value]


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {"pan": pan, "solid": solid}


def make(kind: str, folder: Path, clips: int, frames: int, seed: int) -> None:
    """The films of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "doom":
        walks(folder, clips, frames, seed)
        return
    for number in range(clips):
        film = KINDS[kind](np.random.default_rng([seed, number]), frames)
        save(folder, number, (255 * film).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "doom"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make(args.kind, args.folder, args.clips, args.frames, args.seed)
    films = [np.load(file)["video"] for file in sorted(args.folder.glob("*.npz"))[:8]]
    small = F.interpolate(torch.from_numpy(np.stack(films)).flatten(0, 1).permute(0, 3, 1, 2) / 127.5 - 1,
                          (HEIGHT // 2, WIDTH // 2), mode="area").unflatten(0, (len(films), -1))
    kept, linear = linear_error(small)
    print(f"{len(films)} films at {HEIGHT // 2}x{WIDTH // 2}: keeping the last frame errs by {kept:.4f}, the best "
          f"linear predictor by {linear:.4f} ({linear / kept:.2f} times)")


if __name__ == "__main__":
    main()
