"""The nodes of a pair, read backwards from the decoder: one function for each pattern.

What `graph.patterns` builds, `_FORMS` at the end lists: the operators behind a decoder, and who
reads the attributes and shapes of such nodes. A new pattern is a new line there, and its function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto

from alds_onnx.graph.layers import Operand
from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    Kind,
    ModelIndex,
    Site,
    has_arguments,
    integer,
    integers,
)
from alds_onnx.graph.tensors import read_array
from alds_onnx.graph.weights import constant_of

_UNKNOWN = "its nodes are not those of a pattern that this version knows"


class Role(str, Enum):
    """What a tensor of a pair is called behind the name of its weight, or of its node."""

    CODE = "encoded"
    ENCODER = "encoder"
    CORE = "core"
    DECODER = "decoder"

    def stem(self, name: str) -> str | None:
        """What stands before the role in a name, perhaps with a number behind; or None."""
        match = re.fullmatch(rf"(.+)/{self.value}(?:_\d+)?", name, re.DOTALL)
        return match.group(1) if match else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may be a decoder, and the name of the code that it reads."""

    index: ModelIndex
    folder: Path
    site: Site
    code: str

    @property
    def node(self) -> NodeProto:
        """The node itself."""
        return self.index.node(self.site)

    def constant(self, name: str) -> TensorProto | None:
        """The tensor of an initializer or a Constant node that a name means in this graph."""
        definition = self.index.resolve(self.site.scope, name) if name else None
        return constant_of(self.index, definition) if definition else None

    def integers(self, name: str) -> list[int] | None:
        """A small constant of integers, such as a shape; None for anything else."""
        tensor = self.constant(name)
        if tensor is None or tensor.data_type != TensorProto.INT64:
            return None
        return [int(n) for n in np.ravel(read_array(tensor, self.folder))]

    def maker(self, name: str, op: str) -> Site | None:
        """The node that makes a tensor which nothing but its one reader needs, if it is an `op`."""
        definition = self.index.resolve(self.site.scope, name)
        if definition is None or definition.kind is not Kind.NODE:
            return None
        site = Site(definition.key.scope, definition.node)
        node = self.index.node(site)
        fits = _is(node, op) and len(node.output) == 1 and not has_arguments(node)
        alone = len(self.index.uses.get(definition.key, ())) == 1
        return site if fits and alone and site.scope == self.site.scope else None


def _is(node: NodeProto, op: str) -> bool:
    return node.op_type == op and node.domain in DEFAULT_DOMAINS


def read_form(candidate: Candidate) -> Form | str:
    """What the nodes say of the pair that one is the decoder of, or why it is none."""
    node = candidate.node
    if node.op_type not in _FORMS or node.domain not in DEFAULT_DOMAINS:
        return f"{node.op_type} reads its code: other tools have changed the pair"
    if has_arguments(node):
        return "its attributes are arguments of the function"
    for ops, read in _FORMS[node.op_type]:
        chain = _trace(candidate, ops)
        if chain is not None:
            return read(candidate, chain)
    return _UNKNOWN


@dataclass(frozen=True, slots=True)
class _Chain:
    """The nodes behind a decoder, the nearest first, and what the farthest reads."""

    sites: tuple[Site, ...]
    activation: str


