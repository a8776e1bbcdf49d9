"""Parts of a model's main graph, as models of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from alds_onnx.graph.scopes import subgraphs


def prefix(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Give a model that computes tensors of the main graph, which nodes make, and nothing more."""
    return _part(model, model.graph.node, list(model.graph.input), names)


def segment(
    model: ModelProto,
    start: int,
    stop: int,
    given: Mapping[str, tuple[int, int]],
    wanted: Sequence[str],
) -> ModelProto:
    """Give the nodes from `start` up to `stop` of the main graph as a model.

    `given` has the element type and rank of the tensors that are there already, by name. Of those
    `wanted`, the ones that are given or constant are left out of the outputs.
    """
    nodes = list(model.graph.node)
    between = nodes[start:stop]
    made = {name for node in between if node.op_type != "Constant" for name in node.output}
    constants = [node for node in nodes if node.op_type == "Constant"]
    moving = [node for node in between if node.op_type != "Constant"]
    inputs = [make_value(name, *kind) for name, kind in given.items()]
    return _part(model, [*constants, *moving], inputs, [n for n in wanted if n in made])


def live_tensors(model: ModelProto) -> Callable[[int], list[str]]:
    """Give a function of a node's number: the tensors made before it and read at it or later.

    Outputs of the graph stay alive to the end. Constants are not among them: a part of the model
    brings its own.
    """
    nodes = model.graph.node
    last: dict[str, int] = {output.name: len(nodes) for output in model.graph.output}
    for i, node in enumerate(nodes):
        for name in reads(node):
            last[name] = max(i, last.get(name, -1))
    made = {value.name: -1 for value in model.graph.input}
    for tensor in model.graph.initializer:
        made.pop(tensor.name, None)
    for i, node in enumerate(nodes):
        if node.op_type != "Constant":
            made.update((name, i) for name in node.output if name)

    def alive(node: int) -> list[str]:
        return [name for name, i in made.items() if i < node <= last.get(name, -1)]

    return alive


def reads(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, also those that its subgraphs may read from outside."""
    yield from (name for name in node.input if name)
    for _, graph in subgraphs(node):
        yield from _reads_of_graph(graph)


def _reads_of_graph(graph: GraphProto) -> Iterator[str]:
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from reads(node)


def _part(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    names: Sequence[str],
) -> ModelProto:
    """Give the nodes that some tensors need, in order, with the constants that these read."""
    graph = model.graph
    needed = set(names)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads(node))
    kept.reverse()

    result = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = "part"
    result.graph.node.extend(kept)
    result.graph.input.extend(value for value in inputs if value.name in needed)
    result.graph.initializer.extend(t for t in graph.initializer if t.name in needed)
    sparse = (t for t in graph.sparse_initializer if t.values.name in needed)
    result.graph.sparse_initializer.extend(sparse)
    result.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return result


def make_value(name: str, element_type: int, rank: int) -> ValueInfoProto:
    """Declare a tensor of which only type and number of axes are known."""
    value = ValueInfoProto(name=name)
    tensor = value.type.tensor_type
    tensor.elem_type = element_type
    tensor.shape.SetInParent()
    for _ in range(rank):
        tensor.shape.dim.add()
    return value
