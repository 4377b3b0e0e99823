"""Who sees the frames chooses the actions: learnt from clips, drawn by counters, the same again after a resume."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dforce.cli.main import main
from dforce.data.pixels import from_uint8
from dforce.report.rows import read_results
from dforce.video.metrics.features import kappa
from dforce.video.recording import Record
from dforce.video.walker import (
    Walker,
    WalkerPolicy,
    decisions,
    expected,
    load_walker,
    save_walker,
    train_walker,
)
from tests.small_video import save_model

SHAPE, A = (3, 8, 8), 3
QUICK = ["samples=2", "steps=2", "save_every=4", "feature_steps=4", "window=8"]
ENGINE = Path(__file__).parents[2] / "scripts" / "studies" / "video" / "engine.py"


def clips(step: int, batch: int = 8, time: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """A world where the action is to be seen: the channel that is bright in frame t - 1 says which leads to frame t."""
    generator = torch.Generator().manual_seed(step)
    bright = torch.randint(A, (batch, time), generator=generator)
    frames = torch.rand(batch, time, *SHAPE, generator=generator) - 1
    frames += torch.nn.functional.one_hot(bright, 3)[..., None, None]
    action = torch.nn.functional.one_hot(bright.roll(1, 1), A).float()
    action[:, :1] = 0
    return frames, action


def fixed(part: list[float], memory: int = 4) -> WalkerPolicy:
    """A policy that sees nothing: its distribution is `part`."""
    policy = WalkerPolicy(SHAPE, len(part), memory=memory, channels=2).eval().requires_grad_(False)
    policy.head[-1].weight.zero_()
    policy.head[-1].bias.copy_(torch.tensor(part).log())
    return policy


def looking(memory: int = 4, seed: int = 0) -> WalkerPolicy:
    """A policy of chance, whose distribution depends on all that it is given."""
    torch.manual_seed(seed)
    policy = WalkerPolicy(SHAPE, A, memory=memory, channels=4).eval().requires_grad_(False)
    for last in (policy.eyes[-1], policy.head[-1]):
        last.weight.mul_(20)
    return policy


def nothing(batch: int, actions: int = A) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(batch, 0, *SHAPE), torch.zeros(batch, 0, actions)


def test_an_action_is_chosen_from_the_frames_and_actions_before_it():
    frames, actions = clips(0, batch=2, time=6)
    actions[1, 3] = 0                                                          # nobody knows what led there
    found, n = decisions(frames, actions, memory=3), 0
    for b in range(2):
        for t in range(1, 6):
            if not actions[b, t].any():
                continue
            assert torch.equal(found.pairs[n], torch.cat([frames[b, max(t - 2, 0)], frames[b, t - 1]]))
            past = [actions[b, s] if s >= 0 else torch.zeros(A) for s in range(t - 3, t)]
            assert torch.equal(found.past[n], torch.stack(past)) and found.label[n] == actions[b, t].argmax()
            n += 1
    assert n == len(found.label) == 9


@pytest.mark.slow
def test_it_learns_what_is_to_be_seen_and_the_same_again():
    policies = [train_walker(clips, A, steps=60, batch=48, memory=4, seed=1) for _ in range(2)]
    for one, two in zip(policies[0].state_dict().values(), policies[1].state_dict().values(), strict=True):
        assert torch.equal(one, two)
    pairs, past, label = decisions(*clips(1_000_000, batch=32), memory=4)
    logits, share = policies[0](pairs, past), torch.bincount(label, minlength=A).double() / len(label)
    entropy = float(-torch.xlogy(share, share).sum())
    assert (logits.argmax(-1) == label).double().mean() > 0.95 > 0.45 > share.max()
    assert torch.nn.functional.cross_entropy(logits, label) < 0.2 * entropy
    blind = torch.nn.functional.cross_entropy(fixed([1 / 3] * 3)(pairs, past), label)
    assert float(blind) == pytest.approx(np.log(3), abs=1e-5) and 0 <= np.log(3) - entropy < 0.02
    walker = Walker(policies[0], *nothing(300))
    walker.see(clips(7, batch=300)[0][:, :5])
    right = clips(7, batch=300)[1][:, 5]                                       # what frame 4 says
    assert (walker(5, 1)[:, 0] == right).all(1).float().mean() > 0.9


@pytest.mark.slow
def test_draws_follow_the_distribution_and_are_a_function_of_seed_rollout_and_frame():
    part, batch = [0.6, 0.3, 0.1], 20_000
    drawn = []
    for seed in (0, 1):
        walker = Walker(fixed(part), *nothing(batch), seed=seed)
        walker.see(torch.zeros(batch, 1, *SHAPE))
        drawn += [walker(1, 2)[:, 0], walker(1, 2)[:, 1]]
    for one in drawn:
        spread = np.sqrt(np.array(part) * (1 - np.array(part)) / batch)
        assert (np.abs(one.mean(0).numpy() - part) < 4 * spread).all()
    for i in range(4):
        for j in range(i):                                                     # two independent ones agree by chance
            same = (drawn[i] * drawn[j]).sum(1).mean()
            assert float(same) == pytest.approx(np.square(part).sum(), abs=4 * 0.5 / np.sqrt(batch))
    some = torch.tensor([5, 17])
    fewer = Walker(fixed(part), *nothing(2), rollouts=some)
    fewer.see(torch.zeros(2, 1, *SHAPE))
    assert torch.equal(fewer(1, 2), torch.stack(drawn[:2], 1)[some])


def test_what_is_expected_is_what_is_drawn_from():
    """After each frame the walker's own distribution, which many rollouts of the same past draw from."""
    frames, actions = clips(5, batch=1, time=6)
    found, many = expected(looking(), frames, actions), 4000
    assert not found[:, 0].any() and torch.allclose(found[:, 1:].sum(-1), torch.ones(1, 5))
    for t in range(1, 6):
        walker = Walker(looking(), frames[:, :t].expand(many, -1, -1, -1, -1), actions[:, :t].expand(many, -1, -1))
        assert torch.allclose(walker(t, 1)[:, 0].mean(0), found[0, t], atol=4 * 0.5 / np.sqrt(many))
    actions[0, 3] = 0                                                          # asked about where nothing is known, too
    assert torch.equal(expected(looking(), frames, actions)[:, :4], found[:, :4])


