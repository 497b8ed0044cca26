"""The subject's advantage over each rival, a row a line, on a log scale. Needs matplotlib, an extra."""

from __future__ import annotations

from perf.bars import Ahead, bars_of
from perf.model import Row
from perf.results import Results
from perf.table import times

_COLOURS = {"ray": "#3b6fb6", "executor": "#e08a2e", "loky": "#5a9a68", "dask": "#b5546b"}
#: Between rows, in bars.
GAP = 1.2
_INK, _FAINT = "#222222", "#9a9a9a"


def draw(results: Results, path: str) -> None:
    """Write the picture, of the kind the suffix says. Raises ValueError if there is nothing to compare."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results.rows if any(results.advantage(row, rival) for rival in results.rivals)]
    if not rows:
        raise ValueError(f"no row has figures of both {results.subject} and a rival: nothing to plot")
    rivals = [rival for rival in results.rivals if any(results.advantage(row, rival) for row in rows)]

    height = sum(GAP + len(_bars(results, row, rivals)) for row in rows)
    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.19 * height))
    position, ticks = 0.0, []
    for row in rows:
        top = position
        for rival in _bars(results, row, rivals):
            _bar(axes, results, row, rival, position)
            position += 1
        ticks.append(((top + position - 1) / 2, row.title))
        position += GAP
    axes.set_xscale("log")
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_ylim(position - 0.8, -1)
    axes.set_yticks([at for at, _ in ticks], [title for _, title in ticks])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: times(value))
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), high * 1.8)
    axes.set_title(f"How many times better {results.subject} is", loc="left", color=_INK, weight="bold")
    axes.legend(
        handles=[
            *(plt.Rectangle((0, 0), 1, 1, color=_colour(rival), label=f"than {rival}") for rival in rivals),
            plt.Line2D([], [], color=_INK, marker="|", linestyle="", markersize=9, label="to be reached"),
        ],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(rivals) + 1,
        fontsize=9,
        frameon=False,
    )
    machine = results.machine
    figure.text(
        0.01,
        0.005,
        f"{machine.get('cpus', '?')} CPUs, {machine.get('memory_gb', '?')} GB · "
        + " · ".join(f"{name} {version}" for name, version in results.versions.items() if name != "machine")
        + " · median of the rounds' ratios, lines from lowest to highest",
        fontsize=7,
        color=_FAINT,
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bars(results: Results, row: Row, rivals: list[str]) -> list[str]:
    return [rival for rival in rivals if results.advantage(row, rival)]


def _colour(rival: str) -> str:
    return _COLOURS.get(rival, _FAINT)


def _bar(axes, results: Results, row: Row, rival: str, position: float) -> None:  # type: ignore[no-untyped-def]
    """A bar from 1 to the advantage, its range, its figure, and a mark at what must be reached."""
    advantage = results.advantage(row, rival)
    assert advantage
    axes.barh(position, advantage.median - 1, left=1, height=0.85, color=_colour(rival))
    axes.plot([advantage.low, advantage.high], [position] * 2, color=_INK, linewidth=0.8)
    for bar in bars_of(row.key):
        if isinstance(bar, Ahead) and bar.over == rival:
            axes.plot([bar.times], [position], color=_INK, marker="|", markersize=9, markeredgewidth=2)
    right = max(advantage.high, 1)
    axes.annotate(
        times(advantage.median),
        (right, position),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=_INK,
    )
