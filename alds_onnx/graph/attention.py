"""Projections of attention: queries, keys and values of one activation.

Runtimes fuse softmax(Q Kᵀ) V with the three products that make Q, K and V into one operator. They
look for one MatMul each: with two in its place nothing is fused, and the model may be slower than
before (onnxruntime, pull request 17249).
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from onnx import NodeProto

from alds_onnx.graph.scopes import Key, Kind, ModelIndex, Site

# What may stand between the products: biases, scales, masks, heads.
_BETWEEN = {
    "Add",
    "Cast",
    "Div",
    "Dropout",
    "Identity",
    "Mul",
    "Reshape",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
}
_PRODUCTS = {"MatMul", "Gemm"}
# Nodes that are looked at on the way; attention has fewer.
_FARTHEST = 40


def attention_projections(index: ModelIndex, layers: Iterable[Site]) -> frozenset[Site]:
    """Those layers that make Q, K and V of the same activation for a Softmax between two products.

    `layers` are products with a constant weight.
    """
    sites = frozenset(layers)
    found: set[Site] = set()
    for site, node in index.walk():
        if node.op_type == "Softmax":
            found |= _projections(index, sites, site, node)
    return frozenset(found)


def _projections(
    index: ModelIndex, layers: Set[Site], site: Site, softmax: NodeProto
) -> frozenset[Site]:
    scores = [s for s in _upstream(index, site.scope, softmax.input[:1]) if s not in layers]
    mixed = [s for s in _downstream(index, Key(site.scope, softmax.output[0])) if s not in layers]
    if len(scores) != 1 or len(mixed) != 1:
        return frozenset()
    values = [s for s in _upstream(index, site.scope, index.node(mixed[0]).input) if s != scores[0]]
    operands = [_upstream(index, site.scope, [name]) for name in index.node(scores[0]).input]
    parts = [site for own in (*operands, values) for site in own]
    whole = len(parts) == len(set(parts)) == 3 and layers >= set(parts)
    return frozenset(parts) if whole and len(_sources(index, parts)) == 1 else frozenset()


def _sources(index: ModelIndex, sites: Iterable[Site]) -> set[Key]:
    """The activations that products read: operands that no initializer gives."""
    keys = set()
    for site in sites:
        for name in index.node(site).input[:2]:
            definition = index.resolve(site.scope, name)
            if definition and definition.kind in (Kind.NODE, Kind.INPUT):
                keys.add(definition.key)
    return keys


def _upstream(index: ModelIndex, scope: int, names: Iterable[str]) -> list[Site]:
    """The nearest products that these tensors are made by."""
    found: list[Site] = []
    queue, seen = list(names), set[Key]()
    while queue and len(seen) < _FARTHEST:
        definition = index.resolve(scope, queue.pop())
        if definition is None or definition.kind is not Kind.NODE or definition.key in seen:
            continue
        seen.add(definition.key)
        site = Site(definition.key.scope, definition.node)
        node = index.node(site)
        if node.op_type in _PRODUCTS:
            found.append(site)
        elif node.op_type in _BETWEEN:
            queue.extend(node.input)
    return found


def _downstream(index: ModelIndex, key: Key) -> list[Site]:
    """The nearest products that read a tensor."""
    found: list[Site] = []
    queue, seen = [key], set[Key]()
    while queue and len(seen) < _FARTHEST:
        tensor = queue.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        for use in index.uses.get(tensor, ()):
            if use.site is None:
                continue
            node = index.node(use.site)
            if node.op_type in _PRODUCTS:
                found.append(use.site)
            elif node.op_type in _BETWEEN:
                queue.extend(Key(use.site.scope, name) for name in node.output)
    return found
