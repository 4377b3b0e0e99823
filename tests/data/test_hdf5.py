"""HDF5 files of others: nothing outside of the file is read, and no more is allocated than it holds."""

from __future__ import annotations

import numpy as np
import pytest

from dforce import data
from dforce.data.arrays import open_hdf5, read_part
from tests.data.test_d4rl import arrays, write

h5py = pytest.importorskip("h5py")


@pytest.fixture
def outside(tmp_path):
    write(tmp_path / "other.hdf5", arrays())
    np.zeros((380, 11), np.float32).tofile(tmp_path / "raw")
    return tmp_path


@pytest.mark.parametrize("kind", ["external link", "soft link to it", "group of it", "raw", "virtual"])
def test_no_number_of_another_file_is_read(outside, kind):
    content = arrays()
    del content["observations"]
    write(outside / "a.hdf5", content)
    with h5py.File(outside / "a.hdf5", "a") as file:
        if kind == "external link":
            file["observations"] = h5py.ExternalLink("other.hdf5", "/observations")
        elif kind == "soft link to it":
            file["away"] = h5py.ExternalLink("other.hdf5", "/observations")
            file["observations"] = h5py.SoftLink("/away")
        elif kind == "group of it":
            file["away"] = h5py.ExternalLink("other.hdf5", "/")
            file["observations"] = h5py.SoftLink("away/observations")
        elif kind == "raw":
            file.create_dataset("observations", (380, 11), np.float32, external=[(str(outside / "raw"), 0, 16720)])
        else:
            layout = h5py.VirtualLayout((380, 11), np.float32)
            layout[:] = h5py.VirtualSource(outside / "other.hdf5", "observations", (380, 11))
            file.create_virtual_dataset("observations", layout)
    with pytest.raises(ValueError, match=r"a.hdf5: .*(is a link out of the file|lie in other files)"):
        data.load_episodes(outside / "a.hdf5")


def test_links_within_the_file_are_followed_and_circles_end(outside):
    content = arrays()
    content["kept/observations"] = content.pop("observations")
    write(outside / "a.hdf5", content)
    with h5py.File(outside / "a.hdf5", "a") as file:
        file["observations"] = h5py.SoftLink("kept/observations")
        file["round"] = h5py.SoftLink("/round")
    assert len(data.load_episodes(outside / "a.hdf5")) == 5
    with pytest.raises(ValueError, match="a.hdf5: /round is a link"), open_hdf5(outside / "a.hdf5") as file:
        read_part(file, "round")


@pytest.mark.parametrize("options", [{}, {"chunks": (1000, 11)}, {"chunks": (1000, 11), "compression": "gzip"}])
def test_sizes_are_not_believed(outside, options):
    content = arrays()
    del content["observations"]
    write(outside / "a.hdf5", content)
    with h5py.File(outside / "a.hdf5", "a") as file:
        file.create_dataset("observations", (2 * 10**10, 11), np.float64, **options)
    with pytest.raises(ValueError, match=r"a.hdf5: /observations declares .* 1,760.0 GB, of which 0.000 GB are stored"):
        data.load_episodes(outside / "a.hdf5")


def test_minari_files_and_their_folders_are_held_to_the_same(outside):
    pytest.importorskip("minari")
    episodes = data.pack([np.zeros((6, 3))] * 2, [np.zeros((5, 2))] * 2, [np.zeros(5)] * 2)
    folder = data.save_episodes("test/links-v0", episodes, root=outside)
    (folder / "checksums.json").unlink()
    main = folder / "data" / "main_data.hdf5"
    whole = main.read_bytes()
    for key, link in (("episode_1", h5py.ExternalLink("other.hdf5", "/")),
                      ("episode_1/rewards", h5py.ExternalLink("other.hdf5", "/rewards"))):
        with h5py.File(main, "a") as file:
            del file[key]
            file[key] = link
        with pytest.raises(ValueError, match=f"main_data.hdf5: /{key} is a link out of the file"):
            data.load_episodes("test/links-v0", root=outside)
        main.write_bytes(whole)
    main.rename(outside / "elsewhere.hdf5")
    main.symlink_to(outside / "elsewhere.hdf5")
    with pytest.raises(ValueError, match="main_data.hdf5 is a link out of its folder"):
        data.load_episodes("test/links-v0", root=outside)
