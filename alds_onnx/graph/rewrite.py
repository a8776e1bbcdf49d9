"""Splicing decomposed layers into a copy of the model; everything else stays as it is.

Factors go where the weight was, into the same scope, so that branches and nodes which shared the
weight share the factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from alds_onnx.cuts import Factors, FloatArray, read_only
from alds_onnx.decompose.factorize import compose
from alds_onnx.decompose.stages import stage_weights
from alds_onnx.errors import VerificationError
from alds_onnx.graph.changes import FIRST_IR_WITH_FREE_INITIALIZERS, Changes
from alds_onnx.graph.constants.dead import dead_upstream
from alds_onnx.graph.files.external import Spill
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.operators.building import Names
from alds_onnx.graph.operators.reading import weight_roles
from alds_onnx.graph.scopes import ModelIndex, Use
from alds_onnx.graph.tensors import make_tensor, read_array, stored, type_name
from alds_onnx.graph.weights import constant_of, find_source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replacement:
    """One weight with its factors, and the layers that read it (at least one).

    `bias` is a new value, shape (f,), for the layer's own constant bias; None leaves it as it is.
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
    model: ModelProto,
    replacements: Sequence[Replacement],
    spill: Spill | None = None,
    whole: Sequence[Dense] = (),
) -> ModelProto:
    """Replace weights by their factors, no weight twice, in a copy of the model.

    Nodes, initializers, attributes, names, metadata that have to do with none of the replaced
    layers are equal field for field. What only the replaced weights were made from goes; those in
    `whole` become constants, so that more of it can go. The numbers of the factors go to `spill`,
    or into the model if that is None.
    """
    result = ModelProto()
    result.CopyFrom(model)
    if not replacements:
        return result
    index = ModelIndex(result)
    changes = Changes(index, spill)
    _drop(index, changes, [*replacements, *whole])
    for replacement in replacements:
        _replace(index, changes, replacement)
    for weight in whole:
        _exchange(index, changes, weight, weight.layers[0].weight_name)
    changes.apply()
    return result


def _replace(index: ModelIndex, changes: Changes, replacement: Replacement) -> None:
    first, cut = replacement.layers[0], replacement.factors.cut
    source, weights = first.source, stage_weights(replacement.factors)
    roles = weight_roles(len(weights))
    names = [changes.name(f"{first.weight_name}/{role.value}") for role in roles]
    arrays = OPERATORS[first.op].node_weights(first, cut, weights)
    _check_range(first, *arrays)
    for i in (0, len(arrays) - 1, *range(1, len(arrays) - 1)):  # in the file a core comes last
        changes.add(source.base.scope, names[i], arrays[i], source.tensor.data_type)
    for layer in replacement.layers:
        node, made = index.node(layer.site), Names(weights=tuple(names), fresh=changes.name)
        changes.replace(layer.site, OPERATORS[layer.op].build(layer, node, cut, made))
        _set_bias(index, layer, replacement.bias)


def _drop(index: ModelIndex, changes: Changes, done: Sequence[Replacement | Dense]) -> None:
    """Remove what led to the old weights only; other constants that a caller may give stay."""
    layers = [layer for one in done for layer in one.layers]
    bases = {layer.source.base for layer in layers}
    is_old = index.model.ir_version < FIRST_IR_WITH_FREE_INITIALIZERS
    kept = {
        d.key
        for scope in index.scopes
        for d in scope.definitions.values()
        if d.overridable and not is_old and d.key not in bases
    }
    released = {Use(layer.site, layer.weight_input) for layer in layers}
    sites, keys = dead_upstream(index, released, kept)
    for site in sites:
        changes.remove(site)
    changes.forget(*keys)


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
    result.ir_version = max(result.ir_version, FIRST_IR_WITH_FREE_INITIALIZERS)
    index = ModelIndex(result)
    changes = Changes(index, spill)
    for weight in weights:
        _exchange(index, changes, weight, f"{weight.layers[0].weight_name}/composed")
    changes.apply()
    return result


def _exchange(index: ModelIndex, changes: Changes, weight: Dense, stem: str) -> None:
    """Let layers read another dense weight, called after `stem`."""
    first, name = weight.layers[0], changes.name(stem)
    array, source = first.layout.to_weight(weight.matrix), first.source
    changes.add(source.base.scope, name, array, source.tensor.data_type)
    for layer in weight.layers:
        index.node(layer.site).input[layer.weight_input] = name
        _set_bias(index, layer, weight.bias)


def constant_bias(index: ModelIndex, layer: Layer, folder: Path) -> FloatArray | None:
    """The bias of a layer, shape (f,), if it is its own and constant; None otherwise.

    A bias that another node reads, that a caller may replace, or that Gemm scales stays as it is:
    then the regression is not centred, and the factors reproduce the means themselves.
    """
    node = index.node(layer.site)
    position = OPERATORS[layer.op].bias_input(node, layer.weight_input)
    if position is None:
        return None
    source = find_source(index, layer.site.scope, node.input[position], folder)
    f = layer.shape.out_features
    if isinstance(source, str) or source.overridable or source.constants != (source.read,):
        return None
    if source.shape not in ((f,), (1, f)) or len(index.uses.get(source.base, ())) != 1:
        return None
    if source.tensor.data_type != layer.source.tensor.data_type:
        return None
    bias = np.asarray(read_array(source.tensor, folder), dtype=np.float64).reshape(f)
    return bias if np.isfinite(bias).all() else None


def _set_bias(index: ModelIndex, layer: Layer, bias: FloatArray | None) -> None:
    """Overwrite the constant that `constant_bias` found to be the layer's own bias."""
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
