"""MatMul: Y = A B, with activations of any rank; and FusedMatMul, which onnxruntime makes of it.

https://onnx.ai/onnx/operators/onnx__MatMul.html
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import NodeProto

from alds_onnx.decompose.stages import Dims
from alds_onnx.graph.operators.checks import Shapes, fits, text
from alds_onnx.graph.operators.operator import plain_node
from alds_onnx.graph.operators.product import Product
from alds_onnx.graph.scopes import integer

_BATCH_AXES = ("transBatchA", "transBatchB")


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
        k = a[max(-2, -len(a))] if self.is_transposed(node, 0) else a[-1]
        other = b[-1] if self.is_transposed(node, 1) else b[max(-2, -len(b))]
        if fits((k,), (other,)):
            return ""
        return f"it multiplies {text(a)} by {text(b)}: inner sizes {k} and {other}"


class FusedMatMul(MatMul):
    """alpha times a MatMul whose operands may be transposed: their last two axes change places."""

    op_type = "FusedMatMul"
    domain = "com.microsoft"
    last_ops = frozenset({"FusedMatMul"})

    def is_transposed(self, node: NodeProto, position: int) -> bool:
        """By transA or transB."""
        return bool(integer(node, "transB" if position else "transA", 0))

    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Why it cannot be decomposed."""
        moved = next((name for name in _BATCH_AXES if integer(node, name, 0)), None)
        if moved is not None:
            return f"it moves axes of a batch of matrices ({moved})"
        return super().refusal(node, dims, is_constant)

    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """As those of a MatMul; where axes of a batch move, onnxruntime has to say."""
        if any(integer(node, name, 0) for name in _BATCH_AXES):
            return ""
        return super().operand_problem(node, shapes, opset)

    def plain(self, node: NodeProto) -> NodeProto | None:
        """The MatMul, if nothing is transposed."""
        names = ("transA", "transB", *_BATCH_AXES)
        if any(integer(node, name, 0) for name in names):
            return None
        return plain_node(node, "MatMul", (*names, "alpha"))
