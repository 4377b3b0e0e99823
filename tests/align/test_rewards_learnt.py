"""Rewards that are learnt, several as one, pairs made of scores, and the folders and files they are kept in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dforce.align import (
    BradleyTerry,
    BradleyTerryLoss,
    Pairs,
    Ratings,
    RewardError,
    RewardNet,
    Scale,
    Vote,
    Weighted,
    ask_reward,
    fit_bradley_terry,
    fit_rating,
    jpeg_compressibility,
    load_reward,
    needed_encoder,
    read_pairs,
    read_ratings,
    save_reward,
    scales_of,
    spearman,
    split_pairs,
    write_pairs,
    write_ratings,
)
from dforce.align.rewards.network import encode, flat
from dforce.align.rewards.ratings import RatingHead, RatingLoss, mean_ranks
from dforce.train.checkpoint import CheckpointError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prefer(x, score, seed=0):
    """Pairs of neighbours in x [2 P, ...]: the one of the higher score [2 P] wins."""
    first, second = x[::2], x[1::2]
    better = (score[::2] > score[1::2]).view(-1, *(1,) * (x.ndim - 1))
    return Pairs(torch.where(better, first, second), torch.where(better, second, first), None, torch.ones(len(first)))


# ------------------------------------------------------------------------------------------------------- Bradley-Terry

def test_the_loss_is_the_likelihood_of_the_choices() -> None:
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x, cond=None):
            return self.gain * x.sum((1, 2))

    win, lose = drawn(5, 2, 3), drawn(5, 2, 3, seed=1)
    weight = torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0])
    loss, logs = BradleyTerryLoss(Sum())(Pairs(win, lose, None, weight))
    margin = (win - lose).sum((1, 2))
    assert float(loss.detach()) == pytest.approx(float((weight * torch.log1p((-margin).exp())).sum() / 5), rel=1e-6)
    keep = weight > 0
    assert float(logs["agrees"]) == pytest.approx(float((margin[keep] > 0).float().mean()))
    same, _ = BradleyTerryLoss(Sum())(Pairs(win, win, None, torch.ones(5)))
    assert float(same.detach()) == pytest.approx(math.log(2), abs=1e-7)
    swapped, _ = BradleyTerryLoss(Sum())(Pairs(lose, win, None, torch.ones(5)))
    own, _ = BradleyTerryLoss(Sum())(Pairs(win, lose, None, torch.ones(5)))
    assert float((swapped - own).detach()) == pytest.approx(float(margin.mean()), rel=1e-5)  # log s(-m) = log s(m) - m


def test_a_linear_model_of_log_odds_is_recovered() -> None:
    """Choices drawn from sigmoid(w.x_a - w.x_b): the fitted differences are those of w, in nats."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 1, bias=False)

        def forward(self, x, cond=None):
            return self.inner(x[:, 0])[:, 0]

    truth = torch.tensor([1.5, -0.7])
    a, b = drawn(3000, 1, 2, seed=2), drawn(3000, 1, 2, seed=3)
    first = torch.rand(3000, generator=torch.Generator().manual_seed(4)) < torch.sigmoid(((a - b)[:, 0] * truth).sum(1))
    first = first.view(-1, 1, 1)
    pairs = Pairs(torch.where(first, a, b), torch.where(first, b, a), None, torch.ones(3000))
    torch.manual_seed(0)
    net = Linear()
    found = fit_bradley_terry(net, pairs, steps=200, batch=400, lr=5e-2, weight_decay=0.0, device="cpu")
    torch.testing.assert_close(net.inner.weight.detach()[0], truth, rtol=0, atol=0.2)
    assert found.accuracy == pytest.approx(0.81, abs=0.05)  # choices are chance: no model agrees with all


