"""Gemm and MatMul: the nodes that replace them, and the way back.

    Y = X W, k = 1      MatMul, MatMul or Gemm
    Y = X W, k > 1      Reshape (1, M, k, c/k), Transpose (1, k, M, c/k), batched MatMul, Transpose
                        back, Reshape (.., m, k·j), MatMul or Gemm; M stands for all of .., m
    Y = W X, k > 1      Reshape (.., k, c/k, m), batched MatMul, Reshape (.., k·j, m),
                        MatMul or Gemm

For Y = X W with k > 1 onnxruntime 1.31 was measured on one thread with a batched MatMul, Split +
MatMuls + Concat, and grouped 1x1 Convs (benchmarks/matmul_slices.py). The batched MatMul took at
most 1.16 times as long as the fastest way, 1.04 times on average. Split was slower by up to a
factor of 1.6, a Conv by up to 6. A Conv on the transposed activation was about as fast as the
batched MatMul (1.16, 1.06), but its decoder has to be a Gemm, and the activation a matrix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from onnx import NodeProto

from alds_onnx.cuts import Cut, LayerShape, Work
from alds_onnx.decompose.stages import Array, Dims, match
from alds_onnx.graph.layers import Layer, WeightLayout
from alds_onnx.graph.operators.building import Names, NodeChain
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.reading import MISFIT, Candidate, Form, Upstream, Whole
from alds_onnx.graph.scopes import Site, integer, integers

# Constant-1 makes floating-point tensors only.
_FIRST_OPSET_WITH_INTEGER_CONSTANTS = 9
# Shape can leave an axis out from opset 15 on; Reshape can make an axis of size 0 from 14 on.
_FIRST_OPSET_TO_RESTORE_AXES = 15


class Product(Operator):
    """A product with a constant matrix, on the right (Y = X W) or on the left (Y = W X)."""

    @abstractmethod
    def is_transposed(self, node: NodeProto, position: int) -> bool:
        """Whether the node transposes its input 0 or 1 first."""

    def weight_input(self, is_constant: Callable[[int], bool]) -> int:
        """The constant, which may be on either side."""
        return 0 if is_constant(0) and not is_constant(1) else 1

    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Why it cannot be decomposed."""
        if len(dims) != 2:
            return f"its weight has {len(dims)} axes, not 2"
        return "both of its operands are constant" if is_constant(0) and is_constant(1) else ""

    def layout(self, node: NodeProto, position: int, dims: Dims) -> WeightLayout:
        """Right: Y = X W', and the folded matrix is W'ᵀ. Left: Y = W' X, and it is W'."""
        transposed, channels_first = self._orientation(node, position)
        f, c = reversed(dims) if transposed else dims
        shape = LayerShape(out_features=f, in_channels=c)
        return WeightLayout(shape=shape, transposed=transposed, channels_first=channels_first)

    def _orientation(self, node: NodeProto, position: int) -> tuple[bool, bool]:
        """`transposed` and `channels_first` of a weight at an input."""
        is_right = bool(position)
        transposed = self.is_transposed(node, position) != is_right
        return transposed, is_right == self.is_transposed(node, 1 - position)

    def is_sliceable(self, opset: int, activation_rank: int | None) -> bool:
        """Slices take a Reshape to a constant shape, and an activation of known rank."""
        return opset >= _FIRST_OPSET_WITH_INTEGER_CONSTANTS and (activation_rank or 0) >= 2

    def work(
        self, node: NodeProto, inputs: Sequence[Dims | None], output: Dims | None
    ) -> Work | None:
        """Each output is a sum over the inner size."""
        if output is None or not inputs[0]:
            return None
        axis = max(-2, -len(inputs[0])) if self.is_transposed(node, 0) else -1
        return Work(macs=prod(output) * inputs[0][axis])

    def windows(self, layer: Layer, node: NodeProto, activation: Array) -> Array:
        """Rows, or columns where the channels come first."""
        columns = layer.layout.channels_first and activation.ndim > 1
        return np.moveaxis(activation, -2, -1) if columns else activation

    def input_sizes(self, node: NodeProto, dims: Dims, rank: int) -> Mapping[int, int]:
        """The features."""
        if len(dims) != 2 or not rank:
            return {}
        axis = max(0, rank - 2) if self.is_transposed(node, 0) else rank - 1
        return {axis: dims[1 if self.is_transposed(node, 1) else 0]}

    def bias_shape(self, layer: Layer) -> Dims:
        """One row, or one column where the weight is on the left."""
        f = layer.shape.out_features
        return (f,) if layer.weight_input else (f, 1)

    # The nodes that replace it

    def node_weights(self, layer: Layer, cut: Cut, weights: Sequence[Array]) -> tuple[Array, ...]:
        """Matrices in the order of axes in which the nodes read them; slices are a batch."""
        encoder, decoder = weights
        k, j = cut.num_slices, cut.rank
        encoder = encoder.reshape(k, j, -1)
        encoder = encoder if layer.layout.channels_first else encoder.transpose(0, 2, 1)
        return encoder[0] if k == 1 else encoder, decoder.T if layer.layout.transposed else decoder

    def build(self, layer: Layer, node: NodeProto, cut: Cut, names: Names) -> list[NodeProto]:
        """The encoder, between Reshapes where there are slices, and the decoder.

        Alpha, beta, transA and transB all belong to the decoder, which reads the code in the order
        of axes in which the old node read the activation.
        """
        chain = NodeChain(layer, node, names)
        if cut.num_slices == 1:
            _encode(chain)
        elif layer.layout.channels_first:
            _encode_rows(chain, cut)
        else:
            _encode_columns(chain, cut)
        decoder, code = chain.weights[1], chain.tensor
        chain.carrier = len(chain)
        chain.last(self.op_type, [code, decoder] if layer.weight_input else [decoder, code])
        return chain.export()

    # The way back

    def read(self, candidate: Candidate) -> Form | None:
        """Follow the code through each of the patterns."""
        for ops, read in _PATTERNS:
            upstream = candidate.follow(ops)
            if upstream is not None:
                return read(self, candidate, upstream)
        return None

    def whole(self, form: Form, nodes: Sequence[NodeProto], dims: Sequence[Dims]) -> Whole | str:
        """The product with the matrix that the factors are those of."""
        encoder, decoder = dims
        position = list(nodes[1].input[:2]).index(form.factors[1][1])
        transposed, channels_first = self._orientation(nodes[1], position)
        if len(encoder) != (2 if len(form.between) == 1 else 3) or len(decoder) != 2:
            return MISFIT
        k, rank, width = (1, *encoder)[-3:]
        if not channels_first:
            rank, width = width, rank
        matched = match([(k * rank, width), decoder[::-1] if transposed else decoder], k)
        if matched is None:
            return MISFIT
        shape, cut = matched
        layout = WeightLayout(shape=shape, transposed=transposed, channels_first=channels_first)
        return Whole(layout=layout, cut=cut, attributes=tuple(nodes[1].attribute))

    def stage_weights(
        self, layout: WeightLayout, nodes: Sequence[NodeProto], weights: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Matrices of the stages."""
        encoder, decoder = weights
        encoder = encoder if layout.channels_first else encoder.swapaxes(-1, -2)
        encoder = encoder.reshape(-1, encoder.shape[-1])  # (k·j, c/k)
        return encoder, decoder.T if layout.transposed else decoder

    def product(
        self, candidate: Candidate, upstream: Upstream, encoder: Site, helpers: Sequence[Site] = ()
    ) -> Form | None:
        """What the encoder's MatMul and the decoder say together, with all constants between."""
        first, last = candidate.index.node(encoder), candidate.node
        position = 1 - list(last.input[:2]).index(candidate.code)
        is_left = candidate.is_factor(first.input[0])
        if self._orientation(last, position)[1] != is_left:
            return None
        sites = (*upstream.sites, *helpers)
        constants = [
            shape
            for site in sites
            for name in candidate.index.node(site).input[1:]
            if _is_shape(candidate, site, name) and (shape := candidate.maker(name, "Constant"))
        ]
        return Form(
            between=(*sites, *constants),
            activation=upstream.activation,
            factors=(
                (encoder, first.input[0 if is_left else 1]),
                (candidate.site, last.input[position]),
            ),
        )


def _encode(chain: NodeChain) -> None:
    operands = [chain.tensor, chain.weights[0]]
    first = chain.layer.layout.channels_first
    chain.step("MatMul", operands[::-1] if first else operands)


def _encode_rows(chain: NodeChain, cut: Cut) -> None:
    """(.., c, m) -> (.., k, c/k, m) -> (.., k, j, m) -> (.., k·j, m)."""
    batch, k = _batch_axes(chain.layer), cut.num_slices
    width = chain.layer.shape.in_channels // k
    _reshape(chain, [0] * batch + [k, width, -1])
    _encode(chain)
    _reshape(chain, [0] * batch + [k * cut.rank, -1])


def _encode_columns(chain: NodeChain, cut: Cut) -> None:
    """(.., m, c) -> (1, M, k, c/k) -> (1, k, M, c/k) -> (1, k, M, j) -> (.., m, k·j).

    The axis of size 1 is there because onnxruntime fuses a Transpose of three axes into the
    MatMul, and 1.31 then divides by zero, and dies, where there are no rows. The axes of the
    batch become rows because it does not broadcast the encoder to an axis of size 0: so they
    stay only where they cannot be restored.
    """
    activation, batch, k = chain.tensor, _batch_axes(chain.layer), cut.num_slices
    can_restore = chain.layer.opset >= _FIRST_OPSET_TO_RESTORE_AXES
    kept = 0 if can_restore else batch
    leading = [0] * (kept + 1) if kept else [1, -1]
    swap = _swap(max(kept, 1))
    _reshape(chain, [*leading, k, chain.layer.shape.in_channels // k])
    chain.step("Transpose", [chain.tensor], {"perm": swap})
    _encode(chain)
    chain.step("Transpose", [chain.tensor], {"perm": swap})
    if batch and can_restore:
        _restore_axes(chain, activation, k * cut.rank)
    else:
        _reshape(chain, [*(leading if kept else [-1]), k * cut.rank])


def _swap(axes: int) -> list[int]:
    """Exchange the two axes after the first `axes`; one more follows."""
    return [*range(axes), axes + 1, axes, axes + 2]


def _restore_axes(chain: NodeChain, like: gs.Variable, last: int) -> None:
    """Give the current tensor all axes of `like` but the last one, and one of size `last`."""
    code = chain.tensor
    chain.step("Shape", [like], {"start": 0, "end": -1})
    chain.step("Concat", [chain.tensor, chain.integers([last])], {"axis": 0})
    chain.step("Reshape", [code, chain.tensor], {"allowzero": 1})


def _batch_axes(layer: Layer) -> int:
    rank = layer.activation_rank
    if rank is None or rank < 2:
        raise ValueError("slices need an activation of known rank, at least 2")
    return rank - 2


def _reshape(chain: NodeChain, shape: list[int]) -> None:
    chain.step("Reshape", [chain.tensor, chain.integers(shape)])


def _one_slice(operator: Product, candidate: Candidate, upstream: Upstream) -> Form | None:
    """MatMul, MatMul or Gemm."""
    return operator.product(candidate, upstream, upstream.sites[0])


def _rows(operator: Product, candidate: Candidate, upstream: Upstream) -> Form | None:
    """Reshape (.., k, c/k, m), batched MatMul, Reshape (.., k·j, m), MatMul or Gemm."""
    last, product, first = upstream.sites
    form = operator.product(candidate, upstream, product)
    tensor = candidate.constant(form.factors[0][1]) if form else None
    is_first = candidate.constant(candidate.index.node(product).input[0]) is not None
    if tensor is None or len(tensor.dims) != 3 or not is_first:
        return None
    k, j, width = tensor.dims
    before = candidate.integers(candidate.index.node(first).input[1]) or []
    after = candidate.integers(candidate.index.node(last).input[1]) or []
    batch = [0] * (len(before) - 3)
    fits = before == [*batch, k, width, -1] and after == [*batch, k * j, -1]
    return form if fits else None


def _columns(operator: Product, candidate: Candidate, upstream: Upstream) -> Form | None:
    """Reshape, Transpose, batched MatMul, Transpose back, Reshape, MatMul or Gemm."""
    last, back, product, swap, first = upstream.sites
    shape = candidate.index.node(last).input[1]
    helpers = _restoring(candidate, shape, upstream.activation)
    form = operator.product(candidate, upstream, product, helpers)
    tensor = candidate.constant(form.factors[0][1]) if form else None
    before = candidate.integers(candidate.index.node(first).input[1]) or []
    is_first = candidate.constant(candidate.index.node(product).input[0]) is not None
    if tensor is None or len(tensor.dims) != 3 or len(before) < 3 or is_first:
        return None
    k, width, j = tensor.dims
    leading, swapped = before[:-2], tuple(_swap(len(before) - 3))
    nodes = [candidate.index.node(site) for site in (swap, back)]
    kept = [-1] if leading == [1, -1] else leading
    expected = [k * j] if helpers else [*kept, k * j]
    fits = (
        before[-2:] == [k, width]
        and (leading == [1, -1] or not any(leading))
        and _restored_size(candidate, shape, helpers) == expected
        and all(integers(node, "perm") == swapped for node in nodes)
    )
    return form if fits else None


def _restoring(candidate: Candidate, shape: str, activation: str) -> tuple[Site, ...]:
    """The nodes that compute a shape from the axes of the activation: Concat (Shape, constant)."""
    concat = candidate.maker(shape, "Concat")
    if concat is None or len(candidate.index.node(concat).input) != 2:
        return ()
    axes = candidate.maker(candidate.index.node(concat).input[0], "Shape")
    if axes is None:
        return ()
    node = candidate.index.node(axes)
    part = (integer(node, "start", 0), integer(node, "end", 0))
    return (concat, axes) if node.input[0] == activation and part == (0, -1) else ()


def _restored_size(candidate: Candidate, shape: str, helpers: tuple[Site, ...]) -> list[int] | None:
    """What the last Reshape is told as a constant: all of the shape, or its last axis."""
    return candidate.integers(candidate.index.node(helpers[0]).input[1] if helpers else shape)


def _is_shape(candidate: Candidate, site: Site, name: str) -> bool:
    node = candidate.index.node(site)
    return node.op_type in ("Reshape", "Concat") and candidate.integers(name) is not None


_Ops = tuple[tuple[str, ...], ...]
_Reader = Callable[[Product, Candidate, Upstream], Form | None]

#: The operators upstream of the decoder, the nearest first, and who reads them.
_PATTERNS: tuple[tuple[_Ops, _Reader], ...] = (
    ((("MatMul",),), _one_slice),
    ((("Reshape",), ("MatMul",), ("Reshape",)), _rows),
    ((("Reshape",), ("Transpose",), ("MatMul",), ("Transpose",), ("Reshape",)), _columns),
)
