"""Whether the operands of a node fit each other, as far as their shapes are known.

    Conv, ConvInteger   X (n, c, ..), W (f, c/g, kernel), B (f)
    QLinearConv         the same, with scales and zero points between them
    ConvTranspose       X (n, c, ..), W (c, f/g, kernel), B (f)

ONNX's shape inference checks little of it, and nothing in a graph with a custom operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from onnx import NodeProto

from alds_onnx.graph.scopes import integer, integers, string

#: Sizes of a tensor; None where one is not known. None where one is not known.
Dims: TypeAlias = "tuple[int | None, ...]"
#: Shapes of tensors, by name.
Shapes: TypeAlias = Mapping[str, Dims]

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True, slots=True)
class Places:
    """Numbers of a convolution's inputs, and whether W is (c, f/g, ..) and not (f, c/g, ..)."""

    x: int = 0
    w: int = 1
    bias: int | None = 2
    transposed: bool = False


def convolution_problem(node: NodeProto, shapes: Shapes, places: Places) -> str:
    """Say how the operands of a convolution contradict each other; "" if they do not."""
    conv = _Convolution(node, places, shapes)
    if conv.group <= 0:
        return f"group is {conv.group}"
    problem = _padding_problem(conv) or _kernel_problem(conv) or _channels_problem(conv)
    return problem or _reach_problem(conv) or _bias_problem(conv)


@dataclass(frozen=True, slots=True)
class _Convolution:
    node: NodeProto
    places: Places
    shapes: Shapes

    def operand(self, number: int | None) -> tuple[str, Dims | None]:
        """Name of an input, and its shape if that is known."""
        inputs = self.node.input
        name = inputs[number] if number is not None and number < len(inputs) else ""
        return name, self.shapes.get(name)

    @property
    def group(self) -> int:
        return integer(self.node, "group", 1)


def _padding_problem(conv: _Convolution) -> str:
    mode = string(conv.node, "auto_pad") or "NOTSET"
    if mode not in _AUTO_PADS:
        return f"auto_pad is '{mode}', not one of {', '.join(_AUTO_PADS)}"
    pads = integers(conv.node, "pads") or ()
    return f"both auto_pad {mode} and pads {list(pads)}" if mode != "NOTSET" and any(pads) else ""


def _kernel_problem(conv: _Convolution) -> str:
    name, w = conv.operand(conv.places.w)
    kernel = integers(conv.node, "kernel_shape")
    if w is None or kernel is None or fits(kernel, w[2:]):
        return ""
    return f"kernel_shape is {list(kernel)}, but weight '{name}' has shape {text(w)}"


def _channels_problem(conv: _Convolution) -> str:
    (x_name, x), (name, w) = conv.operand(conv.places.x), conv.operand(conv.places.w)
    if w is None or len(w) < 2:
        return ""
    first, second = w[:2]
    if first is not None and first % conv.group:
        return f"group {conv.group} does not divide axis 0 of weight '{name}' {text(w)}"
    taken = first if conv.places.transposed else second and second * conv.group
    given = x[1] if x is not None and len(x) > 1 else None
    if taken is None or given is None or taken == given:
        return ""
    takes = f"weight '{name}' {text(w)} and group {conv.group} take {taken} channels"
    return f"{takes}, input '{x_name}' has {given}"


def _reach_problem(conv: _Convolution) -> str:
    """Look for a kernel that is wider than the input with its padding."""
    (x_name, x), (name, w) = conv.operand(conv.places.x), conv.operand(conv.places.w)
    mode = string(conv.node, "auto_pad") or "NOTSET"
    if x is None or w is None or len(x) != len(w) or conv.places.transposed or "SAME" in mode:
        return ""
    axes = len(w) - 2
    pads = integers(conv.node, "pads") or (0,) * 2 * axes
    dilations = integers(conv.node, "dilations") or (1,) * axes
    if len(pads) != 2 * axes or len(dilations) != axes:
        return ""  # inference says so
    for size, width, dilation, before, after in zip(
        x[2:], w[2:], dilations, pads[:axes], pads[axes:], strict=True
    ):
        if size is None or width is None:
            continue
        reach = dilation * (width - 1) + 1
        if size + before + after < reach:
            return f"weight '{name}' {text(w)} reaches beyond input '{x_name}' {text(x)}"
    return ""


def _bias_problem(conv: _Convolution) -> str:
    name, bias = conv.operand(conv.places.bias)
    w_name, w = conv.operand(conv.places.w)
    if bias is None or w is None or len(w) < 2:
        return ""
    features = w[1] and w[1] * conv.group if conv.places.transposed else w[0]
    if len(bias) == 1 and fits(bias, (features,)):
        return ""
    return f"bias '{name}' has shape {text(bias)}, weight '{w_name}' makes {features} channels"


def fits(sizes: Dims, others: Dims) -> bool:
    """Whether two shapes may be the same."""
    return len(sizes) == len(others) and all(
        s is None or t is None or s == t for s, t in zip(sizes, others, strict=True)
    )


def text(dims: Dims) -> str:
    """Write a shape with a question mark for what is not known."""
    return f"[{', '.join('?' if size is None else str(size) for size in dims)}]"
