"""Counting what a model costs: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from alds_onnx.cuts import Work
from alds_onnx.graph.files.external import external_tensors
from alds_onnx.graph.operators import operator_of
from alds_onnx.graph.scopes import DEFAULT_DOMAINS, Key, ModelIndex, Site
from alds_onnx.graph.tensors import FLOATING, num_bytes, num_elements


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
