"""The plots of the HTML report, without their data.

Altair describes a plot, vl-convert compiles it for Vega, and Vega draws it as SVG in the browser
from tables in the page. Colours are variables of the page's style sheet, so that the browser can
switch between light, dark and print without drawing again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar

import altair as alt
import vl_convert

_Channel = TypeVar("_Channel")

_INK, _SOFT, _LINE = "var(--ink)", "var(--ink-2)", "var(--line)"
_ACCENT, _FILL, _BACK = "var(--accent)", "var(--before)", "var(--surface)"
_COLOURS = [f"var(--e{i})" for i in range(5)]
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
# Both plots of all layers have their axis at the same place.
_AXIS_WIDTH = 58

#: The function that the page's script draws with. It brings all of Vega.
_SNIPPET = "window.vegaEmbed = vegaEmbed;"


@cache
def specifications(*, on_data: bool) -> dict[str, Any]:
    """Give the Vega specifications by the place of the plot in the page.

    With `on_data`, errors are those of outputs, which differ by orders of magnitude.
    """
    plots = {
        "parameters": _bars("before", "after", "parameters", "~s"),
        "shares": _bars("whole", "share", "kept of each layer", ".0%"),
        "errors": _errors(),
        "spectrum": _curves("rank", "rank j", "~s"),
        "cost": _curves("cost", "parameters of the layer kept", ".0%"),
        "damage": _damage(),
        "trade": _trade(log=on_data),
        "trials": _trials(),
        "sweep": _sweep(),
        "learning": _learning(),
        "latency": _latency(),
    }
    return {name: _compiled(chart) for name, chart in plots.items()}


@cache
def script() -> str:
    """Give the source of Vega, for a script element of a page that loads nothing."""
    return vl_convert.javascript_bundle(_SNIPPET)


def _compiled(chart: alt.Chart | alt.LayerChart) -> Any:
    chart = chart.properties(width="container", background="transparent", padding=4)
    described = chart.configure(aria=False, font=_FONT).configure_view(stroke=None)
    described = described.configure_axis(
        labelColor=_SOFT,
        titleColor=_SOFT,
        titleFontWeight="normal",
        titleFontSize=12,
        labelFontSize=11,
        gridColor=_LINE,
        domainColor=_LINE,
        tickColor=_LINE,
        labelLimit=120,
    )
    return vl_convert.vegalite_to_vega(described.to_dict())


def _table(name: str) -> alt.Chart:
    """Make a chart of a table that the page fills in."""
    return alt.Chart(alt.NamedData(name=name))


def _layer_axis(*, labels: bool) -> alt.X:
    axis = alt.Axis(
        labels=labels,
        ticks=False,
        labelAngle=0,
        labelOverlap="greedy",
        labelPadding=8,
        title="layers, in the order of the graph" if labels else None,
    )
    return alt.X("number:O", axis=axis, scale=alt.Scale(paddingInner=0.18, paddingOuter=0.1))


def _stacked(*charts: alt.Chart, height: int) -> alt.LayerChart:
    """Draw charts on top of each other."""
    return alt.LayerChart(layer=list(charts), height=height)


def _chosen_layer() -> alt.Chart:
    """Mark the layer whose spectrum is shown by a band in the background."""
    return _full_height(_table("chosen").mark_bar(color="var(--accent-soft)"))


def _pointer_areas() -> alt.Chart:
    """Let the full height of each layer react to the pointer, however small its bar is."""
    areas = _full_height(_table("layers").mark_bar(opacity=0, cursor="pointer"))
    return areas.encode(tooltip=alt.Tooltip("number:O"))


def _full_height(bars: alt.Chart) -> alt.Chart:
    """Stretch bars over the whole height, whatever the numbers are."""
    full: alt.Chart = bars.encode(x="number:O", y=alt.value(0), y2=alt.value("height"))
    return full


def _aligned(title: str, form: str, ticks: int) -> alt.Axis:
    """Describe a vertical axis that stands at the same place in both plots of all layers."""
    return alt.Axis(
        title=title,
        format=form,
        tickCount=ticks,
        minExtent=_AXIS_WIDTH,
        maxExtent=_AXIS_WIDTH,
        domain=False,
        ticks=False,
    )


def _bars(before: str, after: str, title: str, form: str) -> alt.LayerChart:
    """Draw bars of each layer before and after; the colour of the latter shows the error."""
    bars = _table("layers")
    had = bars.mark_bar(color=_FILL).encode(
        x=_layer_axis(labels=False),
        y=alt.Y(f"{before}:Q", axis=_aligned(title, form, 4), stack=None),
    )
    skipped = "datum.decision === 'skip'"
    has = bars.mark_bar(strokeDash=[2, 2], strokeWidth=1).encode(
        x="number:O",
        y=alt.Y(f"{after}:Q", stack=None),
        fill=alt.Fill("band:O", scale=_bands(whole=True), legend=None),
        stroke=alt.condition(skipped, alt.value(_SOFT), alt.value("transparent")),
    )
    return _stacked(_chosen_layer(), had, has, _pointer_areas(), height=230)


def _bands(*, whole: bool) -> alt.Scale:
    """Give the colours of the bands of errors; -1 is a kept layer, -2 a skipped one."""
    if not whole:
        return alt.Scale(domain=[0, 1, 2, 3, 4], range=_COLOURS)
    return alt.Scale(domain=[-2, -1, 0, 1, 2, 3, 4], range=[_BACK, "var(--kept)", *_COLOURS])


def _errors() -> alt.LayerChart:
    cut = _table("layers").transform_filter("isValid(datum.error)")
    stems = cut.mark_rule(color=_SOFT, strokeWidth=1).encode(
        x="number:O", y=alt.Y("error:Q", axis=_aligned("error", "~g", 3)), y2=alt.datum(0)
    )
    dots = cut.mark_point(
        filled=True, opacity=1, size=42, stroke=_INK, strokeWidth=0.75, fillOpacity=1
    ).encode(
        x=_layer_axis(labels=True),
        y="error:Q",
        color=alt.Color("band:O", scale=_bands(whole=False), legend=None),
    )
    # Layers that stay whole have a place on the axis too.
    everything = _table("layers").mark_point(opacity=0).encode(x=_layer_axis(labels=True))
    return _stacked(_chosen_layer(), everything, stems, dots, _pointer_areas(), height=110)


def _quantity(field: str, title: str, form: str, *, log: bool = False) -> dict[str, Any]:
    """Describe an axis of numbers: linear from zero, or logarithmic."""
    decade = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 0.01"
    return {
        "shorthand": f"{field}:Q",
        "axis": alt.Axis(
            title=title,
            format=form,
            tickCount=5,
            labelOverlap="greedy",
            gridOpacity=alt.condition(decade, alt.value(1), alt.value(0.35)) if log else 1,
        ),
        "scale": alt.Scale(type="log", nice=False) if log else alt.Scale(zero=True, nice=False),
    }


def _series(channel: Callable[..., _Channel], domain: list[str], values: list[Any]) -> _Channel:
    """Distinguish two series by the values of a channel, such as colours."""
    return channel("series:N", scale=alt.Scale(domain=domain, range=values), legend=None)


def _lines(table: str, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Draw lines, and invisible points that show a text under the pointer."""
    base, domain = _table(table), ["chosen", "other"]
    lines = base.mark_line(strokeWidth=2, clip=True).encode(
        x=x,
        y=y,
        strokeDash=_series(alt.StrokeDash, domain, [[1, 0], [5, 4]]),
        color=_series(alt.Color, domain, [_ACCENT, _SOFT]),
    )
    points = base.mark_point(size=90, opacity=0, filled=True, clip=True).encode(
        x=x, y=y, tooltip=alt.Tooltip("text:N")
    )
    return [lines, points]


