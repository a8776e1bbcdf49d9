"""Sizes of graph inputs that follow from the weights which read them."""

from __future__ import annotations

from onnx import NodeProto

from alds_onnx.graph.scopes import Kind, ModelIndex, Site, constant_tensor, integer


def input_hints(index: ModelIndex) -> dict[tuple[str, int], int]:
    """Channels of inputs that a Conv, and features of inputs that a MatMul or Gemm reads.

    Returns
    -------
    Size by input name and axis; the axis counts from the front.
    """
    hints: dict[tuple[str, int], int] = {}
    inputs = {v.name: len(v.type.tensor_type.shape.dim) for v in index.model.graph.input}
    for i, node in enumerate(index.model.graph.node):
        if len(node.input) < 2 or node.input[0] not in inputs:
            continue
        dims = _weight_dims(index, Site(0, i), node)
        name = node.input[0]
        if node.op_type == "Conv" and len(dims) > 2:
            hints[name, 1] = dims[1] * integer(node, "group", 1)
        elif node.op_type in ("MatMul", "Gemm") and len(dims) == 2 and inputs[name]:
            axis = 0 if integer(node, "transA", 0) else inputs[name] - 1
            hints[name, axis] = dims[1 if integer(node, "transB", 0) else 0]
    return hints


def _weight_dims(index: ModelIndex, site: Site, node: NodeProto) -> tuple[int, ...]:
    definition = index.resolve(site.scope, node.input[1])
    if definition is None:
        return ()
    tensor = definition.tensor
    if definition.kind is Kind.NODE:
        tensor = constant_tensor(index.node(Site(definition.key.scope, definition.node)))
    return tuple(tensor.dims) if tensor is not None else ()
