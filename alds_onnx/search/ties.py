"""Where the largest error cannot fall any more, the rest of the budget lowers the squared errors.

A weight with equal singular values, such as a permutation, has the same largest error at every
rank below the full one. Its cheapest cut then looks as good as any, and most of the budget would
stay unspent. Among the cuts whose error is at most the largest one, the sum of squared errors
decides.

The squared error of a slice cut to rank j, in the Frobenius norm, is the sum of sigma_r² over
r > j. With one slice that follows from the error curve itself; with k slices, whose curve has the
largest sigma_{i,r} over the slices, k times the sum is a bound, which equal singular values attain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import Cuts, ErrorCurve, ErrorNorm, Spectra, read_only
from alds_onnx.search.alignment import Alignment
from alds_onnx.search.costs import CostModel
from alds_onnx.search.frontier import Frontier, Point, frontier
from alds_onnx.search.knapsack import minimize_sum_of_errors


def break_ties(
    points: Mapping[str, Point],
    spectra: Mapping[str, Spectra],
    rule: Alignment,
    cost_model: CostModel,
    allowed: int,
) -> dict[str, Point]:
    """Lower the sum of squared errors where the largest error has the same value at several ranks.

    `points` is a choice with the smallest possible largest error, within the cost that is allowed.
    The result is that choice where there is no tie, else one with the same largest error.
    """
    worst = max((point.error for point in points.values()), default=0.0)
    stuck = [name for name, point in points.items() if point.error == worst]
    if not worst or not any(_is_tied(spectra[name], worst) for name in stuck):
        return dict(points)
    tied = {name: _tied(name, spectra[name], rule, cost_model, worst) for name in points}
    chosen = minimize_sum_of_errors(list(tied.values()), allowed)
    return {
        name: Point(_with_relative_errors(found, spectra[name]), index)
        for (name, found), index in zip(tied.items(), chosen, strict=True)
    }


def _is_tied(spectra: Spectra, error: float) -> bool:
    """Whether a weight has an error at several ranks; mean errors on data add up without ties."""
    spectral = spectra.error_norm is ErrorNorm.SPECTRAL
    return spectral and any((c.relative_error == error).sum() > 1 for c in spectra.curves)


def _tied(
    name: str, spectra: Spectra, rule: Alignment, cost_model: CostModel, worst: float
) -> Frontier:
    """The frontier of the squared error over the cuts whose error is at most `worst`."""
    bounded = (*cost_model.excluded.get(name, ()), _ErrorBound(spectra=spectra, most=worst))
    found = frontier(name, _frobenius(spectra), rule, replace(cost_model, excluded={name: bounded}))
    return replace(found, error=found.error**2)


def _frobenius(spectra: Spectra) -> Spectra:
    """Relative errors in the Frobenius norm, or bounds on them; see the module."""
    total = float((spectra.curve(1).relative_error ** 2).sum()) or 1.0

    def tail(curve: ErrorCurve) -> ErrorCurve:
        squares = curve.num_slices * np.cumsum(curve.relative_error[::-1] ** 2)[::-1]
        return replace(curve, relative_error=read_only(np.sqrt(squares / total)))

    curves = tuple(map(tail, spectra.curves))
    return replace(spectra, curves=curves, error_norm=ErrorNorm.FROBENIUS)


def _with_relative_errors(found: Frontier, spectra: Spectra) -> Frontier:
    cuts = [found.cut(index) for index in range(len(found))]
    errors = [spectra.relative_error(cut) if cut else 0.0 for cut in cuts]
    return replace(found, error=np.array(errors))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ErrorBound:
    """Excludes the cuts of a weight whose relative error is above `most`."""

    spectra: Spectra
    most: float

    def allows(self, cuts: Cuts) -> npt.NDArray[np.bool_]:
        """Which of the cuts are left."""
        return np.array([self.spectra.relative_error(cut) for cut in cuts.each()]) <= self.most
