"""LSTM, GRU and RNN: the weight W of their input, as a layer in front of the recurrence.

    X (steps, batch, c), or (batch, steps, c) with layout 1
    W (directions, gates · hidden, c), folded to (directions · gates · hidden, c)
    R (directions, gates · hidden, hidden), B (directions, 2 · gates · hidden)

At every step the gates are functions of W x + R h + Wb + Rb. Of rank j, W x is U (V x): one MatMul
with V for all directions makes the code, and the same node with the input size j has U for W. R,
the biases, states, lengths and attributes stay as they are. The output is not linear in W x: the
error of a layer is that of W x, before the activation functions.

https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import ClassVar

from onnx import NodeProto

from alds_onnx.cuts import Cut, LayerShape, Work
from alds_onnx.decompose.stages import Array, Dims, match
from alds_onnx.graph.layers import Layer, WeightLayout
from alds_onnx.graph.operators.building import Names, NodeChain
from alds_onnx.graph.operators.checks import Shapes, fits, text
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.reading import MISFIT, Candidate, Form, Whole
from alds_onnx.graph.scopes import integer, string

_RECURRENCE, _BIAS = 2, 3  # inputs R and B
_AXES = 3


class Recurrent(Operator):
    """A recurrent layer with some gates, in one direction or in both.

    Attributes
    ----------
    gates
        How many matrices (hidden, c) each direction has.
    """

    gates: ClassVar[int]

    # The node and its weight

    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Why it cannot be decomposed."""
        return self._contradiction(node, dims) or (
            "its input and its weight are constant" if is_constant(0) else ""
        )

    def _contradiction(self, node: NodeProto, dims: Dims) -> str:
        """Say how the attributes of a node contradict a weight of shape `dims`."""
        if len(dims) != _AXES:
            return f"its weight has {len(dims)} axes, not {_AXES}"
        direction = string(node, "direction") or "forward"
        if dims[0] != (2 if direction == "bidirectional" else 1):
            return f"its direction {direction} contradicts its weight {list(dims)}"
        hidden = integer(node, "hidden_size", dims[1] // self.gates)
        if dims[1] != self.gates * hidden:
            return f"its hidden_size {hidden} contradicts its weight {list(dims)}"
        return ""

    def layout(self, node: NodeProto, position: int, dims: Dims) -> WeightLayout:
        """Both directions read the same rows, so that their gates stand one above the other."""
        directions, features, c = dims
        shape = LayerShape(out_features=directions * features, in_channels=c)
        return WeightLayout(
            shape=shape, transposed=False, channels_first=False, directions=directions
        )

    def activation_rank(self, known: int | None) -> int | None:
        """Steps, batch and features."""
        return _AXES

    def is_sliceable(self, opset: int, activation_rank: int | None) -> bool:
        """Never: the node has to read one code."""
        return False

    def bias_input(self, node: NodeProto, position: int) -> int | None:
        """None: B also has the biases of the recurrence."""
        return None

    def constants(self, layer: Layer, node: NodeProto) -> Mapping[str, Dims]:
        """R, and B if there is one; without lengths all steps are computed, from zero states."""
        directions, features, _ = layer.source.shape
        found: dict[str, Dims] = {"recurrence": (directions, features, features // self.gates)}
        if any(node.input[_BIAS : _BIAS + 1]):
            found["bias"] = (directions, 2 * features)
        return found

    # What it computes

    def work(
        self, node: NodeProto, inputs: Sequence[Dims | None], output: Dims | None
    ) -> Work | None:
        """Every step multiplies by W and by R; R stays."""
        x, w = inputs
        if not x or not w:
            return None
        rows, hidden = prod(x[:-1]), w[1] // self.gates
        kept = rows * prod(w[:2]) * hidden
        return Work(macs=rows * prod(w) + kept, kept=kept)

    def windows(self, layer: Layer, node: NodeProto, activation: Array) -> Array:
        """X has its features last in both layouts."""
        return activation

    def input_sizes(self, node: NodeProto, dims: Dims, rank: int) -> Mapping[int, int]:
        """The features."""
        return {_AXES - 1: dims[-1]} if len(dims) == rank == _AXES else {}

    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """X (steps, batch, c), W (d, gates · hidden, c), R (d, gates · hidden, hidden)."""
        places = {"input": 0, "weight": 1, "recurrent weight": _RECURRENCE}
        names = {what: node.input[place] for what, place in places.items()}
        known = {what: shapes.get(name, (None,) * _AXES) for what, name in names.items()}
        for what, dims in known.items():
            if len(dims) != _AXES:
                return f"{what} '{names[what]}' has shape {text(dims)}, not {_AXES} axes"
        x, w, r = known.values()
        hidden = r[2] and r[2] * self.gates
        pairs = {
            "input": (x[2:], w[2:]),
            "recurrent weight": ((*r[:2], hidden), (*w[:2], w[1])),
        }
        for what, (own, other) in pairs.items():
            if not fits(own, other):
                parts = (f"{w} '{names[w]}' {text(known[w])}" for w in (what, "weight"))
                return " does not fit ".join(parts)
        return ""

    # The nodes that replace it

    def node_weights(self, layer: Layer, cut: Cut, weights: Sequence[Array]) -> tuple[Array, ...]:
        """A matrix (c, j), and W with j features."""
        encoder, decoder = weights
        return encoder.T, layer.layout.by_direction(decoder)

    def build(self, layer: Layer, node: NodeProto, cut: Cut, names: Names) -> list[NodeProto]:
        """One MatMul, and the node itself."""
        chain = NodeChain(layer, node, names)
        chain.step("MatMul", [chain.tensor, chain.weights[0]])
        chain.carrier = len(chain)
        chain.last(self.op_type, [chain.tensor, chain.weights[1]])
        return chain.export()

    # The way back

    def read(self, candidate: Candidate) -> Form | None:
        """A MatMul with a constant on the right, and the node."""
        upstream = candidate.follow([("MatMul",)])
        if upstream is None or candidate.node.input[0] != candidate.code:
            return None
        (product,) = upstream.sites
        x, encoder = candidate.index.node(product).input
        if candidate.constant(x) is not None:
            return None
        return Form(
            between=(product,),
            activation=x,
            factors=((product, encoder), (candidate.site, candidate.node.input[1])),
        )

    def whole(self, form: Form, nodes: Sequence[NodeProto], dims: Sequence[Dims]) -> Whole | str:
        """The node whose weight the factors are those of."""
        encoder, decoder = dims
        if len(encoder) != 2 or self._contradiction(nodes[1], decoder):
            return MISFIT
        directions, features, rank = decoder
        matched = match([encoder[::-1], (directions * features, rank)], 1)
        if matched is None:
            return MISFIT
        shape, cut = matched
        layout = self.layout(nodes[1], 1, (directions, features, shape.in_channels))
        return Whole(layout=layout, cut=cut, attributes=tuple(nodes[1].attribute))

    def stage_weights(
        self, layout: WeightLayout, nodes: Sequence[NodeProto], weights: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Matrices of the stages."""
        encoder, decoder = weights
        return encoder.T, decoder.reshape(layout.shape.out_features, -1)


class LSTM(Recurrent):
    """Input, output and forget gate, and the cell."""

    op_type = "LSTM"
    last_ops = frozenset({"LSTM"})
    gates = 4


class GRU(Recurrent):
    """Update and reset gate, and the hidden state."""

    op_type = "GRU"
    last_ops = frozenset({"GRU"})
    gates = 3


class RNN(Recurrent):
    """The hidden state alone."""

    op_type = "RNN"
    last_ops = frozenset({"RNN"})
    gates = 1