def _mark(table: str, x: alt.X, y: alt.Y, *, below: bool = False) -> list[alt.Chart]:
    """Draw the main point of the plot, with its name beside the lines."""
    base = _table(table).encode(x=x, y=y)
    dot = base.mark_point(
        filled=True, size=120, opacity=1, color=_ACCENT, stroke=_BACK, strokeWidth=2
    ).encode(tooltip=alt.Tooltip("text:N"))
    return [dot, *_name(base, dx=10, dy=20 if below else -12, align="left")]


def _name(base: alt.Chart, *, dx: int, dy: int, align: Literal["left", "right"]) -> list[alt.Chart]:
    """Draw the label of a point, legible on top of lines."""
    named = base.encode(text="label:N")
    halo = named.mark_text(dx=dx, dy=dy, align=align, fontSize=12, fontWeight=600, color=_BACK)
    name = named.mark_text(dx=dx, dy=dy, align=align, fontSize=12, fontWeight=600, color=_INK)
    return [halo.encode(stroke=alt.value(_BACK), strokeWidth=alt.value(4)), name]


def _curves(field: str, title: str, form: str) -> alt.LayerChart:
    x = alt.X(**_quantity(field, title, form))
    y = alt.Y(**_quantity("error", "error left", "~g"))
    cut = _table("cut").mark_rule(color=_ACCENT, strokeDash=[2, 3]).encode(x=x)
    return _stacked(cut, *_lines("curves", x, y), *_mark("cut", x, y), height=220)