SHAPES = {"images": (1, 1, 8, 8), "trajectories": (20, 3)}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.slow
def test_a_reward_of_images_and_of_trajectories_is_learnt(kind) -> None:
    """Against pairs it never saw: those whose hidden score (brightness at the left; the last positions) is higher."""
    def hidden(x):
        return x[..., :4].mean((1, 2, 3, 4)) if kind == "images" else x[:, -4:, 0].mean(1)

    count, steps = (800, 150) if kind == "images" else (500, 100)
    x = drawn(count, *SHAPES[kind])
    pairs = prefer(x, hidden(x))
    torch.manual_seed(0)
    net = RewardNet(SHAPES[kind], width=8)
    untrained = BradleyTerry(net)
    before = float((untrained.score(pairs.win) > untrained.score(pairs.lose)).double().mean())
    found = fit_bradley_terry(net, pairs, steps=steps, lr=1e-2, batch=50, device="cpu")
    assert len(found.margin) == count // 10 and len(found.trained) == 4 * count // 10
    assert found.accuracy > 0.75 and found.accuracy > before + 0.15
    fresh = drawn(200, *SHAPES[kind], seed=9)
    assert spearman(ask_reward(found.model, fresh, ["any"] * 200), hidden(fresh).double()) > 0.7
    learnt = torch.cat([pairs.win, pairs.lose])
    assert abs(float(found.model(learnt).detach().mean())) < 0.5  # centred on what it learnt from
    if kind == "trajectories":
        assert found.model(drawn(3, 31, 3)).shape == (3,)  # of any length


@pytest.mark.slow
def test_a_reward_that_knows_the_class_of_the_prompt() -> None:
    """Class 0 likes bright images, class 1 dark ones: without the class no model beats a guess."""
    x, label = drawn(1200, 1, 1, 4, 4), torch.arange(600) % 2
    score = x.mean((1, 2, 3, 4)) * (1 - 2 * label.repeat_interleave(2))
    pairs = prefer(x, score)._replace(cond={"static": {"class": label}})
    accuracy = {}
    for classes in (("bright", "dark"), 0):
        torch.manual_seed(0)
        net = RewardNet((1, 1, 4, 4), width=8, depth=1, classes=classes)
        found = fit_bradley_terry(net, pairs, steps=150, lr=1e-2, batch=100, device="cpu")
        accuracy[bool(classes)] = found.accuracy
        if classes:
            some = drawn(6, 1, 1, 4, 4, seed=5)
            by_name, by_number = found.model(some, ["bright", "dark"] * 3), found.model(some, [0, 1] * 3)
            assert torch.equal(by_name, by_number)
            with pytest.raises(ValueError, match=r"is no class: there are bright, dark or 0\.\.1"):
                found.model(some, ["grey"] * 6)
    assert accuracy[True] > 0.8 and accuracy[False] < 0.65


def test_no_sample_is_on_both_sides_of_the_split() -> None:
    x = drawn(30, 1, 2)
    order = torch.randint(0, 30, (2, 40), generator=torch.Generator().manual_seed(1))
    distinct = order[0] != order[1]
    sparse = Pairs(x[order[0]][distinct][:14], x[order[1]][distinct][:14], None, torch.ones(14))
    known, test = split_pairs(sparse, 0.3)
    assert len(known.win) + len(test.win) == 14

    def bytes_of(pairs):
        return {sample.numpy().tobytes() for sample in torch.cat([pairs.win, pairs.lose])}

    assert not bytes_of(known) & bytes_of(test) and bytes_of(known) | bytes_of(test) == bytes_of(sparse)
    chain = Pairs(x[:10], x[1:11], None, torch.ones(10))  # all hang together: nothing could be held out
    with pytest.raises(ValueError, match=r"leaves 0 of 1 groups .*there are 10 pairs"):
        split_pairs(chain, 0.2)
    with pytest.raises(ValueError, match="no pair with a preference among 14"):
        fit_bradley_terry(RewardNet((1, 2)), sparse._replace(weight=torch.zeros(14)))


