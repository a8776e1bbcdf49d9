"""The part of a model that some of its tensors need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from alds_onnx.graph.scopes import subgraphs


def prefix(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """A model that computes tensors of the main graph and nothing more.

    Parameters
    ----------
    model
        Stays as it is.
    names
        Tensors of its main graph; they become the outputs.
    """
    graph = model.graph
    needed = set(names)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_reads(node))
    kept.reverse()

    result = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = graph.name or "prefix"
    result.graph.node.extend(kept)
    result.graph.input.extend(v for v in graph.input if v.name in needed)
    result.graph.initializer.extend(t for t in graph.initializer if t.name in needed)
    sparse = (t for t in graph.sparse_initializer if t.values.name in needed)
    result.graph.sparse_initializer.extend(sparse)
    result.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return result


def _reads(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, also those that its subgraphs may read from outside."""
    yield from node.input
    for _, graph in subgraphs(node):
        yield from _reads_of_graph(graph)


def _reads_of_graph(graph: GraphProto) -> Iterator[str]:
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from _reads(node)
