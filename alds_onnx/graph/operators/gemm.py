"""Gemm: Y = alpha · A' B' + beta · C; and FusedGemm, which onnxruntime makes of it.

https://onnx.ai/onnx/operators/onnx__Gemm.html
"""

from __future__ import annotations

from onnx import NodeProto

from alds_onnx.graph.operators.checks import Shapes, fits, text
from alds_onnx.graph.operators.operator import plain_node
from alds_onnx.graph.operators.product import Product
from alds_onnx.graph.scopes import integer, real

# Before, C broadcast only if an attribute said so.
_FIRST_OPSET_TO_BROADCAST = 7


class Gemm(Product):
    """A product of matrices, each of which may be transposed first."""

    op_type = "Gemm"
    last_ops = frozenset({"Gemm"})

    def is_transposed(self, node: NodeProto, position: int) -> bool:
        """By transA or transB."""
        return bool(integer(node, "transB" if position else "transA", 0))

    def activation_rank(self, known: int | None) -> int | None:
        """A matrix."""
        return 2

    def bias_input(self, node: NodeProto, position: int) -> int | None:
        """C, if it is a row and nothing is scaled."""
        is_scaled = any(real(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
        return None if is_scaled or not position or len(node.input) < 3 else 2

    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """A (m, k), B (k, n) after their transposes, C broadcasts to (m, n)."""
        if opset < _FIRST_OPSET_TO_BROADCAST:
            return ""
        a, b = (shapes.get(name, (None, None)) for name in node.input[:2])
        if len(a) != 2 or len(b) != 2:
            return ""
        k, m = a if integer(node, "transA", 0) else a[::-1]
        n, other = b if integer(node, "transB", 0) else b[::-1]
        if not fits((k,), (other,)):
            return f"it multiplies {text(a)} by {text(b)}: inner sizes {k} and {other}"
        name = node.input[2] if len(node.input) > 2 else ""
        c = shapes.get(name, ())
        tail = (m, n)[2 - len(c) :]
        if len(c) <= 2 and all(fits((s,), (t,)) for s, t in zip(c, tail, strict=True) if s != 1):
            return ""
        return f"'{name}' of shape {text(c)} does not broadcast to {text((m, n))}"


class FusedGemm(Gemm):
    """A Gemm and an activation."""

    op_type = "FusedGemm"
    domain = "com.microsoft"
    last_ops = frozenset({"FusedGemm"})

    def plain(self, node: NodeProto) -> NodeProto | None:
        """The Gemm."""
        names = ("activation", *(f"activation_{name}" for name in ("alpha", "beta", "gamma")))
        return plain_node(node, "Gemm", names)