def test_networks_say_what_they_take() -> None:
    for shape in ((3,), (1, 2, 3), (0, 2)):
        with pytest.raises(ValueError, match=r"trajectories \(T, D\) or images \(T, C, H, W\)"):
            RewardNet(shape)
    with pytest.raises(ValueError, match=r"made for samples \[B, 1, 1, 8, 8\], got \[2, 1, 1, 4, 4\]"):
        RewardNet((1, 1, 8, 8))(torch.zeros(2, 1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"made for samples \[B, 20, 3\], got \[2, 20, 4\]"):
        RewardNet((20, 3))(torch.zeros(2, 20, 4))
    with pytest.raises(ValueError, match="judges samples by their class"):
        RewardNet((20, 3), classes=2)(torch.zeros(2, 20, 3))
    x = 3 + 2 * drawn(40, 5, 3, 4, 4)
    net = RewardNet((5, 3, 4, 4))
    net.observe(x)
    torch.testing.assert_close(net.mean, x.mean((0, 1, 3, 4)))
    torch.testing.assert_close(net.std, x.transpose(0, 2).flatten(1).std(1, correction=0))


# ------------------------------------------------------------------------------------------------------------- ratings

def test_spearman_is_that_of_scipy_ties_and_all() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    for levels in (3, 10, 10_000):
        a, b = (torch.randint(0, levels, (50,), generator=generator).double() for _ in range(2))
        assert spearman(a, b + a) == pytest.approx(stats.spearmanr(a, b + a).statistic, abs=1e-12)
        assert np.array_equal(mean_ranks(a).numpy(), stats.rankdata(a))
    a = torch.randn(20, generator=generator)
    assert spearman(a, a.exp()) == pytest.approx(1) and spearman(a, -a.atan()) == pytest.approx(-1)
    assert math.isnan(spearman(a, torch.ones(20)))
    with pytest.raises(ValueError, match=r"one length, got \[20\] and \[3\]"):
        spearman(a, a[:3])


def test_a_linear_head_is_least_squares() -> None:
    x = drawn(300, 1, 4)
    rating = x[:, 0] @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 3 + 0.3 * drawn(300, seed=1)
    found = fit_rating(flat, Ratings(x, rating), steps=200, batch=240, lr=3e-2, weight_decay=0.0, device="cpu")
    order = [i for i in range(300) if not bool((rating[i] == found.rated).any())]
    design = torch.cat([x[order, 0], torch.ones(len(order), 1)], 1)
    weights = torch.linalg.lstsq(design, rating[order][:, None]).solution[:, 0]
    fresh = drawn(50, 1, 4, seed=2)
    torch.testing.assert_close(found.model(fresh).detach(), fresh[:, 0] @ weights[:4] + weights[4], rtol=0, atol=0.01)
    assert len(found.rated) == 60 and found.rank_correlation > 0.95
    assert found.rank_correlation == spearman(found.predicted, found.rated)


def test_the_encoder_stays_as_it_is_and_gradients_go_through_it() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Tanh()).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    x = drawn(120, 1, 1, 4, 4)
    target = encode(encoder, x)[:, 0].detach() * 2 + 5
    found = fit_rating(encoder, Ratings(x, target), hidden=8, steps=200, device="cpu")
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert found.rank_correlation > 0.9
    torch.testing.assert_close(found.model(x), found.model(x))  # no dropout in what it sees
    assert abs(float((found.model(x) - target).detach().mean())) < 0.1  # in the unit of the ratings
    some = x[:3].clone().requires_grad_()
    found.model(some, ["a"] * 3, [None] * 3).sum().backward()
    assert some.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"features \[3, F\], got \[3\]"):
        encode(lambda x: x.sum((1, 2, 3, 4)), x[:3])


def test_ratings_that_teach_nothing_are_refused() -> None:
    x = drawn(20, 1, 2)
    for ratings, told in ((Ratings(x, torch.ones(20)), "all 16 ratings to learn from are 1"),
                          (Ratings(x[:3], torch.arange(3.0)), "of 3 rated samples leaves 1 for the test"),
                          (Ratings(x / 0, torch.arange(20.0)), "features are not finite")):
        with pytest.raises(ValueError, match=told):
            fit_rating(flat, ratings)
    head = RatingHead(2)
    head.rating.copy_(torch.tensor([3.0, 2.0]))
    batch = {"features": x[:, 0], "rating": head(x[:, 0]).detach()}
    assert float(RatingLoss(head)(batch)[0].detach()) == pytest.approx(0, abs=1e-10)


