"""Joining pairs back into dense layers, in a copy of the model; everything else stays as it is.

The decoder's node becomes the layer's again: it has kept the name, the output, the bias, alpha and
beta. A Conv takes its strides, pads and dilations back from whichever of its nodes has them, axis
by axis. The composed weight gets the name that it had, unless that is taken; merging a model that
was just compressed gives the original, field for field, but for the numbers of its weights and
where they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from alds_onnx.decompose.factorize import compose
from alds_onnx.decompose.stages import factors_of_stages
from alds_onnx.graph.changes import Changes
from alds_onnx.graph.files.external import Spill
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.pairs import Pair, Unmerged, find_pairs
from alds_onnx.graph.scopes import ModelIndex, Site
from alds_onnx.graph.tensors import read_array, stored, type_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merging:
    """A new model whose `pairs` are joined; those `left` only look like pairs and stay as they are.

    A layer that had been cut twice is there twice.
    """

    model: ModelProto
    pairs: tuple[Pair, ...]
    left: tuple[Unmerged, ...]


def merge_pairs(model: ModelProto, folder: Path, spill: Spill | None = None) -> Merging:
    """Join all pairs of a model, those within a pair first; the model itself stays as it is.

    The numbers of composed weights go to `spill`, or into the model if that is None.
    """
    result = ModelProto()
    result.CopyFrom(model)
    joined: list[Pair] = []
    while True:
        index = ModelIndex(result)
        found, left = find_pairs(index, folder)
        changes, merged = Changes(index, spill), list[Pair]()
        for group in _by_weight(found):
            reason = _join(index, folder, changes, group)
            if reason:
                left += [Unmerged(name=pair.name, reason=reason) for pair in group]
            else:
                merged += group
        joined += merged
        if not merged:
            return Merging(model=result, pairs=tuple(joined), left=tuple(left))
        changes.apply()


def _by_weight(pairs: Sequence[Pair]) -> list[list[Pair]]:
    groups: dict[object, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.weight_key, []).append(pair)
    return list(groups.values())


def _composed(index: ModelIndex, pair: Pair, folder: Path) -> npt.NDArray[Any]:
    """The dense weight as the layer reads it, in float64."""
    nodes = [index.node(factor.site) for factor in pair.factors]
    arrays = [
        array.T if factor.is_transposed else array
        for factor in pair.factors
        for array in [read_array(factor.tensor, folder)]
    ]
    weights = OPERATORS[pair.op].stage_weights(pair.layout, nodes, arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = compose(factors_of_stages(pair.layout.shape, pair.cut, weights))
    return pair.layout.to_weight(matrix)


def _join(index: ModelIndex, folder: Path, changes: Changes, group: Sequence[Pair]) -> str:
    """Join the pairs that share their factors; say why if that cannot be done."""
    first = group[0]
    weight, kind = _composed(index, first, folder), first.element_type
    if not np.isfinite(stored(weight, kind)).all():
        return f"its product is out of the range of {type_name(kind)}"
    name = changes.name(first.weight)
    changes.add(first.factors[0].key.scope, name, weight, kind)
    for key in first.keys:
        changes.forget(key)
        definition = index.resolve(key.scope, key.name)
        if definition is not None and definition.node >= 0:  # a Constant node
            changes.remove(Site(key.scope, definition.node))
    for pair in group:
        changes.replace(pair.site, _dense(index, changes, pair, name, first))
        for site in pair.between:
            changes.remove(site)
    return ""


def _dense(
    index: ModelIndex, changes: Changes, pair: Pair, weight: str, first: Pair
) -> list[NodeProto]:
    """The dense node; the weight is as `first` reads it, and may have to be transposed for it."""
    dense, links = NodeProto(), []
    dense.CopyFrom(index.node(pair.site))
    position = pair.weight_input
    if position is None:
        position = 1 - list(dense.input[:2]).index(pair.code)
    if pair.reads_transposed != first.reads_transposed:
        transposed = changes.name(f"{weight}/transposed")
        links.append(helper.make_node("Transpose", [weight], [transposed], perm=[1, 0]))
        weight = transposed
    dense.input[1 - position] = pair.activation
    dense.input[position] = weight
    dense.op_type = OPERATORS[pair.op].op_type
    dense.ClearField("attribute")
    dense.attribute.extend(pair.attributes)
    return [*links, dense]
