"""ConvTranspose, with W (c, f, kh, kw): every input adds a multiple of the kernel to the output.

https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from alds_onnx.cuts import Work
from alds_onnx.decompose.stages import Array, Dims
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators.convolution import Convolution
from alds_onnx.graph.operators.windows import explicit_pads, extents, patches, per_axis, shared_pads
from alds_onnx.graph.scopes import integers


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
        strides = per_axis(node, "strides", axes, 1)
        dilations = per_axis(node, "dilations", axes, 1)
        extras = per_axis(node, "output_padding", axes, 0)
        reach = extents(kernel, dilations)
        each = list(zip(sizes, strides, reach, extras, strict=True))
        pads = explicit_pads(node, axes)
        if pads is None:  # size · stride outputs
            pads = shared_pads(node, [max(0, extent - s + more) for _, s, extent, more in each])
        lengths = [(size - 1) * s + extent + more for size, s, extent, more in each]
        around = [length + extent - 1 for length, extent in zip(lengths, reach, strict=True)]
        longer = np.zeros((n, c, *around), activation.dtype)
        places = (slice(e - 1, e + (size - 1) * s, s) for size, s, e, _ in each)
        longer[(slice(None), slice(None), *places)] = activation
        views = np.flip(patches(longer, kernel, dilations), tuple(range(-axes, 0)))
        kept = (slice(a, length - b) for length, (a, b) in zip(lengths, pads, strict=True))
        return views[(slice(None), *kept)]
