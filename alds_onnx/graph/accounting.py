"""Counting what a model costs: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from alds_onnx.cuts import Work
from alds_onnx.graph.files.external import external_tensors
from alds_onnx.graph.operators import operator_of
from alds_onnx.graph.scopes import DEFAULT_DOMAINS, Key, ModelIndex, Site
from alds_onnx.graph.tensors import FLOATING, num_bytes, num_elements
from alds_onnx.graph.weights import constant_of


def num_parameters(index: ModelIndex) -> int:
    """Count the parameters of all graphs and functions; see `parameters_by_constant`."""
    return sum(parameters_by_constant(index).values())


def parameters_by_constant(index: ModelIndex) -> dict[Key, int]:
    """Count the numbers of each initializer and Constant node that are parameters.

    These are floating-point numbers, and integers that DequantizeLinear makes floating-point
    numbers of. Each is counted once, however often it is read; of a sparse tensor, what is stored.
    """
    found: dict[Key, int] = {}
    for scope in index.scopes:
        for node in scope.body.node:
            if node.op_type == "Constant" and node.output:
                found[Key(scope.number, node.output[0])] = _parameters_of_constant(node)
        if isinstance(scope.body, GraphProto):
            for tensor in scope.body.initializer:
                found[Key(scope.number, tensor.name)] = _floating(tensor)
            for sparse in scope.body.sparse_initializer:
                found[Key(scope.number, sparse.values.name)] = _floating(sparse.values)
    for site, node in index.walk():
        if node.op_type == "DequantizeLinear" and node.input:
            definition = index.resolve(site.scope, node.input[0])
            quantized = constant_of(index, definition) if definition else None
            if definition is not None and quantized is not None:
                found[definition.key] = num_elements(quantized)
    return {key: count for key, count in found.items() if count}


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


def model_bytes(model: ModelProto) -> int:
    """Size of the model as a file, with its external data."""
    own: int = model.ByteSize()
    return own + sum(num_bytes(tensor) for tensor in external_tensors(model))


def work_of_layers(index: ModelIndex, shapes: Mapping[Key, tuple[int, ...]]) -> dict[Site, Work]:
    """What every node of an operator that can be decomposed computes in one run, where known."""
    found = {}
    for site, node in index.walk():
        operator = operator_of(node)
        if operator is None:
            continue
        definitions = [index.resolve(site.scope, name) for name in node.input[:2]]
        inputs = [shapes.get(d.key) if d else None for d in definitions]
        work = operator.work(node, inputs, shapes.get(Key(site.scope, node.output[0])))
        if work is not None:
            found[site] = work
    return found
