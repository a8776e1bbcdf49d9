"""Where each tensor of a model is defined and who reads it, across subgraphs and functions.

Names are local to a graph, and a subgraph sees the names of the graphs around it; a function sees
only its own (ONNX IR specification, "Names Within a Graph"). A scope is one graph or function; a
tensor is known by the scope that defines it and its name there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
)

from alds_onnx.errors import ModelError

DEFAULT_DOMAINS = ("", "ai.onnx")


class Kind(Enum):
    """How a tensor comes into being."""

    INPUT = auto()
    INITIALIZER = auto()
    SPARSE = auto()
    NODE = auto()


@dataclass(frozen=True, slots=True)
class Key:
    """One tensor of a model: the number of its scope, and its name there."""

    scope: int
    name: str


@dataclass(frozen=True, slots=True)
class Site:
    """One node of a model: the number of its scope, and its place there."""

    scope: int
    node: int


@dataclass(frozen=True, slots=True)
class Use:
    """A reader of a tensor: input number `index` of a node, or a graph output (`site` None)."""

    site: Site | None
    index: int


@dataclass(slots=True)
class Definition:
    """Where a tensor comes from."""

    key: Key
    kind: Kind
    node: int = -1
    tensor: TensorProto | None = None
    overridable: bool = False


@dataclass(slots=True)
class Scope:
    """One graph or function of a model."""

    number: int
    parent: int | None
    body: GraphProto | FunctionProto
    opset: int
    path: str
    definitions: dict[str, Definition] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)

    @property
    def is_function(self) -> bool:
        """Whether the scope is a function's body, which can hold no initializers."""
        return isinstance(self.body, FunctionProto)


def default_opset(imports: Iterable[OperatorSetIdProto]) -> int:
    """Version of the default domain among `opset_import` entries; 1 if it is not there."""
    versions = [o.version for o in imports if o.domain in DEFAULT_DOMAINS]
    return max(versions, default=1)


