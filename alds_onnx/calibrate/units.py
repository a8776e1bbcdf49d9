"""The smallest parts of calibration data that can be run apart from the others.

They are single samples where the first axis of all inputs is a free batch axis, and the outputs of
a sample do not depend on the others beside it, which is tried. Elsewhere they are whole feeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from alds_onnx.calibrate.reader import BATCH, Feed, ModelInput, model_inputs
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.split import describe, summarize
from alds_onnx.cuts import FloatArray
from alds_onnx.evaluate.sessions import RunError, Session, flatten

_Array = npt.NDArray[Any]

# Relative difference between outputs of a sample in two batches that is rounding.
_ROUNDING = 1e-3
# Fewest batches that a part of the data is cut into, if it has as many samples.
_FEWEST_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Units:
    """Parts of the data, and a description of the outputs of each, shape (units, features).

    `finite` tells whether the outputs of each unit are. `together` is the largest number of units
    that may be run as one batch.
    """

    feeds: tuple[Feed, ...]
    outputs: FloatArray
    finite: npt.NDArray[np.bool_]
    together: int

    def batches(self, numbers: Iterable[int]) -> tuple[Feed, ...]:
        """Join units into batches; only units of the same shapes are joined."""
        groups: dict[object, list[Feed]] = {}
        for number in numbers:
            feed = self.feeds[number]
            groups.setdefault(_shapes(feed) if self.together > 1 else number, []).append(feed)
        total = sum(map(len, groups.values()))
        size = max(1, min(self.together, total // _FEWEST_BATCHES))
        return tuple(
            _joined(group[start : start + size])
            for group in groups.values()
            for start in range(0, len(group), size)
        )


def find_units(runner: Runner, model: ModelProto) -> Units:
    """Run the original on all feeds, and find the parts that can be run apart.

    If the model does not run on the data, that is a RunError.
    """
    session, inputs = runner.session(model), model_inputs(model)
    sizes = [_batch_size(feed, inputs) for feed in runner.batches]

    def run(number: int) -> list[_Described]:
        """Describe the outputs of each sample of a feed, or of all if they are not apart."""
        arrays, size = _arrays(session, runner.batches[number]), sizes[number]
        if size is None or any(array.ndim == 0 or len(array) != size for array in arrays):
            return [_described(arrays)]
        return [_described([array[i] for array in arrays]) for i in range(size)]

    found = list(runner.map(run, range(len(runner.batches))))
    apart = all(size == len(parts) for size, parts in zip(sizes, found, strict=True))
    if apart and _are_independent(session, runner.batches):
        samples = [one for parts in found for one in parts]
        return Units(
            feeds=tuple(one for feed in runner.batches for one in _samples(feed)),
            outputs=describe([one.numbers for one in samples]),
            finite=np.array([one.is_finite for one in samples], bool),
            together=BATCH,
        )
    columns = [zip(*(one.numbers for one in parts), strict=True) for parts in found]
    return Units(
        feeds=runner.batches,
        outputs=describe([[np.mean(part, axis=0) for part in parts] for parts in columns]),
        finite=np.array([all(one.is_finite for one in parts) for parts in found], bool),
        together=1,
    )


def _arrays(session: Session, feed: Feed) -> list[_Array]:
    return [array for output in session.run(feed) for array in flatten(output)]


class _Described(NamedTuple):
    """The numbers that describe the outputs of a sample, and whether these are finite."""

    numbers: list[FloatArray]
    is_finite: bool


def _described(arrays: Sequence[_Array]) -> _Described:
    numbers = [part for array in arrays for part in summarize(array)]
    is_finite = all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
    return _Described(numbers, is_finite)


def _batch_size(feed: Feed, inputs: Sequence[ModelInput]) -> int | None:
    """The number of samples in a feed; None if its inputs have no common free first axis."""
    free = all(spec.dims and spec.dims[0] is None for spec in inputs)
    sizes = {len(array) for array in feed.values() if array.ndim}
    return sizes.pop() if free and len(sizes) == 1 else None


def _samples(feed: Feed) -> list[Feed]:
    size = len(next(iter(feed.values())))
    return [{name: array[i : i + 1] for name, array in feed.items()} for i in range(size)]


def _joined(feeds: Sequence[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _are_independent(session: Session, feeds: Sequence[Feed]) -> bool:
    """Whether two samples, alone and as a batch, have the outputs that they have in their feeds."""
    shapes = [_shapes(feed) for feed in feeds]
    last = max(i for i, found in enumerate(shapes) if found == shapes[0])
    firsts = _samples(feeds[0])[0], _samples(feeds[last])[-1]
    wanted = [
        [array[0] for array in _arrays(session, feeds[0])],
        [array[-1] for array in _arrays(session, feeds[last])],
    ]
    try:
        alone, both = (_arrays(session, _joined(part)) for part in (firsts[:1], firsts))
    except RunError:
        return False
    if any(array.ndim == 0 or len(array) != 1 for array in alone):
        return False
    if any(array.ndim == 0 or len(array) != 2 for array in both):
        return False
    rows = ([a[0] for a in alone], [a[0] for a in both], [a[1] for a in both])
    pairs = zip(rows, (wanted[0], wanted[0], wanted[1]), strict=True)
    return all(len(row) == len(own) and all(map(_same, row, own)) for row, own in pairs)


def _shapes(feed: Feed) -> tuple[object, ...]:
    """The shapes of a sample."""
    return tuple((name, array.shape[1:]) for name, array in feed.items())


def _same(found: _Array, wanted: _Array) -> bool:
    if found.shape != wanted.shape:
        return False
    if found.dtype.kind != "f":
        return bool((found == wanted).all())
    y, z = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(y) & np.isfinite(z)
    y, z = y[finite], z[finite]
    return float(np.linalg.norm(y - z)) <= _ROUNDING * max(float(np.linalg.norm(y)), 1e-12)
