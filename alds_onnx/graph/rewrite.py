"""Splicing decomposed layers into a copy of the model; everything else stays as it is.

The old node's place in the list is kept, so that the order stays topological: its inputs are made
before it, and its readers come behind it. Factors go where the weight was, into the same scope, so
that branches and nodes which shared the weight share the factors. They become initializers, or
Constant nodes where an initializer would have to be a graph input as well (IR version < 4) or
cannot be (functions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from alds_onnx.cuts import Factors, FloatArray, read_only
from alds_onnx.decompose.folding import compose
from alds_onnx.errors import VerificationError
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.operators.building import Names
from alds_onnx.graph.operators.reading import weight_roles
from alds_onnx.graph.operators.stages import stage_weights
from alds_onnx.graph.scopes import Key, ModelIndex, Scope, Site, unused
from alds_onnx.graph.spill import Spill
from alds_onnx.graph.tensors import make_tensor, stored, type_name
from alds_onnx.graph.weights import constant_of

_Entry = TypeVar("_Entry")

_FIRST_IR_WITH_FREE_INITIALIZERS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replacement:
    """One weight with its factors, and the layers that read it (at least one).

    Attributes
    ----------
    layers, factors
        What to replace, and by what.
    bias
        A new value, shape (f,), for the layer's own constant bias; None leaves it as it is.
    """

    layers: tuple[Layer, ...]
    factors: Factors
    bias: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense:
    """One weight with another dense matrix (f, c·kh·kw) in its place, and a bias likewise."""

    layers: tuple[Layer, ...]
    matrix: FloatArray
    bias: FloatArray | None = None


def rewrite(
    model: ModelProto, replacements: Sequence[Replacement], spill: Spill | None = None
) -> ModelProto:
    """Replace weights by their factors.

    Parameters
    ----------
    model
        Stays as it is.
    replacements
        What to replace; no weight twice.
    spill
        Where the numbers of the factors go; into the model if None.

    Returns
    -------
    A new model. Nodes, initializers, attributes, names, metadata that have to do with none of the
    replaced layers are equal field for field.
    """
    result = ModelProto()
    result.CopyFrom(model)
    if not replacements:
        return result
    splice = _Splice(ModelIndex(result), spill)
    for replacement in replacements:
        splice.replace(replacement)
    splice.finish()
    return result


def stored_factors(layer: Layer, factors: Factors) -> Factors:
    """Give the factors as the model holds them, in the weight's type."""
    element_type = layer.source.tensor.data_type
    core = factors.core
    return replace(
        factors,
        U=read_only(stored(factors.U, element_type)),
        V=read_only(stored(factors.V, element_type)),
        core=None if core is None else read_only(stored(core, element_type)),
    )


def with_composed_weights(
    model: ModelProto, replacements: Sequence[Replacement], spill: Spill | None = None
) -> ModelProto:
    """Give the original with each replaced W exchanged for the dense Ŵ of its (rounded) factors.

    A rewrite is exact if the rewritten model computes what this one does.
    """
    return with_dense_weights(model, map(_dense, replacements), spill)


def _dense(replacement: Replacement) -> Dense:
    layer = replacement.layers[0]
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = compose(stored_factors(layer, replacement.factors))
    _check_range(layer, matrix)
    return Dense(layers=replacement.layers, matrix=matrix, bias=replacement.bias)


def _check_range(layer: Layer, *arrays: FloatArray) -> None:
    """Refuse numbers that the weight's type cannot hold."""
    element_type = layer.source.tensor.data_type
    if not all(np.isfinite(stored(array, element_type)).all() for array in arrays):
        raise VerificationError(
            f"layer '{layer.name}': its approximation is out of the range of "
            f"{type_name(element_type)}, nothing was written: keep it whole with --exclude"
        )


def with_dense_weights(
    model: ModelProto, weights: Iterable[Dense], spill: Spill | None = None
) -> ModelProto:
    """Give the model with some weights exchanged; the old ones stay in it, unread.

    The numbers of its nodes in the main graph stay the same.
    """
    result = ModelProto()
    result.CopyFrom(model)
    # Only to be run, never to be written: new weights of the main graph are initializers, always.
    result.ir_version = max(result.ir_version, _FIRST_IR_WITH_FREE_INITIALIZERS)
    index = ModelIndex(result)
    names = index.names()
    added: dict[int, list[TensorProto]] = {}
    for weight in weights:
        first = weight.layers[0]
        name = unused(f"{first.weight_name}/composed", names)
        array = first.layout.to_weight(weight.matrix)
        tensor = new_tensor(name, array, first.source.tensor.data_type, spill)
        added.setdefault(first.source.read.scope, []).append(tensor)
        for layer in weight.layers:
            index.node(layer.site).input[layer.weight_input] = name
            _set_bias(index, layer, weight.bias)
    for number, tensors in added.items():
        store(index.scopes[number], result.ir_version, tensors)
    return result