class ModelIndex:
    """All scopes of a model, their definitions and the uses of every tensor.

    The numbers of scopes and nodes are the same for a copy of the model. A name that is not UTF-8
    is a ModelError.

    Attributes
    ----------
    variable, sources
        What `graph.constants` and `graph.weights` have found out about tensors, so that each is
        looked at once: why it is not constant, and the source of its numbers.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.scopes: list[Scope] = []
        self.uses: dict[Key, list[Use]] = {}
        self.variable: dict[Key, str] | None = None
        self.sources: dict[Key, object] = {}
        opset = default_opset(model.opset_import)
        self._add_scope(model.graph, parent=None, opset=opset, path="")
        for function in model.functions:
            own = default_opset(function.opset_import)
            self._add_scope(function, parent=None, opset=own, path=f"{function.name}/")
        for scope in self.scopes:
            _check_names(scope.body)
            self._record_uses(scope)

    def node(self, site: Site) -> NodeProto:
        """Give the node at a site."""
        node: NodeProto = self.scopes[site.scope].body.node[site.node]
        return node

    def resolve(self, scope: int, name: str) -> Definition | None:
        """Find the definition that `name` means in a scope; None if there is none."""
        number: int | None = scope
        while number is not None:
            found = self.scopes[number].definitions.get(name)
            if found is not None:
                return found
            number = self.scopes[number].parent
        return None

    def walk(self) -> Iterator[tuple[Site, NodeProto]]:
        """All nodes in graph order, those of a subgraph after the node that holds it."""
        for scope in self.scopes:
            if scope.parent is None:
                yield from self._walk_scope(scope)

    def names(self) -> set[str]:
        """Every name of a tensor or node anywhere in the model."""
        found: set[str] = set()
        for scope in self.scopes:
            found.update(scope.definitions)
            found.update(v.name for v in getattr(scope.body, "value_info", ()))
            for node in scope.body.node:
                found.add(node.name)
                found.update(node.input)
                found.update(node.output)
        return found

    def _walk_scope(self, scope: Scope) -> Iterator[tuple[Site, NodeProto]]:
        for i, node in enumerate(scope.body.node):
            yield Site(scope.number, i), node
            for child in scope.children.get(i, ()):
                yield from self._walk_scope(self.scopes[child])

    def _add_scope(
        self, body: GraphProto | FunctionProto, *, parent: int | None, opset: int, path: str
    ) -> int:
        scope = Scope(number=len(self.scopes), parent=parent, body=body, opset=opset, path=path)
        self.scopes.append(scope)
        self._define_inputs(scope)
        for i, node in enumerate(body.node):
            for name in node.output:
                if name:
                    key = Key(scope.number, name)
                    scope.definitions[name] = Definition(key, Kind.NODE, node=i)
            for attribute, graph in subgraphs(node):
                label = f"{path}{node.name or first_output(node) or node.op_type}.{attribute}/"
                child = self._add_scope(graph, parent=scope.number, opset=opset, path=label)
                scope.children.setdefault(i, []).append(child)
        return scope.number

    def _define_inputs(self, scope: Scope) -> None:
        body = scope.body
        if isinstance(body, FunctionProto):
            for name in body.input:
                scope.definitions[name] = Definition(Key(scope.number, name), Kind.INPUT)
            return
        for value in body.input:
            key = Key(scope.number, value.name)
            scope.definitions[value.name] = Definition(key, Kind.INPUT)
        inputs = set(scope.definitions)
        for tensor in body.initializer:
            key = Key(scope.number, tensor.name)
            scope.definitions[tensor.name] = Definition(
                key, Kind.INITIALIZER, tensor=tensor, overridable=tensor.name in inputs
            )
        for sparse in body.sparse_initializer:
            key = Key(scope.number, sparse.values.name)
            scope.definitions[key.name] = Definition(key, Kind.SPARSE)

    def _record_uses(self, scope: Scope) -> None:
        for i, node in enumerate(scope.body.node):
            for index, name in enumerate(node.input):
                self._record(scope.number, name, Use(Site(scope.number, i), index))
        for output in scope.body.output:
            name = output if isinstance(output, str) else output.name
            self._record(scope.number, name, Use(None, -1))

    def _record(self, scope: int, name: str, use: Use) -> None:
        definition = self.resolve(scope, name) if name else None
        if definition is not None:
            self.uses.setdefault(definition.key, []).append(use)


def _check_names(body: GraphProto | FunctionProto) -> None:
    """Refuse names that are not UTF-8, for which protobuf gives bytes."""
    names: list[str | bytes] = []
    for node in body.node:
        names += (node.name, node.op_type, node.domain, *node.input, *node.output)
        names += (attribute.name for attribute in node.attribute)
    if isinstance(body, GraphProto):
        names += (v.name for v in (*body.input, *body.output, *body.initializer))
    else:
        names += (body.name, *body.input, *body.output)
    broken = next((name for name in names if isinstance(name, bytes)), None)
    if broken is not None:
        raise ModelError(f"the name {broken!r} is not UTF-8")


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Give the graphs that a node holds in its attributes, with the attributes' names."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.name, attribute.g
        for i, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}[{i}]", graph


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Give the tensor of a Constant node; None for other nodes and other kinds of value."""
    if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS:
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and not attribute.ref_attr_name:
            tensor: TensorProto = attribute.t
            return tensor
    return None


def integer(node: NodeProto, name: str, default: int) -> int:
    """Value of an integer attribute of a node, or `default`.

    https://onnx.ai/onnx/repo-docs/IR.html#attributes
    """
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def integers(node: NodeProto, name: str) -> tuple[int, ...] | None:
    """Value of an attribute of a node that is a list of integers, or None."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), None)


def string(node: NodeProto, name: str) -> str | None:
    """Value of a string attribute of a node, or None."""
    found = (a.s.decode("utf-8", "replace") for a in node.attribute if a.name == name)
    return next(found, None)


def real(node: NodeProto, name: str, default: float) -> float:
    """Value of a float attribute of a node, or `default`."""
    return next((float(a.f) for a in node.attribute if a.name == name), default)


def has_arguments(node: NodeProto) -> bool:
    """Whether an attribute of a node is an argument of the function that the node is in."""
    return any(a.ref_attr_name for a in node.attribute)


def unused(stem: str, names: set[str]) -> str:
    """Make a name that is not among `names`, and put it there."""
    name, number = stem, 0
    while name in names:
        number += 1
        name = f"{stem}_{number}"
    names.add(name)
    return name


def first_output(node: NodeProto) -> str:
    """Name of the first output that a node has; "" if it has none.

    The first ones of several may be left out.
    """
    return next((name for name in node.output if name), "")
