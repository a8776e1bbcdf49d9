"""The operators that can be decomposed: one class each, and all of them in one table."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from alds_onnx.graph.operators.conv import Conv
from alds_onnx.graph.operators.conv_transpose import ConvTranspose
from alds_onnx.graph.operators.gemm import Gemm
from alds_onnx.graph.operators.matmul import MatMul
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.recurrent import GRU, LSTM, RNN
from alds_onnx.graph.scopes import DEFAULT_DOMAINS

#: By ONNX's name.
OPERATORS: Mapping[str, Operator] = {
    operator.op_type: operator
    for operator in (Conv(), ConvTranspose(), Gemm(), MatMul(), LSTM(), GRU(), RNN())
}


def operator_of(node: NodeProto) -> Operator | None:
    """The operator of a node, if it can be decomposed."""
    return OPERATORS.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
