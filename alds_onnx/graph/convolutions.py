"""Reading the convolutions of a pair as the one that they stand for.

Along every axis at most one of them does more than to mix channels: it alone has the kernel, the
strides, the dilations and the pads there, as `patterns` has shared them out. So the whole one has
them, axis by axis, of whichever that is. Two that both do something along one axis may well be one
convolution too, with a larger kernel or longer strides, but are not what this package writes.

What pads codes instead of inputs does the same: these are zero where the inputs are, because only
the last convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, NodeProto, helper

from alds_onnx.cuts import Cut, LayerShape
from alds_onnx.decompose.stages import match
from alds_onnx.graph.scopes import integer, integers, string

MISFIT = "the shapes or types of its factors do not fit together"

_CLASH = "the strides, pads, dilations or groups of its convolutions are not those of one"
_NOT_PADDING = ("NOTSET", "VALID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The dense node that a pair stands for.

    Attributes
    ----------
    shape, cut
        Sizes of its weight, and how that is cut.
    attributes
        What it has besides its inputs.
    """

    shape: LayerShape
    cut: Cut
    attributes: tuple[AttributeProto, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Along:
    """What a convolution does along one axis; by default nothing."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0


_NOTHING = _Along()


def join_convolutions(
    nodes: Sequence[NodeProto], weights: Sequence[tuple[int, ...]]
) -> Whole | str:
    """Read two or three Convs as one, or say why they are not.

    Parameters
    ----------
    nodes
        In the order in which they are applied; only the last has a bias.
    weights
        The shapes of their weights: encoder (k·j, c/k, ..), decoder (f, k·j, ..), the kernel shared
        out between them; Tucker-2: (j, c, 1, 1), (j_out, j, kh, kw), (f, j_out, 1, 1).
    """
    groups = [integer(node, "group", 1) for node in nodes]
    if len(nodes) > 2 and groups[0] > 1 and weights[0][0] % groups[0] == 0:
        return _CLASH
    if min(map(len, weights)) < 3 or (sizes := match(weights, groups[0])) is None:
        return MISFIT
    kernels = [dims[2:] for dims in weights]
    along = [_axes(node, kernel) for node, kernel in zip(nodes, kernels, strict=True)]
    whole = _whole_axes(along)
    carrier = _carrier(kernels)
    if set(groups[1:]) != {1} or whole is None or not _pad_alike(nodes, along, carrier):
        return _CLASH
    shape, cut = sizes
    return Whole(shape=shape, cut=cut, attributes=_attributes(nodes[carrier], whole))


def _axes(node: NodeProto, kernel: tuple[int, ...]) -> list[_Along]:
    """What a Conv does along each axis; none at all if its attributes do not fit its weight."""
    count = len(kernel)
    strides = integers(node, "strides") or (1,) * count
    dilations = integers(node, "dilations") or (1,) * count
    pads = integers(node, "pads") or (0,) * (2 * count)
    if (len(strides), len(dilations), len(pads)) != (count, count, 2 * count):
        return []
    values = zip(kernel, strides, dilations, pads[:count], pads[count:], strict=True)
    return [
        _Along(kernel=n, stride=stride, dilation=dilation, before=before, after=after)
        for n, stride, dilation, before, after in values
    ]


def _whole_axes(along: Sequence[Sequence[_Along]]) -> list[_Along] | None:
    """What all do together along each axis; None if two do something along the same one."""
    if not all(along):
        return None
    whole = []
    for axis in zip(*along, strict=True):
        active = [one for one in axis if one != _NOTHING]
        if len(active) > 1:
            return None
        whole.append(active[0] if active else _NOTHING)
    return whole


def _carrier(kernels: Sequence[tuple[int, ...]]) -> int:
    """Which Conv has all the attributes that the old node had: the last one with a kernel.

    On a kernel of one entry the first of two, and the one between of three.
    """
    with_kernel = [i for i, kernel in enumerate(kernels) if prod(kernel) != 1]
    return with_kernel[-1] if with_kernel else (len(kernels) - 1) // 2


def _pad_alike(nodes: Sequence[NodeProto], along: Sequence[Sequence[_Along]], carrier: int) -> bool:
    """Whether the carrier's auto_pad is that of all that do something, and no other pads at all."""
    pads = [string(node, "auto_pad") or "NOTSET" for node in nodes]
    return all(
        pad == pads[carrier] or (pad in _NOT_PADDING and set(axes) == {_NOTHING})
        for pad, axes in zip(pads, along, strict=True)
    )


def _attributes(carrier: NodeProto, whole: Sequence[_Along]) -> tuple[AttributeProto, ...]:
    """The carrier's attributes in their order, with what the others do along their axes."""
    default = _lists([_NOTHING] * len(whole))
    wanted = _lists(whole)
    found = {attribute.name for attribute in carrier.attribute}
    kept = [a for a in carrier.attribute if a.name != "group" or a.i == 1]
    missing = [
        helper.make_attribute(name, values)
        for name, values in wanted.items()
        if name not in found and name != "kernel_shape" and values != default[name]
    ]
    return (*(_with_list(a, wanted.get(a.name), default.get(a.name)) for a in kept), *missing)


def _lists(axes: Sequence[_Along]) -> dict[str, list[int]]:
    return {
        "kernel_shape": [axis.kernel for axis in axes],
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [*(axis.before for axis in axes), *(axis.after for axis in axes)],
    }


def _with_list(
    attribute: AttributeProto, values: list[int] | None, default: list[int] | None
) -> AttributeProto:
    """An attribute with another list of integers, unless it says that already."""
    if values is None or list(attribute.ints or default or ()) == values:
        return attribute
    changed = AttributeProto()
    changed.CopyFrom(attribute)
    changed.ints[:] = values
    return changed
