"""The methods that accuracy.py compares; what each of them is, stands there.

Most of them choose among all slices and ranks (--target none), as the paper does.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from tasks import Feeds

import alds_onnx
from alds_onnx.cuts import Cut
from alds_onnx.runtimes import Runtime
from alds_onnx.settings import Measuring
from alds_onnx.values import Decision, LayerPlan, Objective, Plan, SearchMethod

METHODS = (
    "uniform",
    "energy",
    "iterative",
    "exact",
    "fast",
    "exact+fit",
    "ranks",
    "max",
    "fast+data",
    "calibrated",
)
# Only these see calibration data, so only these change with its draw.
WITH_DATA = frozenset(METHODS[5:])
# What the command does where nothing is said about the runtime.
_FAST: dict[str, Any] = {"target": Runtime.ORT, "measuring": Measuring.CHEAP}
_IN_ONE_STEP: dict[str, dict[str, Any]] = {
    "iterative": {"search": SearchMethod.ITERATIVE},
    "exact": {"search": SearchMethod.EXACT},
    "fast": _FAST,
    "max": {"objective": Objective.MAX_OUTPUT_ERROR},
    "fast+data": _FAST,
}

Timed: TypeAlias = tuple[alds_onnx.Result, float]


class Methods:
    """Compresses by any of the methods; what two of them share is computed once."""

    def __init__(self) -> None:
        self._done: dict[object, Timed] = {}

    def compress(
        self, model: Path, cr: float, method: str, data: Feeds | None, threads: int
    ) -> Timed:
        """Compress a model, with calibration data for the methods of WITH_DATA."""
        run = partial(_timed, model, threads=threads)
        if method in ("uniform", "energy"):
            plan, seconds = run(cr=0.01)
            plain = _plain_plan(model, plan.plan, cr, energy=method == "energy")
            return _and(run(plan=plain), seconds)
        if method in _IN_ONE_STEP:
            return run(cr=cr, calibration=data, **_IN_ONE_STEP[method])
        if method == "exact+fit":
            ranks, seconds = run(cr=cr)
            return _and(run(plan=ranks.plan, calibration=data), seconds)
        result, seconds = self._calibrated(model, cr, data, threads)
        if method == "ranks":
            return _and(run(plan=result.plan), seconds)
        return result, seconds

    def _calibrated(self, model: Path, cr: float, data: Feeds | None, threads: int) -> Timed:
        key = (model, cr, id(data), threads)
        if key not in self._done:
            self._done[key] = _timed(model, threads=threads, cr=cr, calibration=data)
        return self._done[key]


def _timed(model: Path, **settings: Any) -> Timed:
    start = time.perf_counter()
    result = alds_onnx.compress(model, dry_run=True, **{"target": Runtime.NONE} | settings)
    return result, time.perf_counter() - start


def _and(done: Timed, seconds: float) -> Timed:
    return done[0], done[1] + seconds


def _plain_plan(model: Path, plan: Plan, cr: float, *, energy: bool) -> Plan:
    """Ranks of k = 1 by one fraction for all layers, the largest that fits the budget."""
    spectra = _singular_values(model, plan)
    limit = (1 - cr) * plan.parameters
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        rows = [_cut_row(row, spectra.get(row.name), middle, energy) for row in plan.layers]
        removed = sum(row.parameters_before - row.parameters_after for row in rows if row.cut)
        low, high = (middle, high) if plan.parameters - removed <= limit else (low, middle)
    rows = [_cut_row(row, spectra.get(row.name), low, energy) for row in plan.layers]
    return replace(plan, layers=tuple(rows))


def _singular_values(path: Path, plan: Plan) -> dict[str, npt.NDArray[np.float64]]:
    """Singular values of the folded weights, by layer."""
    graph = onnx.load(path).graph
    tensors = {t.name: t for t in graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    values = {}
    for row in plan.layers:
        if row.decision is not Decision.SKIP and row.weight in tensors:
            array = onnx.numpy_helper.to_array(tensors[row.weight]).astype(np.float64)
            matrix = array.reshape(array.shape[0], -1)
            values[row.name] = np.linalg.svd(matrix, compute_uv=False)
    return values


def _cut_row(
    row: LayerPlan, values: npt.NDArray[np.float64] | None, fraction: float, energy: bool
) -> LayerPlan:
    """A row cut to a fraction of its rank or energy, or kept if that does not make it smaller."""
    if values is None:
        return row
    rank = max(1, round(fraction * len(values)))
    if energy:
        kept = np.cumsum(values**2) / np.sum(values**2)
        rank = min(len(values), int(np.searchsorted(kept, fraction)) + 1)
    rows, columns = row.shape[0], int(np.prod(row.shape[1:]))
    after = rank * (rows + columns)
    if after >= row.parameters_before:
        return replace(row, decision=Decision.KEEP, cut=None)
    cut = Cut(num_slices=1, rank=rank)
    return replace(row, decision=Decision.DECOMPOSE, cut=cut, parameters_after=after)
