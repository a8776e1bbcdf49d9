"""Who reads the constants that a layer's weight is made from.

Where the layers that read a weight share its factors, and nobody else reads it, it goes. Layers
that read parts of one constant, such as Q, K and V of a fused weight, are decomposed one by one,
and one that stays whole gets its part as a constant. Anything else that reads a constant makes it
stay, so that factors would come on top: then none is decomposed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from alds_onnx.graph.accounting import parameters_by_constant
from alds_onnx.graph.layers import Layer, Skipped, skipped
from alds_onnx.graph.scopes import Key, ModelIndex, Site, Use

# Smaller constants, such as scales and axes, may be read by anyone.
SMALL = 64


def without_other_uses(
    index: ModelIndex, found: Sequence[Layer | Skipped]
) -> tuple[Layer | Skipped, ...]:
    """Skip the layers whose constants something else reads too."""
    rows, counts = list(found), parameters_by_constant(index)
    while True:
        layers = [row for row in rows if isinstance(row, Layer)]
        reasons = _reasons(index, layers, counts)
        if not reasons:
            return _with_common_slices(rows)
        rows = [
            skipped(row, reasons[row.site])
            if isinstance(row, Layer) and row.site in reasons
            else row
            for row in rows
        ]


def left_whole(
    index: ModelIndex, layers: Iterable[Layer], cut: Collection[object]
) -> dict[object, list[Layer]]:
    """Weights that stay whole while a part of the constants that they are made from is cut.

    `cut` are the keys of the weights that are cut.
    """
    counts, known = parameters_by_constant(index), list(layers)
    freed = {k for one in known if one.weight_key in cut for k in held(one, counts)}
    groups: dict[object, list[Layer]] = {}
    for layer in known:
        if layer.weight_key not in cut and not freed.isdisjoint(held(layer, counts)):
            groups.setdefault(layer.weight_key, []).append(layer)
    return groups


def held(layer: Layer, counts: Mapping[Key, int]) -> tuple[Key, ...]:
    """The constants with the numbers of a layer's weight, without small ones."""
    return tuple(key for key in layer.source.constants if counts.get(key, 0) >= SMALL)


def _with_common_slices(rows: Sequence[Layer | Skipped]) -> tuple[Layer | Skipped, ...]:
    """Give all who share factors as many slices as the one that can have fewest."""
    single = {row.weight_key for row in rows if isinstance(row, Layer) and not row.is_sliceable}
    return tuple(
        replace(row, is_sliceable=False)
        if isinstance(row, Layer) and row.weight_key in single
        else row
        for row in rows
    )


def _reasons(index: ModelIndex, layers: list[Layer], counts: Mapping[Key, int]) -> dict[Site, str]:
    """Why some of these layers cannot be decomposed."""
    readers = {Use(layer.site, layer.weight_input) for layer in layers}
    chains = {site for layer in layers for site in layer.source.chain}
    others: dict[Key, str | None] = {}
    reasons = {}
    for layer in layers:
        for key in (*held(layer, counts), layer.source.base, layer.source.read):
            if key not in others:
                others[key] = _other_use(index, key, readers, chains)
            if others[key]:
                reasons[layer.site] = _text(others[key] or "")
    return reasons or _reasons_of_bundles(index, layers, counts)


def _text(other: str) -> str:
    return f"its weight is also {other}, so that cutting it would add parameters"


def _other_use(
    index: ModelIndex, key: Key, readers: Collection[Use], chains: Collection[Site]
) -> str | None:
    """Find a use of a tensor, or of what chains make of it, that is not a layer's weight."""
    queue, seen = [key], {key}
    own = {use.site for use in readers}
    while queue:
        for use in index.uses.get(queue.pop(), ()):
            if use.site is None:
                return "a graph output"
            if use in readers:
                continue
            if use.site in own:
                return f"another operand of the same {index.node(use.site).op_type}"
            if use.site not in chains:
                return f"read by {index.node(use.site).op_type}"
            made = [Key(use.site.scope, name) for name in index.node(use.site).output if name]
            queue += [out for out in made if out not in seen]
            seen.update(made)
    return None


def _reasons_of_bundles(
    index: ModelIndex, layers: list[Layer], counts: Mapping[Key, int]
) -> dict[Site, str]:
    """Refuse weights that together have more numbers than the constants they are made from."""
    reasons: dict[Site, str] = {}
    for bundle in _bundles(layers, counts):
        sizes = {layer.weight_key: prod(layer.source.shape) for layer in bundle}
        constants = {key for layer in bundle for key in layer.source.constants}
        stored = sum(counts.get(key, 0) for key in constants)
        if sum(sizes.values()) <= stored:
            continue
        for layer in bundle:
            other = next((o for o in bundle if o.weight_key != layer.weight_key), None)
            reasons[layer.site] = (
                f"its weight is computed from only {stored:,} numbers"
                if other is None
                else _text(f"read by {other.op}, in another layout or form")
            )
    return reasons


def _bundles(layers: list[Layer], counts: Mapping[Key, int]) -> list[list[Layer]]:
    """Group the layers that have constants in common."""
    bundle_of: dict[object, list[Layer]] = {}
    for layer in layers:
        keys: list[object] = [layer.weight_key, *held(layer, counts)]
        joined = [layer]
        for other in {id(b): b for b in (bundle_of.get(key) for key in keys) if b}.values():
            joined += other
            keys += [key for o in other for key in (o.weight_key, *held(o, counts))]
        for key in keys:
            bundle_of[key] = joined
    return list({id(bundle): bundle for bundle in bundle_of.values()}.values())
