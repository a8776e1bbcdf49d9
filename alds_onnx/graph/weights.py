"""Following a node's weight back to the constant that it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    Definition,
    Key,
    Kind,
    ModelIndex,
    Site,
    constant_tensor,
    has_arguments,
    integer,
    integers,
)
from alds_onnx.graph.tensors import read_array

_Array = npt.NDArray[np.generic]

# A longer chain of reshapes is a loop in a broken graph.
_LONGEST_CHAIN = 64
# Operators that only move the entries of their first input.
_LINKS = {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}

_ARGUMENT = "its weight depends on an argument of the function"


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A constant `tensor`, and the nodes through which it reaches its reader.

    `read` is the tensor that the layer's node reads, of ONNX shape `shape`, and `base` the one that
    holds the numbers: the same if there is no node between. `chain` has the nodes from `base` to
    `read`, and the Constant node that holds `base` if there is one; they go when the weight goes.
    It is `overridable` if a caller may replace `base`, which then is a graph input too.
    """

    tensor: TensorProto
    read: Key
    base: Key
    chain: tuple[Site, ...]
    shape: tuple[int, ...]
    overridable: bool


def find_source(index: ModelIndex, scope: int, name: str, folder: Path) -> WeightSource | str:
    """Find the constant that a name leads to, or the reason why there is none."""
    definition = index.resolve(scope, name)
    if definition is None:
        return f"its weight '{name}' is not defined"
    read, chain = definition.key, list[Site]()
    for _ in range(_LONGEST_CHAIN):
        tensor = constant_of(index, definition)
        if tensor is not None:
            if definition.kind is Kind.NODE:
                chain.append(_site(definition))
            links, base = tuple(reversed(chain)), definition.key
            shape = _shape(index, tensor, links, folder)
            if isinstance(shape, str):
                return shape
            return WeightSource(tensor, read, base, links, shape, definition.overridable)
        upstream = _upstream(index, definition)
        if isinstance(upstream, str):
            return upstream
        chain.append(_site(definition))
        definition = upstream
    return "its weight comes through too many nodes"


def _upstream(index: ModelIndex, definition: Definition) -> Definition | str:
    """What a tensor is made from by a node that only moves its entries, or why it is not."""
    if definition.kind is not Kind.NODE:
        return _not_constant(index, definition)
    site = _site(definition)
    node = index.node(site)
    if node.op_type not in _LINKS or node.domain not in DEFAULT_DOMAINS:
        return _computed(node)
    if has_arguments(node):
        return _ARGUMENT
    upstream = index.resolve(site.scope, node.input[0])
    return upstream if upstream is not None else f"its weight '{node.input[0]}' is not defined"


def _site(definition: Definition) -> Site:
    return Site(definition.key.scope, definition.node)


def read_weight(index: ModelIndex, source: WeightSource, folder: Path) -> _Array:
    """Read the numbers that the layer's node reads, in the shape in which it reads them."""
    array = read_array(source.tensor, folder)
    for site in source.chain:
        if index.node(site).op_type != "Constant":
            array = _apply(index, site, array, folder)
    return array


def _shape(
    index: ModelIndex, tensor: TensorProto, chain: tuple[Site, ...], folder: Path
) -> tuple[int, ...] | str:
    """Give the shape at the end of the chain; no numbers are read where there is no chain."""
    links = [s for s in chain if index.node(s).op_type != "Constant"]
    if not links:
        return tuple(tensor.dims)
    array: _Array = np.broadcast_to(np.zeros((), np.int8), tuple(tensor.dims))
    try:
        for site in links:
            array = _apply(index, site, array, folder)
    except (ValueError, IndexError, TypeError) as e:
        return f"its weight cannot be followed through {index.node(links[-1]).op_type}: {e}"
    return array.shape


def constant_of(index: ModelIndex, definition: Definition) -> TensorProto | None:
    """The tensor of an initializer or a Constant node; None for anything else."""
    if definition.kind is Kind.INITIALIZER:
        return definition.tensor
    if definition.kind is Kind.NODE:
        return constant_tensor(index.node(_site(definition)))
    return None


def _not_constant(index: ModelIndex, definition: Definition) -> str:
    if index.scopes[definition.key.scope].is_function:
        return _ARGUMENT
    if definition.kind is Kind.SPARSE:
        return "its weight is a sparse initializer"
    return f"its weight '{definition.key.name}' is an input, not a constant"


def _computed(node: NodeProto) -> str:
    if node.op_type == "DequantizeLinear":
        return "its weight is quantized (DequantizeLinear)"
    if node.op_type == "Cast":
        return "its weight is stored in another type and cast"
    if node.op_type == "Constant":
        return _ARGUMENT if has_arguments(node) else "its weight is not a dense tensor"
    return f"its weight is computed at run time by {node.op_type}"


def _apply(index: ModelIndex, site: Site, array: _Array, folder: Path) -> _Array:
    """Compute what one of the `_LINKS` makes of its first input."""
    node = index.node(site)
    if node.op_type == "Transpose":
        return array.transpose(integers(node, "perm"))
    if node.op_type == "Reshape":
        shape = _integers(index, site, "shape", folder)
        if not integer(node, "allowzero", 0):
            shape = [array.shape[i] if n == 0 else n for i, n in enumerate(shape)]
        return array.reshape(shape)
    if node.op_type == "Flatten":
        axis = integer(node, "axis", 1)
        axis += array.ndim if axis < 0 else 0
        return array.reshape(int(np.prod(array.shape[:axis])), -1)
    if node.op_type == "Squeeze":
        return np.squeeze(array, tuple(_integers(index, site, "axes", folder)) or None)
    if node.op_type == "Unsqueeze":
        return np.expand_dims(array, tuple(_integers(index, site, "axes", folder)))
    return array  # Identity


def _integers(index: ModelIndex, site: Site, name: str, folder: Path) -> list[int]:
    """Integers given as an attribute (old opsets) or as the second, constant input."""
    node = index.node(site)
    given = integers(node, name)
    if given is not None:
        return list(given)
    if len(node.input) < 2 or not node.input[1]:
        return []
    definition = index.resolve(site.scope, node.input[1])
    tensor = constant_of(index, definition) if definition else None
    if tensor is None:
        raise ValueError(f"its {name} is not constant")
    return [int(i) for i in np.ravel(read_array(tensor, folder))]
