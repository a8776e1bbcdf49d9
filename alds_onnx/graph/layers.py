"""Finding the layers of a model: every Conv, Gemm and MatMul, decomposable or not.

A node becomes a `Layer` if all of this holds, otherwise a `Skipped` that says which does not:

    1. its weight is a constant (an initializer, a Constant node, or one of these behind Identity,
       Transpose, Reshape, Flatten, Squeeze, Unsqueeze) of type float, double, float16 or bfloat16;
    2. nothing but nodes of the same fold read that weight: else cutting it would add parameters;
    3. Conv: group 1 and 1 to 3 spatial axes; Gemm and MatMul: the weight is a matrix, and the other
       operand is not a constant too;
    4. it is not tiny, and some rank has fewer parameters than the weight;
    5. the operator set has the operators that the factors need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from alds_onnx.cuts import LayerShape, Op
from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    Key,
    ModelIndex,
    Site,
    has_arguments,
    integer,
    integers,
    unused,
)
from alds_onnx.graph.tensors import DECOMPOSABLE, type_name
from alds_onnx.graph.weights import WeightSource, find_source, read_weight

# Gemm broadcasts C without a `broadcast` attribute, and Reshape takes its shape as an input.
_FIRST_OPSET = 7
# Constant-1 makes floating-point tensors only.
_FIRST_OPSET_WITH_INTEGER_CONSTANTS = 9
# Two nodes in place of one cost more than the few bytes that a smaller weight could save.
_FEWEST_PARAMETERS = 64

Fold: TypeAlias = tuple[Key, bool, bool, LayerShape]


class Operand(Enum):
    """What the weight is multiplied with, and from where."""

    KERNEL = auto()  # Conv: Y = W * X
    RIGHT = auto()  # Y = X W, activation on the left
    LEFT = auto()  # Y = W X, activation on the right


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A node that can be decomposed.

    Attributes
    ----------
    site, name, op
        The node; its name as in the plan.
    source
        Where its weight comes from.
    weight_name
        What the node calls its weight.
    weight_input
        Which of the node's inputs the weight is.
    operand
        How the weight is used.
    transposed
        Whether the folded matrix (f, c) is the transpose of the weight as the node reads it.
    channels_first
        Whether the last two axes of the activation are (c, m) and not (m, c); Conv: True.
    shape
        Sizes of the folded matrix.
    activation_rank
        Number of axes of the other operand; None if it is not known, here or at a layer that shares
        the factors.
    opset
        Version of the default domain.
    """

    site: Site
    name: str
    op: Op
    source: WeightSource
    weight_name: str
    weight_input: int
    operand: Operand
    transposed: bool
    channels_first: bool
    shape: LayerShape
    activation_rank: int | None
    opset: int

    @property
    def slice_counts(self) -> tuple[int, ...]:
        """Every k that this node can be built with, in the fold of `Scheme.ENCODE`."""
        return self.counts(self.shape)

    def counts(self, folded: LayerShape) -> tuple[int, ...]:
        """Every k that this node can be built with in a fold, given by its sizes."""
        counts = folded.slice_counts()
        return counts if self.is_sliceable else counts[:1]

    @property
    def is_sliceable(self) -> bool:
        """Whether it can have more than one slice: only a Conv can where no Reshape can be written.

        That takes a constant shape, and an activation whose number of axes is known.
        """
        writable = self.opset >= _FIRST_OPSET_WITH_INTEGER_CONSTANTS
        return self.operand is Operand.KERNEL or (writable and (self.activation_rank or 0) >= 2)

    @property
    def fold(self) -> Fold:
        """Nodes with the same fold share their factors, which have the same layout in both."""
        return self.source.read, self.transposed, self.channels_first, self.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A Conv, Gemm or MatMul node that cannot be decomposed, with the reason."""

    site: Site
    name: str
    op: Op
    weight_name: str
    dims: tuple[int, ...]
    reason: str


def find_layers(
    index: ModelIndex, folder: Path, ranks: Mapping[Key, int]
) -> tuple[Layer | Skipped, ...]:
    """Every Conv, Gemm and MatMul of a model, in graph order.

    Parameters
    ----------
    index
        The model.
    folder
        Folder of the model file, for external data.
    ranks
        Number of axes of tensors, where known.
    """
    candidates = [
        _Candidate(index=index, folder=folder, site=site, node=node, op=Op(node.op_type))
        for site, node in index.walk()
        if node.domain in DEFAULT_DOMAINS and node.op_type in [op.value for op in Op]
    ]
    names = row_names(index)
    found = [_examine(candidate, names[candidate.site], ranks) for candidate in candidates]
    return _without_other_uses(index, found)


def read_matrix(index: ModelIndex, layer: Layer, folder: Path) -> npt.NDArray[np.float64]:
    """Read the layer's weight folded to (f, c·kh·kw), in float64."""
    array = read_weight(index, layer.source, folder)
    if layer.operand is not Operand.KERNEL:
        array = array.T if layer.transposed else array
    shape = layer.shape
    return np.ascontiguousarray(array, dtype=np.float64).reshape(
        shape.out_features, shape.num_columns
    )


