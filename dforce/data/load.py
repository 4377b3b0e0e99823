"""Episodes from wherever they lie: Minari's store, D4RL's files, data sets of other robot libraries."""

import os
from collections.abc import Sequence
from pathlib import Path

from dforce.data.d4rl import read_d4rl
from dforce.data.episodes import Episodes
from dforce.data.minari import read_minari
from dforce.data.robot_formats import reader_of
from dforce.data.store import datasets_root, recovered, unknown_dataset

D4RL_PIECE = 10_000  # steps: D4RL's maze2d files are one trajectory; cut, a part of it can be held out


def load_episodes(name_or_path: str | os.PathLike, *, infos: Sequence[str] = (), cut_at: Sequence[str] | None = None,
                  subset: str | None = None, root: str | os.PathLike | None = None) -> Episodes:
    """Reads a local Minari dataset by name or by folder, or by its path a D4RL file (*.hdf5), or data of LeRobot,
    robomimic or Diffusion Policy (`dforce.data.robot_formats`).

    Dict observations are joined to one vector, discrete actions become one-hot; pictures become `Episodes.images` and
    stay in the file until they are asked for. infos: names of the numeric infos to read as well. cut_at: see
    `read_d4rl`. subset: a part of the episodes that the data set has a name for, one of LeRobot's splits or robomimic's
    filter keys. ValueError names the file, or the datasets that exist.
    """
    path = Path(name_or_path).expanduser()
    reader = reader_of(path) if path.exists() else None
    if cut_at is not None and (reader or not path.is_file()):
        raise ValueError(f"cut_at={cut_at} is for D4RL files, and {name_or_path} is none: it keeps episodes apart")
    if reader:
        return reader(path, infos=infos, subset=subset)
    if subset is not None:
        raise ValueError(f"subset={subset} is for LeRobot and robomimic data, and {name_or_path} is neither")
    if path.is_file():
        episodes = read_d4rl(path, cut_at=cut_at, max_length=D4RL_PIECE)
        if missing := sorted(set(infos) - set(episodes.infos)):
            raise ValueError(f"{path} has no infos {', '.join(missing)} with a row a step, it has "
                             f"{', '.join(sorted(episodes.infos)) or 'none'}")
        return episodes
    folder = path if (path / "data" / "metadata.json").exists() else recovered(datasets_root(root) / name_or_path)
    if not (folder / "data" / "metadata.json").exists():
        raise ValueError(unknown_dataset(str(name_or_path), root))
    return read_minari(folder, infos, str(name_or_path))