def _trace(candidate: Candidate, ops: tuple[str, ...]) -> _Chain | None:
    """Follow the code back through nodes of the given operators."""
    sites, name = [], candidate.code
    for op in ops:
        site = candidate.maker(name, op)
        if site is None:
            return None
        sites.append(site)
        node = candidate.index.node(site)
        constant = op == "MatMul" and candidate.constant(node.input[0]) is not None
        name = node.input[1 if constant else 0]
    return _Chain(tuple(sites), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a pattern says about a pair; its factors are yet to be looked at.

    Attributes
    ----------
    between, activation
        As in `Pair`.
    factors
        The nodes that read them, in the order in which they are applied, and their names.
    num_slices
        k of a product; None where the encoder's own shape (k, .., ..) says it, and for a Conv.
    operand, transposed, channels_first
        As in `Layer`.
    """

    between: tuple[Site, ...]
    activation: str
    factors: tuple[tuple[Site, str], ...]
    num_slices: int | None
    operand: Operand
    transposed: bool
    channels_first: bool


def _convolutions(candidate: Candidate, chain: _Chain) -> Form | str:
    """Grouped Conv, Conv; with a core 1x1 Conv, Conv, 1x1 Conv."""
    if Role.CORE.stem(candidate.index.node(chain.sites[0]).input[1]):
        longer = _trace(candidate, ("Conv", "Conv"))
        if longer is None:
            return _UNKNOWN
        chain = longer
    earlier = [(site, candidate.index.node(site)) for site in reversed(chain.sites)]
    if candidate.node.input[0] != candidate.code or any(any(n.input[2:]) for _, n in earlier):
        return _UNKNOWN
    return Form(
        between=chain.sites,
        activation=chain.activation,
        factors=(
            *((site, node.input[1]) for site, node in earlier),
            (candidate.site, candidate.node.input[1]),
        ),
        num_slices=None,
        operand=Operand.KERNEL,
        transposed=False,
        channels_first=True,
    )


def _one_product(candidate: Candidate, chain: _Chain) -> Form | str:
    """MatMul, MatMul or Gemm."""
    return _product(candidate, chain, chain.sites[0], 1, chain.sites)


def _rows(candidate: Candidate, chain: _Chain) -> Form | str:
    """Reshape (.., k, c/k, m), batched MatMul, Reshape (.., k·j, m), MatMul or Gemm."""
    last, product, first = chain.sites
    form = _product(candidate, chain, product, None, chain.sites)
    if isinstance(form, str) or not form.channels_first:
        return _UNKNOWN
    tensor = candidate.constant(form.factors[0][1])
    if tensor is None or len(tensor.dims) != 3:
        return _UNKNOWN
    k, j, width = tensor.dims
    before = candidate.integers(candidate.index.node(first).input[1]) or []
    after = candidate.integers(candidate.index.node(last).input[1]) or []
    batch = [0] * (len(before) - 3)
    fits = before == [*batch, k, width, -1] and after == [*batch, k * j, -1]
    return form if fits else _UNKNOWN


def _columns(candidate: Candidate, chain: _Chain) -> Form | str:
    """Reshape, Transpose, batched MatMul, Transpose back, Reshape, MatMul or Gemm."""
    last, back, product, swap, first = chain.sites
    shape = candidate.index.node(last).input[1]
    helpers = _restoring(candidate, shape, chain.activation)
    form = _product(candidate, chain, product, None, chain.sites + helpers)
    if isinstance(form, str) or form.channels_first:
        return _UNKNOWN
    tensor = candidate.constant(form.factors[0][1])
    before = candidate.integers(candidate.index.node(first).input[1]) or []
    if tensor is None or len(tensor.dims) != 3 or len(before) < 3:
        return _UNKNOWN
    k, width, j = tensor.dims
    leading, axes = before[:-2], len(before) - 3
    swapped = (*range(axes), axes + 1, axes, axes + 2)
    nodes = [candidate.index.node(site) for site in (swap, back)]
    kept = [-1] if leading == [1, -1] else leading
    expected = [k * j] if helpers else [*kept, k * j]
    fits = (
        before[-2:] == [k, width]
        and (leading == [1, -1] or not any(leading))
        and _restored_size(candidate, shape, helpers) == expected
        and all(integers(node, "perm") == swapped for node in nodes)
    )
    return form if fits else _UNKNOWN


def _restoring(candidate: Candidate, shape: str, activation: str) -> tuple[Site, ...]:
    """The nodes that compute a shape from the axes of the activation: Concat (Shape, constant)."""
    concat = candidate.maker(shape, "Concat")
    if concat is None or len(candidate.index.node(concat).input) != 2:
        return ()
    axes = candidate.maker(candidate.index.node(concat).input[0], "Shape")
    if axes is None:
        return ()
    node = candidate.index.node(axes)
    part = (integer(node, "start", 0), integer(node, "end", 0))
    return (concat, axes) if node.input[0] == activation and part == (0, -1) else ()


def _restored_size(candidate: Candidate, shape: str, helpers: tuple[Site, ...]) -> list[int] | None:
    """What the last Reshape is told as a constant: all of the shape, or its last axis."""
    return candidate.integers(candidate.index.node(helpers[0]).input[1] if helpers else shape)


def _product(
    candidate: Candidate,
    chain: _Chain,
    product: Site,
    num_slices: int | None,
    between: tuple[Site, ...],
) -> Form | str:
    """What the encoder's MatMul and the decoder say together."""
    encoder, decoder = candidate.index.node(product), candidate.node
    position = list(decoder.input[:2]).index(candidate.code)
    operand = Operand.LEFT if position else Operand.RIGHT
    is_gemm = decoder.op_type == "Gemm"
    flags = [bool(integer(decoder, name, 0)) and is_gemm for name in ("transA", "transB")]
    channels_first = (operand is Operand.LEFT) != flags[position]
    weight = flags[1 - position]
    encoder_input = 0 if candidate.constant(encoder.input[0]) is not None else 1
    if channels_first != (encoder_input == 0):
        return _UNKNOWN
    constants = [
        shape
        for site in between
        for name in candidate.index.node(site).input[1:]
        if _is_shape(candidate, site, name) and (shape := candidate.maker(name, "Constant"))
    ]
    return Form(
        between=(*between, *constants),
        activation=chain.activation,
        factors=(
            (product, encoder.input[encoder_input]),
            (candidate.site, decoder.input[1 - position]),
        ),
        num_slices=num_slices,
        operand=operand,
        transposed=weight if operand is Operand.LEFT else not weight,
        channels_first=channels_first,
    )


def _is_shape(candidate: Candidate, site: Site, name: str) -> bool:
    node = candidate.index.node(site)
    return node.op_type in ("Reshape", "Concat") and candidate.integers(name) is not None


_Reader = Callable[[Candidate, _Chain], "Form | str"]

#: By the decoder's operator: the operators behind it, the nearest first, and who reads them.
_PRODUCTS: tuple[tuple[tuple[str, ...], _Reader], ...] = (
    (("MatMul",), _one_product),
    (("Reshape", "MatMul", "Reshape"), _rows),
    (("Reshape", "Transpose", "MatMul", "Transpose", "Reshape"), _columns),
)
_FORMS: Mapping[str, tuple[tuple[tuple[str, ...], _Reader], ...]] = {
    "Conv": ((("Conv",), _convolutions),),
    "Gemm": _PRODUCTS,
    "MatMul": _PRODUCTS,
}