def row_names(index: ModelIndex) -> dict[Site, str]:
    """Give each node a name: its own, or its first output's where that is empty or not unique.

    Where the output's name is not unique either (branches of one If), its scope stands before it;
    a number behind it tells apart what is still the same.
    """
    nodes = list(index.walk())
    named = Counter(node.name for _, node in nodes)
    made = Counter(name for _, node in nodes for name in node.output[:1])
    names = {site: node.name for site, node in nodes if node.name and named[node.name] == 1}
    taken = set(names.values())
    for site, node in nodes:
        if site not in names:
            output = node.output[0] if node.output else ""
            path = "" if made[output] == 1 else index.scopes[site.scope].path
            names[site] = unused(f"{path}{output}", taken)
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A Conv, Gemm or MatMul node that is looked at."""

    index: ModelIndex
    folder: Path
    site: Site
    node: NodeProto
    op: Op

    @property
    def opset(self) -> int:
        return self.index.scopes[self.site.scope].opset

    def source(self, position: int) -> WeightSource | str:
        return find_source(self.index, self.site.scope, self.node.input[position], self.folder)

    def is_constant(self, position: int) -> bool:
        return isinstance(self.source(position), WeightSource)

    def weight_input(self) -> int:
        """Conv's weight is input 1; Gemm and MatMul may hold the constant on either side."""
        if self.op is Op.CONV:
            return 1
        return 0 if self.is_constant(0) and not self.is_constant(1) else 1


def _examine(candidate: _Candidate, name: str, ranks: Mapping[Key, int]) -> Layer | Skipped:
    node, op, site = candidate.node, candidate.op, candidate.site
    position = candidate.weight_input()
    source = candidate.source(position)
    reason = source if isinstance(source, str) else _refusal(candidate, position, source)
    if isinstance(source, str) or reason:
        dims = () if isinstance(source, str) else source.shape
        weight = node.input[position]
        return Skipped(site=site, name=name, op=op, weight_name=weight, dims=dims, reason=reason)
    operand, transposed, shape = _fold(node, op, position, source.shape)
    activation = candidate.index.resolve(site.scope, node.input[1 - position])
    return Layer(
        site=site,
        name=name,
        op=op,
        source=source,
        weight_name=node.input[position],
        weight_input=position,
        operand=operand,
        transposed=transposed,
        channels_first=_channels_first(node, op, operand),
        shape=shape,
        activation_rank=2 if op is Op.GEMM else ranks.get(activation.key) if activation else None,
        opset=candidate.opset,
    )


def _refusal(candidate: _Candidate, position: int, source: WeightSource) -> str:
    """Why a node with a constant weight cannot be decomposed; "" if it can."""
    element_type = source.tensor.data_type
    reason = ""
    if element_type not in DECOMPOSABLE:
        reason = f"its weight is of type {type_name(element_type)}"
    elif candidate.opset < _FIRST_OPSET:
        reason = f"opset {candidate.opset} is older than {_FIRST_OPSET}"
    elif has_arguments(candidate.node):
        reason = "its attributes are arguments of the function"
    elif candidate.op is Op.CONV:
        reason = _refusal_of_conv(candidate.node, source.shape)
    elif len(source.shape) != 2:
        reason = f"its weight has {len(source.shape)} axes, not 2"
    elif candidate.is_constant(1 - position):
        reason = "both of its operands are constant"
    if reason:
        return reason
    _, _, shape = _fold(candidate.node, candidate.op, position, source.shape)
    if shape.num_parameters < _FEWEST_PARAMETERS:
        return f"its weight is tiny ({shape.num_parameters} parameters)"
    return "" if shape.slice_counts() else "even rank 1 has as many parameters as the weight"


