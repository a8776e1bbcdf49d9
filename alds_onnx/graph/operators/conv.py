"""Conv: Y = W * X, with W (f, c, kh, kw); and FusedConv, which onnxruntime makes of it.

https://onnx.ai/onnx/operators/onnx__Conv.html
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from alds_onnx.cuts import Work
from alds_onnx.decompose.stages import Array, Dims
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators.convolution import Convolution
from alds_onnx.graph.operators.operator import plain_node
from alds_onnx.graph.operators.windows import explicit_pads, extents, patches, per_axis, shared_pads


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
        strides = per_axis(node, "strides", axes, 1)
        dilations = per_axis(node, "dilations", axes, 1)
        pads = explicit_pads(node, axes)
        if pads is None:  # ceil(size / stride) outputs
            reach = zip(sizes, strides, extents(kernel, dilations), strict=True)
            needed = [(-(-size // s) - 1) * s + extent - size for size, s, extent in reach]
            pads = shared_pads(node, [max(0, n) for n in needed])
        views = patches(np.pad(activation, ((0, 0), (0, 0), *pads)), kernel, dilations)
        return views[(slice(None), *(slice(None, None, s) for s in strides))]


class FusedConv(Conv):
    """A Conv, then a tensor of the output's shape added (input 3), then an activation."""

    op_type = "FusedConv"
    domain = "com.microsoft"
    last_ops = frozenset({"FusedConv"})
    final = frozenset({"activation", "activation_params"})

    @property
    def stage_ops(self) -> frozenset[str]:
        """All stages but the last one are Convs."""
        return frozenset({"Conv", "FusedConv"})

    def op_of_stage(self, axes: Sequence[bool], *, is_last: bool) -> str:
        """What is fused follows the last stage."""
        return "FusedConv" if is_last else "Conv"

    def plain(self, node: NodeProto) -> NodeProto | None:
        """The Conv."""
        return plain_node(node, "Conv", self.final)
