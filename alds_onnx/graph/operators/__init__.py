"""The operators that can be decomposed: one class each, and all of them in one table."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from alds_onnx.graph.operators.conv import Conv, FusedConv
from alds_onnx.graph.operators.conv_transpose import ConvTranspose
from alds_onnx.graph.operators.einsum import Einsum
from alds_onnx.graph.operators.gather import Gather
from alds_onnx.graph.operators.gemm import FusedGemm, Gemm
from alds_onnx.graph.operators.matmul import FusedMatMul, MatMul
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.recurrent import GRU, LSTM, RNN
from alds_onnx.graph.scopes import DEFAULT_DOMAINS

_ALL: tuple[Operator, ...] = (
    *(Conv(), ConvTranspose(), Gemm(), MatMul(), Gather(), Einsum()),
    *(LSTM(), GRU(), RNN()),
    *(FusedConv(), FusedGemm(), FusedMatMul()),
)
_BY_TYPE = {(operator.domain, operator.op_type): operator for operator in _ALL}

#: By what rows call them: ONNX's name, with the domain before it unless that is the default.
OPERATORS: Mapping[str, Operator] = {operator.name: operator for operator in _ALL}


def operator_of(node: NodeProto) -> Operator | None:
    """The operator of a node, if it can be decomposed."""
    domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
    operator = _BY_TYPE.get((domain, node.op_type))
    return operator if operator is not None and operator.takes(node) else None