def test_a_rollout_of_expected_actions_is_no_proof_of_obedience():
    """obedience.py: what is left are the rare ones; and others as likely, unrelated to those told."""
    script = runpy.run_path(str(ENGINE.with_name("obedience.py")))
    policy, (frames, _) = fixed([0.6, 0.3, 0.1]), clips(6, batch=40, time=50)
    drawn = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 2000, True, generator=torch.Generator().manual_seed(0))
    actions = torch.nn.functional.one_hot(drawn.view(40, 50), A).float()
    actions[:, 0] = 0
    left = script["unexpected"](policy, frames, actions)
    assert torch.equal(left, actions * torch.tensor([0.0, 1.0, 1.0]))
    again = script["drawn_again"](policy, frames, actions)
    assert torch.equal(again.sum(-1), actions.sum(-1))
    assert again[:, 1:].mean((0, 1)).tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.05)
    numbers = [each[:, 1:].argmax(-1).flatten() for each in (actions, again)]
    assert abs(kappa(*numbers, A)) < 0.1


def test_actions_stay_as_they_were_told_and_wait_for_the_frames():
    frames, actions = clips(3, batch=4, time=7)
    walker = Walker(looking(), frames[:, :5], actions[:, :5])
    assert torch.equal(walker(0, 5), actions[:, :5])
    first = walker(5, 1).clone()
    assert torch.equal(walker(5, 2)[:, :1], first)
    with pytest.raises(ValueError, match="has seen 5 frames"):
        walker(6, 1)
    both = walker(5, 2).clone()
    walker.see(frames[:, 5:7])
    assert torch.equal(walker(5, 2), both)                                     # seen or not, that is what was told
    other = Walker(looking(), frames[:, :5], actions[:, :5])
    other(5, 2)
    other.see(-frames[:, 5:7])
    assert not torch.equal(torch.cat([walker(7, 20)], 1), other(7, 20))        # it looks
    assert not Walker(looking(), *nothing(4))(0, 1).any()                      # nothing leads to the first frame
    with pytest.raises(ValueError, match="this walker sees frames"):
        Walker(looking(), frames[..., :4], actions)


