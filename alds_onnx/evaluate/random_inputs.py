"""Random inputs with which a model runs, also where it declares neither sizes nor ranges.

A symbol, such as `sequence`, is the same size in all inputs, so that ids, masks and positions
agree. Ids stay below the size of the table that they are looked up in, masks are ones, and lengths
are those of the sequence. What else is free is tried: sizes that suit images, lines of text and
sequences, and ranges of integers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from alds_onnx.errors import UsageError
from alds_onnx.evaluate.sessions import Dim, Feeds, Input, RunError, Session

Shapes = Mapping[str, tuple[int, ...]]

_BATCH = 1
# Sizes to try for dynamic axes other than the batch: that of the last axis, and of the others. They
# suit images, lines of text (OCR), feature maps and sequences.
_SIZES = (
    (224, 224),
    (320, 48),
    (64, 64),
    (640, 640),
    (32, 32),
    (128, 128),
    (16, 16),
    (8, 8),
    (1, 1),
)
# Number of tokens that a decoder has seen before, if its cache of keys and values is an input.
_PAST = 8
# Exclusive upper ends to try for integer inputs, which are often indices of an undeclared range.
_INTEGER_ENDS = (100, 10, 2, 1)

# A model may declare inputs of any size; larger ones get no random numbers.
_MOST_NUMBERS = 1 << 27

_AS_IN_NUMPY = ["float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_NUMPY_TYPES = {name: np.dtype(name).type for name in _AS_IN_NUMPY}
_NUMPY_TYPES |= {"float": np.float32, "double": np.float64, "bool": np.bool_, "string": np.object_}

_LENGTHS = re.compile(r"(^|_)(len|lens|length|lengths|seq_len|seqlens)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hints:
    """What the graph says about its inputs.

    Attributes
    ----------
    sizes
        Sizes that follow from weights, by input and axis.
    ends
        Exclusive upper ends of ids, by input: the sizes of the tables that they are looked up in.
    """

    sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    ends: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recipe:
    """How to draw inputs: their shapes, and the exclusive upper ends of integers.

    `end` is that of inputs that are not in `ends`.
    """

    inputs: tuple[Input, ...]
    shapes: Shapes
    ends: Mapping[str, int]
    end: int

    def draw(self, generator: np.random.Generator) -> Feeds:
        """Draw standard normal numbers, integers below their end, true, or "a"."""
        return {value.name: self._array(value, generator) for value in self.inputs}

    def _array(self, value: Input, generator: np.random.Generator) -> npt.NDArray[Any]:
        dtype, name, shape = _dtype(value.type), value.name, self.shapes[value.name]
        if prod(shape) > _MOST_NUMBERS:
            raise RunError(f"input '{name}' of shape {list(shape)} is too large for random data")
        if dtype is None:
            raise RunError(f"input '{name}' is of type {value.type}: give --calibration data")
        if dtype is np.object_:
            return np.full(shape, "a", dtype=object)
        if dtype is np.bool_ or "mask" in name.lower():
            return np.ones(shape, dtype=dtype)
        if np.issubdtype(dtype, np.integer):
            length = self._length(value)
            if length is not None:
                return np.full(shape, length, dtype=dtype)
            return generator.integers(0, self.ends.get(name, self.end), shape).astype(dtype)
        drawn = np.float64 if dtype is np.float64 else np.float32
        return generator.standard_normal(shape, drawn).astype(dtype, copy=False)

    def _length(self, value: Input) -> int | None:
        """The length of the sequences, if the input looks like one that says it."""
        if len(self.shapes[value.name]) > 1 or not _LENGTHS.search(value.name):
            return None
        for other in self.inputs:
            free = [axis for axis, dim in enumerate(other.shape) if axis and _fixed(dim) is None]
            if free:
                return self.shapes[other.name][free[0]]
        return None


def check_shapes(session: Session, shapes: Shapes) -> None:
    """Refuse shapes of inputs that there are not, or with another number of axes or fixed size."""
    declared = {value.name: value.shape for value in session.inputs}
    for name, shape in shapes.items():
        if name not in declared:
            known = ", ".join(f"'{n}'" for n in declared)
            raise UsageError(f"--input-shape: no input '{name}'; the model has {known}")
        dims = declared[name]
        # onnxruntime gives no sizes if the rank is not known; then any shape may fit.
        fits = not dims or (
            len(dims) == len(shape)
            and all(_fixed(d) in (None, s) for d, s in zip(dims, shape, strict=True))
        )
        if not fits:
            raise UsageError(
                f"--input-shape: input '{name}' has shape {list(dims)}, not {list(shape)}"
            )


def find_recipe(session: Session, shapes: Shapes, hints: Hints, seed: int) -> Recipe:
    """Find inputs with which the model runs; `shapes` are requested, by input name.

    If there are none, that is a RunError.
    """
    check_shapes(session, shapes)
    reason = "no size was found with which it runs"
    for end in _integer_ends(session):
        for candidate in _candidates(session, shapes, hints):
            recipe = Recipe(inputs=session.inputs, shapes=candidate, ends=hints.ends, end=end)
            try:
                session.run(recipe.draw(np.random.default_rng(seed)))
            except RunError as e:
                reason = str(e)
                continue
            return recipe
    raise RunError(f"{reason} (give sizes with --input-shape)")


def _dtype(kind: str) -> type[np.generic] | None:
    if not (kind.startswith("tensor(") and kind.endswith(")")):
        return None
    return _NUMPY_TYPES.get(kind[len("tensor(") : -1])


def _integer_ends(session: Session) -> tuple[int, ...]:
    kinds = [_dtype(value.type) for value in session.inputs]
    integers = any(kind is not None and np.issubdtype(kind, np.integer) for kind in kinds)
    return _INTEGER_ENDS if integers else _INTEGER_ENDS[:1]


def _fixed(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) and dim >= 0 else None


def _candidates(session: Session, shapes: Shapes, hints: Hints) -> Iterator[Shapes]:
    """Give different combinations of input shapes, the most likely first.

    Some exporters use one symbol for sizes that differ, so each combination is tried without
    symbols too.
    """
    seen: list[Shapes] = []
    for last, others in _SIZES:
        guessed = {
            value.name: shapes.get(value.name) or _shape(value, last, others, hints)
            for value in session.inputs
        }
        for candidate in (_consistent(session.inputs, guessed, shapes, hints), guessed):
            if candidate not in seen:
                seen.append(candidate)
                yield candidate


def _shape(value: Input, last: int, others: int, hints: Hints) -> tuple[int, ...]:
    shape = []
    for axis, dim in enumerate(value.shape):
        size = _fixed(dim)
        if size is None:
            guess = last if axis == len(value.shape) - 1 else others
            size = hints.sizes.get((value.name, axis), guess if axis else _BATCH)
        shape.append(size)
    return tuple(shape)


def _consistent(
    inputs: Sequence[Input], guessed: Shapes, shapes: Shapes, hints: Hints
) -> dict[str, tuple[int, ...]]:
    """Give each symbol one size: one that was asked for, else a known one, else the first guess.

    A guess for a first axis comes last, because it is that of a batch.
    """
    found = []
    first = {value.shape[0] for value in inputs if value.shape}
    for value in inputs:
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, str):
                is_asked, is_known = value.name in shapes, (value.name, axis) in hints.sizes
                size = guessed[value.name][axis]
                if not (is_asked or is_known):
                    size = _size_by_name(dim, size, is_first=dim in first)
                found.append((not is_asked, not is_known, not axis, dim, size))
    found.sort(key=lambda one: one[:3])
    sizes: dict[str, int] = {}
    for *_, dim, size in found:
        sizes.setdefault(dim, size)
    sizes |= {dim: _sum_of_symbols(dim, sizes) for dim in sizes}
    return {
        value.name: guessed[value.name]
        if value.name in shapes
        else tuple(
            sizes.get(dim, size) if isinstance(dim, str) else size
            for dim, size in zip(value.shape, guessed[value.name], strict=True)
        )
        for value in inputs
    }


def _size_by_name(dim: str, guess: int, *, is_first: bool) -> int:
    name = dim.lower()
    if "past" in name and "+" not in name:
        return _PAST
    return _BATCH if is_first and ("batch" in name or name in ("n", "b")) else guess


def _sum_of_symbols(dim: str, sizes: Mapping[str, int]) -> int:
    """The size of a symbol that is a sum, such as `past_sequence_length + sequence_length`.

    `total_sequence_length` is what the sequence and its past have together.
    """
    parts = [part.strip() for part in dim.split("+")]
    if len(parts) == 1 and "total" in dim.lower():
        parts = [
            symbol
            for symbol in (dim.lower().replace("total", "past"), dim.lower().replace("total_", ""))
            if symbol in sizes
        ]
    if len(parts) < 2 or not all(part in sizes or part.isdigit() for part in parts):
        return sizes[dim]
    return sum(sizes[part] if part in sizes else int(part) for part in parts)
