"""Frozen values about several compressions of one model, and which of them to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alds_onnx.search.pareto import knee, pareto_front
from alds_onnx.values import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One compression.

    Attributes
    ----------
    cr
        The fraction that was asked for.
    report
        Everything that is known about it.
    loss
        What it loses, by the measure of the sweep, at least 0; NaN where that is not known. Of a
        score on labelled samples it counts percentage points.
    on_front
        Whether no other point is smaller and loses less.
    """

    cr: float
    report: Report
    loss: float
    on_front: bool

    @property
    def output_error(self) -> float:
        """Relative L2 error of the worst output; NaN where none was measured."""
        return output_error(self.report)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Several compressions of one model.

    Attributes
    ----------
    points
        In the order in which they were asked for.
    loss
        What `on_front` and `suggested` rest on: the name of the first score, `output error`, or
        `largest layer error` where nothing was measured.
    suggested
        The point at the knee: up to it saving is cheap. None if there is no knee.
    unreachable
        Fractions that were asked for, and that the model cannot give.
    """

    points: tuple[SweepPoint, ...]
    loss: str
    suggested: SweepPoint | None
    unreachable: tuple[float, ...] = ()

    @property
    def shown(self) -> SweepPoint:
        """The point to look at: the suggested one, or else the smallest model on the front."""
        if self.suggested is not None:
            return self.suggested
        front = [point for point in self.points if point.on_front]
        return max(front or self.points, key=lambda point: point.report.plan.removed)


def make_sweep(made: Sequence[tuple[float, Report]], *, unreachable: Sequence[float] = ()) -> Sweep:
    """Compare compressions by the parameters that they keep and what they lose.

    Parameters
    ----------
    made
        The fraction that was asked for, and what came of it; at least one.
    unreachable
        Fractions of which nothing came.
    """
    reports = [report for _, report in made]
    name, losses = _losses(reports)
    sizes = [1 - report.plan.removed for report in reports]
    front = pareto_front(sizes, losses)
    points = tuple(
        SweepPoint(cr=cr, report=report, loss=loss, on_front=bool(kept))
        for (cr, report), loss, kept in zip(made, losses, front, strict=True)
    )
    best = knee(sizes, losses)
    return Sweep(
        points=points,
        loss=name,
        suggested=None if best is None else points[best],
        unreachable=tuple(unreachable),
    )


def _losses(reports: Sequence[Report]) -> tuple[str, list[float]]:
    """What each point loses, by the measure that says most."""
    if all(report.scores for report in reports):
        # A score that rises by chance is no gain.
        return reports[0].scores[0].name, [max(0.0, r.scores[0].drop) for r in reports]
    measured = [output_error(report) for report in reports]
    if not all(math.isnan(error) for error in measured):
        return "output error", measured
    return "largest layer error", [report.plan.max_relative_error for report in reports]


def output_error(report: Report) -> float:
    """Relative L2 error of the worst output that could be compared; NaN if there is none."""
    fidelity = report.verification.fidelity if report.verification else ()
    return max((f.relative_l2 for f in fidelity if not f.note), default=math.nan)
