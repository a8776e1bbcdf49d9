"""What one layer can be cut to: its cheapest parameters for each error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.values import Cut, ErrorCurve, FloatArray, LayerShape, Scheme, Spectra

_SCHEMES = tuple(Scheme)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frontier:
    """The choices of one layer that no other choice beats, from the smallest to the dense layer.

    A cut that loses nothing at all beats the dense layer and stands in its place.

    Attributes
    ----------
    name
        Breaks ties between layers, so that the plan does not depend on their order.
    parameters
        Strictly rising; the last entry is the dense weight's.
    error
        Strictly falling; the last entry is 0, the dense weight's.
    num_slices, rank
        k and j of each choice; 0 and 0 for the dense weight.
    scheme
        Position of each choice's scheme in `Scheme`; 0 for the dense weight.
    rank_out
        Second rank of a choice of Tucker-2; 0 for the others.
    """

    name: str
    parameters: npt.NDArray[np.int64]
    error: FloatArray
    num_slices: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    scheme: npt.NDArray[np.int64]
    rank_out: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.parameters)

    def cheapest(self, threshold: float) -> int:
        """Index of the cheapest choice whose error is at most `threshold` (>= 0)."""
        return int(np.searchsorted(-self.error, -threshold))

    def largest(self, parameters: int) -> int | None:
        """Index of the best choice with at most `parameters`; None if there is none."""
        index = int(np.searchsorted(self.parameters, parameters, side="right")) - 1
        return index if index >= 0 else None

    def cut(self, index: int) -> Cut | None:
        """Give the choice at `index`; None for the dense weight."""
        if not self.rank[index]:
            return None
        return Cut(
            num_slices=int(self.num_slices[index]),
            rank=int(self.rank[index]),
            scheme=_SCHEMES[self.scheme[index]],
            rank_out=int(self.rank_out[index]),
        )


def frontier(name: str, spectra: Spectra, alignment: Alignment = FREE) -> Frontier:
    """Build the frontier over all schemes, k and j of a layer that are allowed.

    Ties go to the smaller k: fewer slices are simpler and no runtime is slower with them; then to
    the scheme that comes first.
    """
    shape = spectra.shape
    allowed = [curve for curve in spectra.curves if curve.scheme in spectra.schemes]
    columns = [_choices(shape, curve, alignment) for curve in allowed]
    if Scheme.TUCKER2 in spectra.schemes:
        columns.append(_pairs(spectra, alignment))
    return _undominated(name, shape, columns)


def frontier_of_curves(
    name: str, shape: LayerShape, curves: tuple[ErrorCurve, ...], alignment: Alignment = FREE
) -> Frontier:
    """Build the frontier over the given curves only."""
    return _undominated(name, shape, [_choices(shape, curve, alignment) for curve in curves])


def _undominated(name: str, shape: LayerShape, columns: Sequence[FloatArray]) -> Frontier:
    """Keep the best of all choices, (6, choices): parameters, error, k, j, scheme, second rank."""
    dense = np.array([[shape.num_parameters], [0.0], [0], [0], [0], [0]])
    choices = np.concatenate([*columns, dense], axis=1)
    order = np.lexsort((choices[4], choices[2], choices[1], choices[0]))
    choices = choices[:, order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], choices[1, :-1]]))
    kept = choices[:, choices[1] < best_before]
    parameters, num_slices, rank, scheme, rank_out = kept[[0, 2, 3, 4, 5]].astype(np.int64)
    return Frontier(
        name=name,
        parameters=parameters,
        error=kept[1].copy(),
        num_slices=num_slices,
        rank=rank,
        scheme=scheme,
        rank_out=rank_out,
    )


def _choices(shape: LayerShape, curve: ErrorCurve, alignment: Alignment) -> FloatArray:
    """All ranks of one fold at one k that save parameters and are allowed: (6, ranks)."""
    k, folded = curve.num_slices, shape.folded(curve.scheme)
    highest = min(folded.max_rank(k), len(curve.relative_error) - 1)
    rank = alignment.ranks(folded, k, highest)
    parameters = rank * folded.parameters_per_rank(k)
    same = np.ones_like(rank)
    scheme = _SCHEMES.index(curve.scheme)
    return np.stack(
        [parameters, curve.relative_error[rank], k * same, rank, scheme * same, 0 * same]
    )


def _pairs(spectra: Spectra, alignment: Alignment) -> FloatArray:
    """The pairs of ranks of Tucker-2 that save parameters and are allowed: (6, pairs).

    Its error is the larger of those of its two projections. So at each threshold the smallest rank
    of either that keeps it is best, and only these pairs, one for each error, need to be looked at.
    """
    shape = spectra.shape
    inputs, error_in = _mode(spectra.curve(1, Scheme.DECODE), shape, Scheme.DECODE, alignment)
    outputs, error_out = _mode(spectra.curve(1), shape, Scheme.ENCODE, alignment)
    if not (inputs.size and outputs.size):
        return np.zeros((6, 0))
    thresholds = np.union1d(error_in, error_out)
    thresholds = thresholds[thresholds >= max(error_in[-1], error_out[-1])]
    rank = inputs[np.searchsorted(-error_in, -thresholds)]
    rank_out = outputs[np.searchsorted(-error_out, -thresholds)]
    c, f = shape.in_channels, shape.out_features
    parameters = rank * c + rank * rank_out * shape.kernel_size + rank_out * f
    one, scheme = np.ones_like(rank), np.full_like(rank, _SCHEMES.index(Scheme.TUCKER2))
    pairs = np.stack([parameters, thresholds, one, rank, scheme, rank_out])
    return pairs[:, parameters < shape.num_parameters]


def _mode(
    curve: ErrorCurve, shape: LayerShape, fold: Scheme, alignment: Alignment
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Ranks that one projection of Tucker-2 may have, and their errors."""
    ranks = alignment.ranks(shape.folded(fold), 1, len(curve.relative_error) - 1)
    return ranks, curve.relative_error[ranks]
