"""What nobody reads any more once some readers are gone."""

from __future__ import annotations

from collections.abc import Collection

from alds_onnx.graph.scopes import Definition, Key, Kind, ModelIndex, Site, Use


def dead_upstream(
    index: ModelIndex, released: Collection[Use], kept: Collection[Key] = ()
) -> tuple[set[Site], set[Key]]:
    """Nodes and tensors that only `released` uses lead to, which are about to go.

    What nobody read before is not among them, nor is what `kept` names. A graph input stays.
    """
    gone, sites, keys = set(released), set[Site](), set[Key]()
    queue = [d for use in released if use.site for d in _read(index, use.site, use.index)]
    while queue:
        definition = queue.pop()
        key = definition.key
        if key in keys or key in kept or definition.kind is Kind.INPUT:
            continue
        if any(use not in gone for use in index.uses.get(key, ())):
            continue
        keys.add(key)
        if definition.kind is not Kind.NODE:
            continue
        site = Site(key.scope, definition.node)
        node = index.node(site)
        outputs = [Key(key.scope, name) for name in node.output if name]
        if all(out in keys or not index.uses.get(out) for out in outputs):
            sites.add(site)
            keys.update(outputs)
            for i in range(len(node.input)):
                gone.add(Use(site, i))
                queue += _read(index, site, i)
    return sites, keys


def _read(index: ModelIndex, site: Site, position: int) -> list[Definition]:
    name = index.node(site).input[position]
    definition = index.resolve(site.scope, name) if name else None
    return [] if definition is None else [definition]
