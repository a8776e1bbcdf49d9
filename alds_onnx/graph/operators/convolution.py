"""What convolutions have in common: one node for each stage of a cut, and the way back.

Strides, pads and dilations of an axis go to the stage that has this axis of the kernel. Where that
is not the first one it pads codes and not inputs: these are zero there too, because only the last
stage has a bias. With auto_pad an axis of kernel 1 and stride 1 gets no pads: all stages keep it.

So, read backwards, at most one stage does more along an axis than to mix channels: it alone has the
kernel, the strides, the dilations and the pads there. Two that both do something along one axis may
well be one convolution too, with a larger kernel or longer strides, but are not what this package
writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import ClassVar, TypeAlias

from onnx import AttributeProto, NodeProto, helper

from alds_onnx.cuts import Cut, LayerShape
from alds_onnx.decompose.stages import Array, Dims, match, stages
from alds_onnx.graph.layers import Layer, WeightLayout
from alds_onnx.graph.operators.building import Names, NodeChain
from alds_onnx.graph.operators.checks import Places, Shapes, convolution_problem
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.reading import MISFIT, Candidate, Form, Role, Whole
from alds_onnx.graph.scopes import integer, integers, string

_POINTWISE = "Conv"  # the operator of stages without a kernel

_CLASH = "the strides, pads, dilations or groups of its convolutions are not those of one"
_NOT_PADDING = ("NOTSET", "VALID")

#: What a node does along one axis: its kernel there, then its entries of the attributes by axis.
_Along: TypeAlias = tuple[int, ...]


class Convolution(Operator):
    """An operator with a kernel, whose stages without a kernel are 1x1 Convs.

    Attributes
    ----------
    by_axis
        Attributes with numbers for each spatial axis, and which these are where nothing happens.
    transposed
        Whether the weight is (c, f, kh, kw), and not (f, c, kh, kw).
    final
        Attributes of what is done after the bias is added, which belong to the last stage.
    """

    by_axis: ClassVar[tuple[tuple[str, tuple[int, ...]], ...]] = (
        ("strides", (1,)),
        ("dilations", (1,)),
        ("pads", (0, 0)),
    )
    transposed: ClassVar[bool] = False
    final: ClassVar[frozenset[str]] = frozenset()

    @property
    def stage_ops(self) -> frozenset[str]:
        """Operators of the stages with a kernel."""
        return frozenset({self.op_type})

    def op_of_stage(self, axes: Sequence[bool], *, is_last: bool) -> str:
        """The operator of a stage with some axes of the kernel."""
        return self.op_type if any(axes) else _POINTWISE

    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Why it cannot be decomposed."""
        group = integer(node, "group", 1)
        kernel = integers(node, "kernel_shape")
        if not 3 <= len(dims) <= 5:
            return f"its weight has {len(dims)} axes, not 3 to 5"
        if group != 1:
            return f"it is a grouped convolution (group {group})"
        if kernel is not None and kernel != dims[2:]:
            return f"its kernel_shape {list(kernel)} contradicts its weight {list(dims)}"
        return ""

    def layout(self, node: NodeProto, position: int, dims: Dims) -> WeightLayout:
        """The first two axes are (f, c), or (c, f)."""
        f, c = dims[1::-1] if self.transposed else dims[:2]
        shape = LayerShape(out_features=f, in_channels=c, kernel=dims[2:])
        return WeightLayout(shape=shape, transposed=self.transposed, channels_first=True)

    def is_sliceable(self, opset: int, activation_rank: int | None) -> bool:
        """Slices are groups."""
        return True

    def bias_input(self, node: NodeProto, position: int) -> int | None:
        """The third input."""
        return 2 if len(node.input) > 2 else None

    def input_sizes(self, node: NodeProto, dims: Dims, rank: int) -> Mapping[int, int]:
        """The channels."""
        if len(dims) < 3:
            return {}
        return {1: dims[0] if self.transposed else dims[1] * integer(node, "group", 1)}

    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """X (n, c, ..), W (f, c/g, kernel) or (c, f/g, kernel), B (f)."""
        return convolution_problem(node, shapes, Places(transposed=self.transposed))

    # The nodes that replace it

    def node_weights(self, layer: Layer, cut: Cut, weights: Sequence[Array]) -> tuple[Array, ...]:
        """Weights of convolutions, the channels in the operator's order."""
        parts = stages(layer.shape, cut)
        return tuple(
            _swapped(weight, stage.groups) if self.transposed and any(stage.axes) else weight
            for stage, weight in zip(parts, weights, strict=True)
        )

    def build(self, layer: Layer, node: NodeProto, cut: Cut, names: Names) -> list[NodeProto]:
        """One node for each stage; the last with an axis of the kernel carries the attributes."""
        chain, parts = NodeChain(layer, node, names), stages(layer.shape, cut)
        chain.carrier = max(i for i, stage in enumerate(parts) if any(stage.axes))
        chain.final, old = self.final, {a.name for a in node.attribute}
        for i, (stage, weight) in enumerate(zip(parts, chain.weights, strict=True)):
            is_last = i == len(parts) - 1
            is_full = is_last and bool(self.final)
            attributes = self._attributes_of(node, layer.shape.kernel, stage.axes, full=is_full)
            if is_full or i == chain.carrier:
                # Which attributes there were, and their order, stays readable.
                attributes = {name: n for name, n in attributes.items() if name in old}
            if stage.groups > 1:
                attributes = {"group": stage.groups, **attributes}
            op = self.op_of_stage(stage.axes, is_last=is_last)
            add = chain.last if is_last else chain.step
            add(op, [chain.tensor, weight], attributes)
        return chain.export()

    def _attributes_of(
        self, node: NodeProto, kernel: Dims, axes: Sequence[bool], *, full: bool
    ) -> dict[str, object]:
        """Attributes of a stage that has some axes of the old kernel; none where it has all.

        A stage without a kernel is told that nothing happens along the axes only if it is `full`.
        """
        if all(axes):
            return {}  # inherited
        found: dict[str, object] = {"kernel_shape": _masked(kernel, axes, (1,))}
        if not any(axes) and not full:
            return found
        found |= {"group": 1} if full else {}
        for name, absent in self.by_axis:
            values = integers(node, name)
            if values is not None:
                found[name] = _masked(values, axes, absent)
        found |= {a.name: a.s.decode() for a in node.attribute if a.name == "auto_pad"}
        return found

    # The way back

    def read(self, candidate: Candidate) -> Form | None:
        """Two nodes, or three where a core stands between them."""
        ops = {self.op_type, _POINTWISE}
        upstream = candidate.follow([ops])
        if upstream and Role.CORE.stem(candidate.index.node(upstream.sites[0]).input[1]):
            upstream = candidate.follow([ops, ops])
        if upstream is None or candidate.node.input[0] != candidate.code:
            return None
        sites = (*reversed(upstream.sites), candidate.site)
        nodes = [candidate.index.node(site) for site in sites]
        is_own = any(node.op_type == self.op_type for node in nodes)
        if not is_own or any(any(node.input[2:]) for node in nodes[:-1]):
            return None
        return Form(
            between=upstream.sites,
            activation=upstream.activation,
            factors=tuple((site, node.input[1]) for site, node in zip(sites, nodes, strict=True)),
        )

    def whole(self, form: Form, nodes: Sequence[NodeProto], dims: Sequence[Dims]) -> Whole | str:
        """The convolution that does along each axis what one of the nodes does."""
        groups = [integer(node, "group", 1) for node in nodes]
        if min(map(len, dims)) < 3 or min(groups) < 1:
            return MISFIT
        triples = zip(nodes, dims, groups, strict=True)
        matched = match([self._stage_dims(*triple) for triple in triples], groups[0])
        if matched is None:
            grouped = len(nodes) > 2 and groups[0] > 1 and dims[0][0] % groups[0] == 0
            return _CLASH if grouped else MISFIT  # no scheme has three stages and groups
        shape, cut = matched
        along = [self._along(node, n[2:]) for node, n in zip(nodes, dims, strict=True)]
        whole, carrier = self._whole_axes(along), self._carrier(nodes, [n[2:] for n in dims])
        if set(groups[1:]) != {1} or whole is None or not self._is_carried(nodes, along, carrier):
            return _CLASH
        return Whole(
            layout=WeightLayout(shape=shape, transposed=self.transposed, channels_first=True),
            cut=cut,
            attributes=self._with_final(nodes[-1], self._attributes(nodes[carrier], whole)),
        )

    def stage_weights(
        self, layout: WeightLayout, nodes: Sequence[NodeProto], weights: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Weights of convolutions, the outputs first."""
        return tuple(
            weight if self._has_outputs_first(node) else _swapped(weight, integer(node, "group", 1))
            for node, weight in zip(nodes, weights, strict=True)
        )

    def _has_outputs_first(self, node: NodeProto) -> bool:
        return not self.transposed or node.op_type != self.op_type

    def _stage_dims(self, node: NodeProto, dims: Dims, group: int) -> Dims:
        """Shape (out, in / groups, kernel) of a stage's weight."""
        if self._has_outputs_first(node):
            return dims
        return (dims[1] * group, dims[0] // group, *dims[2:])

    @property
    def _nothing(self) -> _Along:
        return (1, *(n for _, absent in self.by_axis for n in absent))

    def _along(self, node: NodeProto, kernel: Dims) -> list[_Along]:
        """What a node does along each axis; [] if its attributes do not fit its weight."""
        count, lists = len(kernel), [kernel]
        for name, absent in self.by_axis:
            values = integers(node, name) or tuple(n for n in absent for _ in kernel)
            if len(values) != count * len(absent):
                return []
            lists += [values[i : i + count] for i in range(0, len(values), count)]
        return list(zip(*lists, strict=True))

    def _whole_axes(self, along: Sequence[Sequence[_Along]]) -> list[_Along] | None:
        """What all do together along each axis; None if two do something along the same one."""
        if not all(along):
            return None
        whole = []
        for axis in zip(*along, strict=True):
            active = [one for one in axis if one != self._nothing]
            if len(active) > 1:
                return None
            whole.append(active[0] if active else self._nothing)
        return whole

    def _carrier(self, nodes: Sequence[NodeProto], kernels: Sequence[Dims]) -> int:
        """Which node has all the attributes that the old one had: the last one with a kernel.

        On a kernel of one entry the first of two, and the one between of three.
        """
        with_kernel = [i for i, kernel in enumerate(kernels) if prod(kernel) != 1]
        return with_kernel[-1] if with_kernel else (len(nodes) - 1) // 2

    def _is_carried(
        self, nodes: Sequence[NodeProto], along: Sequence[Sequence[_Along]], carrier: int
    ) -> bool:
        """Whether all that do something are of this operator, with the carrier's auto_pad."""
        if nodes[carrier].op_type not in self.stage_ops:
            return False
        pads = [string(node, "auto_pad") or "NOTSET" for node in nodes]
        return all(
            (node.op_type in self.stage_ops and pad == pads[carrier])
            or (pad in _NOT_PADDING and set(axes) == {self._nothing})
            for node, pad, axes in zip(nodes, pads, along, strict=True)
        )

    def _attributes(
        self, carrier: NodeProto, whole: Sequence[_Along]
    ) -> tuple[AttributeProto, ...]:
        """The carrier's attributes in their order, with what the others do along their axes."""
        default, wanted = self._lists([self._nothing] * len(whole)), self._lists(whole)
        found = {attribute.name for attribute in carrier.attribute}
        kept = [
            a
            for a in carrier.attribute
            if a.name not in self.final and (a.name != "group" or a.i == 1)
        ]
        missing = [
            helper.make_attribute(name, values)
            for name, values in wanted.items()
            if name not in found and name != "kernel_shape" and values != default[name]
        ]
        return (*(_with_list(a, wanted.get(a.name), default.get(a.name)) for a in kept), *missing)

    def _with_final(
        self, last: NodeProto, found: tuple[AttributeProto, ...]
    ) -> tuple[AttributeProto, ...]:
        """Add what belongs to the last node, in its order."""
        final = [a for a in last.attribute if a.name in self.final]
        order = {a.name: place for place, a in enumerate(last.attribute)}
        if not final:
            return found
        return tuple(sorted((*final, *found), key=lambda a: order.get(a.name, len(order))))

    def _lists(self, axes: Sequence[_Along]) -> dict[str, list[int]]:
        """Attributes by axis, from what is done along each axis."""
        columns = iter(zip(*axes, strict=True))
        lists = {"kernel_shape": list(next(columns))}
        for name, absent in self.by_axis:
            lists[name] = [n for _ in absent for n in next(columns)]
        return lists


def _masked(values: Sequence[int], axes: Sequence[bool], absent: Sequence[int]) -> list[int]:
    """Keep the numbers of some axes; those of the others become the ones that do nothing."""
    nothing = [n for n in absent for _ in axes]
    mine = [*axes] * len(absent)
    return [n if own else no for n, own, no in zip(values, mine, nothing, strict=True)]


def _swapped(weight: Array, groups: int) -> Array:
    """Bring (out, in / groups, kernel) to (in, out / groups, kernel), or back."""
    channels, width, *kernel = weight.shape
    parts = weight.reshape(groups, channels // groups, width, *kernel).swapaxes(1, 2)
    return parts.reshape(groups * width, channels // groups, *kernel)


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