@pytest.mark.parametrize("before, done", [(0, 1), (0, 9), (1, 1), (3, 2), (5, 30)])
def test_a_walker_that_recalls_a_record_goes_on_as_one_that_saw_it(before, done, tmp_path):
    context, actions = clips(4, batch=2, time=before)
    context = from_uint8(np.uint8((context.movedim(2, -1) + 1).numpy() * 127))
    pixels = np.random.default_rng(0).integers(0, 256, (2, done + 3, 8, 8, 3)).astype(np.uint8)
    saw, record = Walker(looking(), context, actions), Record(tmp_path, shape=(2, 8, 8, 3), actions=A, settings={})
    for t in range(done):
        record.append(pixels[:, t:t + 1], saw(before + t, 1))
        saw.see(from_uint8(pixels[:, t:t + 1]))
    recalls = Walker(looking(), context, actions)
    recalls.recall(record)
    for t in range(done, done + 3):
        assert torch.equal(saw(before + t, 1), recalls(before + t, 1))
        for walker in (saw, recalls):
            walker.see(from_uint8(pixels[:, t:t + 1]))
    assert saw.taken.shape[1] <= 5 and saw.frames.shape[1] == 2                 # memory stays what it is


def test_a_policy_comes_back_from_its_file_and_other_files_are_refused(tmp_path):
    policy, (frames, actions) = looking(), clips(0)
    save_walker(policy, tmp_path / "walker.safetensors")
    again, seen = load_walker(tmp_path / "walker.safetensors"), decisions(frames, actions, 4)
    assert torch.equal(again(seen.pairs, seen.past), policy(seen.pairs, seen.past))
    with pytest.raises(FileNotFoundError, match="actions=walker leaves one"):
        load_walker(tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="holds no walker"):
        load_walker(tmp_path / "other.safetensors")


def test_bad_input_is_answered():
    frames, actions = clips(0)
    for wrong in (actions * 0.5, actions + actions.roll(1, 2)):
        with pytest.raises(ValueError, match="not one-hot"):
            decisions(frames, wrong)
    with pytest.raises(ValueError, match="one a frame"):
        decisions(frames, actions[:, 1:])
    with pytest.raises(ValueError, match="multiples of 4"):
        WalkerPolicy((3, 6, 8), 3)
    with pytest.raises(ValueError, match="at least two actions"):
        WalkerPolicy(SHAPE, 1)
    for none in (None, torch.zeros_like(actions)):
        with pytest.raises(ValueError, match="no walker to learn from"):
            train_walker(lambda step, none=none: (frames, none), A, steps=2)


# ------------------------------------------------------------------------------------------------------------ the verb

@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for split, count in (("train", 6), ("test", 3)):
        (root / split / "all").mkdir(parents=True)
        for i in range(count):
            frames, actions = clips(100 * count + i, batch=1, time=40)
            video = ((frames[0].movedim(1, -1) + 1) * 127).numpy().astype(np.uint8)
            np.savez(root / split / "all" / f"{i}.npz", video=video, actions=actions[0].argmax(-1).numpy())
    return root


@pytest.mark.parametrize("words", [["context=0", "mode=noise", "eta=1.0", "refresh=[3,5]"],
                                   ["method=sliding", "chunk=2", "keep=3"],
                                   pytest.param(["method=regression", "context=2"], marks=pytest.mark.slow)])
