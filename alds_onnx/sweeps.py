"""Frozen values: several compressions of one model, compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alds_onnx.search.pareto import knee, pareto_front
from alds_onnx.values import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One compression of a sweep.

    Attributes
    ----------
    cr
        The requested fraction to remove.
    loss
        The loss, in the measure of the sweep, at least 0; NaN if it is not known. For a score on
        labelled samples the unit is percentage points.
    on_front
        Whether the point is on the Pareto front: no other one is smaller and loses less.
    """

    cr: float
    report: Report
    loss: float
    on_front: bool

    @property
    def output_error(self) -> float:
        """Relative L2 error of the worst output; NaN if none was measured."""
        checks = self.report.verification
        error = checks.output_error if checks else None
        return math.nan if error is None else error


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Several compressions of one model.

    Attributes
    ----------
    points
        In the requested order.
    loss
        The measure of loss: the name of the first score, `output error`, or `largest layer error`
        if nothing was measured.
    suggested
        The knee of the front: up to this point, compression loses little. None if there is no knee.
    unreachable
        Requested fractions that are out of reach.
    """

    points: tuple[SweepPoint, ...]
    loss: str
    suggested: SweepPoint | None
    unreachable: tuple[float, ...] = ()

    @property
    def shown(self) -> SweepPoint:
        """The point to show: the suggested one, or else the smallest model on the front."""
        if self.suggested is not None:
            return self.suggested
        front = [point for point in self.points if point.on_front]
        return max(front or self.points, key=lambda point: point.report.plan.removed)


def make_sweep(made: Sequence[tuple[float, Report]], *, unreachable: Sequence[float] = ()) -> Sweep:
    """Compare compressions by their size and their loss.

    Parameters
    ----------
    made
        Pairs of the requested fraction and the report; at least one.
    unreachable
        Requested fractions that are out of reach.
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
    """Give the most telling measure of loss that all points have, and its values."""
    if all(report.scores for report in reports):
        # A score that rises by chance counts as no loss.
        return reports[0].scores[0].name, [max(0.0, r.scores[0].drop) for r in reports]
    measured = [output_error(report) for report in reports]
    if not all(math.isnan(error) for error in measured):
        return "output error", measured
    return "largest layer error", [report.plan.max_relative_error for report in reports]


def output_error(report: Report) -> float:
    """Give the relative L2 error of the worst output that could be compared; NaN if none could."""
    fidelity = report.verification.fidelity if report.verification else ()
    return max((f.relative_l2 for f in fidelity if not f.note), default=math.nan)