def test_ratings_from_a_file(tmp_path) -> None:
    x = drawn(4, 1, 1, 3, 3)
    write_ratings(tmp_path / "r.npz", Ratings(x, torch.tensor([1.0, 2.0, 3.0, 4.0])))
    found = read_ratings(tmp_path / "r.npz")
    assert torch.equal(found.x, x) and found.rating.tolist() == [1, 2, 3, 4]
    raters = np.array([[1, np.nan, 3], [2, 2, np.nan], [5, 5, 5], [np.nan, 0, np.nan]])
    np.savez(tmp_path / "many.npz", x=x.numpy(), rating=raters)
    assert read_ratings(tmp_path / "many.npz").rating.tolist() == [2, 2, 5, 0]
    bad = [({"x": x[:0], "rating": np.zeros(0)}, "holds no ratings"),
           ({"x": x}, r"must hold the arrays 'x'.*has \['x'\]"),
           ({"x": x, "ratings": np.zeros(4)}, r"has \['ratings', 'x'\]"),
           ({"x": x, "rating": np.zeros(3)}, r"got \[4, 1, 1, 3, 3\] and \[3\]"),
           ({"x": x, "rating": np.full((4, 2), np.nan)}, r"4 samples \(the first is 0\) were rated by no one")]
    for arrays, told in bad:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=f"bad.npz.*{told}"):
            read_ratings(tmp_path / "bad.npz")
    (tmp_path / "text.npz").write_text("1,2,3")
    with pytest.raises(ValueError, match="text.npz is no .npz file of ratings"):
        read_ratings(tmp_path / "text.npz")
    with pytest.raises(FileNotFoundError):
        read_ratings(tmp_path / "none.npz")


# ------------------------------------------------------------------------------------------------ several as one

def bright(x, prompts, metadata):
    return x.mean((1, 2))


def loud(x, prompts, metadata):
    return 1000 * x.abs().mean((1, 2)) + 7


def test_a_weighted_sum_of_standard_scores() -> None:
    x = drawn(40, 2, 3)
    prompts = ["a"] * 40
    scales = scales_of({"bright": bright, "loud": loud}, x, prompts)
    assert scales["loud"].mean == pytest.approx(float(loud(x, [], []).mean()))
    fixed = Weighted({"bright": bright, "loud": loud}, {"loud": 0.5, "bright": 2.0}, statistics=scales)
    found = fixed(x, prompts)
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)  # every part has mean 0
    one, other = ((r(x, [], []).double() - scales[n].mean) / scales[n].std for n, r in
                  (("bright", bright), ("loud", loud)))
    torch.testing.assert_close(found, 2 * one + 0.5 * other)
    torch.testing.assert_close(fixed(x[:1], prompts[:1]), found[:1])  # a function of the sample alone
    plain = Weighted([bright, loud], [2, 0.5], normalise=False)(x, prompts)
    torch.testing.assert_close(plain, 2 * bright(x, [], []).double() + 0.5 * loud(x, [], []).double())
    scaled = Weighted([bright, lambda *a: 1e-3 * loud(*a) - 9], [2, 0.5])(x, prompts)
    torch.testing.assert_close(scaled, Weighted([bright, loud], [2, 0.5])(x, prompts), rtol=1e-4, atol=1e-4)


def test_running_statistics_are_those_of_all_that_was_asked() -> None:
    x, prompts = drawn(60, 1, 2), ["a"] * 60
    running = Weighted([bright, loud])
    for part in (x[:7], x[7:30], x[30:]):
        latest = running(part, prompts[:len(part)])
    for name, reward in (("0", bright), ("1", loud)):
        every = reward(x, [], []).double()
        assert running.scales[name].mean == pytest.approx(float(every.mean()), rel=1e-6, abs=1e-9)
        assert running.scales[name].std == pytest.approx(float(every.std(correction=0)), rel=1e-6)
    again = Weighted([bright, loud])
    again.load_state_dict(running.state_dict())
    torch.testing.assert_close(again(x[:5], prompts[:5]), running(x[:5], prompts[:5]))
    assert len(latest) == 30
    constant = Weighted([bright, lambda x, p, m: [0.1] * len(x)])
    for _ in range(3):
        torch.testing.assert_close(constant(x, prompts), Weighted([bright])(x, prompts))


