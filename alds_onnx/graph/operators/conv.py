"""Conv, Y = W * X with W (f, c, kh, kw), and ConvTranspose with W (c, f, kh, kw).

In a ConvTranspose every input adds a multiple of the kernel to the output. The rows that the folded
weight multiplies are patches of the input (im2col), as views.

https://onnx.ai/onnx/operators/onnx__Conv.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

import numpy as np
from onnx import NodeProto

from alds_onnx.cuts import Work
from alds_onnx.decompose.stages import Array, Dims
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators.convolution import Convolution
from alds_onnx.graph.scopes import integers, string

# Zeros before and after each spatial axis.
_Pads: TypeAlias = Sequence[tuple[int, int]]


class Conv(Convolution):
    """A convolution of 1 to 3 axes."""

    op_type = "Conv"
    last_ops = frozenset({"Conv"})
    has_blocked_layout = True

    def work(
        self, node: NodeProto, inputs: Sequence[Dims | None], output: Dims | None
    ) -> Work | None:
        """Each output is a sum over c / group channels and the kernel."""
        x, w = inputs
        if output is None or not w:
            return None
        macs = prod(output) * prod(w[1:])
        return Work(macs=macs, inputs=None if x is None else x[2:], outputs=output[2:])

    def windows(self, layer: Layer, node: NodeProto, activation: Array) -> Array:
        """One patch for each output position."""
        kernel, sizes = layer.shape.kernel, activation.shape[2:]
        axes = len(kernel)
        strides = _per_axis(node, "strides", axes, 1)
        dilations = _per_axis(node, "dilations", axes, 1)
        pads = _explicit_pads(node, axes)
        if pads is None:  # ceil(size / stride) outputs
            reach = zip(sizes, strides, _extents(kernel, dilations), strict=True)
            needed = [(-(-size // s) - 1) * s + extent - size for size, s, extent in reach]
            pads = _shared_pads(node, [max(0, n) for n in needed])
        views = _patches(np.pad(activation, ((0, 0), (0, 0), *pads)), kernel, dilations)
        return views[(slice(None), *(slice(None, None, s) for s in strides))]


class ConvTranspose(Convolution):
    """A transposed convolution of 1 to 3 axes."""

    op_type = "ConvTranspose"
    last_ops = frozenset({"ConvTranspose", "Conv"})
    by_axis = (*Convolution.by_axis, ("output_padding", (0,)))
    transposed = True

    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Why it cannot be decomposed."""
        if integers(node, "output_shape") is not None:
            return "it has an output_shape, which cannot be distributed over its factors"
        return super().refusal(node, dims, is_constant)

    def work(
        self, node: NodeProto, inputs: Sequence[Dims | None], output: Dims | None
    ) -> Work | None:
        """Each input is multiplied by the kernel of f / group outputs."""
        x, w = inputs
        if output is None or not x or not w:
            return None
        macs = prod(x) * prod(w[1:])
        return Work(macs=macs, inputs=x[2:], outputs=output[2:], transposed=True)

    def windows(self, layer: Layer, node: NodeProto, activation: Array) -> Array:
        """One patch for each output position, of the input with stride - 1 zeros between.

        An output is the sum over all inputs whose kernel reaches it: the flipped kernel times a
        patch of that longer input, which has enough zeros around it for all positions. Pads cut
        positions off.
        """
        kernel, (n, c, *sizes) = layer.shape.kernel, activation.shape
        axes = len(kernel)
        strides = _per_axis(node, "strides", axes, 1)
        dilations = _per_axis(node, "dilations", axes, 1)
        extras = _per_axis(node, "output_padding", axes, 0)
        reach = _extents(kernel, dilations)
        each = list(zip(sizes, strides, reach, extras, strict=True))
        pads = _explicit_pads(node, axes)
        if pads is None:  # size · stride outputs
            pads = _shared_pads(node, [max(0, extent - s + more) for _, s, extent, more in each])
        lengths = [(size - 1) * s + extent + more for size, s, extent, more in each]
        around = [length + extent - 1 for length, extent in zip(lengths, reach, strict=True)]
        longer = np.zeros((n, c, *around), activation.dtype)
        places = (slice(e - 1, e + (size - 1) * s, s) for size, s, e, _ in each)
        longer[(slice(None), slice(None), *places)] = activation
        views = np.flip(_patches(longer, kernel, dilations), tuple(range(-axes, 0)))
        kept = (slice(a, length - b) for length, (a, b) in zip(lengths, pads, strict=True))
        return views[(slice(None), *kept)]


def _patches(padded: Array, kernel: Sequence[int], dilations: Sequence[int]) -> Array:
    """View all patches of an input (n, c, ..) that is padded already: (n, oh, ow, c, kh, kw).

    `kernel` and `dilations` have one number for each spatial axis.
    """
    axes = len(kernel)
    views = np.lib.stride_tricks.sliding_window_view(
        padded, _extents(kernel, dilations), axis=tuple(range(2, 2 + axes))
    )
    taps = tuple(slice(None, None, d) for d in dilations)
    views = views[(*(slice(None),) * (2 + axes), *taps)]  # (n, c, oh, ow, kh, kw)
    return np.moveaxis(views, 1, -axes - 1)


def _extents(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the dilated kernel."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))


def _per_axis(node: NodeProto, name: str, axes: int, default: int) -> tuple[int, ...]:
    """An attribute with a number for each spatial axis."""
    return integers(node, name) or (default,) * axes


def _explicit_pads(node: NodeProto, axes: int) -> _Pads | None:
    """The pads that a node tells as numbers; None where auto_pad asks for the same size."""
    mode = string(node, "auto_pad") or "NOTSET"
    if mode not in ("NOTSET", "VALID"):
        return None
    pads = (integers(node, "pads") if mode == "NOTSET" else None) or (0,) * (2 * axes)
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def _shared_pads(node: NodeProto, totals: Sequence[int]) -> _Pads:
    """Distribute zeros to both sides, the odd one after (SAME_UPPER) or before (SAME_LOWER)."""
    is_upper = string(node, "auto_pad") == "SAME_UPPER"
    halves = [(total // 2, total - total // 2) for total in totals]
    return [(small, large) if is_upper else (large, small) for small, large in halves]
