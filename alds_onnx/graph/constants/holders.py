"""Who holds the parameters of a model, so that the rows of the plan account for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from alds_onnx.graph.accounting import parameters_by_constant
from alds_onnx.graph.constants.compute import (
    NotComputedError,
    closure,
    constant_of,
    reason_variable,
)
from alds_onnx.graph.constants.sharing import SMALL
from alds_onnx.graph.find import row_names
from alds_onnx.graph.layers import Layer, Skipped
from alds_onnx.graph.operators import operator_of
from alds_onnx.graph.scopes import DEFAULT_DOMAINS, Definition, Key, ModelIndex, Site

_NORMALIZATIONS = frozenset(
    {
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
        *("GroupNormalization", "RMSNormalization", "SkipLayerNormalization"),
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    }
)
_REASONS = {
    "Add": "a bias",
    "Sub": "a bias",
    "Mul": "a scale",
    "Div": "a scale",
    "PRelu": "slopes",
    "Einsum": "an Einsum of other than two operands",
    **dict.fromkeys(_NORMALIZATIONS, "scales and shifts of a normalization"),
}


@dataclass(frozen=True, slots=True)
class Holding:
    """How many parameters a row stands for, and the row that counts them if it is not this one."""

    parameters: int
    counted_by: str = ""


def other_holders(index: ModelIndex, known: Sequence[Layer | Skipped]) -> tuple[Skipped, ...]:
    """Rows for the nodes of other operators that read constants of more than `SMALL` numbers.

    Nodes that only make constants of constants are left to their readers.
    """
    sites, counts, names = (
        {row.site for row in known},
        parameters_by_constant(index),
        row_names(index),
    )
    rows = []
    for site, node in index.walk():
        if site in sites or _makes_constants(index, site, node):
            continue
        largest = _largest_operand(index, site, node, counts)
        if largest is not None:
            rows.append(_row(index, node, (site, names[site]), largest))
    return tuple(rows)


def in_graph_order(
    index: ModelIndex, rows: Sequence[Layer | Skipped]
) -> tuple[Layer | Skipped, ...]:
    """Sort rows by the places of their nodes."""
    places = {site: place for place, (site, _) in enumerate(index.walk())}
    return tuple(sorted(rows, key=lambda row: places[row.site]))


def holdings(index: ModelIndex, rows: Sequence[Layer | Skipped]) -> dict[Site, Holding]:
    """Share out the parameters among rows, each to one row.

    Layers come first; of layers that share a weight, and of others that read the same constants,
    the first one counts them.
    """
    counts, owners = parameters_by_constant(index), dict[Key, str]()
    found: dict[Site, Holding] = {}
    first: dict[object, str] = {}
    for row in rows:
        if isinstance(row, Layer):
            owner = first.setdefault(row.weight_key, row.name)
            shared = "" if owner == row.name else owner
            found[row.site] = Holding(prod(row.source.shape), shared)
            owners |= {key: owner for key in row.source.constants if key not in owners}
    for row in rows:
        if isinstance(row, Skipped):
            keys = _read_constants(index, row.site, counts)
            own = [key for key in keys if key not in owners]
            owners |= dict.fromkeys(own, row.name)
            other = owners[keys[0]] if keys and not own else ""
            parameters = sum(counts[key] for key in own or keys)
            found[row.site] = Holding(parameters, other)
    return found


def _makes_constants(index: ModelIndex, site: Site, node: NodeProto) -> bool:
    definitions = (index.resolve(site.scope, name) for name in node.output if name)
    return all(d is not None and not reason_variable(index, d) for d in definitions)


def _read_constants(index: ModelIndex, site: Site, counts: Mapping[Key, int]) -> list[Key]:
    """The constants that a row stands for: the weight, or all large operands of other operators."""
    node, found = index.node(site), dict[Key, None]()
    operator = operator_of(node)
    positions = range(len(node.input)) if operator is None else range(min(2, len(node.input)))
    for position in positions:
        definition = _constant_operand(index, site, node.input[position])
        if definition is not None:
            least = SMALL + 1 if operator is None else 1
            found |= dict.fromkeys(_large(index, definition, counts, least))
    return list(found)


def _large(
    index: ModelIndex, definition: Definition, counts: Mapping[Key, int], least: int = SMALL + 1
) -> list[Key]:
    try:
        _, constants = closure(index, definition)
    except NotComputedError:
        return []
    return [key for key in constants if counts.get(key, 0) >= least]


def _constant_operand(index: ModelIndex, site: Site, name: str) -> Definition | None:
    definition = index.resolve(site.scope, name) if name else None
    if definition is None or reason_variable(index, definition):
        return None
    return definition


def _largest_operand(
    index: ModelIndex, site: Site, node: NodeProto, counts: Mapping[Key, int]
) -> tuple[str, Key] | None:
    """The name of the operand that is made from the largest constant, and that constant."""
    best: tuple[int, str, Key] | None = None
    for name in node.input:
        definition = _constant_operand(index, site, name)
        for key in _large(index, definition, counts) if definition else ():
            if best is None or counts[key] > best[0]:
                best = (counts[key], name, key)
    return None if best is None else best[1:]


def _row(
    index: ModelIndex, node: NodeProto, place: tuple[Site, str], held: tuple[str, Key]
) -> Skipped:
    """Make the row of a node, at a place with a name, and its largest operand."""
    (site, name), (weight, key) = place, held
    definition = index.resolve(key.scope, key.name)
    tensor = constant_of(index, definition) if definition else None
    op = node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
    return Skipped(
        site=site,
        name=name,
        op=op,
        weight_name=weight,
        dims=tuple(tensor.dims) if tensor is not None else (),
        reason=_REASONS.get(node.op_type, f"operator '{op}' is not supported"),
    )
