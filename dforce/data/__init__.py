"""Trajectories and clips on disk, windows of tokens in memory. torch and numpy; imports nothing of the core."""

from dforce.data.batch import Batch, Cond, checked_batch, cond_rows, stack, unstack
from dforce.data.d4rl import read_d4rl, write_d4rl
from dforce.data.draws import split_episodes
from dforce.data.episodes import Episodes, pack
from dforce.data.generate.maze import make_maze_dataset
from dforce.data.load import load_episodes
from dforce.data.minari import save_episodes
from dforce.data.normalize import Affine, require_finite
from dforce.data.store import list_datasets
from dforce.data.video.dataset import VideoClips
from dforce.data.windows import Windows