def test_evaluators_that_fail_are_named() -> None:
    x = drawn(3, 1, 2)
    with pytest.raises(RewardError, match="the evaluator 'broken' raised ZeroDivisionError"):
        Weighted({"bright": bright, "broken": lambda *a: 1 / 0})(x, ["a"] * 3)
    with pytest.raises(RewardError, match=r"the evaluator '1' must answer with one number.*got \[\]"):
        Vote([bright, lambda x, p, m: x.mean()])(x, ["a"] * 3)
    for make, told in ((lambda: Weighted([]), "no evaluators"),
                       (lambda: Weighted([bright], [1, 2]), "take as many weights, got 2"),
                       (lambda: Weighted({"a": bright}, {"b": 1}), "weights must be of the evaluators a, got .* b"),
                       (lambda: Weighted([bright], normalise=False, statistics={"0": Scale(0, 1)}), "do nothing"),
                       (lambda: Vote([bright], "loudest"), "'rank' or 'majority'"),
                       (lambda: Vote([bright], within="all"), "'prompt' or 'batch'"),
                       (lambda: Vote([bright], weights=[0]), "nobody has a vote"),
                       (lambda: Vote([bright])(x, []), "0 prompts for 3 samples"),
                       (lambda: scales_of([bright], x[:1], ["a"]), "two samples or more")):
        with pytest.raises(ValueError, match=told):
            make()


def listed(*values):
    return lambda x, prompts, metadata: torch.tensor(values)[x[:, 0, 0].long()]


def test_votes_by_hand() -> None:
    x = torch.arange(4.0).view(4, 1, 1)
    jury = [listed(1.0, 2.0, 3.0, 3.0), listed(0.0, 5.0, 4.0, 1.0), listed(9.0, -1.0, 0.0, 1.0)]
    ranks = Vote(jury)(x, ["a"] * 4)
    assert ranks.tolist() == pytest.approx([(0 + 0 + 3) / 9, (1 + 3 + 0) / 9, (2.5 + 2 + 1) / 9, (2.5 + 1 + 2) / 9])
    # 1 beats 0, 2 beats 0 and 1, 3 beats 0 and 1; 2 against 3: one tie, one for each: a tie
    assert Vote(jury, "majority")(x, ["a"] * 4).tolist() == pytest.approx([0, 1 / 3, 2.5 / 3, 2.5 / 3])
    apart = Vote(jury)(x, ["a", "b", "a", "c"])
    assert apart.tolist() == pytest.approx([1 / 3, 0.5, 2 / 3, 0.5])
    assert torch.equal(Vote(jury, within="batch")(x, []), ranks)
    # the first has two votes, the second none, the third votes the other way round
    weighted = Vote(jury, weights=[2, 0, -1])(x, ["a"] * 4)
    assert weighted.tolist() == pytest.approx([0, (2 + 3) / 9, (5 + 2) / 9, (5 + 1) / 9])


@pytest.mark.parametrize("rule", ["rank", "majority"])
def test_votes_mind_neither_units_nor_outliers_nor_the_order_of_samples(rule) -> None:
    x = drawn(30, 2, 3)
    prompts = [f"p{i % 3}" for i in range(30)]
    found = Vote([bright, loud], rule)(x, prompts)
    torch.testing.assert_close(Vote([lambda *a: bright(*a).exp() * 50 - 2, loud], rule)(x, prompts), found)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    assert torch.equal(Vote([bright, loud], rule)(x[order], [prompts[i] for i in order]), found[order])
    for i in range(3):
        assert float(found[i::3].mean()) == pytest.approx(0.5)
    alone = Vote([bright], rule)(x, ["a"] * 30)
    assert torch.equal(alone.argsort(), bright(x, [], []).argsort())
    against = Vote([bright, lambda *a: -bright(*a)], rule)(x, prompts)
    assert torch.equal(against, torch.full((30,), 0.5, dtype=torch.float64))


# ----------------------------------------------------------------------------------------------------- files, folders

