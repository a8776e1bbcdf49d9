"""Finding the layers of a model: the nodes of all operators that can be decomposed.

A node becomes a `Layer` if all of this holds, otherwise a `Skipped` that says which does not:

    1. its weight depends on constants only (`constants.compute`), and is of type float, double,
       float16 or bfloat16;
    2. only nodes that share its factors read these constants (`constants.sharing`): else cutting
       it would add parameters;
    3. its operator (`graph.operators`) does not refuse it;
    4. it is not tiny, and some rank has fewer parameters than the weight;
    5. the operator set has the operators that the factors need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import NodeProto

from alds_onnx.graph.constants.sharing import SMALL, without_other_uses
from alds_onnx.graph.layers import Layer, Skipped
from alds_onnx.graph.operators import operator_of
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.scopes import Key, Kind, ModelIndex, Site, first_output, has_arguments, unused
from alds_onnx.graph.tensors import DECOMPOSABLE, FLOATING, num_bytes, num_elements, type_name
from alds_onnx.graph.weights import WeightSource, constant_of, find_source

# Gemm broadcasts C without a `broadcast` attribute, and Reshape takes its shape as an input.
_FIRST_OPSET = 7
# Two nodes in place of one cost more than the few bytes that a smaller weight could save.
_FEWEST_PARAMETERS = SMALL


def find_layers(
    index: ModelIndex, folder: Path, ranks: Mapping[Key, int]
) -> tuple[Layer | Skipped, ...]:
    """Every node of an operator that can be decomposed, in graph order.

    `ranks` are the numbers of axes of tensors, where known.
    """
    candidates = [
        _Candidate(index=index, folder=folder, site=site, node=node, operator=operator)
        for site, node in index.walk()
        if (operator := operator_of(node)) is not None
    ]
    candidates = [one for one in candidates if one.operator.has_row(one.source)]
    names = row_names(index)
    found = [_examine(candidate, names[candidate.site], ranks) for candidate in candidates]
    return without_other_uses(index, found)


def row_names(index: ModelIndex) -> dict[Site, str]:
    """Give each node a name: its own, or its first output's where that is empty or not unique.

    Where the output's name is not unique either (branches of one If), its scope is put before it;
    a number at its end tells apart what is still the same.
    """
    nodes = list(index.walk())
    named = Counter(node.name for _, node in nodes)
    made = Counter(first_output(node) for _, node in nodes)
    names = {site: node.name for site, node in nodes if node.name and named[node.name] == 1}
    taken = set(names.values())
    for site, node in nodes:
        if site not in names:
            output = first_output(node)
            path = "" if made[output] == 1 else index.scopes[site.scope].path
            names[site] = unused(f"{path}{output}", taken)
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    index: ModelIndex
    folder: Path
    site: Site
    node: NodeProto
    operator: Operator

    @property
    def opset(self) -> int:
        return self.index.scopes[self.site.scope].opset

    def source(self, position: int) -> WeightSource | str:
        return find_source(self.index, self.site.scope, self.node.input[position], self.folder)

    def is_constant(self, position: int) -> bool:
        return isinstance(self.source(position), WeightSource)


def _examine(candidate: _Candidate, name: str, ranks: Mapping[Key, int]) -> Layer | Skipped:
    node, operator, site = candidate.node, candidate.operator, candidate.site
    position = operator.weight_input(candidate.is_constant)
    source, op, weight = candidate.source(position), operator.name, node.input[position]
    reason = source if isinstance(source, str) else _refusal(candidate, position, source)
    if isinstance(source, str) or reason:
        dims = () if isinstance(source, str) else source.shape
        return Skipped(site=site, name=name, op=op, weight_name=weight, dims=dims, reason=reason)
    activation = candidate.index.resolve(site.scope, node.input[1 - position])
    rank = operator.activation_rank(ranks.get(activation.key) if activation else None)
    return Layer(
        site=site,
        name=name,
        op=op,
        source=source,
        weight_name=weight,
        weight_input=position,
        layout=operator.layout(node, position, source.shape),
        activation_rank=rank,
        is_sliceable=operator.is_sliceable(candidate.opset, rank),
        opset=candidate.opset,
    )


def _refusal(candidate: _Candidate, position: int, source: WeightSource) -> str:
    """Why a node with a constant weight cannot be decomposed; "" if it can."""
    element_type, node = source.tensor.data_type, candidate.node
    if element_type not in DECOMPOSABLE:
        return f"its weight is of type {type_name(element_type)}"
    if candidate.opset < _FIRST_OPSET:
        return f"opset {candidate.opset} is older than {_FIRST_OPSET}"
    if has_arguments(node):
        return "its attributes are arguments of the function"
    reason = _called(candidate) or _quantized(candidate, position, source)
    reason = reason or candidate.operator.refusal(node, source.shape, candidate.is_constant)
    if reason:
        return reason
    shape = candidate.operator.layout(node, position, source.shape).shape
    if shape.num_parameters < _FEWEST_PARAMETERS:
        return f"its weight is tiny ({shape.num_parameters} parameters)"
    return "" if shape.slice_counts() else "even rank 1 has as many parameters as the weight"


def _quantized(candidate: _Candidate, position: int, source: WeightSource) -> str:
    """Why a quantized weight stays; "" if it is not quantized, or can be made float."""
    makers = [site for site in source.chain if _dequantizes(candidate.index, site)]
    index, name = candidate.index, candidate.node.input[1 - position]
    for site in makers:
        narrow = _narrow_type(index, site)
        if narrow:
            return f"its weight is stored as {narrow}: its factors would take more space"
    activation = index.resolve(candidate.site.scope, name)
    if not makers or activation is None or activation.kind is not Kind.NODE:
        return ""
    if _dequantizes(index, Site(activation.key.scope, activation.node)):
        return "its activation and its weight are quantized: compress the float model first"
    return ""


def _dequantizes(index: ModelIndex, site: Site) -> bool:
    return index.node(site).op_type == "DequantizeLinear"


def _narrow_type(index: ModelIndex, site: Site) -> str:
    """Name the type that a node dequantizes if it is no integer of 8 bits or more; or ""."""
    definition = index.resolve(site.scope, index.node(site).input[0])
    tensor = constant_of(index, definition) if definition else None
    if tensor is None:
        return ""
    is_narrow = tensor.data_type in FLOATING or num_bytes(tensor) < num_elements(tensor)
    return type_name(tensor.data_type) if is_narrow else ""


def _called(candidate: _Candidate) -> str:
    """Why a node that calls a function of the model stays."""
    node, functions = candidate.node, candidate.index.model.functions
    is_call = any((f.domain, f.name) == (node.domain, node.op_type) for f in functions)
    return "the model has a function of this name, which may compute anything" if is_call else ""
