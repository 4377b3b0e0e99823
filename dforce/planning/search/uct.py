"""Monte Carlo tree search with UCT, over any kind of node: it decides what to expand and keeps the books.

What a node stands for, and what an expansion is worth, are the caller's affair. So many searches can take a step at
the same time, with all their expansions in one batch of whatever does the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal


class Node:
    """A node of a search tree.

    content: the partial solution that it stands for.
    visits, total, best: number, sum and maximum of the values of the simulations made at it and below it.
    closed: there is nothing left to expand at it or below it.
    """

    __slots__ = ("content", "parent", "children", "visits", "total", "best", "closed")

    def __init__(self, content: Any, parent: Node | None = None):
        self.content, self.parent = content, parent
        self.children: list[Node] = []
        self.visits, self.total, self.best, self.closed = 0, 0.0, -math.inf, False


class Search:
    """One tree, grown by `select` and `expand` in turn.

    A child is scored by UCT (Kocsis & Szepesvari 2006): Q + exploration sqrt(ln N / n), with N visits of its parent
    and n of its own. Q is the mean (backup "mean") or the best (backup "max": right where a simulation can be had
    again as it was) of the values seen at and below it, brought to 0..1 by the smallest and the largest value in the
    tree, so that `exploration` means the same in all units. Where scores are equal the earlier child is taken.
    """

    def __init__(self, content: Any, *, exploration: float = 1.0, backup: Literal["mean", "max"] = "max"):
        if exploration < 0:
            raise ValueError(f"exploration={exploration}: give a number >= 0; 0 only exploits")
        if backup not in ("mean", "max"):
            raise ValueError(f"backup must be 'mean' or 'max', got {backup!r}")
        self.root, self.exploration, self.backup = Node(content), exploration, backup
        self.low, self.high = math.inf, -math.inf

    def select(self) -> Node | None:
        """The node to expand next: down from the root by the best score. None where all nodes are closed."""
        node = self.root
        while node.children and not node.closed:
            node = max((child for child in node.children if not child.closed), key=self.score)
        return None if node.closed else node

    def expand(self, node: Node, contents: Sequence[Any], values: Sequence[float], final: Sequence[bool]) -> None:
        """Gives `node` its children, each simulated once with one of the `values`; `final` ones can have none."""
        if node.children or not contents:
            raise ValueError(f"a node is expanded once, into at least one child; got {len(contents)} children for one "
                             f"that has {len(node.children)}")
        for content, value, ends in zip(contents, values, final, strict=True):
            child = Node(content, node)
            child.closed = bool(ends)
            node.children.append(child)
            self._back_up(child, float(value))
        above: Node | None = node
        while above is not None and all(child.closed for child in above.children):
            above.closed, above = True, above.parent

    def score(self, node: Node) -> float:
        """UCT of a node that has been visited and has a parent."""
        assert node.parent is not None
        value = node.best if self.backup == "max" else node.total / node.visits
        scaled = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return scaled + self.exploration * math.sqrt(math.log(node.parent.visits) / node.visits)

    def _back_up(self, node: Node, value: float) -> None:
        self.low, self.high = min(self.low, value), max(self.high, value)
        above: Node | None = node
        while above is not None:
            above.visits, above.total, above.best = above.visits + 1, above.total + value, max(above.best, value)
            above = above.parent
