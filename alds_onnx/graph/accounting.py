"""Counting what a model costs: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from alds_onnx.cuts import Op, Work
from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    Key,
    ModelIndex,
    Site,
    integer,
    tensors_of,
)
from alds_onnx.graph.tensors import FLOATING, is_external, num_bytes, num_elements


def num_parameters(index: ModelIndex) -> int:
    """Floating-point numbers in initializers and Constant nodes of all graphs and functions.

    Each is counted once, however often it is read; of a sparse tensor, what is stored.
    """
    return sum(_parameters_of_scope(scope.body) for scope in index.scopes)


def _parameters_of_scope(body: GraphProto | FunctionProto) -> int:
    constants = (node for node in body.node if node.op_type == "Constant")
    count = sum(_parameters_of_constant(node) for node in constants)
    if isinstance(body, GraphProto):
        count += sum(_floating(tensor) for tensor in body.initializer)
        count += sum(_floating(sparse.values) for sparse in body.sparse_initializer)
    return count


def _parameters_of_constant(node: NodeProto) -> int:
    if node.domain not in DEFAULT_DOMAINS:
        return 0
    count = 0
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            count += _floating(attribute.t)
        elif attribute.name == "sparse_value":
            count += _floating(attribute.sparse_tensor.values)
        elif attribute.name == "value_float":
            count += 1
        elif attribute.name == "value_floats":
            count += len(attribute.floats)
    return count


def _floating(tensor: TensorProto) -> int:
    return num_elements(tensor) if tensor.data_type in FLOATING else 0


def model_bytes(model: ModelProto, index: ModelIndex) -> int:
    """Size of the model as a file, with its external data."""
    external = sum(num_bytes(tensor) for tensor in tensors_of(index) if is_external(tensor))
    own: int = model.ByteSize()
    return own + external


def macs_of_layers(
    index: ModelIndex, shapes: Mapping[Key, tuple[int, ...]]
) -> dict[Site, int | None]:
    """Multiply-accumulates of every Conv, Gemm and MatMul in one run.

    Parameters
    ----------
    index
        The model.
    shapes
        Shapes of tensors, where known.

    Returns
    -------
    Output entries times the length of the sum behind each (CR-F of the paper counts the same);
    None where a shape is not known.
    """
    return {site: _macs(index, site, node, shapes) for site, node in _layers(index)}


def work_of_layers(index: ModelIndex, shapes: Mapping[Key, tuple[int, ...]]) -> dict[Site, Work]:
    """What every Conv, Gemm and MatMul computes in one run; those that are not known are left out.

    Parameters
    ----------
    index, shapes
        As for `macs_of_layers`.
    """
    found = {}
    for site, node in _layers(index):
        macs = _macs(index, site, node, shapes)
        if macs is None:
            continue
        found[site] = Work(macs=macs)
        if node.op_type == Op.CONV.value:
            definition = index.resolve(site.scope, node.input[0])
            before = shapes.get(definition.key) if definition else None
            after = shapes[Key(site.scope, node.output[0])]
            inputs = None if before is None else before[2:]
            found[site] = Work(macs=macs, inputs=inputs, outputs=after[2:])
    return found


def _layers(index: ModelIndex) -> Iterator[tuple[Site, NodeProto]]:
    for site, node in index.walk():
        if node.domain in DEFAULT_DOMAINS and node.op_type in [op.value for op in Op]:
            yield site, node


def _macs(
    index: ModelIndex, site: Site, node: NodeProto, shapes: Mapping[Key, tuple[int, ...]]
) -> int | None:
    output = shapes.get(Key(site.scope, node.output[0])) if node.output else None
    operand = 1 if node.op_type == Op.CONV.value else 0
    definition = index.resolve(site.scope, node.input[operand]) if node.input else None
    dims = shapes.get(definition.key) if definition else None
    if output is None or not dims:
        return None
    if node.op_type == Op.CONV.value:
        return prod(output) * prod(dims[1:])  # dims[1] is c / group
    return prod(output) * dims[0 if integer(node, "transA", 0) else -1]
