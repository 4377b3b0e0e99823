"""One file of tensors and what is said about them: every changed byte is reported."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dforce.train.sealed_file import load_file_sealed, save_file_sealed


def test_what_is_written_is_read_and_every_changed_byte_is_reported(tmp_path: Path) -> None:
    file, tensors = tmp_path / "a.safetensors", {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    save_file_sealed(file, tensors, {"kind": "a", "size": [1, 2]})
    read, about = load_file_sealed(file, "walker")
    assert about == {"kind": "a", "size": [1, 2]} and [*tmp_path.iterdir()] == [file]
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    good = file.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        file.write_bytes(bad)
        try:
            read, about = load_file_sealed(file, "walker")
        except ValueError as error:
            assert "a.safetensors holds no walker" in str(error)
        else:
            assert about == {"kind": "a", "size": [1, 2]}
            assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 64])
def test_files_of_others(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="holds no walker that dforce wrote"):
        load_file_sealed(tmp_path / "a", "walker")
    save_file({"w": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(ValueError, match="it has no digest"):
        load_file_sealed(tmp_path / "a", "walker")
