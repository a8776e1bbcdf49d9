"""Finding the pairs that this package wrote, as `graph.operators` builds them.

A pair is taken for one of ours if both of this hold:

    names       its factors are called `<weight>/encoder` and `<weight>/decoder`, for Tucker-2 with
                `<weight>/core` between them, and what the decoder reads is `<node>/encoded`, all
                perhaps with a number at the end (`_1`);
    structure   the nodes, their attributes and the shapes of the factors are those of a pattern,
                the factors are constants, and nothing else reads what lies between.

Structure alone is not enough: MobileNet's depthwise convolution and the 1x1 convolution after it
have that of a pair, and joined they would grow. Names alone are not enough either, because other
tools work on the file too. A mark in `metadata_props` would say no more than the names do, is not
allowed before IR version 10, and is lost in tools that keep the names.

What has the names but not the structure is left alone, and the reason given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx import AttributeProto, TensorProto

from alds_onnx.cuts import Cut
from alds_onnx.graph.find import row_names
from alds_onnx.graph.layers import WeightLayout
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.operators.operator import Operator
from alds_onnx.graph.operators.reading import MISFIT, Candidate, Form, Role, weight_roles
from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    Definition,
    Key,
    Kind,
    ModelIndex,
    Site,
    first_output,
    has_arguments,
    integers,
)
from alds_onnx.graph.tensors import DECOMPOSABLE, type_name
from alds_onnx.graph.weights import constant_of

_UNKNOWN = "its nodes are not those of a pattern that this version knows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One of the constants of a pair, and the node that reads it.

    `link` is an Identity or a Transpose between the two, if there is one.
    """

    site: Site
    key: Key
    tensor: TensorProto
    link: Site | None = None
    is_transposed: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """The sizes that the node reads."""
        dims = tuple(self.tensor.dims)
        return dims[::-1] if self.is_transposed else dims


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An encoder and a decoder, perhaps with a core between them, that stand for one layer.

    `site` and `name` are those of the decoder, which has the layer's name, output and bias;
    `weight` is what the layer called its weight. `between` is every node that goes with the
    encoder, the one that reads it among them. The encoder reads `activation`, the decoder reads
    `code` and makes `output`. `factors` are encoder, core (Tucker-2 only) and decoder, all in one
    graph and of one type. `op`, `layout`, `attributes` and `weight_input` are those of the dense
    node; see `Form`.
    """

    site: Site
    name: str
    weight: str
    between: tuple[Site, ...]
    activation: str
    code: str
    output: str
    factors: tuple[Factor, ...]
    op: str
    layout: WeightLayout
    cut: Cut
    attributes: tuple[AttributeProto, ...]
    weight_input: int | None = None

    @property
    def is_mirrored(self) -> bool:
        """Whether its factors are transposed ones of another pair."""
        return all(factor.link is not None for factor in self.factors)

    @property
    def reads_transposed(self) -> bool:
        """Whether the dense node reads the transposed of the matrix that pairs have in common."""
        return self.layout.transposed != self.is_mirrored

    @property
    def element_type(self) -> int:
        """ONNX's number for the type of the factors."""
        return self.factors[0].tensor.data_type

    @property
    def keys(self) -> tuple[Key, ...]:
        """Where the factors are defined."""
        return tuple(factor.key for factor in self.factors)

    @property
    def weight_key(self) -> tuple[object, ...]:
        """Pairs with the same key stand for layers that shared a weight."""
        if self.is_mirrored:
            return *reversed(self.keys), self.layout.mirror(one_hot=True).shape, self.cut
        if self.layout.shape.one_hot:
            return *self.keys, self.layout.shape, self.cut
        return *self.keys, self.layout, self.cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmerged:
    """A node that has the names of a decoder and cannot be joined, with the reason."""

    name: str
    reason: str


def find_pairs(index: ModelIndex, folder: Path) -> tuple[list[Pair], list[Unmerged]]:
    """Every pair of a model that can be joined, in graph order, and what only looks like one."""
    names = row_names(index)
    pairs: list[Pair] = []
    left: list[Unmerged] = []
    for site, code in _candidates(index):
        found = _examine(Candidate(index, folder, site, code), names[site])
        if isinstance(found, Pair) and len({key.scope for key in found.keys}) > 1:
            found = "its factors are in two graphs"
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            left.append(Unmerged(name=names[site], reason=found))
    return _without_other_uses(index, pairs, left)


