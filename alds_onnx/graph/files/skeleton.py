"""Copies of models without their weights, for questions that take only types and shapes."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from alds_onnx.graph.scopes import DEFAULT_DOMAINS, constant_tensor
from alds_onnx.graph.tensors import is_external, num_bytes

# Larger tensors than this are weights, not the shapes and axes that inference needs to read.
LARGEST_SHAPE_BYTES = 1024


def skeleton(model: ModelProto) -> ModelProto:
    """Make a copy that claims no more than what the model's operators must agree with.

    Nothing is read from other files, and weights are never copied. The differences:

        - a tensor that is large, sparse or external is only a type and a shape;
        - declared shapes are left out but those of the main graph's inputs: runtimes take a wrong
          one for a note that is out of date, and compute the right one themselves;
        - a size below 1 at an input is left out: exporters wrote 0 and -1 for "free";
        - every node has a name, which is its first output's if it has none of its own;
        - the default domain is called "" everywhere.
    """
    copy = ModelProto(ir_version=model.ir_version, functions=model.functions)
    for node in (node for function in copy.functions for node in function.node):
        node.name = label(node)
    for entry in model.opset_import:
        copy.opset_import.add(domain=default_domain_unnamed(entry.domain), version=entry.version)
    copy.graph.CopyFrom(_graph(model.graph, keep_shapes=True))
    return copy


def label(node: NodeProto) -> str:
    """Name of a node, or of its first output."""
    return node.name or next(iter(node.output), "") or node.op_type


def _graph(graph: GraphProto, *, keep_shapes: bool = False) -> GraphProto:
    copy = GraphProto(name="graph")  # its own may be no UTF-8, and nobody needs it
    copy.input.extend(_declared(value, keep_shape=keep_shapes) for value in graph.input)
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if not _is_weight(tensor):
            copy.initializer.append(tensor)
        elif tensor.name not in inputs:
            copy.value_info.append(_described(tensor.name, tensor.data_type, tensor.dims))
    for sparse in graph.sparse_initializer:  # readers see a dense tensor
        values = sparse.values
        copy.value_info.append(_described(values.name, values.data_type, sparse.dims))
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None and _is_weight(tensor) and node.output:
            copy.value_info.append(_described(node.output[0], tensor.data_type, tensor.dims))
        else:
            copy.node.append(_node(node))
    made = {name for node in copy.node for name in node.output}
    values = [value for value in graph.value_info if value.name in made]
    copy.value_info.extend(_declared(value, keep_shape=False) for value in values)
    copy.output.extend(_declared(value, keep_shape=False) for value in graph.output)
    return copy


def _is_weight(tensor: TensorProto) -> bool:
    return is_external(tensor) or num_bytes(tensor) > LARGEST_SHAPE_BYTES


def _node(node: NodeProto) -> NodeProto:
    copy = NodeProto(
        name=label(node),
        op_type=node.op_type,
        domain=default_domain_unnamed(node.domain),
        overload=node.overload,
        input=node.input,
        output=node.output,
    )
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            graphs = [_graph(graph) for graph in attribute.graphs]
            new = AttributeProto(name=attribute.name, type=attribute.type, graphs=graphs)
            if attribute.HasField("g"):
                new.g.CopyFrom(_graph(attribute.g))
            copy.attribute.append(new)
        else:
            copy.attribute.append(attribute)
    return copy


def default_domain_unnamed(domain: str) -> str:
    """Give the default domain its shorter name."""
    return "" if domain in DEFAULT_DOMAINS else domain


def _described(name: str, element_type: int, dims: Iterable[int]) -> ValueInfoProto:
    value = ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = element_type
    value.type.tensor_type.shape.SetInParent()
    for size in dims:
        value.type.tensor_type.shape.dim.add().dim_value = size
    return value


def _declared(value: ValueInfoProto, *, keep_shape: bool) -> ValueInfoProto:
    """Copy a declaration, of a tensor only as far as it must hold."""
    copy = ValueInfoProto(name=value.name)
    copy.type.CopyFrom(value.type)
    if not copy.type.HasField("tensor_type"):
        return copy
    if not keep_shape:
        copy.type.tensor_type.ClearField("shape")
    for size in copy.type.tensor_type.shape.dim if keep_shape else ():
        if size.HasField("dim_value") and size.dim_value < 1:
            size.ClearField("dim_value")
    return copy