def _damage() -> alt.LayerChart:
    x = alt.X(**_quantity("local", "error of the layer", "~g", log=True))
    y = alt.Y(**_quantity("output", "error of the outputs", "~g", log=True))
    base = _table("damage").encode(x=x, y=y)
    line = base.mark_line(color=_SOFT, strokeWidth=1.5)
    dots = base.mark_point(
        filled=True, size=60, opacity=1, color=_SOFT, stroke=_BACK, strokeWidth=1
    ).encode(tooltip=alt.Tooltip("text:N"))
    return _stacked(line, dots, *_mark("reached", x, y, below=True), height=220)


def _trade(*, log: bool) -> alt.LayerChart:
    x = alt.X(**_quantity("removed", "parameters of the model removed", ".0%"))
    y = alt.Y(**_quantity("error", "error", "~g", log=log))
    cut = _table("point").mark_rule(color=_ACCENT, strokeDash=[2, 3]).encode(x=x)
    return _stacked(cut, *_lines("trade", x, y), *_mark("point", x, y, below=True), height=280)


def _trials() -> alt.LayerChart:
    x = alt.X(**_quantity("removed", "parameters of the model to remove", ".0%"))
    y = alt.Y(**_quantity("value", "measured", "~g"))
    limit = _table("limit").mark_rule(color=_INK, strokeDash=[5, 4])
    limit = limit.encode(y=alt.Y("value:Q"), tooltip=alt.Tooltip("text:N"))
    domain = ["held", "not held"]
    dots = _table("trials").mark_point(size=110, opacity=1, strokeWidth=2, filled=False)
    dots = dots.encode(
        x=x,
        y=y,
        shape=_series(alt.Shape, domain, ["circle", "cross"]),
        color=_series(alt.Color, domain, [_ACCENT, _SOFT]),
        tooltip=alt.Tooltip("text:N"),
    )
    return _stacked(limit, dots, height=220)


def _sweep() -> alt.LayerChart:
    """Draw every point of a sweep, and the front as a line through its points."""
    x = alt.X(**_quantity("removed", "parameters of the model removed", ".0%"))
    y = alt.Y(**_quantity("loss", "lost", "~g"))
    points = _table("sweep").encode(x=x, y=y)
    line = points.transform_filter("datum.front").mark_line(color=_ACCENT, strokeWidth=2)
    dots = points.mark_point(size=80, opacity=1, strokeWidth=2, fillOpacity=1).encode(
        fill=alt.condition("datum.front", alt.value(_ACCENT), alt.value(_BACK)),
        stroke=alt.condition("datum.front", alt.value(_ACCENT), alt.value(_SOFT)),
        tooltip=alt.Tooltip("text:N"),
    )
    shown = _table("shown").encode(x=x, y=y)
    ring = shown.mark_point(size=260, opacity=1, strokeWidth=2, color=_ACCENT)
    # Losses grow faster and faster, so there is space above and to the left of the front.
    name = _name(shown, dx=-10, dy=-18, align="right")
    return _stacked(line, ring, dots, *name, height=280)


def _learning() -> alt.LayerChart:
    """Draw the error against the number of samples: a line where measured, dashes where not."""
    x = alt.X(**_quantity("samples", "calibration samples that the factors are fitted to", "~s"))
    y = alt.Y(**_quantity("error", "output error", "~g"))
    lines, pointers = _lines("learning", x, y)
    domain = ["chosen", "other"]
    dots = _table("learning").mark_point(size=80, opacity=1, strokeWidth=2, color=_ACCENT)
    dots = dots.transform_filter("datum.point").encode(
        x=x,
        y=y,
        fill=_series(alt.Fill, domain, [_ACCENT, _BACK]),
        stroke=_series(alt.Stroke, domain, [_ACCENT, _SOFT]),
    )
    return _stacked(lines, dots, pointers, height=180)


def _latency() -> alt.LayerChart:
    """Draw every run as a tick, the middle half of them as a box, and the median as a line."""
    x = alt.X(**_quantity("ms", "milliseconds for one run", "~g"))
    y = alt.Y(
        "model:N",
        sort=None,
        axis=alt.Axis(title=None, domain=False, ticks=False, labelFontSize=12, labelColor=_INK),
    )
    domain, colours = ["before", "after"], [_SOFT, _ACCENT]
    colour = _series(alt.Color, domain, colours)
    ticks = _table("times").mark_tick(thickness=1.5, opacity=0.35, size=34)
    ticks = ticks.encode(x=x, y=y, color=colour)
    boxes = _table("boxes").encode(y=y, tooltip=alt.Tooltip("text:N"))
    middle = boxes.mark_bar(height=16, fillOpacity=0.25, strokeWidth=1.5).encode(
        x=alt.X("low:Q"),
        x2="high:Q",
        color=colour,
        stroke=_series(alt.Stroke, domain, colours),
    )
    median = boxes.mark_tick(thickness=3, size=40, opacity=1).encode(x="median:Q", color=colour)
    return _stacked(ticks, middle, median, height=140)
