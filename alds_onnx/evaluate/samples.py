"""The inputs on which models are compared and timed, also where a model declares no fixed sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from alds_onnx.errors import UsageError
from alds_onnx.evaluate.sessions import Dim, Execution, Feeds, Input, RunError, Session, flatten
from alds_onnx.graph.scopes import Key, ModelIndex, unused

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

_AS_IN_NUMPY = ["float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_NUMPY_TYPES = {name: np.dtype(name).type for name in _AS_IN_NUMPY}
_NUMPY_TYPES |= {"float": np.float32, "double": np.float64, "bool": np.bool_, "string": np.object_}

_RANDOM_SAMPLES = 4
# A model whose run takes longer than this is compared on one random sample.
_SLOW_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """Inputs of one kind, and the number, from 0, of a typical sample among all that were given."""

    example: int
    feeds: tuple[Feeds, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Inputs, one entry for each run; `random` says whether they are random numbers.

    `held_out` says that nothing is fitted to them or chosen by them. Those in `left_out` are of
    kinds of inputs that some fits leave out. `num_fitted` are the numbers of samples in the first
    half of what models are fitted to, and in both.
    """

    feeds: tuple[Feeds, ...]
    random: bool
    held_out: bool = False
    left_out: tuple[Kind, ...] = ()
    num_fitted: tuple[int, int] = (0, 0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs of the first run."""
        return {name: array.shape for name, array in self.feeds[0].items()}


def random_samples(
    model: ModelProto,
    folder: Path,
    execution: Execution,
    *,
    shapes: Shapes,
    known_sizes: Mapping[tuple[str, int], int],
    seed: int,
) -> Samples:
    """Make random inputs of shapes with which the model runs; see `find_feeds`."""
    session = Session(model, folder, execution)
    found, end = find_feeds(session, shapes, known_sizes, seed)
    generator = np.random.default_rng(seed)
    first = random_feeds(session, found, end, generator)
    start = time.perf_counter()
    session.run(first)
    count = 1 if time.perf_counter() - start > _SLOW_SECONDS else _RANDOM_SAMPLES
    others = [random_feeds(session, found, end, generator) for _ in range(count - 1)]
    return Samples(feeds=(first, *others), random=True)


def measured_shapes(
    model: ModelProto, folder: Path, execution: Execution, feeds: Feeds, wanted: set[str]
) -> dict[Key, tuple[int, ...]]:
    """Measure the shapes of tensors of the main graph in one run of the model.

    Each wanted tensor gets a Shape node whose output is a new graph output. So the tensors
    themselves need not be kept.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    names = ModelIndex(probe).names()
    probes: dict[str, str] = {}
    for name in sorted(wanted):
        probes[name] = output = unused(f"{name}/measured_shape", names)
        probe.graph.node.append(NodeProto(op_type="Shape", input=[name], output=[output]))
        value = ValueInfoProto(name=output)
        value.type.tensor_type.elem_type = TensorProto.INT64
        probe.graph.output.append(value)
    session = Session(probe, folder, execution)
    outputs = session.run(feeds, list(probes.values()))
    return {
        Key(0, name): tuple(int(n) for n in flatten(shape)[0])
        for name, shape in zip(probes, outputs, strict=True)
    }


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


def find_feeds(
    session: Session, shapes: Shapes, known_sizes: Mapping[tuple[str, int], int], seed: int
) -> tuple[Shapes, int]:
    """Find a shape for each input, and the exclusive end of integers, with which the model runs.

    `shapes` are requested, by input name; `known_sizes` follow from the weights, by input name and
    axis.
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
    """Make random inputs: standard normal numbers, integers below `end`, true, or "a"."""
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
