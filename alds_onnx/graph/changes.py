"""Changes to the nodes and constants of a model, collected first and then made all at once."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from typing import Any, TypeVar

import numpy.typing as npt
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto

from alds_onnx.graph.files.external import Spill
from alds_onnx.graph.scopes import Key, ModelIndex, Scope, Site, unused
from alds_onnx.graph.tensors import make_tensor

_Entry = TypeVar("_Entry")

FIRST_IR_WITH_FREE_INITIALIZERS = 4


class Changes:
    """Changes to one model; they take place in `apply`, so that sites and keys stay valid.

    New nodes take the place of the old one in the list, so that the order stays topological. New
    constants become initializers, or Constant nodes where an initializer would have to be a graph
    input as well (IR version < 4) or cannot be (functions).
    """

    def __init__(self, index: ModelIndex, spill: Spill | None) -> None:
        """New numbers go to `spill`, or into the model if that is None."""
        self._index, self._spill = index, spill
        self._names = index.names()
        self._nodes: dict[Site, Sequence[NodeProto]] = {}
        self._tensors: dict[int, list[TensorProto]] = {}
        self._dropped: set[Key] = set()

    def name(self, stem: str) -> str:
        """Make a name that the model does not have yet."""
        return unused(stem, self._names)

    def replace(self, site: Site, nodes: Sequence[NodeProto]) -> None:
        """Put nodes in the place of one that makes the same output."""
        self._nodes[site] = nodes

    def remove(self, site: Site) -> None:
        """Remove a node, and every trace of what it makes."""
        self._nodes[site] = ()
        self.forget(*(Key(site.scope, name) for name in self._index.node(site).output))

    def forget(self, *keys: Key) -> None:
        """Remove every trace of tensors, but for the nodes that make them."""
        self._dropped.update(keys)

    def add(self, scope: int, name: str, array: npt.NDArray[Any], element_type: int) -> None:
        """Add a constant."""
        tensor = make_tensor(name, array, element_type)
        if self._spill is not None:
            self._spill.move(tensor)
        self._tensors.setdefault(scope, []).append(tensor)

    def apply(self) -> None:
        """Change the model."""
        for site in sorted(self._nodes, key=lambda s: (s.scope, s.node), reverse=True):
            nodes = self._index.scopes[site.scope].body.node
            del nodes[site.node]
            for new in reversed(self._nodes[site]):
                nodes.insert(site.node, new)
        for number, tensors in self._tensors.items():
            _store(self._index.scopes[number], self._index.model.ir_version, tensors)
        for scope in self._index.scopes:
            names = {key.name for key in self._dropped if key.scope == scope.number}
            if names:
                _forget(scope.body, names)


def _store(scope: Scope, ir_version: int, tensors: Sequence[TensorProto]) -> None:
    body = scope.body
    if isinstance(body, GraphProto) and ir_version >= FIRST_IR_WITH_FREE_INITIALIZERS:
        body.initializer.extend(tensors)
        return
    for tensor in reversed(tensors):
        constant = NodeProto(op_type="Constant", output=[tensor.name])
        value = constant.attribute.add(name="value", type="TENSOR")
        value.t.CopyFrom(tensor)
        value.t.ClearField("name")
        body.node.insert(0, constant)


def _forget(body: GraphProto | FunctionProto, names: set[str]) -> None:
    _remove(body.value_info, lambda value: value.name in names)
    if isinstance(body, GraphProto):
        _remove(body.initializer, lambda tensor: tensor.name in names)
        _remove(body.input, lambda value: value.name in names)
        _remove(body.quantization_annotation, lambda entry: entry.tensor_name in names)


def _remove(entries: MutableSequence[_Entry], is_gone: Callable[[_Entry], bool]) -> None:
    for i in reversed(range(len(entries))):
        if is_gone(entries[i]):
            del entries[i]
