"""Sums over rows of the inputs of every layer, from which the moments are computed.

A row x is what a layer's folded weight multiplies. A convolution multiplies patches (im2col), Gemm
and MatMul rows or columns: the operator says which. A few thousand of them, drawn at random, tell
the second moments as well as all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from alds_onnx.calibrate.runner import Runner
from alds_onnx.cuts import FloatArray, LayerShape
from alds_onnx.decompose.regression import Moments, is_wide, uncertainty
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.scopes import ModelIndex

Rows = npt.NDArray[np.float32]

# Rows for each column of a weight. The relative error of a second moment is about 1/sqrt(rows), so
# that the weakest directions are determined well enough for a ridge to suffice.
_ROWS_PER_COLUMN = 40
_FEWEST_ROWS, _MOST_ROWS = 4096, 32768
# How much a row of a table counts that was never seen, in parts of what an average row counts that
# was: texts to come have other words than the calibration data.
_FLOOR = 1 / 25
# Sums of millions of squares of smaller numbers do not overflow float32.
_LARGEST = 1e15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Sums over `count` rows x (n) and outputs y (f), of deviations from their means, which add.

    They are sums of x xᵀ (n, n), y xᵀ (f, n) and yᵀ y; x (n,) and y (f,) are the means. Without the
    means, the small spread of inputs far from zero would be lost in the difference of large sums,
    and the covariance might not be positive.
    """

    count: int
    xx: FloatArray
    yx: FloatArray
    yy: float
    x: FloatArray
    y: FloatArray

    def __add__(self, other: Sums) -> Sums:
        """Combine the sums over two sets of samples.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979.
        """
        count = self.count + other.count
        part = other.count / max(1, count)
        weight = self.count * part
        x, y = other.x - self.x, other.y - self.y
        return Sums(
            count=count,
            xx=self.xx + other.xx + weight * np.outer(x, x),
            yx=self.yx + other.yx + weight * np.outer(y, x),
            yy=self.yy + other.yy + weight * float(y @ y),
            x=self.x + part * x,
            y=self.y + part * y,
        )

    @property
    def scaled(self) -> Sums:
        """The same sums over inputs, and outputs, that are divided by their root mean square."""
        count = max(1, self.count)
        power = float(np.trace(self.xx)) / count + float(self.x @ self.x)
        s = 1 / power if power > 0 else 1.0
        return replace(
            self,
            xx=s * self.xx,
            yx=s * self.yx,
            yy=s * self.yy,
            x=s**0.5 * self.x,
            y=s**0.5 * self.y,
        )

    def moments(self, *, centred: bool) -> Moments:
        """Compute the moments. Centre them if a bias can absorb the means."""
        count = max(1, self.count)
        inputs, cross, power = self.xx / count, self.yx / count, self.yy / count
        x, y = self.x, self.y
        if not centred:
            inputs, cross = inputs + np.outer(x, x), cross + np.outer(y, x)
            power += float(y @ y)
            x, y = np.zeros_like(x), np.zeros_like(y)
        return Moments(
            inputs=inputs,
            cross=cross,
            power=power,
            input_mean=x,
            output_mean=y,
            uncertainty=uncertainty(inputs, count),
            count=count,
        )


def with_floor(sums: Sums, every: Sums) -> Sums:
    """Add the sums over every row of a table once, so that rows never seen count too.

    All rows together count 1/25 of what was seen: a row that was seen c times, of an average m,
    counts as c / m + 1/25.
    """
    count = max(1, round(sums.count * _FLOOR)) if sums.count else 0
    share = count / every.count
    scaled = replace(
        every, count=count, xx=share * every.xx, yx=share * every.yx, yy=share * every.yy
    )
    return sums + scaled


def usable(*parts: Rows) -> npt.NDArray[np.bool_]:
    """Mark the rows of arrays (t, ·) that hold only numbers, and none too large to be squared."""
    # A comparison with NaN is false.
    kept = [(np.abs(part) < _LARGEST).all(axis=1) for part in parts]
    return np.asarray(np.logical_and.reduce(kept), dtype=np.bool_)


def sums_of(rows: Rows, outputs: Rows) -> Sums:
    """Compute the sums over usable rows x (t, n) and y (t, f).

    Products are computed in float32; sums of batches are added in float64.
    """
    x, y = _mean(rows), _mean(outputs)
    # Rounding the means to float32 does no more harm than the rounding of the inputs.
    dx, dy = rows - x.astype(np.float32), outputs - y.astype(np.float32)
    return Sums(
        count=len(rows),
        xx=(dx.T @ dx).astype(np.float64),
        yx=(dy.T @ dx).astype(np.float64),
        yy=float(np.vdot(dy, dy)),
        x=x,
        y=y,
    )


