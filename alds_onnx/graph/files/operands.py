"""Whether the operands of a node fit each other, as far as their shapes are known.

Each operator of `graph.operators` says it for its own nodes, and these are checked besides:

    ConvInteger   X (n, c, ..), W (f, c/g, kernel)
    QLinearConv   the same, with scales and zero points between them
    Reshape       as many elements after as before
"""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from alds_onnx.graph.operators import operator_of
from alds_onnx.graph.operators.checks import Dims, Places, Shapes, convolution_problem
from alds_onnx.graph.scopes import DEFAULT_DOMAINS, has_arguments

_CONVOLUTIONS = {
    "ConvInteger": Places(bias=None),
    "QLinearConv": Places(w=3, bias=8),
}


def operand_problem(node: NodeProto, shapes: Shapes, opset: int) -> str:
    """Say how the operands of a node contradict each other; "" if they do not."""
    if node.domain not in DEFAULT_DOMAINS or has_arguments(node):
        return ""
    operator = operator_of(node)
    if operator is not None:
        return operator.operand_problem(node, shapes, opset)
    if node.op_type in _CONVOLUTIONS:
        return convolution_problem(node, shapes, _CONVOLUTIONS[node.op_type])
    return _reshape_problem(node, shapes) if node.op_type == "Reshape" else ""


def _reshape_problem(node: NodeProto, shapes: Shapes) -> str:
    before, after = (_count(shapes.get(name)) for name in (node.input[0], node.output[0]))
    if before is None or after is None or before == after:
        return ""
    return f"it makes {after} elements of {before}"


def _count(dims: Dims | None) -> int | None:
    """Number of elements, if it is known."""
    sizes = [size for size in dims or (None,) if size is not None]
    return prod(sizes) if dims is not None and len(sizes) == len(dims) else None