def test_what_a_file_of_pairs_must_not_hold(tmp_path) -> None:
    win, lose = drawn(4, 1, 2), drawn(4, 1, 2, seed=1)
    pairs = Pairs(win, lose, {"static": {"class": torch.arange(4)}}, torch.tensor([1.0, 0.0, 1.0, 0.5]))
    write_pairs(tmp_path / "p.npz", pairs)
    found = read_pairs(tmp_path / "p.npz", static=("class",))
    assert found.weight.tolist() == [1, 0, 1, 0.5] and found.cond["static"]["class"].tolist() == [0, 1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]
    with pytest.raises(ValueError, match=r"p.npz holds arrays \['class'\] that mean nothing here"):
        read_pairs(tmp_path / "p.npz", static=())
    tied = torch.cat([win[:3], lose[3:]])
    bad = [({"weight": np.zeros(4)}, "holds only ties"), ({"weight": np.ones((4, 1))}, "one number >= 0 for each pair"),
           ({"weight": np.array([1, 1, 1, -1])}, "least -1"),
           ({"weight": np.array([1, np.nan, 1, 1])}, "weight must be"),
           ({"win": tied.numpy()}, r"in 1 pairs \(the first is 3\) win and lose are the same sample")]
    for arrays, told in bad:
        np.savez(tmp_path / "bad.npz", **{"win": win.numpy(), "lose": lose.numpy(), **arrays})
        with pytest.raises(ValueError, match=f"bad.npz.*{told}"):
            read_pairs(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", win=tied.numpy(), lose=lose.numpy(), weight=np.array([1, 1, 1, 0]))
    assert read_pairs(tmp_path / "bad.npz").weight.tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match=r"conditioning named \['weight'\] has no place"):
        write_pairs(tmp_path / "p.npz", pairs._replace(cond={"static": {"weight": torch.ones(4)}}))


def test_a_learnt_reward_comes_back_from_its_folder(tmp_path) -> None:
    torch.manual_seed(0)
    x = drawn(5, 1, 1, 6, 6)
    model = BradleyTerry(RewardNet((1, 1, 6, 6), width=8, classes=("a", "b")), offset=0.25)
    save_reward(tmp_path / "reward", model, about={"pairs": 10})
    for where in (tmp_path / "reward", tmp_path):
        found = load_reward(where)
        torch.testing.assert_close(found(x, list("ababa")), model(x, list("ababa")), rtol=0, atol=0)
        assert needed_encoder(where) is None
    assert not any(p.requires_grad for p in found.net.parameters())
    encoder = RewardNet((1, 1, 6, 6), width=8)
    head = RatingHead(encoder.size, hidden=4)
    own = fit_rating(encoder, Ratings(drawn(30, 1, 1, 6, 6), torch.arange(30.0)), steps=3, device="cpu").model
    for built in (own, type(own)(flat, RatingHead(36)), type(own)(encoder, head)):
        save_reward(tmp_path / "reward", built)
        torch.testing.assert_close(load_reward(tmp_path)(x), built(x), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="no learnt reward at"):
        load_reward(tmp_path / "none")
    weights = tmp_path / "reward" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        load_reward(tmp_path)


def test_a_head_asks_for_the_encoder_it_was_fitted_on(tmp_path) -> None:
    torch.manual_seed(0)
    encoder, other = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    model = fit_rating(encoder, Ratings(drawn(30, 1, 2), torch.arange(30.0)), steps=3, device="cpu").model
    with pytest.raises(ValueError, match="give its name, encoder="):
        save_reward(tmp_path / "r", model)
    save_reward(tmp_path / "r", model, encoder="digits")
    assert needed_encoder(tmp_path / "r") == "digits"
    x = drawn(4, 1, 2, seed=1)
    torch.testing.assert_close(load_reward(tmp_path / "r", encoder=encoder)(x), model(x), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="a head on the encoder 'digits', which is not in the folder"):
        load_reward(tmp_path / "r")
    with pytest.raises(CheckpointError, match="not the 'digits'.*its weights differ"):
        load_reward(tmp_path / "r", encoder=other)
    with pytest.raises(ValueError, match="only a RewardNet can be saved"):
        save_reward(tmp_path / "s", BradleyTerry(nn.Linear(2, 1)))


def test_the_jpeg_and_a_learnt_reward_are_combined() -> None:
    torch.manual_seed(0)
    x = torch.rand(6, 1, 1, 8, 8) * 2 - 1
    reward = Weighted({"jpeg": jpeg_compressibility, "taste": BradleyTerry(RewardNet((1, 1, 8, 8)))}, [1, 2])
    assert ask_reward(reward, x, ["a"] * 6).shape == (6,)
