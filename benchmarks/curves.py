"""The curves of accuracy.py and of truth.py.

One panel for each model: score against parameters removed, and reported numbers with the truth
against the number of calibration samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Okabe and Ito's colours, which the colour-blind can tell apart; dashes mark the parts of the
# method that are not the default of a command. Grey for what is older than ALDS.
_STYLES = {
    "uniform": ("#999999", "v--", "SVD, one fraction of rank"),
    "energy": ("#666666", "^--", "SVD, one fraction of energy"),
    "iterative": ("#E69F00", "s-", "ALDS as its authors run it"),
    "exact": ("#D55E00", "o-", "exact search, all slices"),
    "fast": ("#D55E00", "x:", "the same, fast cuts (--cr)"),
    "exact+fit": ("#56B4E9", "D--", "exact search, factors fitted"),
    "ranks": ("#CC79A7", "P--", "ranks by output errors"),
    "max": ("#009E73", "X--", "fitted, largest output error"),
    "fast+data": ("#0072B2", "x:", "the same, fast cuts (--calibration)"),
    "calibrated": ("#0072B2", "o-", "fitted, sum, all slices"),
}
_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5)
_NEAREST = 0.2  # errors in percent below which the scale ends
_GAP = 0.05  # between labels, of a panel's height
_RATIO_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A method's scores and their standard errors in percent, by the percent removed."""

    method: str
    removed: tuple[float, ...]
    scores: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The curves of a model, its score before compression, and a title."""

    title: str
    unit: str
    base: float
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What was reported and what is true in percent, each with an error, by number of samples.

    Where nothing was reported, that is NaN.
    """

    label: str
    samples: tuple[int, ...]
    reported: tuple[float, ...]
    reported_errors: tuple[float, ...]
    truth: tuple[float, ...]
    truth_errors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePanel:
    """The estimates for a model, each of another ratio."""

    title: str
    unit: str
    estimates: tuple[Estimates, ...]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the plot as a PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot is wanted

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    width = max(6.4, 4.3 * len(panels))
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 4.9), squeeze=False)
    handles = {}
    for axis, panel in zip(axes[0], panels, strict=True):
        handles |= _panel(axis, panel)
    ordered = [method for method in _STYLES if method in handles]
    figure.tight_layout(rect=(0, 0.15, 1, 1), w_pad=2.5)
    figure.legend(
        [handles[method] for method in ordered],
        [f"{method}: {_STYLES[method][2]}" for method in ordered],
        loc="lower center",
        ncols=2 if len(panels) == 1 else 4,
        fontsize=7 if len(panels) == 1 else 8,
        frameon=False,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    _fewer_colours(path)


def draw_by_samples(rows: Sequence[Sequence[SamplePanel]], path: Path) -> None:
    """Write a plot with a row of panels for each experiment as a PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot is wanted

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    columns = max(len(panels) for panels in rows)
    size = (max(5.0, 3.3 * columns), 3.1 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for row, panels in zip(axes, rows, strict=True):
        for axis, panel in zip(row, panels, strict=True):
            _sample_panel(axis, panel)
    figure.tight_layout(rect=(0, 0.35 / size[1], 1, 1))
    figure.text(
        0.5,
        0.08 / size[1],
        "lines with a band: the truth; points with bars: what the tool reports",
        ha="center",
        fontsize=8,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    _fewer_colours(path)


def _sample_panel(axis, panel: SamplePanel) -> None:  # type: ignore[no-untyped-def]
    """One model; points are a little apart, so that bars do not lie on each other."""
    axis.set_xscale("log", base=2)
    shown: set[int] = set()
    for i, e in enumerate(panel.estimates):
        color = _RATIO_COLORS[i % len(_RATIO_COLORS)]
        truth, error = np.array(e.truth), np.array(e.truth_errors)
        axis.plot(e.samples, truth, color=color, label=e.label)
        axis.fill_between(e.samples, truth - error, truth + error, color=color, alpha=0.2, lw=0)
        apart = np.array(e.samples) * 1.06 ** (i + 0.5 - len(panel.estimates) / 2)
        axis.errorbar(
            apart, e.reported, e.reported_errors, fmt="o", color=color, markersize=4, capsize=2
        )
        shown.update(e.samples)
    ticks = sorted(shown)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("calibration samples")
    axis.set_ylabel(panel.unit)
    axis.set_title(panel.title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if shown:
        axis.legend(frameon=False, fontsize=8)


def _panel(axis, panel: Panel) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """One model; returns the handles for the legend."""
    axis.set_yscale("function", functions=(_up, _down))
    axis.axhline(panel.base, color="black", linestyle=":", linewidth=1)
    axis.annotate("before", (0, panel.base), (2, 3), textcoords="offset points", fontsize=8)
    handles = {}
    for curve in panel.curves:
        color, style, _ = _STYLES[curve.method]
        scores = np.clip(curve.scores, 0, 100)
        lower = np.minimum(curve.errors, scores)
        bold = 2.2 if curve.method == "calibrated" else 1.2
        handles[curve.method] = axis.errorbar(
            curve.removed,
            scores,
            (lower, curve.errors),
            fmt=style,
            color=color,
            linewidth=bold,
            elinewidth=0.8,
            capsize=2,
            markersize=4,
        )
    axis.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axis.minorticks_off()
    axis.set_ylim(-3, 100)
    axis.set(title=panel.title, xlabel="parameters removed, %", ylabel=f"{panel.unit}, %")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    _label(axis, panel.curves)
    return handles


def _label(axis, curves: Sequence[Curve]) -> None:  # type: ignore[no-untyped-def]
    """Names at the curves' right ends, pushed apart where they would lie on each other."""
    ends = sorted((float(_up(max(0.0, c.scores[-1]))), -i, c) for i, c in enumerate(curves))
    bottom, top = (float(_up(limit)) for limit in axis.get_ylim())
    place = [(end - bottom) / (top - bottom) for end, _, _ in ends]
    for i in range(1, len(place)):
        place[i] = max(place[i], place[i - 1] + _GAP)
    for i in reversed(range(len(place))):
        place[i] = min(place[i], 1 - _GAP * (len(place) - 1 - i))
    for height, (_, _, curve) in zip(place, ends, strict=True):
        color = _STYLES[curve.method][0]
        axis.text(
            1.01, height, curve.method, color=color, transform=axis.transAxes, va="center", size=8
        )


def _up(score: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The scale: logarithmic in the errors that are left, so that 99.5 is apart from 99."""
    return -np.log10(np.maximum(100 - np.asarray(score, np.float64), _NEAREST))


def _down(place: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return 100 - 10 ** -np.asarray(place, np.float64)


def _fewer_colours(path: Path) -> None:
    """Write the picture with a palette, which makes the file a third as large."""
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
