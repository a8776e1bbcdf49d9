"""Building the nodes that stand for a decomposed layer.

    Conv                two Convs, the first grouped, with the kernel as the scheme shares it out;
                        tucker2: 1x1 Conv, Conv with the whole kernel, 1x1 Conv
    Y = X W, k = 1      MatMul, MatMul or Gemm
    Y = X W, k > 1      Reshape (1, M, k, c/k), Transpose (1, k, M, c/k), batched MatMul, Transpose
                        back, Reshape (.., m, k·j), MatMul or Gemm; M stands for all of .., m
    Y = W X, k > 1      Reshape (.., k, c/k, m), batched MatMul, Reshape (.., k·j, m),
                        MatMul or Gemm

For Y = X W with k > 1 onnxruntime 1.31 was measured on one thread with a batched MatMul, Split +
MatMuls + Concat, and grouped 1x1 Convs (benchmarks/matmul_slices.py). The batched MatMul took at
most 1.16 times as long as the fastest way, 1.04 times on average. Split fell behind by up to a
factor of 1.6, a Conv by up to 6. A Conv on the transposed activation was about as fast as the
batched MatMul (1.16, 1.06), but its decoder has to be a Gemm, and the activation a matrix. The
decoder keeps the operator, name, output, bias, alpha and beta of the old node, so that what the
runtime fuses behind it (activations, MatMul + Add, BatchNormalization) still fuses.

Strides, pads and dilations of an axis go to the Conv that has this axis in its kernel. Where that
is not the first one it pads codes and not inputs: these are zero there too, because only the last
Conv has a bias. With auto_pad an axis of kernel 1 and stride 1 gets no pads: both Convs keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx import NodeProto

from alds_onnx.cuts import Cut, Factors
from alds_onnx.decompose.stages import stage_weights, stages
from alds_onnx.graph.layers import Layer, Operand
from alds_onnx.graph.scopes import integers

# Shape can leave an axis out from opset 15 on; Reshape can make an axis of size 0 from 14 on.
_FIRST_OPSET_TO_RESTORE_AXES = 15

_NO_ATTRIBUTES: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactorTensors:
    """Weights of the factors, in the layout in which the new nodes read them.

    Attributes
    ----------
    encoder, decoder
        Of the first and the last node.
    core
        Of the one between them, for Tucker-2.
    """

    encoder: npt.NDArray[Any]
    decoder: npt.NDArray[Any]
    core: npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names for the parts of one replacement, all of them new but `output`.

    Attributes
    ----------
    encoder, decoder, core
        Tensors of the factors; `core` only for Tucker-2.
    fresh
        Makes a new name from a stem.
    """

    encoder: str
    decoder: str
    core: str = ""
    fresh: Callable[[str], str]


def layout(layer: Layer, factors: Factors) -> FactorTensors:
    """Bring the factors U (k, f, j), V (k, j, c/k·kh·kw) into the layout of the new nodes."""
    if layer.operand is Operand.KERNEL:
        return _layout_of_convolutions(factors)
    k, f, j = factors.U.shape
    decoder = factors.U.transpose(1, 0, 2).reshape(f, k * j)  # (f, k·j)
    encoder = factors.V if layer.channels_first else factors.V.transpose(0, 2, 1)
    return FactorTensors(
        encoder=encoder[0] if k == 1 else encoder,
        decoder=decoder.T if layer.transposed else decoder,
    )


def _layout_of_convolutions(factors: Factors) -> FactorTensors:
    encoder, *cores, decoder = stage_weights(factors)
    return FactorTensors(encoder=encoder, decoder=decoder, core=cores[0] if cores else None)


def build(layer: Layer, node: NodeProto, factors: Factors, names: Names) -> list[NodeProto]:
    """Build the nodes that stand for a decomposed node; the last one makes its output."""
    cut = factors.cut
    pattern = _Pattern(layer, node, names)
    if layer.operand is not Operand.KERNEL:
        pattern.product(cut.num_slices, cut.rank)
    elif factors.core is not None:
        pattern.three_convolutions()
    else:
        pattern.two_convolutions(cut)
    return pattern.export()


