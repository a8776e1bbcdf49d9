"""Random inputs for a model, also where it declares no fixed sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
# Exclusive upper ends to try for integer inputs, which are often indices of an undeclared range.
_INTEGER_ENDS = (100, 10, 2, 1)

# A model may declare inputs of any size; larger ones get no random numbers.
_MOST_NUMBERS = 1 << 27

_NUMPY_TYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
}


def check_shapes(session: Session, shapes: Shapes) -> None:
    """Refuse shapes that do not fit the inputs.

    Raises
    ------
    UsageError
        If there is no such input, or if the number of axes or a fixed size differs.
    """
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


def find_feeds(
    session: Session, shapes: Shapes, known_sizes: Mapping[tuple[str, int], int], seed: int
) -> tuple[Shapes, int]:
    """Find input shapes, and a range for integers, with which the model runs.

    Parameters
    ----------
    session
        The model.
    shapes
        Requested shapes, by input name.
    known_sizes
        Sizes that follow from the weights, by input name and axis.
    seed
        Seed of the random inputs.

    Returns
    -------
    A shape for each input, and the exclusive upper end for integer inputs.

    Raises
    ------
    RunError
        If the model runs with none of the shapes.
    """
    check_shapes(session, shapes)
    reason = "no size was found with which it runs"
    for end in _integer_ends(session):
        for candidate in _candidates(session, shapes, known_sizes):
            try:
                feeds = random_feeds(session, candidate, end, np.random.default_rng(seed))
                session.run(feeds)
            except RunError as e:
                reason = str(e)
                continue
            return candidate, end
    raise RunError(f"{reason} (give sizes with --input-shape)")


def random_feeds(
    session: Session, shapes: Shapes, end: int, generator: np.random.Generator
) -> Feeds:
    """Make random inputs: standard normal numbers, integers below `end`, true, or "a".

    Raises
    ------
    RunError
        If an input is too large, or of a type without random values.
    """
    return {v.name: _random(v, shapes[v.name], end, generator) for v in session.inputs}


def _random(
    value: Input, shape: tuple[int, ...], end: int, generator: np.random.Generator
) -> npt.NDArray[Any]:
    dtype = _dtype(value.type)
    if prod(shape) > _MOST_NUMBERS:
        raise RunError(f"input '{value.name}' of shape {list(shape)} is too large for random data")
    if dtype is None:
        raise RunError(f"input '{value.name}' is of type {value.type}: give --calibration data")
    if dtype is np.object_:
        return np.full(shape, "a", dtype=object)
    if dtype is np.bool_:
        return np.ones(shape, dtype=bool)
    if np.issubdtype(dtype, np.integer):
        return generator.integers(0, end, shape).astype(dtype)
    drawn = np.float64 if dtype is np.float64 else np.float32
    return generator.standard_normal(shape, drawn).astype(dtype, copy=False)


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


def _candidates(
    session: Session, shapes: Shapes, known_sizes: Mapping[tuple[str, int], int]
) -> Iterator[Shapes]:
    """Give different combinations of input shapes, the most likely first."""
    seen: list[Shapes] = []
    for sizes in _SIZES:
        candidate = {
            value.name: shapes.get(value.name) or _shape(value, sizes, known_sizes)
            for value in session.inputs
        }
        if candidate not in seen:
            seen.append(candidate)
            yield candidate


def _shape(
    value: Input, sizes: tuple[int, int], known_sizes: Mapping[tuple[str, int], int]
) -> tuple[int, ...]:
    shape = []
    for axis, dim in enumerate(value.shape):
        size = _fixed(dim)
        if size is None:
            guess = sizes[0] if axis == len(value.shape) - 1 else sizes[1]
            size = known_sizes.get((value.name, axis), guess if axis else _BATCH)
        shape.append(size)
    return tuple(shape)
