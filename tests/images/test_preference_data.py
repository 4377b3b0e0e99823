"""Preferences about pictures in public layouts become the files that learning reads."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dforce.align.preferences import read_pairs
from dforce.align.rewards.ratings import read_ratings
from dforce.cli.main import main
from dforce.data.pixels import from_uint8
from dforce.images.preference_files import PicturePairs, read_preferences

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def png(number):
    Image.fromarray(PICTURES[number]).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def pick_a_pic(file):
    """A file in the columns of the public data set: two pairs and a tie of two users, and a pair without a label."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [("cat", 0, 1, 1.0, True, 7), ("dog", 2, 3, 0.0, True, 8), ("cat", 4, 5, 0.5, True, 7),
            ("dog", 0, 2, 0.0, False, 7)]
    parquet.write_table(pa.table({
        "caption": [row[0] for row in rows], "jpg_0": [png(row[1]) for row in rows],
        "jpg_1": [png(row[2]) for row in rows], "label_0": [row[3] for row in rows],
        "label_1": [1 - row[3] for row in rows], "has_label": [row[4] for row in rows],
        "user_id": [row[5] for row in rows], "image_0_uid": ["x"] * 4, "ranking_id": [1, 2, 3, 4]}), file)


def lines(folder, *rows):
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_pick_a_pics_columns_become_pairs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pick_a_pic(tmp_path / "train-0.parquet")
    assert main(["data", "preferences", "source=train-0.parquet", "classes=[dog, cat]", "out=a"]) == 0
    assert "3 pairs, 1 of them ties" in capsys.readouterr().out
    pairs = read_pairs("a/pairs.npz")
    wanted = from_uint8(PICTURES)[:, None]
    assert torch.equal(pairs.win, wanted[[0, 3, 4]]) and torch.equal(pairs.lose, wanted[[1, 2, 5]])
    assert pairs.weight.tolist() == [1, 1, 0] and pairs.cond["static"]["class"].tolist() == [1, 0, 1]
    assert main(["data", "preferences", "source=.", "user=8", "grey=true", "size=[4, 6]", "out=b"]) == 0
    assert read_pairs("b/pairs.npz").win.shape == (1, 1, 1, 4, 6)
    assert main(["data", "preferences", "source=.", "classes=[dog, cow]", "out=c"]) == 2
    assert "the prompt 'cat' of 2 pairs is none of the classes" in capsys.readouterr().err


def test_an_imagefolder_has_ratings_or_pairs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path, *({"file_name": f"{i}.png", "rating": i / 2, "text": "a"} for i in range(6)))
    assert main(["data", "preferences", f"source={tmp_path}", "out=a"]) == 0
    ratings = read_ratings(tmp_path / "a/ratings.npz")
    assert torch.equal(ratings.x, from_uint8(PICTURES)[:, None]) and ratings.rating.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    lines(tmp_path, {"prompt": "a", "image_0_file_name": "0.png", "image_1_file_name": "1.png", "label": 1})
    given = read_preferences(tmp_path, lambda picture: picture)
    assert isinstance(given, PicturePairs) and given.text == ["a"] and given.tie == [False]
    assert np.array_equal(given.win[0], PICTURES[1]) and np.array_equal(given.lose[0], PICTURES[0])


@pytest.mark.parametrize(("row", "message"), [
    ({"jpg_0": "0.png", "label_0": 1}, "a pair has two images, jpg_0 and jpg_1 or image_0 and image_1, got 1"),
    ({"jpg_0": "0.png", "jpg_1": "1.png"}, "it has no label_0 or label, but jpg_0, jpg_1"),
    ({"jpg_0": "0.png", "jpg_1": "1.png", "label_0": 2}, "label_0 lies in 0..1"),
    ({"jpg_0": "0.png", "jpg_1": "1.png", "label": 3}, "label is 0 or 1"),
    ({"jpg_0": "../../etc/passwd", "jpg_1": "1.png", "label": 0}, "passwd leads out of"),
    ({"jpg_0": "none.png", "jpg_1": "1.png", "label": 0}, "none.png"),
    ({"jpg_0": "metadata.jsonl", "jpg_1": "1.png", "label": 0}, "its image cannot be read"),
    ({"file_name": "0.png", "rating": "good"}, "could not convert"), ({"file_name": "0.png"}, "no rating or score"),
    ([], "a row is an object")])
def test_a_row_that_is_wrong_is_named(row, message, tmp_path) -> None:
    lines(tmp_path, {"jpg_0": "0.png", "jpg_1": "1.png", "label_0": 1} if "jpg_0" in row else
          {"file_name": "1.png", "rating": 1}, row)
    with pytest.raises(ValueError, match=message) as error:
        read_preferences(tmp_path, lambda picture: picture)
    assert "row 1" in str(error.value) and "\n" not in str(error.value)


def test_nothing_and_broken_files_are_refused(tmp_path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    for source, message in ((tmp_path / "broken.parquet", "no file of parquet"),
                            (tmp_path / "none", "no preferences at")):
        with pytest.raises(ValueError, match=message):
            read_preferences(source, lambda picture: picture)


@pytest.mark.slow
def test_a_pipelines_pairs_are_latents_and_conditioning(sd_folder, tmp_path, monkeypatch) -> None:
    from diffusers import StableDiffusionPipeline
    monkeypatch.chdir(tmp_path)
    pick_a_pic(tmp_path / "train.parquet")
    assert main(["data", "preferences", "source=train.parquet", "size=16", f"pipeline={sd_folder}", "out=a"]) == 0
    pairs = read_pairs("a/pairs.npz")
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder, local_files_only=True)
    picture = np.asarray(Image.fromarray(PICTURES[0]).resize((16, 16), Image.Resampling.BICUBIC))
    with torch.no_grad():
        latent = pipe.vae.encode(from_uint8(picture)[None]).latent_dist.mean * pipe.vae.config.scaling_factor
        text = pipe.encode_prompt("cat", "cpu", 1, False)[0]
    torch.testing.assert_close(pairs.win[0], latent, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pairs.cond["static"]["text"][0], text[0], atol=1e-5, rtol=1e-4)
    words = ["align", "pipeline", f"pipeline={sd_folder}", "prompts=[cat, dog]", "held_out=0.5", "guidance=1",
             "steps=2", "reward=bright", "algorithm=diffusion_dpo", "algorithm.preferences=a/pairs.npz",
             "algorithm.epochs=1", "algorithm.updates=1", "watch=0", "evaluate=0"]
    assert main([*words, "out=b"]) == 0
    logged = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert losses == [pytest.approx(2 / 3 * np.log(2))]  # a tie in three counts nothing
    assert main([*words, "algorithm.samples=64", "out=c"]) == 2
