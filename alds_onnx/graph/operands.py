"""Whether the operands of convolutions and of Gemm fit each other, as far as shapes are known.

    Conv, ConvInteger   Y = W * X + B   X (n, c, ..), W (f, c/g, kernel), B (f)
    QLinearConv         the same, with scales and zero points between
    ConvTranspose       Y = W ⊛ X + B   X (n, c, ..), W (c, f/g, kernel), B (f)
    Gemm                Y = A' B' + C   A' (m, k), B' (k, n), C broadcasts to (m, n)

Of these, ONNX's shape inference checks the ranks, and the inner sizes of Gemm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from onnx import NodeProto

from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    has_arguments,
    integer,
    integers,
    string,
)

#: Sizes of a tensor; None where one is not known.
Dims: TypeAlias = "tuple[int | None, ...]"
#: Shapes of tensors, by name.
Shapes: TypeAlias = Mapping[str, Dims]

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
# Before, C broadcast only if an attribute said so.
_FIRST_OPSET_OF_GEMM = 7


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a convolution has its operands, and which axis of W is of which channels.

    Attributes
    ----------
    x, w, bias
        Numbers of inputs.
    transposed
        Whether W is (c, f/g, ..) and not (f, c/g, ..).
    """

    x: int = 0
    w: int = 1
    bias: int | None = 2
    transposed: bool = False


_CONVOLUTIONS = {
    "Conv": _Places(),
    "ConvInteger": _Places(bias=None),
    "QLinearConv": _Places(w=3, bias=8),
    "ConvTranspose": _Places(transposed=True),
}


def operand_problem(node: NodeProto, shapes: Shapes, opset: int) -> str:
    """Say how the operands of a node contradict each other; "" if they do not."""
    if node.domain not in DEFAULT_DOMAINS or has_arguments(node):
        return ""
    if node.op_type in _CONVOLUTIONS:
        conv = _Convolution(node, _CONVOLUTIONS[node.op_type], shapes)
        return next(filter(None, (check(conv) for check in _CHECKS)), "")
    if node.op_type == "Gemm" and opset >= _FIRST_OPSET_OF_GEMM:
        return _gemm_problem(node, shapes)
    return ""


@dataclass(frozen=True, slots=True)
class _Convolution:
    node: NodeProto
    places: _Places
    shapes: Shapes

    def operand(self, number: int | None) -> tuple[str, Dims | None]:
        """Name of an input, and its shape if that is known."""
        inputs = self.node.input
        name = inputs[number] if number is not None and number < len(inputs) else ""
        return name, self.shapes.get(name)

    @property
    def group(self) -> int:
        return integer(self.node, "group", 1)


def _group_problem(conv: _Convolution) -> str:
    return "" if conv.group > 0 else f"group is {conv.group}"


def _padding_problem(conv: _Convolution) -> str:
    mode = string(conv.node, "auto_pad") or "NOTSET"
    if mode not in _AUTO_PADS:
        return f"auto_pad is '{mode}', not one of {', '.join(_AUTO_PADS)}"
    return ""


def _kernel_problem(conv: _Convolution) -> str:
    name, w = conv.operand(conv.places.w)
    kernel = integers(conv.node, "kernel_shape")
    if w is None or kernel is None or _fits(kernel, w[2:]):
        return ""
    return f"kernel_shape is {list(kernel)}, but weight '{name}' has shape {_text(w)}"


def _channels_problem(conv: _Convolution) -> str:
    (x_name, x), (name, w) = conv.operand(conv.places.x), conv.operand(conv.places.w)
    if w is None or len(w) < 2:
        return ""
    first, second = w[:2]
    if first is not None and first % conv.group:
        return f"group {conv.group} does not divide axis 0 of weight '{name}' {_text(w)}"
    taken = first if conv.places.transposed else second and second * conv.group
    given = x[1] if x is not None and len(x) > 1 else None
    if taken is None or given is None or taken == given:
        return ""
    takes = f"weight '{name}' {_text(w)} in {conv.group} group(s) takes {taken} channels"
    return f"{takes}, input '{x_name}' has {given}"


def _bias_problem(conv: _Convolution) -> str:
    name, bias = conv.operand(conv.places.bias)
    w_name, w = conv.operand(conv.places.w)
    if bias is None or w is None or len(w) < 2:
        return ""
    features = w[1] and w[1] * conv.group if conv.places.transposed else w[0]
    if len(bias) == 1 and _fits(bias, (features,)):
        return ""
    return f"bias '{name}' has shape {_text(bias)}, weight '{w_name}' makes {features} channels"


_CHECKS: tuple[Callable[[_Convolution], str], ...] = (
    _group_problem,
    _padding_problem,
    _kernel_problem,
    _channels_problem,
    _bias_problem,
)


def _gemm_problem(node: NodeProto, shapes: Shapes) -> str:
    a, b = (shapes.get(name, (None, None)) for name in node.input[:2])
    name = node.input[2] if len(node.input) > 2 else ""
    c = shapes.get(name)
    if len(a) != 2 or len(b) != 2:
        return ""
    k, m = a if integer(node, "transA", 0) else a[::-1]
    n, other = b if integer(node, "transB", 0) else b[::-1]
    if not _fits((k,), (other,)):
        return f"it multiplies {_text(a)} by {_text(b)}: inner sizes {k} and {other}"
    if c is None:
        return ""
    target = (m, n)[2 - len(c) :]
    if len(c) <= 2 and all(_fits((s,), (t,)) for s, t in zip(c, target, strict=True) if s != 1):
        return ""
    return f"'{name}' of shape {_text(c)} does not broadcast to its output {_text((m, n))}"


def _fits(sizes: Dims, others: Dims) -> bool:
    """Whether two shapes may be the same."""
    return len(sizes) == len(others) and all(
        s is None or t is None or s == t for s, t in zip(sizes, others, strict=True)
    )


def _text(dims: Dims) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in dims)}]"