def _set_bias(index: ModelIndex, layer: Layer, bias: FloatArray | None) -> None:
    """Overwrite the constant that is the layer's bias; `graph.bias` has made sure it is its own."""
    if bias is None:
        return
    definition = index.resolve(layer.site.scope, index.node(layer.site).input[2])
    tensor = constant_of(index, definition) if definition else None
    if tensor is None:
        raise ValueError(f"the bias of '{layer.name}' is not a constant")
    values = make_tensor(tensor.name, bias.reshape(tuple(tensor.dims)), tensor.data_type)
    for numbers in ("float_data", "double_data", "int32_data", "external_data", "data_location"):
        tensor.ClearField(numbers)
    tensor.raw_data = values.raw_data


class _Splice:
    """The changes to one model; they take place in `finish`."""

    def __init__(self, index: ModelIndex, spill: Spill | None) -> None:
        self.index, self.spill = index, spill
        self.names = index.names()
        self.new_nodes: dict[Site, list[NodeProto]] = {}
        self.new_tensors: dict[int, list[TensorProto]] = {}
        self.dropped: set[Key] = set()

    def replace(self, replacement: Replacement) -> None:
        first, operator = replacement.layers[0], OPERATORS[replacement.layers[0].op]
        cut, weights = replacement.factors.cut, stage_weights(replacement.factors)
        names = Names(
            weights=tuple(
                self._fresh(f"{first.weight_name}/{role.value}")
                for role in weight_roles(len(weights))
            ),
            fresh=self._fresh,
        )
        self._add_factors(first, names.weights, operator.node_weights(first, cut, weights))
        for layer in replacement.layers:
            node = self.index.node(layer.site)
            self.new_nodes[layer.site] = OPERATORS[layer.op].build(layer, node, cut, names)
            _set_bias(self.index, layer, replacement.bias)
        self._drop_weight(first)

    def finish(self) -> None:
        for site in sorted(self.new_nodes, key=lambda s: (s.scope, s.node), reverse=True):
            nodes = self.index.scopes[site.scope].body.node
            del nodes[site.node]
            for new in reversed(self.new_nodes[site]):
                nodes.insert(site.node, new)
        for number, tensors in self.new_tensors.items():
            store(self.index.scopes[number], self.index.model.ir_version, tensors)
        for scope in self.index.scopes:
            names = {key.name for key in self.dropped if key.scope == scope.number}
            if names:
                forget(scope.body, names)

    def _fresh(self, stem: str) -> str:
        return unused(stem, self.names)

    def _add_factors(
        self, layer: Layer, names: Sequence[str], arrays: Sequence[npt.NDArray[Any]]
    ) -> None:
        element_type = layer.source.tensor.data_type
        _check_range(layer, *arrays)
        tensors = [
            new_tensor(name, array, element_type, self.spill)
            for name, array in zip(names, arrays, strict=True)
        ]
        # In the file a core follows the decoder.
        ordered = [tensors[0], tensors[-1], *tensors[1:-1]]
        self.new_tensors.setdefault(layer.source.read.scope, []).extend(ordered)

    def _drop_weight(self, layer: Layer) -> None:
        source = layer.source
        self.dropped.update((source.base, source.read))
        for site in source.chain:
            self.new_nodes[site] = []
            outputs = self.index.node(site).output
            self.dropped.update(Key(site.scope, name) for name in outputs)


def new_tensor(
    name: str, array: npt.NDArray[Any], element_type: int, spill: Spill | None
) -> TensorProto:
    """Make a tensor whose numbers lie in the model, or in a temporary file."""
    tensor = make_tensor(name, array, element_type)
    if spill is not None:
        spill.move(tensor)
    return tensor


def store(scope: Scope, ir_version: int, tensors: Sequence[TensorProto]) -> None:
    """Put constants into a scope."""
    body = scope.body
    if isinstance(body, GraphProto) and ir_version >= _FIRST_IR_WITH_FREE_INITIALIZERS:
        body.initializer.extend(tensors)
        return
    for tensor in reversed(tensors):
        constant = NodeProto(op_type="Constant", output=[tensor.name])
        value = constant.attribute.add(name="value", type="TENSOR")
        value.t.CopyFrom(tensor)
        value.t.ClearField("name")
        body.node.insert(0, constant)


def forget(body: GraphProto | FunctionProto, names: set[str]) -> None:
    """Remove every trace of tensors that are gone."""
    _remove(body.value_info, lambda value: value.name in names)
    if isinstance(body, GraphProto):
        _remove(body.initializer, lambda tensor: tensor.name in names)
        _remove(body.input, lambda value: value.name in names)
        _remove(body.quantization_annotation, lambda entry: entry.tensor_name in names)


def _remove(entries: MutableSequence[_Entry], is_gone: Callable[[_Entry], bool]) -> None:
    for i in reversed(range(len(entries))):
        if is_gone(entries[i]):
            del entries[i]
