"""Fitting layer by layer, in graph order: each layer corrects the errors of the cuts upstream.

The inputs x̂ of a layer in the compressed model differ from its inputs x in the original. A
reduced-rank regression of the original outputs y = W x on x̂, in closed form, corrects this as far
as the rank allows, without labels or gradients. A fifth of the calibration data is held out. It
decides the strength of the ridge, and whether the correction is kept at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.statistics import Rows, Sampler, Sums, rows_wanted, sums_of, usable
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import Cut, Factors, FloatArray
from alds_onnx.decompose.factorize import compose
from alds_onnx.decompose.regression import (
    Moments,
    bias_change,
    fitted_shape,
    regress,
    squared_error,
)
from alds_onnx.graph.layers import Layer

#: Ridges to choose from, relative to the mean power of an input.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SEARCH_ITERATIONS, _ITERATIONS = 2, 40
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One weight W (f, n) to reconstruct.

    The regression reproduces `matrix`: W, or the identity (f, f) for a wide layer. The bias (f,)
    may change, if there is one. The moments are those in the original model. `others` are cuts that
    are fitted with less accuracy to estimate their effect.
    """

    layer: Layer
    weight: FloatArray
    matrix: FloatArray
    cut: Cut
    others: tuple[Cut, ...]
    bias: FloatArray | None
    moments: Moments


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """The factors of `Task.matrix`, and the new bias; None leaves the bias unchanged.

    The squared relative errors of the layer's output on held-out data are those of this solution,
    and of the one without the correction, which replaces it if its error is smaller. They are None
    if the layer could not be observed.
    """

    factors: Factors
    bias: FloatArray | None
    squared_error: float | None = None
    uncorrected: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """The solution of a task, and the solutions for its other cuts."""

    solution: Solution
    others: Mapping[Cut, Solution]


def measure_sums(
    before: Walk, after: Walk, runner: Runner, sampler: Sampler, task: Task
) -> tuple[Sums, Sums]:
    """Compute sums over the inputs in the compressed model and the outputs in the original one.

    `before` and `after` are walks through the original and the compressed model, at the layer. The
    first sums are over the batches to fit on, the second ones over every fifth batch, held out; a
    single batch serves both purposes.
    """
    name = sampler.activation(task.layer)
    matrix = task.matrix.T.astype(np.float32)
    basis = None if task.matrix is task.weight else task.weight.T.astype(np.float32)

    def rows(batch: int) -> tuple[Rows, Rows]:
        x = sampler.rows(task.layer, before.tensor(batch, name), batch)
        seen = sampler.rows(task.layer, after.tensor(batch, name), batch)
        kept = usable(x, seen)
        x, seen = x[kept], seen[kept]
        if basis is not None:
            x, seen = x @ basis, seen @ basis
        return seen, x @ matrix

    def sums(batches: Sequence[int]) -> Sums:
        inputs, outputs = zip(*map(rows, batches), strict=True)
        return sums_of(np.concatenate(inputs), np.concatenate(outputs))

    def total(batches: Sequence[int]) -> Sums:
        # Batches are grouped, so that fewer sums need to be added.
        rows_of_each = -(-rows_wanted(task.layer.shape) // len(runner.batches))
        size = max(1, _ROWS_AT_ONCE // rows_of_each)
        starts = range(0, len(batches), size)
        first, *others = runner.map(lambda start: sums(batches[start : start + size]), starts)
        return sum(others, first)

    num_batches = len(runner.batches)
    held_out = range(4, num_batches, 5) or range(num_batches - 1, num_batches)
    fit = [batch for batch in range(num_batches) if batch not in held_out]
    return total(fit or held_out), total(held_out)


def solve(task: Task, fit: Sums, held_out: Sums, runner: Runner) -> Fit:
    """Choose the ridge on the held-out data, then fit on all data; `runner` does so in parallel."""
    centred = task.bias is not None
    fitted, judge = fit.moments(centred=centred), held_out.moments(centred=centred)
    own = max(RIDGES[0], task.moments.uncertainty)
    candidates = [*((fitted, ridge) for ridge in RIDGES), (task.moments, own)]
    *corrected, uncorrected = runner.map(
        lambda i: _error(task, *candidates[i], judge), range(len(candidates))
    )
    error = min(corrected)
    helps = error <= uncorrected
    moments = (fit + held_out).moments(centred=centred) if helps else task.moments
    ridge = RIDGES[corrected.index(error)] if helps else own
    cuts = [(task.cut, _ITERATIONS), *((cut, _SEARCH_ITERATIONS) for cut in task.others)]
    solution, *others = runner.map(
        lambda i: _solution(task, moments, ridge, *cuts[i]), range(len(cuts))
    )
    squared = min(error, uncorrected)
    return Fit(
        solution=replace(solution, squared_error=squared, uncorrected=uncorrected),
        others=dict(zip(task.others, others, strict=True)),
    )


def _solution(task: Task, moments: Moments, ridge: float, cut: Cut, iterations: int) -> Solution:
    factors = _solve(task, moments, cut, ridge, iterations)
    bias = None if task.bias is None else task.bias + bias_change(factors, moments)
    return Solution(factors=factors, bias=bias)


def _error(task: Task, fitted: Moments, ridge: float, judge: Moments) -> float:
    factors = _solve(task, fitted, task.cut, ridge, _SEARCH_ITERATIONS)
    return squared_error(compose(factors), judge)


def _solve(task: Task, moments: Moments, cut: Cut, ridge: float, iterations: int) -> Factors:
    shape = fitted_shape(task.layer.shape)
    return regress(task.matrix, shape, moments, cut, ridge=ridge, sweeps=iterations)
