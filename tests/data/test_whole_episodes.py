"""Whole episodes as observation and action tokens in turn: what they hold, where they end, and how they are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.data.episodes import pack
from dforce.data.token_layout import TokenLayout, parts_of
from dforce.data.whole_episodes import WholeEpisodes
from tests.cue import CHUNK, STEPS, demonstrations


def counted(*lengths, **about):
    """Episodes whose observations are (100 e + t, t) and whose actions are (100 e + t + .5)."""
    o = [np.stack([100.0 * e + np.arange(n + 1), np.arange(n + 1)], 1) for e, n in enumerate(lengths)]
    a = [100.0 * e + np.arange(n)[:, None] + 0.5 for e, n in enumerate(lengths)]
    return pack(o, a, [np.zeros(n) for n in lengths], about=about)


def physical(data, batch):
    """(observations [B, C, 2], actions [B, C, chunk]) of a batch, in the units of the data."""
    x = batch.x.view(len(batch.x), -1, 2, data.tokens.width)
    actions = data.tokens.actions_of(x[:, :, 1])
    return (data.normalizer.part(0, 2).denormalize(x[:, :, 0, :2]),
            data.normalizer.part(2, 3).denormalize(actions)[..., 0])


def test_a_token_holds_what_its_part_or_its_actions_are_and_zeros():
    layout = TokenLayout({"eye": 3, "joint": 1}, action=2, chunk=2)
    x, kind = layout.sequence(torch.arange(8.0).view(1, 2, 4), torch.arange(8.0).view(1, 2, 2, 2) + 10,
                              torch.tensor([[2, 1]]))
    assert x.tolist() == [[[0, 1, 2, 0], [3, 0, 0, 0], [10, 11, 12, 13], [4, 5, 6, 0], [7, 0, 0, 0], [14, 15, 0, 0]]]
    assert kind.tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0.5]]]
    assert parts_of(["observation.a.b[0]", "observation.a.b[1]", "observation.c==4"]) == {"a.b": 2, "c": 1}
    assert parts_of(["x", "y"]) == {"observation": 2} == parts_of(["observation[0]", "observation[1]"])
    with pytest.raises(ValueError, match="a layout has parts"):
        TokenLayout({}, 1, 1)


def test_plans_overlap_and_begin_before_their_observation():
    data = WholeEpisodes(counted(9, 7), chunk=4, batch=8, held_out=0, stride=2, past=1)
    batch = data.batch_at(0)
    observations, actions = physical(data, batch)
    episode = (observations[:, 0, 0] / 100).round()
    ends, time = torch.tensor([9, 7])[episode.long()][:, None], 2 * torch.arange(5)
    torch.testing.assert_close(observations[..., 1], time.minimum(ends).float())
    step = (time[:, None] - 1 + torch.arange(4)).clamp(min=0).minimum(ends[..., None] - 1)
    torch.testing.assert_close(actions, 100 * episode[:, None, None] + step + 0.5)
    learnt = batch.mask.view(8, 5, 2, 4)
    assert not learnt[:, :, 0].any() and torch.equal(learnt[:, :, 1], (time + 2 <= ends)[..., None].expand(-1, -1, 4))
    assert (data.layout["stride"], data.layout["past"]) == (2, 1)


def test_of_a_window_of_overlapping_plans_the_last_is_learnt_and_every_one_is_drawn():
    data = WholeEpisodes(counted(6, 6), chunk=4, batch=64, held_out=0, stride=1, past=1, window=2)
    batch = data.batch_at(0)
    assert torch.equal(batch.mask[..., 0], torch.tensor([False, False, True]).expand(64, -1)) and data.turn == 3
    assert batch.cond["token"]["kind"][0].tolist() == [[1, 0], [1, 0], [0, 1]]
    observations = data.normalizer.part(0, 2).denormalize(batch.x[:, :2, :2])
    pairs = {tuple(each) for each in observations[..., 1].tolist()}
    assert pairs == {(0, 0)} | {(float(t - 1), float(t)) for t in range(1, 6)}  # of the first, copies come before it


def test_numbers_may_be_normalised_by_their_limits():
    data = WholeEpisodes(counted(6, 5), chunk=2, batch=8, held_out=0, limits=True)
    low, high = [0, 0, 0.5], [105, 6, 104.5]
    torch.testing.assert_close(data.normalizer.normalize(torch.tensor([low, high])), torch.tensor([[-1.0], [1]]).expand(
        -1, 3))


def test_a_sequence_is_an_episode_from_its_beginning_to_its_end():
    data = WholeEpisodes(counted(6, 5, 3), chunk=2, batch=8, held_out=0)
    batch = data.batch_at(3)
    observations, actions = physical(data, batch)
    episode = (observations[:, 0, 0] / 100).round()
    assert set(episode.tolist()) == {0.0, 1.0, 2.0} and batch.x.shape == (8, 6, 2)
    ends = torch.tensor([6, 5, 3])[episode.long()]
    time = torch.tensor([0, 2, 4]).minimum(ends[:, None])                  # padding stands still
    torch.testing.assert_close(observations, torch.stack([100 * episode[:, None] + time, time.float()], -1))
    steps = torch.arange(6).view(3, 2).minimum(ends[:, None, None] - 1)
    torch.testing.assert_close(actions, 100 * episode[:, None, None] + steps + 0.5)
    masks = {0: [1, 1, 1, 1, 1, 1], 1: [1, 1, 1, 1, 1, 0], 2: [1, 1, 1, 0, 0, 0]}
    assert all(mask.int().tolist() == masks[int(e)] for mask, e in zip(batch.mask, episode, strict=True))
    parts = [data.batch_at(3, shards=(i, i + 1)).x for i in range(data.virtual_shards)]
    assert torch.equal(torch.cat(parts), batch.x) and not torch.equal(data.batch_at(4).x, batch.x)


def test_standing_still_counts_as_data_as_long_as_asked_for_and_ends_can_be_left_out():
    held = WholeEpisodes(counted(4, 2), chunk=2, batch=8, held_out=0, hold=2)
    assert held.batch_at(0).x.shape[1] == 6
    assert held.batch_at(0).mask.sum(1).unique().tolist() == [5, 6]  # the last observation is data too
    resting = WholeEpisodes(counted(6, tail=4), chunk=1, batch=1, held_out=0, hold=6)  # half of the tail is rest
    observations, actions = physical(resting, resting.batch_at(0))
    assert observations[0, :, 1].round().tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 4, 5, 6, 5]
    assert actions[0].flatten().tolist() == [*(np.arange(6) + 0.5), *[5.5] * 6]
    short = WholeEpisodes(counted(4, 3), chunk=2, batch=8, held_out=0, hold=-1)
    observations, actions = physical(short, short.batch_at(0))
    assert observations[..., 1].max() == 2 and actions.fmod(100).max() == 2.5
    with pytest.raises(ValueError, match="leaves nothing"):
        WholeEpisodes(counted(4, 3), chunk=2, hold=-3)


def test_windows_begin_anywhere_and_the_first_observation_may_be_told():
    data = WholeEpisodes(counted(9, 9), chunk=2, batch=64, held_out=0, window=2, first=True)
    batch = data.batch_at(0)
    observations, _ = physical(data, batch)
    assert sorted(set(observations[:, 0, 1].round().int().tolist())) == [0, 1, 2, 3, 4, 5] and batch.mask.all()
    first = data.normalizer.part(0, 2).denormalize(batch.cond["static"]["first"])
    torch.testing.assert_close(first, torch.stack([(observations[:, 0, 0] / 100 - 0.05).round() * 100,
                                                   torch.zeros(64)], 1))


def test_chunks_are_cut_short_as_often_as_asked_for_and_the_next_observation_comes_sooner():
    data = WholeEpisodes(counted(*[40] * 20), chunk=4, batch=32, held_out=0, cut=0.5)
    batch = data.batch_at(0)
    observations, actions = physical(data, batch)
    count = (batch.cond["token"]["kind"][:, 1::2, 1] * 4).round().long()
    assert set(count.unique().tolist()) == {1, 2, 3, 4} and abs((count < 4).float().mean() - 0.5) < 0.1
    time = observations[..., 1].round().long()
    assert torch.equal(time[:, 0], 0 * time[:, 0]) and torch.equal(time.diff(dim=1), count[:, :-1].minimum(
        40 - time[:, :-1]))
    kept = torch.arange(4) < count[..., None]
    whole = batch.mask[:, 1::2]
    stepped = actions.fmod(100) - 0.5 - time[..., None]
    torch.testing.assert_close(stepped[kept & whole[..., None]], torch.arange(4.0).expand_as(kept)[
        kept & whole[..., None]], atol=1e-3, rtol=0)
    assert (batch.x[:, 1::2][~kept] == 0).all()


def test_the_normaliser_is_floored_and_shared_with_the_validation_split():
    rng = np.random.default_rng(0)
    o = rng.normal(size=(20, 9, 2)) * [1.0, 1e-6]
    episodes = pack(o, rng.normal(size=(20, 8, 1)), np.zeros((20, 8)))
    data = WholeEpisodes(episodes, chunk=2, held_out=0.2, floor=0.05)
    assert data.normalizer.std[1] == pytest.approx(0.05 * float(data.normalizer.std[0]))
    val = WholeEpisodes(episodes, chunk=2, held_out=0.2, split="val", normalizer=data.normalizer)
    assert (len(data), len(val)) == (16, 4) and not set(data.train_episodes) & set(val.val_episodes)


def test_layouts_name_the_parts_and_what_cannot_be_is_refused():
    data = WholeEpisodes(demonstrations(4, parts=True), chunk=CHUNK, held_out=0)
    assert data.layout["tokens"] == {"parts": {"cue": 1, "rest": 2}, "action": 1, "chunk": CHUNK}
    assert data.layout["token"] == {"kind": 3} and data.batch_at(0).x.shape == (16, 3 * STEPS // CHUNK, 2)
    for wrong, message in (({"cut": 1.0}, "want batch"), ({"chunk": 1, "cut": 0.5}, "cannot be cut"),
                           ({"chunk": 9}, "no whole chunk"), ({"window": 0}, "want batch"),
                           ({"past": 1}, "take a stride"),
                           ({"stride": 1, "cut": 0.5}, "take a stride"), ({"stride": 1, "past": 2}, "take a stride")):
        with pytest.raises(ValueError, match=message):
            WholeEpisodes(demonstrations(2), **{"chunk": CHUNK, **wrong})
    bad = demonstrations(2)
    bad.actions[3] = np.nan
    with pytest.raises(ValueError, match="actions holds 1 non-finite"):
        WholeEpisodes(bad, chunk=CHUNK)
