"""Following a node's weight back to the constants that it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from alds_onnx.errors import ModelError
from alds_onnx.graph.constants.compute import (
    LINKS,
    Array,
    NotComputedError,
    closure,
    compute,
    constant_of,
    reason_variable,
)
from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    Definition,
    Key,
    Kind,
    ModelIndex,
    Site,
    integer,
    integers,
)
from alds_onnx.graph.tensors import read_array

__all__ = ["WeightSource", "constant_of", "find_source", "read_weight"]

# A longer chain of reshapes is a loop in a broken graph.
_LONGEST_CHAIN = 64
# From then on, an initializer that is no graph input cannot be replaced by a caller.
_FIRST_IR_WITH_FREE_INITIALIZERS = 4


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A constant, and the nodes through which it reaches its reader.

    `read` is the tensor that the layer's node reads, of ONNX shape `shape`, and `base` the one from
    which only links lead there, nodes that move entries: the same if there is no link. `tensor` is
    that constant; of a base that nodes compute from constants it has only type and dimensions.
    `chain` has all nodes up to `read`, in order, those that hold a constant and those that make a
    shape for a link among them; `constants` are the initializers and Constant nodes that are read.
    `strides` say where in the base the entries of `read` lie, axis by axis; None if that cannot be
    said so. It is `overridable` if a caller may replace `base`, which then is a graph input too.
    """

    tensor: TensorProto
    read: Key
    base: Key
    chain: tuple[Site, ...]
    shape: tuple[int, ...]
    overridable: bool
    constants: tuple[Key, ...] = ()
    strides: tuple[int, ...] | None = None


def find_source(index: ModelIndex, scope: int, name: str, folder: Path) -> WeightSource | str:
    """Find the constants that a name leads to, or the reason why there are none."""
    definition = index.resolve(scope, name)
    if definition is None:
        return f"its weight '{name}' is not defined"
    known = index.sources.get(definition.key)
    if isinstance(known, WeightSource | str):
        return known
    try:
        found = _find(index, definition, folder)
    except (NotComputedError, ModelError) as e:
        found = str(e)
    index.sources[definition.key] = found
    return found


def _find(index: ModelIndex, definition: Definition, folder: Path) -> WeightSource | str:
    reason = reason_variable(index, definition)
    if reason:
        return reason
    base, links = _base(index, definition)
    chain, constants = closure(index, definition)
    tensor = constant_of(index, base)
    if tensor is None:
        replaceable = _replaceable(index, constants)
        if replaceable:
            return f"its weight is computed from '{replaceable}', which a caller may replace"
        array = compute(index, base, folder)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=base.key.name, data_type=kind, dims=array.shape)
    shape, strides = _moved(index, links, tuple(tensor.dims), folder)
    return WeightSource(
        tensor=tensor,
        read=definition.key,
        base=base.key,
        chain=tuple(chain),
        shape=shape,
        overridable=base.overridable,
        constants=tuple(constants),
        strides=strides,
    )


def _moved(
    index: ModelIndex, links: list[Site], dims: tuple[int, ...], folder: Path
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The shape at the end of some links, and the strides if the entries are not out of order."""
    if not links:
        return dims, _strides(dims)
    entries = np.zeros(dims, np.int8)  # the strides of single bytes count entries
    moved = _followed(index, links, entries, folder)
    in_place = np.may_share_memory(moved, entries)
    return moved.shape, _normal(moved.shape, moved.strides) if in_place else None


def _strides(dims: tuple[int, ...]) -> tuple[int, ...]:
    """How far apart the neighbours along each axis lie."""
    found, step = list[int](), 1
    for size in reversed(dims):
        found.append(step)
        step *= size
    return _normal(dims, tuple(reversed(found)))


def _normal(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(0 if n == 1 else step for n, step in zip(shape, strides, strict=True))


def _base(index: ModelIndex, definition: Definition) -> tuple[Definition, list[Site]]:
    """The tensor from which only links lead to a constant, and these links."""
    links: list[Site] = []
    while definition.kind is Kind.NODE:
        site = _site(definition)
        node = index.node(site)
        is_link = node.op_type in LINKS and node.domain in DEFAULT_DOMAINS
        if not is_link or not _is_plain(index, site):
            break
        upstream = index.resolve(site.scope, node.input[0])
        assert upstream is not None
        links.append(site)
        definition = upstream
        if len(links) > _LONGEST_CHAIN:
            raise NotComputedError("its weight comes through too many nodes")
    return definition, links[::-1]


def _is_plain(index: ModelIndex, site: Site) -> bool:
    """Whether the shape or the axes of a link, if it has any, are not computed."""
    names = [name for name in index.node(site).input[1:] if name]
    found = (index.resolve(site.scope, name) for name in names)
    return all(d is not None and constant_of(index, d) is not None for d in found)


def _site(definition: Definition) -> Site:
    return Site(definition.key.scope, definition.node)


def _replaceable(index: ModelIndex, constants: list[Key]) -> str | None:
    """Name a constant that a caller may replace; None if there is none.

    In old models every initializer has to be a graph input.
    """
    if index.model.ir_version < _FIRST_IR_WITH_FREE_INITIALIZERS:
        return None
    definitions = (index.resolve(key.scope, key.name) for key in constants)
    return next((d.key.name for d in definitions if d and d.overridable), None)


def read_weight(index: ModelIndex, source: WeightSource, folder: Path) -> Array:
    """Read the numbers that the layer's node reads, in the shape in which it reads them."""
    definition = index.resolve(source.read.scope, source.read.name)
    assert definition is not None
    base, links = _base(index, definition)
    tensor = constant_of(index, base)
    array = compute(index, base, folder) if tensor is None else read_array(tensor, folder)
    return _followed(index, links, array, folder)


def _followed(index: ModelIndex, links: list[Site], array: Array, folder: Path) -> Array:
    """Apply links to the base of a weight."""
    try:
        for site in links:
            array = _apply(index, site, array, folder)
    except (ValueError, IndexError, TypeError) as e:
        op = index.node(links[-1]).op_type
        raise NotComputedError(f"its weight cannot be followed through {op}: {e}") from e
    return array


def _apply(index: ModelIndex, site: Site, array: Array, folder: Path) -> Array:
    """Compute what one of the `LINKS` makes of its first input."""
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