def _refusal_of_conv(node: NodeProto, dims: tuple[int, ...]) -> str:
    group = integer(node, "group", 1)
    kernel = integers(node, "kernel_shape")
    if not 3 <= len(dims) <= 5:
        return f"its weight has {len(dims)} axes, not 3 to 5"
    if group != 1:
        return f"it is a grouped convolution (group {group})"
    if kernel is not None and kernel != dims[2:]:
        return f"its kernel_shape {list(kernel)} contradicts its weight {list(dims)}"
    return ""


def _fold(
    node: NodeProto, op: Op, position: int, dims: tuple[int, ...]
) -> tuple[Operand, bool, LayerShape]:
    """How the weight is folded to (f, c·kh·kw)."""
    if op is Op.CONV:
        shape = LayerShape(out_features=dims[0], in_channels=dims[1], kernel=dims[2:])
        return Operand.KERNEL, False, shape
    flag = integer(node, "transB" if position else "transA", 0) if op is Op.GEMM else 0
    # Right: Y = X W', and the folded matrix is W'ᵀ. Left: Y = W' X, and it is W'.
    transposed = (not flag) if position else bool(flag)
    f, c = reversed(dims) if transposed else dims
    operand = Operand.RIGHT if position else Operand.LEFT
    return operand, transposed, LayerShape(out_features=f, in_channels=c)


def _channels_first(node: NodeProto, op: Op, operand: Operand) -> bool:
    """Gemm may read its activation transposed, which swaps the two axes."""
    flag = integer(node, "transB" if operand is Operand.LEFT else "transA", 0)
    flipped = op is Op.GEMM and bool(flag)
    return (operand is not Operand.RIGHT) != flipped


def _without_other_uses(
    index: ModelIndex, found: list[Layer | Skipped]
) -> tuple[Layer | Skipped, ...]:
    """Skip the layers whose weight something else reads too."""
    shared: dict[Fold, list[Layer]] = {}
    for layer in found:
        if isinstance(layer, Layer):
            shared.setdefault(layer.fold, []).append(layer)
    return tuple(
        _checked_use(index, layer, shared[layer.fold]) if isinstance(layer, Layer) else layer
        for layer in found
    )


def _checked_use(index: ModelIndex, layer: Layer, sharing: list[Layer]) -> Layer | Skipped:
    other = _other_use(index, layer, {reader.site for reader in sharing})
    if other is not None:
        reason = f"its weight is also {other}, so that cutting it would add parameters"
        return skipped(layer, reason)
    # All who share the factors have as many slices as the one that can have fewest.
    return layer if all(r.is_sliceable for r in sharing) else replace(layer, activation_rank=None)


def _other_use(index: ModelIndex, layer: Layer, readers: set[Site]) -> str | None:
    """Find a use of the weight, or of a tensor on its way, beside the layers that share it."""
    source = layer.source
    allowed = readers | set(source.chain)
    on_the_way = {source.read, source.base}
    for site in source.chain:
        on_the_way.update(Key(site.scope, name) for name in index.node(site).output if name)
    for key in on_the_way:
        for use in index.uses.get(key, ()):
            if use.site is None:
                return "a graph output"
            if use.site not in allowed:
                return f"read by {index.node(use.site).op_type}"
            if use.site == layer.site and use.index != layer.weight_input:
                return f"another operand of the same {layer.op.value}"
    return None


def skipped(layer: Layer, reason: str) -> Skipped:
    """Make the row of a layer that cannot be decomposed after all."""
    return Skipped(
        site=layer.site,
        name=layer.name,
        op=layer.op,
        weight_name=layer.weight_name,
        dims=layer.source.shape,
        reason=reason,
    )
