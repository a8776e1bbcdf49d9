"""From the tensor that a layer reads to the rows x that its folded weight multiplies.

A Conv multiplies patches (im2col), as many as its output has positions; Gemm and MatMul multiply
rows, or columns where the channels come first. A few thousand of them, drawn at random, tell the
second moments as well as all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from alds_onnx.graph.layers import Layer, Operand
from alds_onnx.graph.scopes import integers, string

Rows = npt.NDArray[np.float32]
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a Conv's kernel goes; one entry for each spatial axis, `pads` before and after.

    https://onnx.ai/onnx/operators/onnx__Conv.html
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    auto_pad: str

    @property
    def extents(self) -> tuple[int, ...]:
        """Sizes of the dilated kernel."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def padding(self, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Zeros before and after each spatial axis of an input of these sizes."""
        if self.pads is not None:
            return self.pads
        if self.auto_pad == "VALID":
            return ((0, 0),) * len(self.kernel)
        return tuple(
            _same(size, stride, extent, self.auto_pad == "SAME_UPPER")
            for size, stride, extent in zip(sizes, self.strides, self.extents, strict=True)
        )


def _same(size: int, stride: int, extent: int, upper: bool) -> tuple[int, int]:
    """SAME_UPPER and SAME_LOWER: ceil(size / stride) outputs, the odd zero after or before."""
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + extent - size)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def window(layer: Layer, node: NodeProto) -> Window:
    """The window of a Conv node."""
    axes = len(layer.shape.kernel)

    ones = (1,) * axes
    mode = string(node, "auto_pad") or "NOTSET"
    pads = integers(node, "pads") or (0,) * (2 * axes)
    explicit = tuple(zip(pads[:axes], pads[axes:], strict=True))
    return Window(
        kernel=layer.shape.kernel,
        strides=integers(node, "strides") or ones,
        dilations=integers(node, "dilations") or ones,
        pads=explicit if mode == "NOTSET" else None,
        auto_pad=mode,
    )


def sample_rows(
    layer: Layer, node: NodeProto, activation: _Array, count: int, generator: np.random.Generator
) -> Rows:
    """Draw rows x of a layer without replacement.

    Parameters
    ----------
    layer, node
        The layer.
    activation
        The tensor that it reads.
    count
        How many rows to draw at most.
    generator
        With the same state it draws the same positions of a tensor of the same shape.

    Returns
    -------
    Shape (rows, c·kh·kw).
    """
    if layer.operand is Operand.KERNEL:
        return _patches(window(layer, node), activation, count, generator)
    array = np.moveaxis(activation, -2, -1) if _columns_first(layer, activation) else activation
    rows = array.reshape(-1, layer.shape.in_channels)
    return np.ascontiguousarray(rows[_draw(len(rows), count, generator)], dtype=np.float32)


def _columns_first(layer: Layer, activation: _Array) -> bool:
    return layer.channels_first and activation.ndim > 1


def _draw(total: int, count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    if count >= total:
        return np.arange(total)
    return np.sort(generator.choice(total, count, replace=False))


def _patches(w: Window, activation: _Array, count: int, generator: np.random.Generator) -> Rows:
    spatial = activation.shape[2:]
    padded = np.pad(activation, ((0, 0), (0, 0), *w.padding(spatial)))
    axes = tuple(range(2, activation.ndim))
    views = np.lib.stride_tricks.sliding_window_view(padded, w.extents, axis=axes)
    steps = tuple(slice(None, None, s) for s in w.strides)
    taps = tuple(slice(None, None, d) for d in w.dilations)
    views = views[(slice(None), slice(None), *steps, *taps)]  # (N, c, oh, ow, kh, kw)
    outputs = views.shape[2 : 2 + len(spatial)]
    drawn = _draw(int(np.prod((views.shape[0], *outputs))), count, generator)
    sample, *place = np.unravel_index(drawn, (views.shape[0], *outputs))
    moved = np.moveaxis(views, 1, -len(spatial) - 1)  # (N, oh, ow, c, kh, kw)
    rows = moved[(sample, *place)]  # (rows, c, kh, kw)
    return np.ascontiguousarray(rows, dtype=np.float32).reshape(len(drawn), -1)
