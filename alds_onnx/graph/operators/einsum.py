"""Einsum of an activation and a constant weight: two of them take its place.

What both operands have and the output has not is summed. The weight folds to the matrix (f, c) of
its other axes and those that are summed, each in the weight's order.

https://onnx.ai/onnx/operators/onnx__Einsum.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, NodeProto, helper

from alds_onnx.cuts import Cut, LayerShape, Work
from alds_onnx.decompose.stages import Array, Dims, match
from alds_onnx.graph.layers import Layer, WeightLayout
from alds_onnx.graph.operators.building import Names, NodeChain
from alds_onnx.graph.operators.checks import Shapes, text
from alds_onnx.graph.operators.equations import (
    ELLIPSIS,
    Axes,
    Equation,
    Linear,
    decoder_axes,
    encoder_axes,
    linear_in,
    place_of,
    whole_of,
)
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.reading import MISFIT, Candidate, Form, Whole

_CLASH = "the equations of its Einsums are not those of one"
#: The place of the code's axis among numbers of axes of a weight.
_CODE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folding(WeightLayout):
    """A weight of shape `dims` whose axes `summed` make the columns of the matrix."""

    dims: Dims
    summed: tuple[int, ...]

    @property
    def order(self) -> list[int]:
        """Axes of the weight: rows of the matrix, then columns."""
        rows = (axis for axis in range(len(self.dims)) if axis not in self.summed)
        return [*rows, *self.summed]

    def to_matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fold a weight to (f, c)."""
        array = weight.transpose(self.order)
        return array.reshape(self.shape.out_features, self.shape.in_channels)

    def to_weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give a folded matrix in the shape in which the node reads its weight."""
        array = matrix.reshape([self.dims[axis] for axis in self.order])
        return array.transpose(np.argsort(self.order))


def _layout(dims: Dims, summed: tuple[int, ...]) -> WeightLayout:
    """The layout of a matrix is that of a MatMul, which may share it."""
    c = prod(dims[axis] for axis in summed)
    f = prod(size for axis, size in enumerate(dims) if axis not in summed)
    shape = LayerShape(out_features=f, in_channels=c)
    transposed = len(dims) == 2 and summed == (0,)
    if len(dims) == 2:
        return WeightLayout(shape=shape, transposed=transposed, channels_first=False)
    return _Folding(shape=shape, transposed=False, channels_first=False, dims=dims, summed=summed)


def _folding(layout: WeightLayout) -> tuple[Dims, tuple[int, ...]]:
    """Sizes of the weight, and which axes are summed."""
    if isinstance(layout, _Folding):
        return layout.dims, layout.summed
    f, c = layout.shape.out_features, layout.shape.in_channels
    return ((c, f), (0,)) if layout.transposed else ((f, c), (1,))


class Einsum(Operator):
    """A sum of products of two operands, one of which is constant."""

    op_type = "Einsum"
    last_ops = frozenset({"Einsum"})

    def takes(self, node: NodeProto) -> bool:
        """Two operands."""
        return len(node.input) == 2

    def weight_input(self, is_constant: Callable[[int], bool]) -> int:
        """The constant, which may be on either side."""
        return 0 if is_constant(0) and not is_constant(1) else 1

    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Why it cannot be decomposed."""
        if is_constant(0) and is_constant(1):
            return "both of its operands are constant"
        linear = linear_in(Equation.of(node), self.weight_input(is_constant))
        if isinstance(linear, str):
            return linear
        axes = len(linear.weight)
        return "" if axes == len(dims) else f"its weight has {len(dims)} axes, not {axes}"

    def layout(self, node: NodeProto, position: int, dims: Dims) -> WeightLayout:
        """The columns of the matrix are summed."""
        return _layout(dims, _known(node, position).layout_axes)

    def is_sliceable(self, opset: int, activation_rank: int | None) -> bool:
        """There is one slice."""
        return False

    def bias_input(self, node: NodeProto, position: int) -> int | None:
        """It has none."""
        return None

    def work(
        self, node: NodeProto, inputs: Sequence[Dims | None], output: Dims | None
    ) -> Work | None:
        """A product for each combination of all letters."""
        equation, (a, b) = Equation.of(node), inputs
        if equation is None or a is None or b is None:
            return None
        sizes: dict[str, Dims] = {}
        for axes, dims in zip(equation.operands, (a, b), strict=True):
            given = _sizes(axes, dims)
            if given is None:
                return None
            sizes |= {axis: _broadcast(sizes.get(axis, ()), own) for axis, own in given.items()}
        return Work(macs=prod(map(prod, sizes.values())))

    def windows(self, layer: Layer, node: NodeProto, activation: Array) -> Array:
        """Axes that are summed come last, in the weight's order; one of size 1 is broadcast."""
        linear = _known(node, layer.weight_input)
        dims, summed = _folding(layer.layout)
        sizes, count = tuple(dims[axis] for axis in summed), len(summed)
        places = [place_of(linear.activation, axis, activation.ndim) for axis in linear.summed]
        moved = np.moveaxis(activation, places, range(-count, 0))
        repeated = tuple(
            i - count for i, size in enumerate(sizes) if size == 1 != moved.shape[i - count]
        )
        rows = moved.sum(axis=repeated, keepdims=True) if repeated else moved
        positions = rows.shape[:-count]
        return np.broadcast_to(rows, (*positions, *sizes)).reshape(*positions, prod(sizes))

    def input_sizes(self, node: NodeProto, dims: Dims, rank: int) -> Mapping[int, int]:
        """Those of the axes that are summed."""
        linear = linear_in(Equation.of(node), 1)
        if isinstance(linear, str) or len(dims) != len(linear.weight):
            return {}
        if rank < len(linear.activation) - (ELLIPSIS in linear.activation):
            return {}
        given = dict(zip(linear.weight, dims, strict=True))
        return {place_of(linear.activation, axis, rank): given[axis] for axis in linear.summed}

    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """What both operands have is of the same size, or broadcasts."""
        equation = Equation.of(node) if self.takes(node) else None
        if equation is None:
            return ""
        sizes: dict[str, int] = {}
        for name, axes in zip(node.input, equation.operands, strict=True):
            dims = shapes.get(name)
            if dims is None or ELLIPSIS in axes:
                continue
            if len(dims) != len(axes):
                return f"its equation gives '{name}' {len(axes)} axes, but it is {text(dims)}"
            for axis, size in zip(axes, dims, strict=True):
                if size in (None, 1):
                    continue
                if sizes.setdefault(axis, size or 0) != size:
                    return f"'{axis}' has the sizes {sizes[axis]} and {size}"
        return ""

    # The nodes that replace it

    def node_weights(self, layer: Layer, cut: Cut, weights: Sequence[Array]) -> tuple[Array, ...]:
        """Both factors with the code's axis where it stands in their terms."""
        dims, summed = _folding(layer.layout)
        axes = range(len(dims))
        first, last = encoder_axes(axes, summed, _CODE), decoder_axes(axes, summed, _CODE)
        encoder, decoder = weights
        encoder = encoder.reshape(-1, *(dims[axis] for axis in summed))
        decoder = decoder.reshape(*(dims[axis] for axis in last if axis != _CODE), -1)
        return np.moveaxis(encoder, 0, first.index(_CODE)), np.moveaxis(
            decoder, -1, last.index(_CODE)
        )

    def build(self, layer: Layer, node: NodeProto, cut: Cut, names: Names) -> list[NodeProto]:
        """Two of them."""
        chain = NodeChain(layer, node, names)
        first, last = _known(node, layer.weight_input).factors()
        chain.step("Einsum", [chain.tensor, chain.weights[0]], {"equation": first.text})
        operands = [chain.tensor, chain.weights[1]]
        chain.carrier = len(chain)
        operands = operands if layer.weight_input else operands[::-1]
        chain.last("Einsum", operands, {"equation": last.text})
        return chain.export()

    # The way back

    def read(self, candidate: Candidate) -> Form | None:
        """Two of them."""
        site, node = candidate.maker(candidate.code, "Einsum"), candidate.node
        first = candidate.index.node(site) if site else None
        if site is None or first is None or not (self.takes(first) and self.takes(node)):
            return None
        position = 1 - list(node.input).index(candidate.code)
        factors = ((site, first.input[1]), (candidate.site, node.input[position]))
        return Form(between=(site,), activation=first.input[0], factors=factors)

    def whole(self, form: Form, nodes: Sequence[NodeProto], dims: Sequence[Dims]) -> Whole | str:
        """The Einsum whose equation gives those of both factors."""
        position = list(nodes[1].input).index(form.factors[1][1])
        first, last = map(Equation.of, nodes)
        linear = whole_of(first, last, position) if first and last else None
        if linear is None or first is None or last is None:
            return _CLASH
        terms = first.operands[1], last.operands[position]
        if [len(one) for one in dims] != [len(term) for term in terms]:
            return MISFIT
        (sizes, ranks), (others, columns) = (
            (dict(zip(term, one, strict=True)), one[term.index(linear.code)])
            for term, one in zip(terms, dims, strict=True)
        )
        known = sizes | others
        layout = _layout(tuple(known[axis] for axis in linear.weight), linear.layout_axes)
        f, c = layout.shape.out_features, layout.shape.in_channels
        matched = match([(ranks, c), (f, columns)], 1)
        if matched is None:
            return MISFIT
        equation = helper.make_attribute("equation", linear.equation.text)
        attributes = tuple(_with(a, equation) for a in nodes[1].attribute)
        return Whole(layout=layout, cut=matched[1], attributes=attributes)

    def stage_weights(
        self, layout: WeightLayout, nodes: Sequence[NodeProto], weights: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Matrices of the stages."""
        dims, summed = _folding(layout)
        axes, shape = range(len(dims)), layout.shape
        encoder, decoder = weights
        encoder = np.moveaxis(encoder, encoder_axes(axes, summed, _CODE).index(_CODE), 0)
        decoder = np.moveaxis(decoder, decoder_axes(axes, summed, _CODE).index(_CODE), -1)
        return encoder.reshape(-1, shape.in_channels), decoder.reshape(shape.out_features, -1)


def _known(node: NodeProto, position: int) -> Linear:
    """The equation of a node that was not refused."""
    found = linear_in(Equation.of(node), position)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _sizes(axes: Axes, dims: Dims) -> dict[str, Dims] | None:
    """Sizes by letter, several for an ellipsis; None if there are too few or too many."""
    extra = len(dims) - len(axes)
    if extra < -1 or (ELLIPSIS not in axes and extra):
        return None
    sizes, place = {}, 0
    for axis in axes:
        count = extra + 1 if axis == ELLIPSIS else 1
        sizes[axis] = dims[place : place + count]
        place += count
    return sizes


def _broadcast(sizes: Dims, others: Dims) -> Dims:
    """Sizes of both together."""
    if len(sizes) != len(others):
        return max(sizes, others, key=len)
    return tuple(t if s == 1 else s for s, t in zip(sizes, others, strict=True))


def _with(attribute: AttributeProto, equation: AttributeProto) -> AttributeProto:
    """The equation, in place of the attribute of that name."""
    if attribute.name != equation.name:
        return attribute
    changed = AttributeProto()
    changed.CopyFrom(attribute)
    changed.s = equation.s
    return changed
