"""Reading the chain of nodes that replaces a layer, upstream from its last node."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto

from alds_onnx.cuts import Cut
from alds_onnx.graph.layers import WeightLayout
from alds_onnx.graph.scopes import DEFAULT_DOMAINS, Kind, ModelIndex, Site, has_arguments
from alds_onnx.graph.tensors import read_array
from alds_onnx.graph.weights import constant_of

MISFIT = "the shapes or types of its factors do not fit together"


class Role(str, Enum):
    """What a tensor is called after the name of the layer's weight, or of its node."""

    CODE = "encoded"
    ENCODER = "encoder"
    CORE = "core"
    DECODER = "decoder"

    def stem(self, name: str) -> str | None:
        """What stands before the role in a name that may end in a number (`_1`); or None."""
        match = re.fullmatch(rf"(.+)/{self.value}(?:_\d+)?", name, re.DOTALL)
        return match.group(1) if match else None


def weight_roles(count: int) -> tuple[Role, ...]:
    """What the weights of two or three stages are called, in the order of the stages."""
    return (Role.ENCODER, *(Role.CORE,) * (count - 2), Role.DECODER)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The nodes upstream of a decoder, the nearest first, and what the farthest reads."""

    sites: tuple[Site, ...]
    activation: str


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

    def is_factor(self, name: str) -> bool:
        """Whether a name means a constant, or one behind a node that shares it with a table."""
        link = self.maker(name, "Identity", "Transpose")
        name = self.index.node(link).input[0] if link else name
        return self.constant(name) is not None

    def integers(self, name: str) -> list[int] | None:
        """A small constant of integers, such as a shape; None for anything else."""
        tensor = self.constant(name)
        if tensor is None or tensor.data_type != TensorProto.INT64:
            return None
        return [int(n) for n in np.ravel(read_array(tensor, self.folder))]

    def maker(self, name: str, *ops: str) -> Site | None:
        """The node that makes a tensor which only one node reads, if it is one of `ops`."""
        definition = self.index.resolve(self.site.scope, name)
        if definition is None or definition.kind is not Kind.NODE:
            return None
        site = Site(definition.key.scope, definition.node)
        node = self.index.node(site)
        is_op = node.op_type in ops and node.domain in DEFAULT_DOMAINS
        fits = is_op and len(node.output) == 1 and not has_arguments(node)
        has_one_reader = len(self.index.uses.get(definition.key, ())) == 1
        return site if fits and has_one_reader and site.scope == self.site.scope else None

    def follow(self, ops: Sequence[Collection[str]]) -> Upstream | None:
        """Follow the code upstream through nodes of the given operators."""
        sites, name = [], self.code
        for choice in ops:
            site = self.maker(name, *choice)
            if site is None:
                return None
            sites.append(site)
            node = self.index.node(site)
            is_left = node.op_type == "MatMul" and self.is_factor(node.input[0])
            name = node.input[1 if is_left else 0]
        return Upstream(tuple(sites), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Nodes that have the structure of a decomposed layer; their weights are not yet read.

    `between` and `activation` are as in `Pair`. `factors` are the nodes that read the weights of
    the stages, in the order in which they are applied, and the names of the weights. `weight_input`
    is the input of the dense node that is its weight; None: the one of the decoder.
    """

    between: tuple[Site, ...]
    activation: str
    factors: tuple[tuple[Site, str], ...]
    weight_input: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The dense node that a chain of nodes stands for; `cut` says how its weight is cut."""

    layout: WeightLayout
    cut: Cut
    attributes: tuple[AttributeProto, ...]