class _Pattern:
    """Collects graphsurgeon nodes from the activation to the old node's output."""

    def __init__(self, layer: Layer, node: NodeProto, names: Names) -> None:
        self.layer, self.node, self.names = layer, node, names
        self.nodes: list[gs.Node] = []
        self.encoder = gs.Variable(names.encoder)
        self.decoder = gs.Variable(names.decoder)
        self.tensor = gs.Variable(node.input[1 - layer.weight_input])
        self.inherit_attributes = -1  # which of the nodes carries the old node's attributes

    def two_convolutions(self, cut: Cut) -> None:
        """Add a grouped Conv, and one with the bias, each with its axes of the kernel."""
        shape = self.layer.shape
        axes = range(len(shape.kernel))
        first = {axis for axis in axes if stages(shape, cut)[0].axes[axis]}
        group = {"group": cut.num_slices} if cut.num_slices > 1 else {}
        encoder = {**group, **self._attributes_of(first)}
        self._step("Conv", [self.tensor, self.encoder], encoder)
        rest = set(axes) - first
        decoder = self._attributes_of(rest)
        if rest:  # which attributes there were, and their order, can be read from it again
            old = {a.name for a in self.node.attribute}
            decoder = {name: value for name, value in decoder.items() if name in old}
        self._last("Conv", [self.tensor, self.decoder, *self._bias()], decoder)
        self.inherit_attributes = 1 if rest else 0

    def three_convolutions(self) -> None:
        """Add a 1x1 Conv, one with the old kernel, strides, pads and so on, and a 1x1 Conv."""
        ones = {"kernel_shape": [1] * len(self.layer.shape.kernel)}
        self._step("Conv", [self.tensor, self.encoder], ones)
        self._step("Conv", [self.tensor, gs.Variable(self.names.core)])
        self.inherit_attributes = 1
        self._last("Conv", [self.tensor, self.decoder, *self._bias()], ones)

    def _attributes_of(self, axes: set[int]) -> dict[str, object]:
        """Attributes of a Conv that has some axes of the old kernel; none where it has all."""
        kernel = self.layer.shape.kernel
        count = len(kernel)
        if len(axes) == count:
            return {}  # inherited
        mine = [axis in axes for axis in range(count)]
        found: dict[str, object] = {"kernel_shape": _masked(kernel, mine, 1)}
        if not axes:
            return found
        for name, absent in (("strides", 1), ("dilations", 1), ("pads", 0)):
            values = integers(self.node, name)
            if values is not None:
                found[name] = _masked(values, mine * (len(values) // count), absent)
        found |= {a.name: a.s.decode() for a in self.node.attribute if a.name == "auto_pad"}
        return found

    def _bias(self) -> list[gs.Variable]:
        return [gs.Variable(name) for name in self.node.input[2:]]

    def product(self, num_slices: int, rank: int) -> None:
        """Add encoder and decoder of a Gemm or MatMul."""
        if num_slices == 1:
            self._encode()
        elif self.layer.channels_first:
            self._encode_rows(num_slices, rank)
        else:
            self._encode_columns(num_slices, rank)
        left = self.layer.operand is Operand.LEFT
        operands = [self.decoder, self.tensor] if left else [self.tensor, self.decoder]
        # alpha, beta, transA and transB all belong to the decoder, which reads the code in the
        # order of axes in which the old node read the activation.
        self._last(self.layer.op.value, [*operands, *self._bias()])
        self.inherit_attributes = len(self.nodes) - 1

    def _encode(self) -> None:
        first = self.layer.channels_first
        self._step("MatMul", [self.encoder, self.tensor] if first else [self.tensor, self.encoder])

    def _encode_rows(self, num_slices: int, rank: int) -> None:
        """(.., c, m) -> (.., k, c/k, m) -> (.., k, j, m) -> (.., k·j, m)."""
        batch = self._batch_axes()
        c = self.layer.shape.in_channels
        self._reshape([0] * batch + [num_slices, c // num_slices, -1])
        self._encode()
        self._reshape([0] * batch + [num_slices * rank, -1])

    def _encode_columns(self, num_slices: int, rank: int) -> None:
        """(.., m, c) -> (1, M, k, c/k) -> (1, k, M, c/k) -> (1, k, M, j) -> (.., m, k·j).

        The axis of size 1 is there because onnxruntime fuses a Transpose of three axes into the
        MatMul, and 1.31 then divides by zero, and dies, where there are no rows. The axes of the
        batch become rows because it does not broadcast the encoder to an axis of size 0: so they
        stay only where they cannot be restored.
        """
        activation, batch, c = self.tensor, self._batch_axes(), self.layer.shape.in_channels
        can_restore = self.layer.opset >= _FIRST_OPSET_TO_RESTORE_AXES
        kept = 0 if can_restore else batch
        leading = [0] * (kept + 1) if kept else [1, -1]
        axes = max(kept, 1)
        swap = [*range(axes), axes + 1, axes, axes + 2]
        self._reshape([*leading, num_slices, c // num_slices])
        self._step("Transpose", [self.tensor], {"perm": swap})
        self._encode()
        self._step("Transpose", [self.tensor], {"perm": swap})
        if batch and can_restore:
            self._restore_axes(activation, num_slices * rank)
        else:
            self._reshape([*(leading if kept else [-1]), num_slices * rank])

    def _restore_axes(self, like: gs.Variable, last: int) -> None:
        """Give the current tensor all axes of `like` but the last one, and one of size `last`."""
        code = self.tensor
        self._step("Shape", [like], {"start": 0, "end": -1})
        self._step("Concat", [self.tensor, self._integers([last])], {"axis": 0})
        self._step("Reshape", [code, self.tensor], {"allowzero": 1})

    def _batch_axes(self) -> int:
        rank = self.layer.activation_rank
        if rank is None or rank < 2:
            raise ValueError("slices need an activation of known rank, at least 2")
        return rank - 2

    def _reshape(self, shape: list[int]) -> None:
        self._step("Reshape", [self.tensor, self._integers(shape)])

    def _integers(self, values: list[int]) -> gs.Variable:
        name = self.names.fresh(f"{self._stem()}/shape")
        output = gs.Variable(name)
        value = gs.Constant(f"{name}/value", np.array(values, np.int64))
        self.nodes.append(gs.Node("Constant", attrs={"value": value}, outputs=[output]))
        return output

    def _step(
        self, op: str, inputs: list[gs.Variable], attrs: Mapping[str, object] = _NO_ATTRIBUTES
    ) -> None:
        """Add a node; its output becomes the current tensor."""
        self.tensor = gs.Variable(self.names.fresh(f"{self._stem()}/encoded"))
        name = self.names.fresh(f"{self._stem()}/encode")
        self.nodes.append(gs.Node(op, name, dict(attrs), inputs, [self.tensor]))

    def _last(
        self, op: str, inputs: list[gs.Variable], attrs: Mapping[str, object] = _NO_ATTRIBUTES
    ) -> None:
        output = gs.Variable(self.node.output[0])
        self.nodes.append(gs.Node(op, self.node.name, dict(attrs), inputs, [output]))

    def _stem(self) -> str:
        return self.node.name or self.node.output[0]

    def export(self) -> list[NodeProto]:
        """Export the pattern; what graphsurgeon does not know of the old node is copied over."""
        graph = gs.Graph(nodes=self.nodes, inputs=[], outputs=[], opset=self.layer.opset)
        exported = gs.export_onnx(graph, do_type_check=False).graph.node
        return [self._inherit(i, new) for i, new in enumerate(exported)]

    def _inherit(self, position: int, new: NodeProto) -> NodeProto:
        """Take the old node with the new operator, name, inputs, outputs and attributes."""
        merged = NodeProto()
        merged.CopyFrom(self.node)
        merged.ClearField("input")
        merged.ClearField("output")
        merged.ClearField("attribute")
        own = {a.name: a for a in new.attribute}
        if position == self.inherit_attributes:
            merged.attribute.extend(own.pop(a.name, a) for a in self.node.attribute)
        merged.attribute.extend(own.values())
        merged.op_type, merged.name = new.op_type, new.name
        merged.input.extend(new.input)
        merged.output.extend(new.output)
        return merged


def _masked(values: Sequence[int], mine: Sequence[bool], absent: int) -> list[int]:
    return [n if own else absent for n, own in zip(values, mine, strict=True)]
