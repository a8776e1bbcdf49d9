"""Fitting layer by layer, in graph order: each layer corrects the errors of the cuts upstream.

The inputs x̂ of a layer in the compressed model differ from its inputs x in the original. A
reduced-rank regression of the original outputs y = W x on x̂, in closed form, corrects this as far
as the rank allows, without labels or gradients. Factors fitted to the first half of the samples and
judged on the second decide the strength of the ridge, and whether the correction is kept at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.statistics import (
    Rows,
    Sampler,
    Sums,
    outputs_of,
    rows_wanted,
    sums_of,
    usable,
    with_floor,
)
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import Cut, Factors, FloatArray
from alds_onnx.decompose.factorize import compose
from alds_onnx.decompose.regression import (
    Halves,
    Moments,
    bias_change,
    fitted_shape,
    regress,
    squared_error,
)
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS

#: Ridges to choose from, relative to the mean power of an input.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SEARCH_ITERATIONS, _ITERATIONS = 2, 40
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One weight W (f, n) to reconstruct.

    The regression reproduces `matrix`: W, or the identity (f, f) for a wide layer. The bias (f,)
    may change, if there is one. The moments are those in the original model. `others` are cuts that
    are fitted to the first half with less accuracy, to estimate their effect.
    """

    layer: Layer
    weight: FloatArray
    matrix: FloatArray
    cut: Cut
    others: tuple[Cut, ...]
    bias: FloatArray | None
    moments: Halves


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """The factors of `Task.matrix`, and the new bias; None leaves the bias unchanged."""

    factors: Factors
    bias: FloatArray | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """The solutions of a task that are fitted to different samples.

    Attributes
    ----------
    half
        The solution that is fitted to the first half of the samples.
    whole
        The one that is fitted to all samples; `half` unless it was asked for.
    kept
        The one that is fitted to all samples but those apart; `whole` if there are none, None if
        they could not be told from the others.
    others
        Solutions for the other cuts, fitted to the first half.
    squared_error
        Squared relative error of the layer's output with `half` on the second half of the samples;
        None if the layer could not be observed.
    uncorrected
        The same without the correction, which replaces it if its error is smaller.
    """

    half: Solution
    whole: Solution
    kept: Solution | None
    others: Mapping[Cut, Solution]
    squared_error: float | None = None
    uncorrected: float | None = None

    def map(self, function: Callable[[Solution], Solution]) -> Fit:
        """Change all solutions."""
        half = function(self.half)
        whole = half if self.whole is self.half else function(self.whole)
        kept = self.kept
        if kept is not None:
            kept = whole if kept is self.whole else function(kept)
        return replace(
            self,
            half=half,
            whole=whole,
            kept=kept,
            others={cut: function(other) for cut, other in self.others.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """Sums over the samples of each half that there is, and over all samples but those apart."""

    halves: Sequence[Sums]
    kept: Sums


def measure_sums(before: Walk, after: Walk, sampler: Sampler, task: Task) -> Seen:
    """Compute sums over the inputs in the compressed model and the outputs in the original one.

    `before` and `after` are walks through the original and the compressed model, at the layer.
    """
    runner = before.runner
    name = sampler.activation(task.layer)
    matrix = task.matrix.T.astype(np.float32)
    basis = None if task.matrix is task.weight else task.weight.T.astype(np.float32)

    def rows(batch: int) -> tuple[Rows, Rows]:
        x = sampler.rows(task.layer, before.tensor(batch, name), batch)
        seen = sampler.rows(task.layer, after.tensor(batch, name), batch)
        kept = usable(x, seen)
        x, seen = x[kept], seen[kept]
        if basis is not None:
            x, seen = (outputs_of(task.layer, one, basis) for one in (x, seen))
        return seen, x @ matrix

    def sums(batches: Sequence[int]) -> Sums:
        inputs, outputs = zip(*map(rows, batches), strict=True)
        return sums_of(np.concatenate(inputs), np.concatenate(outputs))

    def total(batches: Sequence[int]) -> Sums | None:
        # Batches are grouped, so that fewer sums need to be added.
        rows_of_each = -(-rows_wanted(task.layer.shape) // len(runner.batches))
        size = max(1, _ROWS_AT_ONCE // rows_of_each)
        starts = range(0, len(batches), size)
        parts = list(runner.map(lambda start: sums(batches[start : start + size]), starts))
        return _added(*parts) if parts else None

    halves = [
        (
            total([b for b in half if b not in runner.apart]),
            total([b for b in half if b in runner.apart]),
        )
        for half in runner.halves
    ]
    found = Seen(
        halves=[_added(*half) for half in halves], kept=_added(*(one for one, _ in halves))
    )
    if basis is None or not OPERATORS[task.layer.op].is_lookup:
        return found
    return _floored(found, sums_of(basis, basis @ matrix))


def _floored(seen: Seen, table: Sums) -> Seen:
    """Let rows of a table count that were never seen."""
    halves = [with_floor(half, table) for half in seen.halves]
    return Seen(halves=halves, kept=with_floor(seen.kept, table))


def _added(*parts: Sums | None) -> Sums:
    first, *others = (part for part in parts if part is not None)
    return sum(others, first)


def solve(task: Task, seen: Seen, runner: Runner, *, whole: bool) -> Fit:
    """Fit a task to the first half of the samples, and to all samples if `whole` asks for that.

    The second half decides the ridge. `runner` solves in parallel.
    """
    centred, own = task.bias is not None, task.moments.first
    first, judge = (seen.halves[i].moments(centred=centred) for i in (0, -1))
    candidates = [*((first, ridge) for ridge in RIDGES), (own, max(RIDGES[0], own.uncertainty))]
    *corrected, uncorrected = runner.map(
        lambda i: _error(task, *candidates[i], judge), range(len(candidates))
    )
    error = min(corrected)
    helps = error <= uncorrected
    fitted, ridge = candidates[corrected.index(error) if helps else -1]
    work = [(fitted, cut, _SEARCH_ITERATIONS) for cut in task.others]
    work.append((fitted, task.cut, _ITERATIONS))
    if whole and len(seen.halves) > 1:
        both = _added(*seen.halves).moments(centred=centred) if helps else task.moments.both
        work.append((both, task.cut, _ITERATIONS))
    if whole and runner.apart:
        work.append((seen.kept.moments(centred=centred), task.cut, _ITERATIONS))
    solved = list(runner.map(lambda i: _solution(task, ridge, *work[i]), range(len(work))))
    others, (half, *more) = solved[: len(task.others)], solved[len(task.others) :]
    return Fit(
        half=half,
        whole=more[0] if more else half,
        kept=more[-1] if more else half,
        others=dict(zip(task.others, others, strict=True)),
        squared_error=min(error, uncorrected),
        uncorrected=uncorrected,
    )


def _solution(task: Task, ridge: float, moments: Moments, cut: Cut, iterations: int) -> Solution:
    factors = _solve(task, moments, cut, ridge, iterations)
    bias = None if task.bias is None else task.bias + bias_change(factors, moments)
    return Solution(factors=factors, bias=bias)


def _error(task: Task, fitted: Moments, ridge: float, judge: Moments) -> float:
    factors = _solve(task, fitted, task.cut, ridge, _SEARCH_ITERATIONS)
    return squared_error(compose(factors), judge)


def _solve(task: Task, moments: Moments, cut: Cut, ridge: float, iterations: int) -> Factors:
    shape = fitted_shape(task.layer.shape)
    return regress(task.matrix, shape, moments, cut, ridge=ridge, sweeps=iterations)
