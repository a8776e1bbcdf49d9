"""Layer by layer, in graph order: make each cut undo what the cuts before it did.

The inputs x̂ that a layer sees in the compressed model differ from the original's x. Regressing the
original outputs y = W x on x̂ (reduced-rank, in closed form) corrects for that as far as the rank
allows; no labels, no gradients. A fifth of the calibration data is held out: on it the strength of
the ridge is chosen, and the correction itself is kept only if it helps there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alds_onnx.calibrate.rows import Rows
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.statistics import Sampler, rows_wanted
from alds_onnx.calibrate.sums import Sums, sums_of, usable
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import Cut, Factors, FloatArray
from alds_onnx.decompose.folding import compose
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
_SEARCH_SWEEPS, _SWEEPS = 2, 40
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One weight to reconstruct.

    Attributes
    ----------
    layer, weight, cut
        The layer, its weight W (f, n), and what to cut it to.
    matrix
        What the regression reproduces: W, or the identity (f, f) of a wide layer.
    others
        Other cuts to fit besides, roughly: what they would do.
    bias
        The bias that may change, shape (f,); None if there is none.
    moments
        Of the layer's inputs and outputs in the original model.
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
    """What a layer becomes.

    Attributes
    ----------
    factors, bias
        What takes the place of `Task.matrix`; a bias of None stays unchanged.
    squared_error, uncorrected
        Squared relative error of the layer's output on held-out data, with the correction and
        without it. The correction is kept where it is the smaller of the two. None where the
        layer could not be observed.
    """

    factors: Factors
    bias: FloatArray | None
    squared_error: float | None
    uncorrected: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """The solution of a task, and those of its other cuts."""

    solution: Solution
    others: Mapping[Cut, Solution]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Batches to fit on and batches to judge by."""

    fit: tuple[int, ...]
    held_out: tuple[int, ...]


def split(num_batches: int) -> Split:
    """Hold out every fifth batch; a single batch has to serve for both."""
    held_out = tuple(range(4, num_batches, 5)) or (num_batches - 1,)
    fit = tuple(b for b in range(num_batches) if b not in held_out) or held_out
    return Split(fit=fit, held_out=held_out)


def measure_sums(
    before: Walk, after: Walk, runner: Runner, sampler: Sampler, task: Task
) -> tuple[Sums, Sums]:
    """Sums over the inputs in the compressed model and the outputs in the original one.

    Parameters
    ----------
    before, after
        Walks through the original and the compressed model, both at the layer.
    runner, sampler
        The calibration data, and the rows to draw.
    task
        The layer.

    Returns
    -------
    Over the batches to fit on, and over those held out.
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
        groups = _groups(batches, -(-rows_wanted(task.layer.shape) // len(runner.batches)))
        first, *rest = runner.map(lambda i: sums(groups[i]), range(len(groups)))
        return sum(rest, first)

    parts = split(len(runner.batches))
    return total(parts.fit), total(parts.held_out)


def _groups(batches: Sequence[int], rows: int) -> list[Sequence[int]]:
    """Cut batches of `rows` rows each into groups, so that fewer sums are to be added up."""
    size = max(1, _ROWS_AT_ONCE // rows)
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def solve(task: Task, fit: Sums, held_out: Sums, runner: Runner) -> Fit:
    """Choose the ridge on held-out data, then fit on all.

    Parameters
    ----------
    task
        The layer.
    fit, held_out
        Sums over the inputs in the compressed model and the outputs in the original one.
    runner
        Solves for several ridges and cuts side by side.
    """
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
    cuts = [(task.cut, _SWEEPS), *((cut, _SEARCH_SWEEPS) for cut in task.others)]
    solution, *others = runner.map(
        lambda i: _solution(task, moments, ridge, *cuts[i]), range(len(cuts))
    )
    squared = min(error, uncorrected)
    return Fit(
        solution=replace(solution, squared_error=squared, uncorrected=uncorrected),
        others=dict(zip(task.others, others, strict=True)),
    )


def _solution(task: Task, moments: Moments, ridge: float, cut: Cut, sweeps: int) -> Solution:
    factors = _solve(task, moments, cut, ridge, sweeps)
    bias = None if task.bias is None else task.bias + bias_change(factors, moments)
    return Solution(factors=factors, bias=bias, squared_error=None, uncorrected=None)


def _error(task: Task, fitted: Moments, ridge: float, judge: Moments) -> float:
    factors = _solve(task, fitted, task.cut, ridge, _SEARCH_SWEEPS)
    return squared_error(compose(factors), judge)


def _solve(task: Task, moments: Moments, cut: Cut, ridge: float, sweeps: int) -> Factors:
    shape = fitted_shape(task.layer.shape)
    return regress(task.matrix, shape, moments, cut, ridge=ridge, sweeps=sweeps)
