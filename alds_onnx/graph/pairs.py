"""Finding the pairs that this package wrote: `graph.patterns`, read backwards.

A pair is taken for one of ours if both of this hold:

    names       its factors are called `<weight>/encoder` and `<weight>/decoder`, and what the
                decoder reads is `<node>/encoded`, all perhaps with a number behind (`_1`);
    structure   the nodes, their attributes and the shapes of the factors are those of a pattern,
                the factors are constants, and nothing else reads what lies between.

Structure alone is not enough: MobileNet's depthwise convolution and the 1x1 convolution behind it
have that of a pair, and joined they would grow. Names alone are not enough either, because other
tools work on the file too. A mark in `metadata_props` would say no more than the names do, is not
allowed before IR version 10, and is lost in tools that keep the names.

What has the names but not the structure is left alone, and the reason given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from onnx import TensorProto

from alds_onnx.graph.forms import Candidate, Form, read_form
from alds_onnx.graph.layers import Operand, row_names
from alds_onnx.graph.scopes import Definition, Key, Kind, ModelIndex, Site
from alds_onnx.graph.tensors import DECOMPOSABLE, type_name
from alds_onnx.graph.weights import constant_of
from alds_onnx.values import Cut, LayerShape

_CODE = re.compile(r"(.+)/encoded(?:_\d+)?", re.DOTALL)
_ENCODER = re.compile(r"(.+)/encoder(?:_\d+)?", re.DOTALL)
_DECODER = re.compile(r"(.+)/decoder(?:_\d+)?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One of the two constants of a pair."""

    key: Key
    tensor: TensorProto


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An encoder and a decoder that stand for one layer.

    Attributes
    ----------
    site, name
        The decoder, which has the layer's name, output and bias.
    weight
        What the layer called its weight.
    encoder_site
        The node that reads the encoder.
    between
        Every node that goes with the encoder, itself among them.
    activation, code, output
        Names of what the encoder reads, of what the decoder reads, and of what it makes.
    encoder, decoder
        The factors.
    operand, transposed, channels_first, shape
        As in `Layer`.
    cut
        Number of slices and rank.
    """

    site: Site
    name: str
    weight: str
    encoder_site: Site
    between: tuple[Site, ...]
    activation: str
    code: str
    output: str
    encoder: Factor
    decoder: Factor
    operand: Operand
    transposed: bool
    channels_first: bool
    shape: LayerShape
    cut: Cut

    @property
    def weight_key(self) -> tuple[object, ...]:
        """Pairs with the same key stand for layers that shared a weight."""
        fold = (self.operand is Operand.KERNEL, self.transposed, self.channels_first)
        return self.encoder.key, self.decoder.key, *fold, self.shape, self.cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmerged:
    """A node that has the names of a decoder and cannot be joined, with the reason."""

    name: str
    reason: str


def find_pairs(index: ModelIndex, folder: Path) -> tuple[list[Pair], list[Unmerged]]:
    """Every pair of a model that can be joined, in graph order, and what only looks like one.

    Parameters
    ----------
    index
        The model.
    folder
        Folder of the model file, for external data.
    """
    names = row_names(index)
    pairs: list[Pair] = []
    left: list[Unmerged] = []
    for site, code in _candidates(index):
        found = _examine(Candidate(index, folder, site, code), names[site])
        if isinstance(found, Pair) and found.encoder.key.scope != found.decoder.key.scope:
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
        own = {_stem(_CODE, name) for name in node.output}
        for name in node.input[:2]:
            stem = _stem(_CODE, name)
            definition = index.resolve(site.scope, name) if stem else None
            if definition and definition.kind is Kind.NODE and stem not in own:
                yield site, name
                break


def _stem(pattern: re.Pattern[str], name: str) -> str | None:
    match = pattern.fullmatch(name)
    return match.group(1) if match else None


def _examine(candidate: Candidate, name: str) -> Pair | str:
    """The pair that a node is the decoder of, or the reason why there is none."""
    form = read_form(candidate)
    if isinstance(form, str):
        return form
    weight = _stem(_ENCODER, form.encoder)
    if weight is None or weight != _stem(_DECODER, form.decoder):
        return f"'{form.encoder}' and '{form.decoder}' are not the names of a pair"
    encoder, decoder = (_factor(candidate, n) for n in (form.encoder, form.decoder))
    if isinstance(encoder, str) or isinstance(decoder, str):
        return encoder if isinstance(encoder, str) else str(decoder)
    sizes = _sizes(form, tuple(encoder.tensor.dims), tuple(decoder.tensor.dims))
    if sizes is None or encoder.tensor.data_type != decoder.tensor.data_type:
        return "the shapes or types of its factors do not fit together"
    shape, cut = sizes
    return Pair(
        site=candidate.site,
        name=name,
        weight=weight,
        encoder_site=form.encoder_site,
        between=form.between,
        activation=form.activation,
        code=candidate.code,
        output=candidate.node.output[0],
        encoder=encoder,
        decoder=decoder,
        operand=form.operand,
        transposed=form.transposed,
        channels_first=form.channels_first,
        shape=shape,
        cut=cut,
    )


def _factor(candidate: Candidate, name: str) -> Factor | str:
    definition: Definition | None = candidate.index.resolve(candidate.site.scope, name)
    tensor = constant_of(candidate.index, definition) if definition else None
    if definition is None or tensor is None:
        return f"its factor '{name}' is not a constant"
    if definition.overridable:
        return f"its factor '{name}' is a graph input too, which a caller may replace"
    if tensor.data_type not in DECOMPOSABLE:
        return f"its factor '{name}' is of type {type_name(tensor.data_type)}"
    return Factor(key=definition.key, tensor=tensor)


def _sizes(
    form: Form, encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> tuple[LayerShape, Cut] | None:
    """The sizes of the dense weight, and the cut; None if the factors contradict each other."""
    if form.operand is Operand.KERNEL:
        return _kernel_sizes(form.num_slices or 1, encoder, decoder)
    if len(decoder) != 2 or len(encoder) != (2 if form.num_slices else 3):
        return None
    f, codes = reversed(decoder) if form.transposed else decoder
    k, rank, width = (form.num_slices or 0, *encoder)[-3:]
    if not form.channels_first:
        rank, width = width, rank
    if codes != k * rank or not prod(encoder):
        return None
    return LayerShape(out_features=f, in_channels=k * width), Cut(num_slices=k, rank=rank)


def _kernel_sizes(
    num_slices: int, encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> tuple[LayerShape, Cut] | None:
    """Encoder (k·j, c/k, kh, kw), decoder (f, k·j, 1, 1)."""
    if len(encoder) < 3 or len(encoder) != len(decoder) or set(decoder[2:]) != {1}:
        return None
    codes, width, *kernel = encoder
    if decoder[1] != codes or num_slices < 1 or codes % num_slices or not prod(encoder):
        return None
    shape = LayerShape(
        out_features=decoder[0], in_channels=num_slices * width, kernel=tuple(kernel)
    )
    return shape, Cut(num_slices=num_slices, rank=codes // num_slices)


def _without_other_uses(
    index: ModelIndex, pairs: list[Pair], left: list[Unmerged]
) -> tuple[list[Pair], list[Unmerged]]:
    """Leave the pairs alone whose factors something else reads too: joining would add to them."""
    readers: dict[Key, set[tuple[object, Site]]] = {}
    for pair in pairs:
        readers.setdefault(pair.encoder.key, set()).add((pair.weight_key, pair.encoder_site))
        readers.setdefault(pair.decoder.key, set()).add((pair.weight_key, pair.site))
    good = []
    for pair in pairs:
        known = {key: readers[key] for key in (pair.encoder.key, pair.decoder.key)}
        allowed = {key: {s for w, s in known[key] if w == pair.weight_key} for key in known}
        uses = {key: {use.site for use in index.uses.get(key, ())} for key in known}
        if all(uses[key] <= allowed[key] for key in known):
            good.append(pair)
        else:
            reason = "something else reads its factors too"
            left.append(Unmerged(name=pair.name, reason=reason))
    return good, left
