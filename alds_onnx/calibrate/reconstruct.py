"""Layer by layer, in graph order: make each cut undo what the cuts before it did.

The inputs x̂ that a layer sees in the compressed model differ from the original's x. Regressing the
original outputs y = W x on x̂ (reduced-rank, in closed form) corrects for that as far as the rank
allows; no labels, no gradients. A fifth of the calibration data is held out: on it the strength of
the ridge is chosen, and the correction itself is kept only if it helps there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto

from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.statistics import Sampler
from alds_onnx.calibrate.sums import Sums, sums_of
from alds_onnx.decompose.folding import compose
from alds_onnx.decompose.regression import Moments, bias_change, regress, squared_error
from alds_onnx.graph.layers import Layer
from alds_onnx.values import Cut, Factors, FloatArray

#: Ridges to choose from, relative to the mean power of an input.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_SEARCH_SWEEPS, _SWEEPS = 4, 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One weight to reconstruct: W (f, n), its cut, and the bias that it may change."""

    layer: Layer
    matrix: FloatArray
    bias: FloatArray | None
    cut: Cut


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """Factors, the new bias (None: unchanged), and the squared error on held-out data."""

    factors: Factors
    bias: FloatArray | None
    squared_error: float


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


def reconstruct(
    original: ModelProto, compressed: ModelProto, runner: Runner, sampler: Sampler, task: Task
) -> Solution:
    """Solve for one layer.

    Parameters
    ----------
    original
        The model before compression.
    compressed
        The model with all layers before this one already cut.
    runner, sampler
        The calibration data, and the rows to draw.
    task
        The layer.

    Raises
    ------
    RunError
        If onnxruntime cannot run what the layer needs.
    """
    parts = split(len(runner.batches))
    fit = _sums(original, compressed, runner, sampler, task, parts.fit)
    held_out = _sums(original, compressed, runner, sampler, task, parts.held_out)
    return solve(task, fit, held_out)


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
    best = min(RIDGES, key=lambda ridge: _error(task, fitted, judge, ridge))
    everything = (fit + held_out).moments(centred=centred)
    factors = _solve(task, everything, best, _SWEEPS)
    bias = None if task.bias is None else task.bias + bias_change(factors, everything)
    return Solution(
        factors=factors, bias=bias, squared_error=squared_error(compose(factors), judge)
    )


def _error(task: Task, fitted: Moments, judge: Moments, ridge: float) -> float:
    return squared_error(compose(_solve(task, fitted, ridge, _SEARCH_SWEEPS)), judge)


def _solve(task: Task, moments: Moments, ridge: float, sweeps: int) -> Factors:
    shape = task.layer.shape
    return regress(task.matrix, shape, moments, task.cut, ridge=ridge, sweeps=sweeps)


def _sums(
    original: ModelProto,
    compressed: ModelProto,
    runner: Runner,
    sampler: Sampler,
    task: Task,
    batches: Sequence[int],
) -> Sums:
    name = sampler.activation(task.layer)
    before, after = runner.tensors(original, [name]), runner.tensors(compressed, [name])
    weight = task.matrix.T.astype("float32")

    def sums(batch: int) -> Sums:
        x = sampler.rows(task.layer, before(batch)[0], batch)
        seen = sampler.rows(task.layer, after(batch)[0], batch)
        return sums_of(seen, x @ weight)

    parts = runner.map(sums, batches)
    total = next(parts)
    for part in parts:
        total = total + part
    return total