def _candidates(index: ModelIndex) -> Iterator[tuple[Site, str]]:
    """Nodes that read a code and make something else, with the code's name.

    The other nodes of a pattern make tensors of the same stem.
    """
    for site, node in index.walk():
        own = {Role.CODE.stem(name) for name in node.output}
        for name in node.input[:2]:
            stem = Role.CODE.stem(name)
            definition = index.resolve(site.scope, name) if stem else None
            if definition and definition.kind is Kind.NODE and stem not in own:
                yield site, name
                break


def _examine(candidate: Candidate, name: str) -> Pair | str:
    """The pair that a node is the decoder of, or the reason why there is none."""
    found = _read(candidate)
    if isinstance(found, str):
        return found
    operator, form = found
    weight = _weight_name(form)
    if weight is None:
        quoted = " and ".join(f"'{factor}'" for _, factor in form.factors)
        return f"{quoted} are not the names of a pair"
    factors = []
    for site, factor_name in form.factors:
        factor = _factor(candidate, site, factor_name)
        if isinstance(factor, str):
            return factor
        factors.append(factor)
    if len({factor.tensor.data_type for factor in factors}) > 1:
        return MISFIT
    nodes = [candidate.index.node(factor.site) for factor in factors]
    whole = operator.whole(form, nodes, [factor.dims for factor in factors])
    if isinstance(whole, str):
        return whole
    return Pair(
        site=candidate.site,
        name=name,
        weight=weight,
        between=(*form.between, *(factor.link for factor in factors if factor.link)),
        activation=form.activation,
        code=candidate.code,
        output=first_output(candidate.node),
        factors=tuple(factors),
        op=operator.name,
        layout=whole.layout,
        cut=whole.cut,
        attributes=whole.attributes,
        weight_input=form.weight_input,
    )


def _read(candidate: Candidate) -> tuple[Operator, Form] | str:
    """The operator whose nodes a decoder and those upstream of it are, and their structure."""
    node = candidate.node
    domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
    known = [o for o in OPERATORS.values() if o.domain == domain]
    operators = [o for o in known if node.op_type in o.last_ops]
    if not operators:
        return f"{node.op_type} reads its code: other tools have changed the pair"
    if has_arguments(node):
        return "its attributes are arguments of the function"
    for operator in operators:
        form = operator.read(candidate)
        if form is not None:
            return operator, form
    return _UNKNOWN


def _weight_name(form: Form) -> str | None:
    """What the layer called its weight; None if the factors are not called after one."""
    roles = weight_roles(len(form.factors))
    stems = {role.stem(name) for role, (_, name) in zip(roles, form.factors, strict=True)}
    return stems.pop() if len(stems) == 1 else None


def _factor(candidate: Candidate, site: Site, name: str) -> Factor | str:
    definition: Definition | None = candidate.index.resolve(candidate.site.scope, name)
    link, is_transposed = candidate.maker(name, "Identity", "Transpose"), False
    if link is not None:
        node = candidate.index.node(link)
        definition = candidate.index.resolve(link.scope, node.input[0])
        is_transposed = node.op_type == "Transpose"
        if is_transposed and integers(node, "perm") not in (None, (1, 0)):
            return _UNKNOWN
    tensor = constant_of(candidate.index, definition) if definition else None
    if definition is None or tensor is None:
        return f"its factor '{name}' is not a constant"
    if definition.overridable:
        return f"its factor '{name}' is a graph input too, which a caller may replace"
    if tensor.data_type not in DECOMPOSABLE:
        return f"its factor '{name}' is of type {type_name(tensor.data_type)}"
    return Factor(
        site=site, key=definition.key, tensor=tensor, link=link, is_transposed=is_transposed
    )


def _without_other_uses(
    index: ModelIndex, pairs: list[Pair], left: list[Unmerged]
) -> tuple[list[Pair], list[Unmerged]]:
    """Leave the pairs alone whose factors something else reads too: joining would add to them."""
    readers: dict[Key, set[tuple[object, Site]]] = {}
    for pair in pairs:
        for factor in pair.factors:
            reader = factor.link or factor.site
            readers.setdefault(factor.key, set()).add((pair.weight_key, reader))
    good = []
    for pair in pairs:
        known = {key: readers[key] for key in pair.keys}
        allowed = {key: {s for w, s in known[key] if w == pair.weight_key} for key in known}
        uses = {key: {use.site for use in index.uses.get(key, ())} for key in known}
        if all(uses[key] <= allowed[key] for key in known):
            good.append(pair)
        else:
            reason = "something else reads its factors too"
            left.append(Unmerged(name=pair.name, reason=reason))
    return good, left
