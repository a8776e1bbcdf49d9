"""Shapes and ranks of tensors, by ONNX's shape inference."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

from alds_onnx.graph.files.skeleton import LARGEST_SHAPE_BYTES
from alds_onnx.graph.operators import operator_of
from alds_onnx.graph.scopes import Key, Kind, ModelIndex, Scope, integer, subgraphs
from alds_onnx.graph.tensors import is_external, num_bytes
from alds_onnx.graph.weights import constant_of

_log = logging.getLogger(__name__)

# What ids may pass through before they are looked up in a table.
_KEEPS_IDS = frozenset(
    ["Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"]
)


def infer(model: ModelProto, inputs: Mapping[str, tuple[int, ...]] | None = None) -> ModelProto:
    """Make a copy without large weights, with the shapes that ONNX can infer.

    Where ONNX does not know an operator that this package does, another with outputs of the same
    shape stands in its place.
    `inputs` are sizes to give to graph inputs, by name.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    _strip(skeleton.graph)
    _make_plain(skeleton.graph, {(f.domain, f.name) for f in skeleton.functions})
    for value in skeleton.graph.input:
        if inputs and value.name in inputs:
            _set_shape(value, inputs[value.name])
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception as e:  # noqa: BLE001 - inference is a help, and it raises all kinds of errors
        _log.info("shape inference failed: %s", e)
        return skeleton


def known_ranks(index: ModelIndex, inferred: ModelProto) -> dict[Key, int]:
    """Give the number of axes of every tensor for which it is known."""
    return {key: len(dims) for key, dims in _declared(index, inferred).items()}


def known_shapes(index: ModelIndex, inferred: ModelProto) -> dict[Key, tuple[int, ...]]:
    """Shape of every tensor all of whose sizes are known."""
    shapes: dict[Key, tuple[int, ...]] = {}
    for key, dims in _declared(index, inferred).items():
        sizes = tuple(d for d in dims if d is not None)
        if len(sizes) == len(dims):
            shapes[key] = sizes
    return shapes


def _declared(index: ModelIndex, inferred: ModelProto) -> dict[Key, tuple[int | None, ...]]:
    found: dict[Key, tuple[int | None, ...]] = {}
    copies = ModelIndex(inferred).scopes
    for scope, copy in zip(index.scopes, copies, strict=True):
        for name, definition in scope.definitions.items():
            if definition.kind is Kind.INITIALIZER and definition.tensor is not None:
                found[Key(scope.number, name)] = tuple(definition.tensor.dims)
        found.update(_declared_in_scope(copy))
    return found


def _declared_in_scope(scope: Scope) -> dict[Key, tuple[int | None, ...]]:
    body = scope.body
    values = [*body.value_info]
    if isinstance(body, GraphProto):
        values += [*body.input, *body.output]
    found: dict[Key, tuple[int | None, ...]] = {}
    for value in values:
        dims = declared_dims(value)
        if dims is not None:
            found[Key(scope.number, value.name)] = dims
    return found


def declared_dims(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    """Sizes of a declared or inferred shape; one that is not positive is taken for unknown."""
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.dim_value > 0 else None for d in tensor_type.shape.dim)


def _strip(graph: GraphProto) -> None:
    held = (a.t for node in graph.node for a in node.attribute if a.HasField("t"))
    for tensor in (*graph.initializer, *held):
        if not is_external(tensor) and num_bytes(tensor) > LARGEST_SHAPE_BYTES:
            for numbers in ("raw_data", "float_data", "double_data", "int32_data", "int64_data"):
                tensor.ClearField(numbers)
    for node in graph.node:
        for _, subgraph in subgraphs(node):
            _strip(subgraph)


def _make_plain(graph: GraphProto, own: Collection[tuple[str, str]]) -> None:
    """`own` are the domains and names of the model's functions, which stay."""
    for node in graph.node:
        operator = None if (node.domain, node.op_type) in own else operator_of(node)
        plain = operator.plain(node) if operator else None
        if plain is not None:
            node.CopyFrom(plain)
        for _, subgraph in subgraphs(node):
            _make_plain(subgraph, own)


def _set_shape(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = value.type.tensor_type.shape
    dims.ClearField("dim")
    for size in shape:
        dims.dim.add().dim_value = size


def sizes_from_weights(index: ModelIndex) -> dict[tuple[str, int], int]:
    """Sizes of graph inputs that follow from the weights of the nodes which read them.

    By input name and axis; the axis counts from the front.
    """
    sizes: dict[tuple[str, int], int] = {}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in index.model.graph.input}
    for node in index.model.graph.node:
        operator = operator_of(node)
        if operator is None or len(node.input) < 2 or node.input[0] not in ranks:
            continue
        definition = index.resolve(0, node.input[1])
        tensor = constant_of(index, definition) if definition else None
        if tensor is not None:
            found = operator.input_sizes(node, tuple(tensor.dims), ranks[node.input[0]])
            sizes |= {(node.input[0], axis): size for axis, size in found.items()}
    return sizes


def ends_of_ids(index: ModelIndex) -> dict[str, int]:
    """Exclusive upper ends of graph inputs that are ids of the rows of constant tables.

    By input name. The ids may be cast or reshaped before they are looked up.
    """
    ends: dict[str, int] = {}
    source = {value.name: value.name for value in index.model.graph.input}
    for node in index.model.graph.node:
        if node.op_type in _KEEPS_IDS and node.input and node.input[0] in source:
            source |= dict.fromkeys(node.output[:1], source[node.input[0]])
        if node.op_type != "Gather" or len(node.input) < 2 or node.input[1] not in source:
            continue
        definition = index.resolve(0, node.input[0])
        table = constant_of(index, definition) if definition else None
        axis = integer(node, "axis", 0)
        if table is not None and -len(table.dims) <= axis < len(table.dims) and table.dims[axis]:
            name = source[node.input[1]]
            ends[name] = min(ends.get(name, table.dims[axis]), table.dims[axis])
    return ends
