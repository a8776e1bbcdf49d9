"""What one layer can be cut to: its cheapest parameters for each error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.values import Cut, ErrorCurve, FloatArray, LayerShape, Spectra


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
    """

    name: str
    parameters: npt.NDArray[np.int64]
    error: FloatArray
    num_slices: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]

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
        return Cut(num_slices=int(self.num_slices[index]), rank=int(self.rank[index]))


def frontier(name: str, spectra: Spectra, alignment: Alignment = FREE) -> Frontier:
    """Build the frontier over all k and j of a layer that are allowed.

    Ties go to the smaller k: fewer slices are simpler and no runtime is slower with them.
    """
    return frontier_of_curves(name, spectra.shape, spectra.curves, alignment)


def frontier_of_curves(
    name: str, shape: LayerShape, curves: tuple[ErrorCurve, ...], alignment: Alignment = FREE
) -> Frontier:
    """Build the frontier over the given k only."""
    columns = [_choices(shape, curve, alignment) for curve in curves]
    columns.append(np.array([[shape.num_parameters], [0.0], [0], [0]]))
    choices = np.concatenate(columns, axis=1)  # (4, choices): parameters, error, k, j
    choices = choices[:, np.lexsort((choices[2], choices[1], choices[0]))]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], choices[1, :-1]]))
    kept = choices[:, choices[1] < best_before]
    parameters, num_slices, rank = kept[[0, 2, 3]].astype(np.int64)
    return Frontier(
        name=name, parameters=parameters, error=kept[1].copy(), num_slices=num_slices, rank=rank
    )


def _choices(shape: LayerShape, curve: ErrorCurve, alignment: Alignment) -> FloatArray:
    """All ranks at one k that save parameters and are allowed: (4, ranks)."""
    k = curve.num_slices
    highest = min(shape.max_rank(k), len(curve.relative_error) - 1)
    rank = alignment.ranks(shape, k, highest)
    parameters = rank * shape.parameters_per_rank(k)
    return np.stack([parameters, curve.relative_error[rank], np.full_like(rank, k), rank])