def _mean(rows: Rows) -> FloatArray:
    return np.asarray(rows.sum(axis=0, dtype=np.float64) / max(1, len(rows)))


def sample_rows(
    layer: Layer,
    node: NodeProto,
    activation: npt.NDArray[Any],
    count: int,
    generator: np.random.Generator,
) -> Rows:
    """Draw at most `count` rows x of a layer, shape (rows, c·kh·kw), without replacement.

    A generator with the same state draws the same positions of a tensor of the same shape.
    """
    windows = OPERATORS[layer.op].windows(layer.own, node, activation)
    positions = windows.shape[: windows.ndim - 1 - len(layer.shape.kernel)]
    total = prod(positions)
    drawn = (
        np.arange(total)
        if count >= total
        else np.sort(generator.choice(total, count, replace=False))
    )
    rows = windows[np.unravel_index(drawn, positions)] if positions else windows[np.newaxis]
    kind = rows.dtype if OPERATORS[layer.op].is_lookup else np.float32
    return np.ascontiguousarray(rows, dtype=kind).reshape(len(drawn), -1)


def outputs_of(layer: Layer, rows: Rows, weight: Rows) -> Rows:
    """What stands for rows x of a wide layer: x Wᵀ, with the transposed weight Wᵀ (n, f).

    Of a layer that shares a table with others, the inputs themselves: they are multiplied by the
    rows of the table.
    """
    if OPERATORS[layer.op].is_lookup:
        return np.asarray(weight[rows[:, 0]])  # ids below 0 count from the end, as in NumPy
    return rows if layer.layout.mirrored else rows @ weight


def rows_wanted(shape: LayerShape) -> int:
    """Give the number of rows x to draw for a layer from all batches."""
    if shape.one_hot:
        return _MOST_ROWS  # they only have to be counted
    columns = shape.out_features if is_wide(shape) else shape.num_columns
    return int(np.clip(_ROWS_PER_COLUMN * columns, _FEWEST_ROWS, _MOST_ROWS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Draws rows of a layer's input in all batches, at the same positions in every model.

    `index` is that of the original model.
    """

    index: ModelIndex
    seed: int
    num_batches: int

    def activation(self, layer: Layer) -> str:
        """Give the name of the tensor that a layer reads."""
        return str(self.index.node(layer.site).input[1 - layer.weight_input])

    def rows(self, layer: Layer, activation: object, batch: int) -> Rows:
        """Draw rows x from one batch."""
        count = -(-rows_wanted(layer.shape) // self.num_batches)
        generator = np.random.default_rng([self.seed, layer.site.node, batch])
        node = self.index.node(layer.site)
        return sample_rows(layer, node, np.asarray(activation), count, generator)


def input_sums(
    runner: Runner,
    sampler: Sampler,
    layers: Sequence[Layer],
    weights: Mapping[str, Rows],
    advance: Callable[[int, int], None],
) -> tuple[dict[str, Sums], dict[str, Sums]]:
    """Compute the sums over the inputs of layers of the main graph, by layer name, in one pass.

    There are sums for each half of the runner's batches; empty ones for a half that there is not.
    `weights` are transposed ones (n, f), of the wide layers, whose outputs replace their inputs.
    """
    names = list(dict.fromkeys(sampler.activation(layer) for layer in layers))
    tensors = runner.tensors(sampler.index.model, names)

    def sums(batch: int) -> dict[str, Sums]:
        activations = dict(zip(names, tensors(batch), strict=True))
        found = {}
        for layer in layers:
            rows = sampler.rows(layer, activations[sampler.activation(layer)], batch)
            rows = rows[usable(rows)]
            if layer.name in weights:
                rows = outputs_of(layer, rows, weights[layer.name])
                rows = rows[usable(rows)]
            found[layer.name] = sums_of(rows, rows[:, :0])
        return found

    tables = [layer.name for layer in layers if OPERATORS[layer.op].is_lookup]
    totals: tuple[dict[str, Sums], dict[str, Sums]] = ({}, {})
    batches = range(len(runner.batches))
    for done, part in enumerate(runner.map(sums, batches), start=1):
        total = totals[done - 1 in runner.halves[-1] and len(runner.halves) > 1]
        total |= {name: total[name] + s if name in total else s for name, s in part.items()}
        advance(done, len(batches))
    for name in tables:
        every = sums_of(weights[name], weights[name][:, :0])
        for total in totals:
            if name in total:
                total[name] = with_floor(total[name], every)
    return totals
