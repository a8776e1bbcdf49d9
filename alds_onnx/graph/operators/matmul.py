"""MatMul: Y = A B, with activations of any rank.

https://onnx.ai/onnx/operators/onnx__MatMul.html
"""

from __future__ import annotations

from onnx import NodeProto

from alds_onnx.graph.operators.checks import Shapes, fits, text
from alds_onnx.graph.operators.product import Product


class MatMul(Product):
    """A product of matrices, or of batches of them."""

    op_type = "MatMul"
    last_ops = frozenset({"MatMul"})

    def is_transposed(self, node: NodeProto, position: int) -> bool:
        """Never."""
        return False

    def bias_input(self, node: NodeProto, position: int) -> int | None:
        """It has none."""
        return None

    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """A (.., m, k), B (.., k, n)."""
        a, b = (shapes.get(name) for name in node.input[:2])
        if () in (a, b):
            return f"it multiplies by '{node.input[(a, b).index(())]}', a scalar"
        if not a or not b:
            return ""
        k, other = a[-1], b[max(-2, -len(b))]
        if fits((k,), (other,)):
            return ""
        return f"it multiplies {text(a)} by {text(b)}: inner sizes {k} and {other}"
