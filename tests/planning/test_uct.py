"""UCT: scores by their formula, books that add up, the best leaf of trees whose values are known."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from dforce.planning.search.mctd import Search

BRANCHES, DEPTH = 3, 5


def nodes(root):
    return [root, *itertools.chain.from_iterable(nodes(child) for child in root.children)]


def grow(search, value, iterations):
    """Nodes are the ways to them, as tuples; `value(way)` simulates. Returns the expansions made."""
    for done in range(iterations):
        leaf = search.select()
        if leaf is None:
            return done
        ways = [(*leaf.content, number) for number in range(BRANCHES)]
        search.expand(leaf, ways, [value(way) for way in ways], [len(way) == DEPTH for way in ways])
    return iterations


def exact(way):
    """Leaf values known: the number that a way spells in base 3, digits reversed in worth, best at all twos."""
    return sum(digit * 0.5**place for place, digit in enumerate(way))


def completed(value, rng):
    """A simulation: the value of a leaf below, reached at random."""
    return lambda way: value((*way, *(rng.randrange(BRANCHES) for _ in range(DEPTH - len(way)))))


def finished(search):
    return [node.content for node in nodes(search.root) if len(node.content) == DEPTH]


@pytest.mark.parametrize("backup", ["mean", "max"])
def test_scores_are_uct(backup):
    search = Search((), exploration=0.7, backup=backup)
    search.expand(search.root, "ab", [2.0, 6.0], [False, False])
    first, second = search.root.children
    search.expand(first, "cd", [10.0, 3.0], [False, False])
    quality = {"mean": (2 + 10 + 3) / 3, "max": 10.0}[backup]
    wanted = (quality - 2) / 8 + 0.7 * math.sqrt(math.log(4) / 3)
    assert search.score(first) == pytest.approx(wanted)
    assert search.score(second) == pytest.approx((6 - 2) / 8 + 0.7 * math.sqrt(math.log(4)))
    assert search.score(first.children[0]) == pytest.approx(1 + 0.7 * math.sqrt(math.log(3)))


def test_books_add_up():
    """A node's visits, sum and maximum are its own simulation's and its children's."""
    rng, seen = random.Random(0), {}

    def value(way):
        seen[way] = rng.gauss(0, 1)
        return seen[way]

    search = Search((), exploration=0.5)
    assert grow(search, value, 40) == 40
    for node in nodes(search.root):
        own = [seen[node.content]] if node.content else []
        assert node.visits == len(own) + sum(child.visits for child in node.children)
        assert node.total == pytest.approx(sum(own) + sum(child.total for child in node.children))
        assert node.best == max([*own, *(child.best for child in node.children)])
        assert all(child.parent is node for child in node.children)
    assert search.root.visits == len(seen) == 40 * BRANCHES
    assert (search.low, search.high) == (min(seen.values()), max(seen.values()))


@pytest.mark.parametrize("backup", ["mean", "max"])
def test_it_finds_the_best_leaf_of_a_known_tree(backup):
    """Among 243 leaves, having expanded a tenth of the 121 inner nodes."""
    found = 0
    for seed in range(20):
        search = Search((), exploration=0.3, backup=backup)
        grow(search, completed(exact, random.Random(seed)), 12)
        found += (2,) * DEPTH in finished(search)
    assert found == 20


def test_a_trap_needs_exploration():
    """Where the first look lies, exploitation alone stays in the trap, and exploration leaves it."""
    def value(way):
        if way[0] == 2:                                     # looks bad at first, holds the only good leaves
            return 1.0 if len(way) > 1 else 0.1
        return 0.5 - 0.01 * len(way)

    greedy, curious = Search((), exploration=0.0), Search((), exploration=1.0)
    for search in (greedy, curious):
        grow(search, value, 25)
    assert greedy.root.best < 0.5 and curious.root.best == 1.0


def test_units_of_the_value_do_not_matter():
    def shape(scale, shift):
        search = Search((), exploration=0.4)
        grow(search, lambda way: shift + scale * completed(exact, random.Random(hash(way)))(way), 30)
        return [node.content for node in nodes(search.root)]

    assert shape(1.0, 0.0) == shape(512.0, -4096.0)


def test_bandit_pulls_follow_the_logarithm():
    """One level of arms, each a chain of equal worth: the worse arm is visited as often as UCB1 balances it."""
    search, worth = Search((), exploration=0.5, backup="mean"), {0: 1.0, 1: 0.0}
    search.expand(search.root, [(0,), (1,)], [1.0, 0.0], [False, False])
    for _ in range(400):
        leaf = search.select()
        arm = leaf.content[0]
        search.expand(leaf, [(*leaf.content, 0)], [worth[arm]], [False])
    good, bad = (child.visits for child in search.root.children)
    assert good + bad == 402
    assert bad == pytest.approx(0.25 * math.log(402), abs=2)      # c^2 ln N / gap^2 for a gap of 1


def test_a_tree_that_is_all_known_is_closed():
    search = Search((), exploration=1.0)
    inner = sum(BRANCHES**depth for depth in range(DEPTH))
    assert grow(search, exact, 10**6) == inner
    assert search.root.closed and search.select() is None
    assert sorted(finished(search)) == sorted(itertools.product(range(BRANCHES), repeat=DEPTH))


def test_bad_settings():
    with pytest.raises(ValueError, match="exploration=-1"):
        Search((), exploration=-1)
    with pytest.raises(ValueError, match="'median'"):
        Search((), backup="median")
    search = Search(())
    with pytest.raises(ValueError, match="got 0 children"):
        search.expand(search.root, [], [], [])
    search.expand(search.root, "a", [0.0], [False])
    with pytest.raises(ValueError, match="one that has 1"):
        search.expand(search.root, "b", [0.0], [False])
