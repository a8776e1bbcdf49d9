"""Equations of Einsum with two operands, one of them a weight, and those of its factors.

    bti,hio->bhto      bti,ir->btr and btr,hro->bhto
    bhto,hoi->bti      bhto,hor->btr and btr,ri->bti

A free letter names the axis of the code. The way back takes the activation's term from the encoder.
That of the weight follows from both factors: in the decoder the free letter stands where the summed
axes begin, in the encoder where the other axes that come after these begin. Both spell their terms
as the old equation did, with or without spaces, and the decoder has an output if that had one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import TypeAlias, TypeVar

from onnx import NodeProto

from alds_onnx.graph.scopes import string

ELLIPSIS = "..."
_TERM = re.compile(r"[A-Za-z ]*(?:\.\.\.)?[A-Za-z ]*")
#: Letters, or numbers of axes.
_Axis = TypeVar("_Axis")
#: Axes of an operand or output: letters, and perhaps an ellipsis.
Axes: TypeAlias = "tuple[str, ...]"


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation as it is written: the terms of two operands and, unless implied, the output's."""

    terms: tuple[str, str]
    written_output: str | None

    @classmethod
    def of(cls, node: NodeProto) -> Equation | None:
        """Read that of a node; None if it is not one of two operands."""
        left, arrow, right = (string(node, "equation") or "").partition("->")
        terms = left.split(",")
        if len(terms) != 2 or not all(_TERM.fullmatch(term) for term in (*terms, right)):
            return None
        found = cls((terms[0], terms[1]), right if arrow else None)
        known = {*_axes(terms[0]), *_axes(terms[1]), ELLIPSIS}
        output = found.output
        return found if len(set(output)) == len(output) and known.issuperset(output) else None

    @property
    def operands(self) -> tuple[Axes, Axes]:
        """Axes of the operands."""
        return _axes(self.terms[0]), _axes(self.terms[1])

    @property
    def output(self) -> Axes:
        """Axes of the output. It is implied to be what stands only once, in order of the codes."""
        if self.written_output is not None:
            return _axes(self.written_output)
        axes = [axis for operand in self.operands for axis in operand]
        letters = sorted(axis for axis in axes if axis != ELLIPSIS and axes.count(axis) == 1)
        return (*[ELLIPSIS][: ELLIPSIS in axes], *letters)

    @property
    def text(self) -> str:
        """The equation as an attribute."""
        arrow = "" if self.written_output is None else f"->{self.written_output}"
        return ",".join(self.terms) + arrow

    def with_terms(self, position: int, weight: str, activation: str) -> Equation:
        """Exchange the terms; that of the weight is number `position`."""
        terms = (activation, weight) if position else (weight, activation)
        return replace(self, terms=terms)


def _axes(term: str) -> Axes:
    return tuple(re.findall(r"\.\.\.|[A-Za-z]", term))


def _spell(axes: Sequence[str], like: str) -> str:
    """Write a term with spaces where another one has them: around it, and between all letters."""
    inner = like.strip(" ")
    start = len(like) - len(like.lstrip(" "))
    between = " " if " " in inner else ""
    return like[:start] + between.join(axes) + like[start + len(inner) :]


def encoder_axes(axes: Sequence[_Axis], summed: Collection[_Axis], code: _Axis) -> list[_Axis]:
    """Axes of the encoder: those that are summed, and the code where others come after these."""
    first = min(axes.index(axis) for axis in summed)
    later = range(first, len(axes))
    gap = next((i for i in later if axes[i] not in summed), len(axes))
    return [*axes[first:gap], code, *(axis for axis in axes[gap:] if axis in summed)]


def decoder_axes(axes: Sequence[_Axis], summed: Collection[_Axis], code: _Axis) -> list[_Axis]:
    """Axes of the decoder: the others, and the code where those that are summed begin."""
    first = min(axes.index(axis) for axis in summed)
    return [*axes[:first], code, *(axis for axis in axes[first:] if axis not in summed)]


def _joined(encoder: Sequence[str], decoder: Sequence[str], code: str) -> list[str]:
    """The axes of a weight from those of its factors."""
    place, gap = decoder.index(code), encoder.index(code)
    return [*decoder[:place], *encoder[:gap], *decoder[place + 1 :], *encoder[gap + 1 :]]


