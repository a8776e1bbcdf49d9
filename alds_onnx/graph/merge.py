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
from onnx import ModelProto, NodeProto, TensorProto

from alds_onnx.decompose.folding import compose
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.operators.stages import factors_of_stages
from alds_onnx.graph.pairs import Pair, Unmerged, find_pairs
from alds_onnx.graph.rewrite import forget, new_tensor, store
from alds_onnx.graph.scopes import Key, ModelIndex, Site, unused
from alds_onnx.graph.spill import Spill
from alds_onnx.graph.tensors import read_array, stored, type_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merging:
    """A model whose pairs are joined.

    Attributes
    ----------
    model
        A new model.
    pairs
        What was joined. A layer that had been cut twice is there twice.
    left
        What looks like a pair and stays as it is.
    """

    model: ModelProto
    pairs: tuple[Pair, ...]
    left: tuple[Unmerged, ...]


def merge_pairs(model: ModelProto, folder: Path, spill: Spill | None = None) -> Merging:
    """Join all pairs of a model, those within a pair first.

    Parameters
    ----------
    model
        Stays as it is.
    folder
        Where its external data lies.
    spill
        Where the numbers of composed weights go; into the model if None.
    """
    result = ModelProto()
    result.CopyFrom(model)
    joined: list[Pair] = []
    while True:
        index = ModelIndex(result)
        found, left = find_pairs(index, folder)
        splice = _Join(index, folder, spill)
        for group in _by_weight(found):
            left += splice.add(group)
        joined += splice.joined
        if not splice.joined:
            return Merging(model=result, pairs=tuple(joined), left=tuple(left))
        splice.finish()


def _by_weight(pairs: Sequence[Pair]) -> list[list[Pair]]:
    groups: dict[object, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.weight_key, []).append(pair)
    return list(groups.values())


def _composed(index: ModelIndex, pair: Pair, folder: Path) -> npt.NDArray[Any]:
    """The dense weight as the layer reads it, in float64."""
    nodes = [index.node(factor.site) for factor in pair.factors]
    arrays = [read_array(factor.tensor, folder) for factor in pair.factors]
    weights = OPERATORS[pair.op].stage_weights(pair.layout, nodes, arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = compose(factors_of_stages(pair.layout.shape, pair.cut, weights))
    return pair.layout.to_weight(matrix)


class _Join:
    """The changes to one model; they take place in `finish`."""

    def __init__(self, index: ModelIndex, folder: Path, spill: Spill | None) -> None:
        self.index, self.folder, self.spill = index, folder, spill
        self.names = index.names()
        self.joined: list[Pair] = []
        self.tensors: dict[int, list[TensorProto]] = {}
        self.nodes: dict[Site, NodeProto | None] = {}
        self.dropped: set[Key] = set()

    def add(self, group: Sequence[Pair]) -> list[Unmerged]:
        """Join the pairs that share their factors; say why if that cannot be done."""
        first = group[0]
        weight, kind = _composed(self.index, first, self.folder), first.element_type
        if not np.isfinite(stored(weight, kind)).all():
            reason = f"its product is out of the range of {type_name(kind)}"
            return [Unmerged(name=pair.name, reason=reason) for pair in group]
        name = unused(first.weight, self.names)
        self._add_weight(first, name, weight)
        for pair in group:
            self._replace(pair, name)
        self.joined += group
        return []

    def _add_weight(self, pair: Pair, name: str, weight: npt.NDArray[Any]) -> None:
        tensor = new_tensor(name, weight, pair.element_type, self.spill)
        self.tensors.setdefault(pair.factors[0].key.scope, []).append(tensor)
        for key in pair.keys:
            self.dropped.add(key)
            definition = self.index.resolve(key.scope, key.name)
            if definition is not None and definition.node >= 0:  # a Constant node
                self.nodes[Site(key.scope, definition.node)] = None

    def _replace(self, pair: Pair, weight: str) -> None:
        dense = NodeProto()
        dense.CopyFrom(self.index.node(pair.site))
        position = list(dense.input[:2]).index(pair.code)
        dense.input[position] = pair.activation
        dense.input[1 - position] = weight
        dense.op_type = pair.op
        dense.ClearField("attribute")
        dense.attribute.extend(pair.attributes)
        self.nodes[pair.site] = dense
        for site in pair.between:
            self.nodes[site] = None
            outputs = self.index.node(site).output
            self.dropped.update(Key(site.scope, name) for name in outputs)

    def finish(self) -> None:
        """Change the model."""
        for site in sorted(self.nodes, key=lambda s: (s.scope, s.node), reverse=True):
            nodes, new = self.index.scopes[site.scope].body.node, self.nodes[site]
            if new is None:
                del nodes[site.node]
            else:
                nodes[site.node].CopyFrom(new)
        for number, tensors in self.tensors.items():
            store(self.index.scopes[number], self.index.model.ir_version, tensors)
        for scope in self.index.scopes:
            names = {key.name for key in self.dropped if key.scope == scope.number}
            if names:
                forget(scope.body, names)
