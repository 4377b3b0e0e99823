"""Pictures of a learnt reward: how sure it is of the pairs it never saw, and ratings against its own."""

import numpy as np
from matplotlib.figure import Figure

from dforce.report.plots import style

BINS = 24


def margins_plot(held_out: object, learnt: object = (), *, title: str = "preference pairs") -> Figure:
    """Share of the pairs by reward(preferred) - reward(other): right of 0 the reward agrees. [H], [P] in nats."""
    held = style.finite("held_out", style.numbers("held_out", held_out, (None,), "[H]"))
    known = style.finite("learnt", style.numbers("learnt", learnt, (None,), "[P]"))
    if not len(held):
        raise ValueError("there is no held-out pair to draw")
    every = np.concatenate([held, known, [0.0]])
    edges = np.linspace(every.min(), every.max() if every.max() > every.min() else every.min() + 1, BINS + 1)
    figure = style.new_figure(8.0, 4.2)
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="reward of the preferred less that of the other [nats]",
                     ylabel="share of the pairs", grid="y")
    for values, name, color in ((known, "learnt from", style.PALETTE[5]), (held, "held out", style.PALETTE[0])):
        if len(values):
            share = np.histogram(values, edges)[0] / len(values)
            label = f"{name}: {np.mean(values > 0):.1%} of {len(values)} right"
            ax.stairs(share, edges, fill=name == "learnt from", alpha=0.4 if name == "learnt from" else 1.0,
                      color=color, linewidth=2.2, label=label)
    ax.axvline(0, color=style.INK, linewidth=1.2, linestyle=(0, (4, 3)))
    ax.legend(frameon=False, fontsize=style.LABEL, labelcolor=style.INK, loc="upper right")
    return figure


def ratings_plot(predicted: object, rated: object, *, title: str = "held-out ratings") -> Figure:
    """One dot a sample: what it was rated, [H], and what the reward expects, [H]."""
    x = style.finite("rated", style.numbers("rated", rated, (None,), "[H]"))
    y = style.finite("predicted", style.numbers("predicted", predicted, (len(x),), f"[{len(x)}], as rated"))
    figure = style.new_figure(5.6, 5.2)
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="mean rating", ylabel="expected by the reward", grid="both")
    both = np.concatenate([x, y])
    ax.plot([both.min(), both.max()], [both.min(), both.max()], color=style.MUTED, linewidth=1.2, linestyle=(0, (5, 3)))
    ax.plot(x, y, "o", color=style.PALETTE[0], alpha=0.55, markersize=5.5, markeredgecolor="white")
    return figure