@dataclass(frozen=True, slots=True)
class Linear:
    """An equation that is linear in the activation, with the weight's axes that are summed.

    `code` is the letter that is free for the axis of the code.
    """

    equation: Equation
    position: int
    summed: tuple[str, ...]
    code: str

    @property
    def weight(self) -> Axes:
        """Axes of the weight."""
        return self.equation.operands[self.position]

    @property
    def activation(self) -> Axes:
        """Axes of the activation."""
        return self.equation.operands[1 - self.position]

    @property
    def layout_axes(self) -> tuple[int, ...]:
        """Which axes of the weight are summed."""
        return tuple(i for i, axis in enumerate(self.weight) if axis in self.summed)

    def factors(self) -> tuple[Equation, Equation]:
        """The equations of encoder and decoder."""
        like, weight = self.equation.terms[1 - self.position], self.weight
        last = max(self.activation.index(axis) for axis in self.summed)
        code = [
            self.code if i == last else axis
            for i, axis in enumerate(self.activation)
            if i == last or axis not in self.summed
        ]
        encoder = "".join(encoder_axes(weight, self.summed, self.code))
        decoder = decoder_axes(weight, self.summed, self.code)
        term = _spell(decoder, self.equation.terms[self.position])
        return (
            Equation((like, encoder), "".join(code)),
            self.equation.with_terms(self.position, term, _spell(code, like)),
        )


def linear_in(equation: Equation | None, position: int, code: str = "") -> Linear | str:
    """How an equation is linear in the operand that is not the weight; or why it is not."""
    if equation is None:
        return "its equation is none of two operands"
    weight, activation = equation.operands[position], equation.operands[1 - position]
    output = set(equation.output)
    reason = _unlike(weight, activation, output)
    if reason:
        return reason
    summed = tuple(axis for axis in weight if axis in activation)
    if not summed:
        return "it sums over no axis of its weight"
    used = {*weight, *activation, *output, *equation.output}
    free = [letter for letter in ("r", *ascii_letters) if letter not in used]
    if code in used or not free:
        return "its equation leaves no letter free"
    found = Linear(equation, position, summed, code or free[0])
    parts = encoder_axes(weight, summed, found.code), decoder_axes(weight, summed, found.code)
    if _joined(*parts, found.code) != list(weight):
        return "axes of its weight that are summed and others take turns"
    return found


def _unlike(weight: Axes, activation: Axes, output: Collection[str]) -> str:
    """Why an Einsum is no product of one matrix with the activation; "" if it is."""
    if ELLIPSIS in weight:
        return "its weight has an ellipsis"
    if ELLIPSIS in activation and ELLIPSIS not in output:
        return "its output has no ellipsis"
    for axes in (weight, activation):
        twice = next((axis for axis in axes if axes.count(axis) > 1), None)
        if twice is not None:
            return f"'{twice}' stands twice in one operand"
    batch = next((axis for axis in weight if axis in activation and axis in output), None)
    if batch is not None:
        return f"its weight is a batch of matrices, one for each '{batch}'"
    for axes, other in ((weight, activation), (activation, weight)):
        alone = next((axis for axis in axes if axis not in other and axis not in output), None)
        if alone is not None:
            return f"'{alone}' is summed in one operand alone"
    return ""


def whole_of(first: Equation, last: Equation, position: int) -> Linear | None:
    """The equation that gives these two; None if there is none."""
    activation, encoder = first.operands
    decoder = last.operands[position]
    free = (set(encoder) & set(decoder)) - set(activation)
    if len(free) != 1:
        return None
    (code,) = free
    term = _spell(_joined(encoder, decoder, code), last.terms[position])
    linear = linear_in(last.with_terms(position, term, first.terms[0]), position, code)
    if isinstance(linear, str):
        return None
    made = linear.factors()
    fits = all(
        (one.operands, one.output) == (other.operands, other.output)
        for one, other in zip(made, (first, last), strict=True)
    )
    return linear if fits else None


def place_of(axes: Axes, axis: str, rank: int) -> int:
    """The number of an axis of an operand of `rank` axes."""
    place = axes.index(axis)
    return place + rank - len(axes) if ELLIPSIS in axes[:place] else place
