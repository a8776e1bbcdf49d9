"""Layer by layer, in graph order: make each cut undo what the cuts before it did.

The inputs x̂ that a layer sees in the compressed model differ from the original's x. Regressing the
original outputs y = W x on x̂ (reduced-rank, in closed form) corrects for that as far as the rank
allows; no labels, no gradients. A fifth of the calibration data is held out: on it the strength of
the ridge is chosen, and the correction itself is kept only if it helps there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.statistics import Sampler
from alds_onnx.calibrate.sums import Sums, sums_of, usable
from alds_onnx.calibrate.walk import Walk
from alds_onnx.decompose.folding import compose
from alds_onnx.decompose.regression import Moments, bias_change, regress, squared_error
from alds_onnx.graph.layers import Layer
from alds_onnx.values import Cut, Factors, FloatArray

#: Ridges to choose from, relative to the mean power of an input.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_SEARCH_SWEEPS, _SWEEPS = 2, 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One weight to reconstruct.

    Attributes
    ----------
    layer, matrix, cut
        The layer, its weight W (f, n), and what to cut it to.
    bias
        The bias that may change, shape (f,); None if there is none.
    moments
        Of the layer's inputs and outputs in the original model.
    """

    layer: Layer
    matrix: FloatArray
    cut: Cut
    bias: FloatArray | None
    moments: Moments


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """What a layer becomes.

    Attributes
    ----------
    factors, bias
        The new weights; a bias of None stays unchanged.
    squared_error, uncorrected
        Squared relative error of the layer's output on held-out data, with the correction and
        without it. The correction is kept where it is the smaller of the two. None where the
        layer could not be observed.
    """

    factors: Factors
    bias: FloatArray | None
    squared_error: float | None
    uncorrected: float | None


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
    weight = task.matrix.T.astype(np.float32)

    def sums(batch: int) -> Sums:
        x = sampler.rows(task.layer, before.tensor(batch, name), batch)
        seen = sampler.rows(task.layer, after.tensor(batch, name), batch)
        kept = usable(x, seen)
        return sums_of(seen[kept], x[kept] @ weight)

    def total(batches: Sequence[int]) -> Sums:
        first, *rest = list(runner.map(sums, batches))
        return sum(rest, first)

    parts = split(len(runner.batches))
    return total(parts.fit), total(parts.held_out)


def solve(task: Task, fit: Sums, held_out: Sums) -> Solution:
    """Choose the ridge on held-out data, then fit on all.

    Parameters
    ----------
    task
        The layer.
    fit, held_out
        Sums over the inputs in the compressed model and the outputs in the original one.
    """
    centred = task.bias is not None
    fitted, judge = fit.moments(centred=centred), held_out.moments(centred=centred)
    errors = {ridge: _error(task, fitted, judge, ridge) for ridge in RIDGES}
    best = min(RIDGES, key=lambda ridge: errors[ridge])
    uncorrected = _error(task, task.moments, judge, RIDGES[0])
    helps = errors[best] <= uncorrected
    moments = (fit + held_out).moments(centred=centred) if helps else task.moments
    factors = _solve(task, moments, best if helps else RIDGES[0], _SWEEPS)
    bias = None if task.bias is None else task.bias + bias_change(factors, moments)
    return Solution(
        factors=factors,
        bias=bias,
        squared_error=min(errors[best], uncorrected),
        uncorrected=uncorrected,
    )


def _error(task: Task, fitted: Moments, judge: Moments, ridge: float) -> float:
    return squared_error(compose(_solve(task, fitted, ridge, _SEARCH_SWEEPS)), judge)


def _solve(task: Task, moments: Moments, ridge: float, sweeps: int) -> Factors:
    shape = task.layer.shape
    return regress(task.matrix, shape, moments, task.cut, ridge=ridge, sweeps=sweeps)