@pytest.mark.quick(1)
def test_a_rollout_with_a_walker_goes_on_with_the_same_frames(data, tmp_path, words):
    pytest.importorskip("av")
    model = save_model(tmp_path / "model", shape=SHAPE, actions=A, data=str(data))
    command = ["rollout", f"checkpoint={model}", "measure=false", "actions=walker", *words, *QUICK]
    for frames, out, more in ((24, "whole", []), (12, "parts", []), (24, "parts", ["resume=true", "feature_steps=9"])):
        assert main([*command, f"frames={frames}", f"out={tmp_path / out}", *more]) == 0
    for name in ("frames.u8", "actions.f32", "walker.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    fed = np.fromfile(tmp_path / "whole" / "actions.f32", np.float32).reshape(24, 2, A)
    assert (fed.sum(2)[1:] == 1).all() and fed[0].any() == ("context=0" not in words)
    assert (fed[1:, 0] != fed[1:, 1]).any()


@pytest.mark.slow
def test_rows_say_that_the_actions_were_the_walkers(data, tmp_path):
    pytest.importorskip("av")
    model = save_model(tmp_path / "model", shape=SHAPE, actions=A, data=str(data))
    for kind in ("walker", "data"):
        command = ["rollout", f"checkpoint={model}", f"actions={kind}", "frames=16", *QUICK]
        assert main([*command, f"out={tmp_path / kind}"]) == 0
    found = {kind: read_results(tmp_path / kind / "results.json").rows for kind in ("walker", "data")}
    assert "action seen (kappa)" in {row["metric"] for row in found["walker"]}
    assert all(row["variant"]["actions"] == "walker" for row in found["walker"])
    assert not any("actions" in row["variant"] for row in found["data"])


def test_a_walker_that_cannot_be_is_answered_in_one_message(data, tmp_path, capsys):
    models = {"none": save_model(tmp_path / "none", shape=SHAPE, data=str(data)),
              "lost": save_model(tmp_path / "lost", shape=SHAPE, actions=A, data="")}
    for name, words, told in (("none", [], "this model takes none; leave actions=data"),
                              ("lost", ["context=0", "measure=false"], "does not say what it learnt from")):
        command = ["rollout", f"checkpoint={models[name]}", "actions=walker", "frames=4", *QUICK, *words]
        assert main([*command, f"out={tmp_path / 'run' / name}"]) == 2
        said = capsys.readouterr().err
        assert told in said and "Traceback" not in said


@pytest.mark.slow
def test_the_engine_does_what_the_blind_tell_it():
    pytest.importorskip("vizdoom")
    from dforce.envs.doom.map import random_maze
    from dforce.envs.doom.walker import DoomWalker

    engine = runpy.run_path(str(ENGINE))
    about = {"seed": 3, "size": 16, "rooms": 2, "zones": 2, "textures": 4, "floors": 1}
    told = np.array([0, 2, 2, 1, 2, 0])
    frames, taken = engine["played"](engine["blind"](np.eye(3, dtype=np.float32)[told]), 6, about, 1)
    assert np.array_equal(taken, told)
    maze = random_maze(np.random.default_rng([3, engine["OTHER"] + 1]), rooms=2, zones=2, textures=4, floors=1)
    with DoomWalker(maze, size=16, seed=3) as walker:
        walker.reset()
        assert np.array_equal(frames, np.stack([walker.step(int(action))[0] for action in told]))


@pytest.mark.slow
def test_the_engine_is_walked_by_the_walker_of_a_rollout(tmp_path):
    """engine.py, closed: other actions than the rollout's, chosen from the engine's own frames."""
    pytest.importorskip("vizdoom")
    words = ["mazes=2", "test_mazes=1", "clips=2", "frames=60", "size=16", "rooms=2", "zones=2"]
    assert main(["data", "video", "source=doom", *words, f"out={tmp_path / 'mazes'}"]) == 0
    model = save_model(tmp_path / "model", shape=(3, 16, 16), actions=3, data=str(tmp_path / "mazes"))
    command = ["rollout", f"checkpoint={model}", "frames=24", *QUICK, "feature_steps=60", "actions=walker"]
    assert main([*command, f"out={tmp_path / 'walk'}"]) == 0
    made = []
    for out in ("once", "twice"):
        subprocess.run([sys.executable, ENGINE, tmp_path / "walk", "--out", tmp_path / out], check=True)
        made.append([np.load(tmp_path / out / name) for name in ("frames.npy", "actions.npy")])
    assert all(np.array_equal(one, two) for one, two in zip(*made, strict=True))
    frames, actions = made[0]
    assert frames.shape == (24, 2, 16, 16, 3) and (actions.sum(2) == 1).all()
    walk = np.fromfile(tmp_path / "walk" / "actions.f32", np.float32).reshape(24, 2, 3)
    assert not np.array_equal(actions, walk)
    rows = json.loads((tmp_path / "once" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows if row["variant"].get("actions") == "walker"} == {
        "engine, another maze", "real video"}
