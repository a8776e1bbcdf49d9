"""Gather: rows of a constant table E (V, d) by their ids, such as embeddings of tokens.

    Y = E[ids]        Gather from a table of j columns, MatMul with (j, d)

As a matrix the table is W = Eᵀ (d, V), which multiplies one-hot vectors: the rows of the new table
are the encoder, and the MatMul is the decoder. There is one slice, since ids have no channels.

https://onnx.ai/onnx/operators/onnx__Gather.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from alds_onnx.cuts import Cut, LayerShape, Work
from alds_onnx.decompose.stages import Array, Dims, match
from alds_onnx.graph.layers import Layer, WeightLayout
from alds_onnx.graph.operators.building import Names, NodeChain
from alds_onnx.graph.operators.checks import Shapes
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.reading import MISFIT, Candidate, Form, Whole
from alds_onnx.graph.scopes import integer
from alds_onnx.graph.tensors import FLOATING
from alds_onnx.graph.weights import WeightSource

# Larger tables would take more than 6 GiB in float64, copies included.
_MOST_NUMBERS = 1 << 28
# Gather also picks sizes from shapes and numbers from short lists, which are no tables.
_MOST_NUMBERS_OF_NO_TABLE = 64


class Gather(Operator):
    """Rows of a table. The table is input 0, the ids are input 1."""

    op_type = "Gather"
    last_ops = frozenset({"MatMul"})
    is_lookup = True

    def has_row(self, source: Callable[[int], WeightSource | str]) -> bool:
        """Whether it looks up numbers of a constant, at places that are not constant."""
        table = source(0)
        return (
            isinstance(table, WeightSource)
            and table.tensor.data_type in FLOATING
            and prod(table.shape) > _MOST_NUMBERS_OF_NO_TABLE
            and isinstance(source(1), str)
        )

    def weight_input(self, is_constant: Callable[[int], bool]) -> int:
        """The table."""
        return 0

    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Only rows of matrices."""
        if len(dims) != 2:
            return f"its table has {len(dims)} axes, not 2"
        if prod(dims) > _MOST_NUMBERS:
            return f"its table of {prod(dims):,} numbers is too large to factorize in memory"
        axis = integer(node, "axis", 0)
        return "" if axis in (0, -2) else f"it looks up along axis {axis} of its table, not 0"

    def layout(self, node: NodeProto, position: int, dims: Dims) -> WeightLayout:
        """The folded matrix is that of the transposed table."""
        return _layout(dims)

    def activation_rank(self, known: int | None) -> int | None:
        """That of the ids."""
        return known

    def is_sliceable(self, opset: int, activation_rank: int | None) -> bool:
        """Ids have no channels to slice."""
        return False

    def bias_input(self, node: NodeProto, position: int) -> int | None:
        """It has none."""
        return None

    def work(
        self, node: NodeProto, inputs: Sequence[Dims | None], output: Dims | None
    ) -> Work | None:
        """Nothing; the decoder of a cut is applied to each row that is looked up."""
        ids = inputs[1]
        return None if ids is None else Work(macs=0, lookups=prod(ids))

    def windows(self, layer: Layer, node: NodeProto, activation: Array) -> Array:
        """The ids, which stand for one-hot vectors: shape (.., 1)."""
        return activation[..., np.newaxis]

    def input_sizes(self, node: NodeProto, dims: Dims, rank: int) -> Mapping[int, int]:
        """None."""
        return {}

    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """Any shapes fit."""
        return ""

    # The nodes that replace it

    def node_weights(self, layer: Layer, cut: Cut, weights: Sequence[Array]) -> tuple[Array, ...]:
        """Tables (V, j) and (j, d)."""
        encoder, decoder = weights
        return encoder.T, decoder.T

    def build(self, layer: Layer, node: NodeProto, cut: Cut, names: Names) -> list[NodeProto]:
        """Gather from the narrow table, and MatMul."""
        chain = NodeChain(layer, node, names)
        chain.carrier = 0
        chain.step("Gather", [chain.weights[0], chain.tensor])
        chain.last("MatMul", [chain.tensor, chain.weights[1]])
        return chain.export()

    # The way back

    def read(self, candidate: Candidate) -> Form | None:
        """Follow the code to a Gather."""
        site = candidate.maker(candidate.code, "Gather")
        if site is None or candidate.node.input[0] != candidate.code:
            return None
        table, ids = candidate.index.node(site).input[:2]
        return Form(
            between=(site,),
            activation=ids,
            factors=((site, table), (candidate.site, candidate.node.input[1])),
            weight_input=0,
        )

    def whole(self, form: Form, nodes: Sequence[NodeProto], dims: Sequence[Dims]) -> Whole | str:
        """The Gather from the product of the tables."""
        if any(len(one) != 2 for one in dims) or integer(nodes[0], "axis", 0) not in (0, -2):
            return MISFIT
        table, decoder = dims
        matched = match([table[::-1], decoder[::-1]], 1)
        if matched is None:
            return MISFIT
        layout = _layout((table[0], decoder[1]))
        return Whole(layout=layout, cut=matched[1], attributes=tuple(nodes[0].attribute))

    def stage_weights(
        self, layout: WeightLayout, nodes: Sequence[NodeProto], weights: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Matrices of the stages."""
        encoder, decoder = weights
        return encoder.T, decoder.T


def _layout(dims: Dims) -> WeightLayout:
    """How a table of sizes (V, d) is folded to (d, V)."""
    rows, columns = dims
    shape = LayerShape(out_features=columns, in_channels=rows, one_hot=True)
    return WeightLayout(shape=shape, transposed=True, channels_first=False)
