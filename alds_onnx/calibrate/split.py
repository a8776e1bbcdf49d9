"""Splitting samples into parts with different jobs, by the outputs of the original.

Samples with similar outputs are a *kind*: a cluster of k-means. All parts take turns through the
samples sorted by fine kinds, so that each has its share of every kind. Some of a few coarse kinds
are *apart*: what a model does with kinds of inputs that it was not fitted to is measured with
factors that are fitted to the samples of the other kinds, on those samples of the kinds apart that
are there to be checked. Were these kinds fine ones, the model would have seen much the same inputs.

Source: systematic sampling from a sorted list is as in Cochran, "Sampling Techniques", 1977,
chapter 8.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

from alds_onnx.cuts import FloatArray

_Indices = npt.NDArray[np.int64]

# The part of the units to check on; at least so many samples, if that is at most half of the units;
# at most so many units.
_CHECKED, _FEWEST_CHECKED, _MOST_CHECKED = 1 / 4, 32, 1024
# The part of the samples that the kinds apart have together, about; and the fewest units to check
# of them.
_APART, _FEWEST_APART = 1 / 3, 4
# The part of the other samples on which the trials of a limit are measured.
_CHOSEN = 1 / 5
_FEWEST_CHOSEN_FROM = 5
# The most coarse kinds.
_MOST_KINDS = 10
_ITERATIONS = 20
# Numbers that describe an output whose size differs from sample to sample, and the most of any.
_FEW, _MOST = 32, 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The numbers of the samples in each part; see `alds_onnx.steps.data.Data`.

    `kinds` are the kinds of all samples, by number, and `apart` those of the kinds that are apart.
    """

    halves: tuple[_Indices, _Indices]
    choose: _Indices
    check: _Indices
    kinds: _Indices
    apart: tuple[int, ...]


def split(outputs: FloatArray, seed: int, *, choose: bool, samples_each: float = 1.0) -> Split:
    """Split samples, or units of several samples, by their outputs.

    Parameters
    ----------
    outputs
        A description of the outputs of each sample, shape (samples, features).
    seed
        Seed of all that is random.
    choose
        Whether to set a part aside for the trials of a limit.
    samples_each
        Number of samples in a unit.

    Returns
    -------
    Split
        The parts are disjoint. A single sample is in the first half.

    Examples
    --------
    >>> parts = split(np.random.default_rng(0).normal(size=(128, 3)), seed=0, choose=False)
    >>> len(parts.check), len(parts.choose)
    (32, 0)
    """
    count = len(outputs)
    generator = np.random.default_rng([seed, count])
    kinds = _kinds(outputs, round(count**0.5), generator)
    order = np.lexsort((generator.permutation(count), kinds))
    check = _systematic(order, _num_checked(count, samples_each), generator)
    kinds = _kinds(outputs, min(round(count**0.5), _MOST_KINDS), generator)
    chosen = _kinds_apart(kinds, check, generator)
    rest = _without(order, check)
    trials = rest[:0]
    if choose and len(rest) >= _FEWEST_CHOSEN_FROM:
        trials = _systematic(rest, round(_CHOSEN * len(rest)), generator)
        rest = _without(rest, trials)
    return Split(
        halves=(rest[::2], rest[1::2]),
        choose=trials,
        check=check,
        kinds=kinds,
        apart=tuple(chosen),
    )


def example(outputs: FloatArray, members: _Indices) -> int:
    """Find the sample among these whose outputs are nearest to their mean."""
    centred = outputs[members] - outputs[members].mean(axis=0)
    return int(members[(centred**2).sum(axis=1).argmin()])


def _num_checked(count: int, samples_each: float) -> int:
    fewest = math.ceil(_FEWEST_CHECKED / samples_each)
    return min(max(round(_CHECKED * count), fewest), count // 2, _MOST_CHECKED)


def _kinds(outputs: FloatArray, wanted: int, generator: np.random.Generator) -> _Indices:
    """Number the kind of every sample: at most so many kinds."""
    count = len(outputs)
    wanted = min(wanted, len({row.tobytes() for row in outputs}))
    if wanted < 2:
        return np.zeros(count, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cluster may be empty
        _, found = kmeans2(outputs, wanted, iter=_ITERATIONS, minit="++", seed=generator)
    return np.asarray(found, np.int64)


def _kinds_apart(kinds: _Indices, check: _Indices, generator: np.random.Generator) -> list[int]:
    """Draw the kinds that are apart, less than half of the samples together.

    None if too few of their samples were to be checked.
    """
    numbers, sizes = np.unique(kinds, return_counts=True)
    chosen: list[int] = []
    total, count = 0, len(kinds)
    for place in generator.permutation(len(numbers)):
        size = int(sizes[place])
        if total + size / 2 <= _APART * count and total + size < count / 2:
            chosen.append(int(numbers[place]))
            total += size
    checked = int(np.isin(kinds[check], chosen).sum())
    return chosen if checked >= _FEWEST_APART else []


def _systematic(order: _Indices, wanted: int, generator: np.random.Generator) -> _Indices:
    """Take so many samples at even distances in an order, from a random start."""
    places = (np.arange(wanted) + generator.random()) * (len(order) / max(1, wanted))
    found: _Indices = np.take(order, np.floor(places).astype(np.int64))
    return found


def _without(order: _Indices, taken: _Indices) -> _Indices:
    return order[~np.isin(order, taken)]


def describe(outputs: Sequence[Sequence[FloatArray]]) -> FloatArray:
    """Join what `summarize` gives for each sample: an array of shape (samples, features).

    Every part counts the same, whatever its size and scale. Parts that not all samples have do not
    count.
    """
    blocks = [_block(parts) for parts in zip(*outputs)]  # noqa: B905
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((len(outputs), 1))


def summarize(array: npt.NDArray[np.generic]) -> tuple[FloatArray, ...]:
    """Describe an output of one sample by numbers that k-means can compare.

    An array of several axes is described by its means over all axes but the last, and over all but
    the first: depending on the exporter, one of the two are classes or channels.
    """
    if array.dtype.kind not in "fiub":
        return (np.zeros(1),)
    numbers = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    numbers = np.clip(numbers, -1e30, 1e30)
    if not numbers.size:
        numbers = np.zeros([max(1, size) for size in numbers.shape])
    if numbers.ndim < 2:
        return (numbers.ravel(),)
    last = numbers.reshape(-1, numbers.shape[-1]).mean(axis=0)
    first = numbers.reshape(len(numbers), -1).mean(axis=1)
    return last, first


def _block(parts: Sequence[FloatArray]) -> FloatArray:
    """Stack the numbers of one output, of unit mean power around their mean."""
    sizes = {len(part) for part in parts}
    wanted = min(sizes.pop(), _MOST) if len(sizes) == 1 else _FEW
    rows: FloatArray = np.stack([_resampled(part, wanted) for part in parts])
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3):
        rows = np.sqrt(rows)  # probabilities, whose distance is that of Hellinger
    centred = rows - rows.mean(axis=0)
    scale = float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0
    described: FloatArray = centred / scale
    return described


def _resampled(part: FloatArray, wanted: int) -> FloatArray:
    """Read a sequence at so many even distances."""
    if len(part) == wanted:
        return part
    places = np.linspace(0, len(part) - 1, wanted)
    found: FloatArray = np.interp(places, np.arange(len(part)), part)
    return found
