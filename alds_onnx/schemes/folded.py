"""Schemes with two stages: a fold of the weight is cut into slices, each of them to rank j.

Slice i of the matrix, with the columns of the i-th group of input channels, is about U_i V_i. The
encoder, a grouped convolution, has the axes of the kernel that are columns; the decoder has the
others. Every number below is that of the matrix of the fold: f its rows, n its columns.

On data the columns of W belong to positions d of the decoder's kernel (the *taps*): the layer's
output is the sum over d of U_d V x_d, with x_d the inputs that the encoder sees there. One encoder
serves all taps, and what they read is correlated: so the rows (f, d) of the decoder are fitted
together; see `alds_onnx.linalg.alternating`. The paper's fold has one tap.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from alds_onnx.linalg.alternating import Blocks
from alds_onnx.linalg.arrays import FloatArray
from alds_onnx.linalg.eigen import truncated
from alds_onnx.linalg.least_squares import Problem
from alds_onnx.linalg.slices import slices
from alds_onnx.schemes.base import (
    Candidates,
    Count,
    Curves,
    ErrorNorm,
    Parts,
    Projection,
    RankRule,
    Structure,
)
from alds_onnx.schemes.fold import Fold
from alds_onnx.schemes.shapes import LayerShape, Ranks


class Folded(Structure):
    """Factors V (k, j, n/k) and U (k, f, j) of the matrix of a fold.

    Parameters
    ----------
    fold
        Which axes of the kernel stay with the encoder.
    """

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.folds = (fold,)

    def identity(self, shape: LayerShape) -> Hashable:
        """The kernel of the encoder."""
        return self.fold.column_kernel(shape)

    def axes(self, shape: LayerShape) -> tuple[tuple[bool, ...], ...]:
        """Those of the encoder, and the others."""
        first = self.fold.axes(shape)
        return first, tuple(not own for own in first)

    def channels(self, num_slices: int, rank: Count, rank_out: Count) -> tuple[Count, ...]:
        """The codes of all slices."""
        return (num_slices * rank,)

    def ranks_of_channels(self, channels: Sequence[int], groups: int) -> tuple[int, int, int]:
        """One rank."""
        return groups, channels[0] // groups, 0

    def sliced(self, shape: LayerShape) -> LayerShape | None:
        """The matrix of the fold."""
        return self.fold.sizes(shape)

    def projections(self, cut: Ranks) -> tuple[Projection, ...]:
        """One, of the matrix."""
        return (Projection(fold=self.fold, num_slices=cut.num_slices, rank=cut.rank),)

    def candidates(
        self, shape: LayerShape, curves: Curves, allowed: RankRule, norm: ErrorNorm
    ) -> Iterator[Candidates]:
        """All ranks at each number of slices."""
        sizes = self.fold.sizes(shape)
        for (fold, k), error in curves.items():
            if fold is self.fold:
                rank = allowed(sizes, k, min(sizes.max_rank(k), len(error) - 1))
                yield k, rank, np.zeros_like(rank), error[rank]

    def factorize(self, matrix: FloatArray, shape: LayerShape, cut: Ranks) -> Parts:
        """Truncated SVDs of the slices (Eckart-Young), the singular values split evenly.

        So no factor leaves the range of half precision where the weight was inside it.
        """
        parts = slices(self.fold.apply(matrix, shape), cut.num_slices)
        pairs = [truncated(part, cut.rank) for part in parts]
        return np.stack([V for _, V in pairs]), np.stack([U for U, _ in pairs])

    def regress(self, problem: Problem, shape: LayerShape, cut: Ranks, sweeps: int) -> Parts:
        """Alternating least squares; see above."""
        k, j = cut.num_slices, cut.rank
        taps = self.fold.taps(shape)
        ordered = problem.reordered(taps.ravel())
        blocks = Blocks(ordered, num_slices=k, rank=j, taps=len(taps))
        blocks.solve(sweeps)
        # (T·k, f, j) to rows of the fold, which are outputs first: (k, f·T, j)
        f = len(problem.W)
        U = blocks.D.reshape(len(taps), k, f, j).transpose(1, 2, 0, 3).reshape(k, f * len(taps), j)
        return balanced(blocks.E, U)

    def compose(self, shape: LayerShape, parts: Parts) -> FloatArray:
        """The fold is [U_1 V_1 ... U_k V_k]."""
        V, U = parts
        sizes = self.fold.sizes(shape)
        product = (U @ V).transpose(1, 0, 2)  # (f, k, n/k)
        return self.fold.invert(product.reshape(sizes.out_features, sizes.num_columns), shape)

    def stage_weights(self, shape: LayerShape, parts: Parts) -> Parts:
        """Codes are slices first; the rows of U are outputs first, then the decoder's kernel."""
        V, U = parts
        k, j, _ = V.shape
        f, width = shape.out_features, shape.in_channels // k
        decoder = U.reshape(k, f, -1, j).transpose(1, 0, 3, 2)  # (f, k, j, kh·kw)
        return (
            V.reshape(k * j, width, *self.fold.column_kernel(shape)),
            decoder.reshape(f, k * j, *self.fold.row_kernel(shape)),
        )

    def parts_of_stages(
        self, shape: LayerShape, cut: Ranks, weights: Sequence[FloatArray]
    ) -> Parts:
        """The other way round."""
        encoder, decoder = weights
        k, j, sizes = cut.num_slices, cut.rank, self.fold.sizes(shape)
        taps = self.fold.num_taps(shape)
        U = decoder.reshape(shape.out_features, k, j, taps).transpose(1, 0, 3, 2)
        return (
            encoder.reshape(k, j, sizes.num_columns // k),
            U.reshape(k, sizes.out_features, j),
        )


def balanced(V: FloatArray, U: FloatArray) -> Parts:
    """The same product, with rows of V (k, j, n) and columns of U (k, f, j) of equal norms."""
    left = np.linalg.norm(U, axis=1)  # (k, j)
    right = np.linalg.norm(V, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(right / left)
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    return V / scale[:, :, None], U * scale[:, None, :]
