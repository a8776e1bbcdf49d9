"""Scores of the task: for how many labelled samples a model is right."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

#: Runs a model on {input name: array} and returns the list of its outputs.
Run: TypeAlias = Callable[[Mapping[str, _Array]], list[_Array]]
#: A file of labelled samples, its arrays, or a function that scores a model (higher is better).
Evaluation: TypeAlias = (
    "str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | Callable[[Run], float]"
)

_TOP = (1, 5)


class NoScoresError(Exception):
    """No output of a model can be compared with labels; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The position of the output that holds the scores, and of others that look like scores."""

    output: int
    num_classes: int
    others: tuple[int, ...]

    @property
    def tops(self) -> tuple[int, ...]:
        """The k for which top-k is informative."""
        return tuple(k for k in _TOP if k < self.num_classes)


def choose_output(names: Sequence[str], outputs: Sequence[object], samples: int) -> Choice:
    """Choose the first floating-point output of shape (samples, classes) with two classes or more.

    Further axes of size 1 are allowed, as in (samples, classes, 1, 1).
    """
    fitting = [(i, n) for i, output in enumerate(outputs) if (n := num_classes(output, samples))]
    if not fitting:
        shown = ", ".join(
            f"'{name}' {_described(output)}" for name, output in zip(names, outputs, strict=True)
        )
        raise NoScoresError(
            f"no output has floating-point scores of shape ({samples}, classes) for {samples} "
            f"samples: {shown}"
        )
    (first, classes), *others = fitting
    return Choice(output=first, num_classes=classes, others=tuple(i for i, _ in others))


def num_classes(output: object, samples: int) -> int:
    """Count the classes of an output; 0 if `choose_output` would not choose it."""
    if not isinstance(output, np.ndarray) or not np.issubdtype(output.dtype, np.floating):
        return 0
    shape: tuple[int, ...] = output.shape
    fits = len(shape) > 1 and shape[0] == samples and shape[1] > 1 and set(shape[2:]) <= {1}
    return shape[1] if fits else 0


def _described(output: object) -> str:
    if isinstance(output, np.ndarray):
        return f"{output.dtype} {list(output.shape)}"
    return type(output).__name__


def ranks(scores: _Array, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rank the class of each label (samples,) in the scores (samples, classes, 1...); 0 is highest.

    Among equal scores the first class ranks higher, as in `numpy.argmax`. A label whose scores
    contain NaN gets the lowest rank.
    """
    classes = scores.size // max(1, len(labels))
    rows = scores.reshape(len(labels), classes)
    own = np.take_along_axis(rows, labels[:, None], axis=1)
    before = np.arange(classes) < labels[:, None]
    place = ((rows > own) | ((rows == own) & before)).sum(axis=1, dtype=np.int64)
    place[np.isnan(rows).any(axis=1)] = classes
    return np.asarray(place)


def halves(
    labels: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Share samples out at random between two halves, those of each class evenly.

    Gives their numbers, ascending. The halves differ by at most one sample, in total and in each
    class; the first one is the larger.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    return np.sort(by_class[::2]), np.sort(by_class[1::2])


def drop_stderr(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> float | None:
    """Give the standard error of the share that is lost, where both are right on the same samples.

    Most samples that one model gets right, the other gets right too, so that the difference is
    known far better than either share. Where no sample changes, the standard error is that of a
    single change: none was seen, which does not mean that there are none. None for one sample.
    """
    count = len(before)
    if count < 2:
        return None
    lost = before.astype(np.float64) - after.astype(np.float64)
    return max(1 / count, float(np.sqrt(lost.var(ddof=1) / count)))
