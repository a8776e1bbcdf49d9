"""Tucker-2: a 1x1 convolution, one with the whole kernel, and a 1x1 convolution.

W (f, c, kh, kw) is projected along c and along f. Both residuals are those of k = 1 of a fold, of
`DECODE` at rank j and of `ENCODE` at rank j_out. Measured in the spectral norm, the error is the
larger one, as that of several slices is the largest. On data, where errors are root mean squares,
the squares add up: what the codes leave of y has nothing in common with what they explain, and of
that the outer projection leaves no more than it would of y itself.

On data the first and the second stage are the encoder and the decoder of `DECODE` with one slice,
whose decoders, side by side for all taps, have rank j_out: core and outer projection together are
a reduced-rank regression of y on the codes. See `alds_onnx.linalg.alternating`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from alds_onnx.linalg.alternating import Blocks
from alds_onnx.linalg.arrays import FloatArray, IntArray
from alds_onnx.linalg.eigen import inverse_or_zero, leading_eigenvectors
from alds_onnx.linalg.least_squares import Problem
from alds_onnx.linalg.scaling import scaled
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
from alds_onnx.schemes.fold import DECODE, ENCODE, Fold
from alds_onnx.schemes.shapes import LayerShape, Ranks

# Most ranks of a projection that are combined with all of the other where squares of errors add
# up; more of them are thinned evenly.
_MOST_RANKS = 256


class Tucker2(Structure):
    """Factors V (1, j, c), the core (j_out, j, kh, kw) and U (1, f, j_out)."""

    folds = (ENCODE, DECODE)
    ranks = ("rank", "rank_out")

    def identity(self, shape: LayerShape) -> Hashable:
        """Like no other, but on a kernel of one entry."""
        return shape.kernel if shape.kernel_size == 1 else "tucker2"

    def axes(self, shape: LayerShape) -> tuple[tuple[bool, ...], ...]:
        """All belong to the core."""
        count = len(shape.kernel)
        return (False,) * count, (True,) * count, (False,) * count

    def channels(self, num_slices: int, rank: Count, rank_out: Count) -> tuple[Count, ...]:
        """Both ranks."""
        return rank, rank_out

    def ranks_of_channels(self, channels: Sequence[int], groups: int) -> tuple[int, int, int]:
        """Two ranks."""
        return groups, channels[0], channels[1]

    def sliced(self, shape: LayerShape) -> LayerShape | None:
        """Nothing is."""
        return None

    def projections(self, cut: Ranks) -> tuple[Projection, ...]:
        """Of the inputs, and of the outputs."""
        return (
            Projection(fold=DECODE, num_slices=1, rank=cut.rank),
            Projection(fold=ENCODE, num_slices=1, rank=cut.rank_out),
        )

    def candidates(
        self, shape: LayerShape, curves: Curves, allowed: RankRule, norm: ErrorNorm
    ) -> Iterator[Candidates]:
        """Pairs of ranks."""
        inputs, error_in = _mode(DECODE, shape, curves, allowed)
        outputs, error_out = _mode(ENCODE, shape, curves, allowed)
        pairs = _largest if norm is ErrorNorm.SPECTRAL else _summed
        first, second, error = pairs(error_in, error_out)
        rank, rank_out = inputs[first], outputs[second]
        saves = sum(self.sizes(shape, 1, rank, rank_out), 0 * rank) < shape.num_parameters
        if norm is ErrorNorm.FROBENIUS:  # further rows of the core would be zero
            saves &= np.less_equal(rank_out, rank * shape.kernel_size)
        yield 1, rank[saves], rank_out[saves], error[saves]

    def factorize(self, matrix: FloatArray, shape: LayerShape, cut: Ranks) -> Parts:
        """The truncated higher-order SVD (Tucker 1966; De Lathauwer et al. 2000).

        The bases are the first left singular vectors A (f, j_out) of the fold of `ENCODE`, and the
        first right ones B (c, j) of that of `DECODE`; the core is W x_1 Aᵀ x_2 Bᵀ.
        """
        W, scale = scaled(matrix)
        columns = DECODE.apply(W, shape)  # (f·kh·kw, c)
        A = leading_eigenvectors(W @ W.T, cut.rank_out)
        B = leading_eigenvectors(columns.T @ columns, cut.rank)
        # (j_out, c, kh·kw) contracted along c
        core = np.einsum("ock,ci->oik", (A.T @ W).reshape(cut.rank_out, shape.in_channels, -1), B)
        return _balanced(B, core, A, shape, np.sqrt(scale))

    def regress(self, problem: Problem, shape: LayerShape, cut: Ranks, sweeps: int) -> Parts:
        """Alternating least squares; see above."""
        taps = DECODE.taps(shape)
        ordered, j, j_out = problem.reordered(taps.ravel()), cut.rank, cut.rank_out
        blocks = Blocks(ordered, num_slices=1, rank=j, taps=len(taps), rank_out=j_out)
        blocks.solve(sweeps)
        A, inner = blocks.factored()  # (f, j_out), (j_out, T·j)
        B, R = np.linalg.qr(blocks.E[0].T)  # (c, j), (j, j)
        core = np.einsum("oti,ir->ort", inner.reshape(len(inner), len(taps), -1), R.T)
        return _balanced(B, core, A, shape)

    def compose(self, shape: LayerShape, parts: Parts) -> FloatArray:
        """The core, times both projections."""
        V, core, U = parts
        core = core.reshape(U.shape[2], V.shape[1], -1)
        inner = np.einsum("oik,ic->ock", core, V[0], optimize=True)  # (j_out, c, kh·kw)
        return np.asarray(U[0] @ inner.reshape(len(inner), shape.num_columns))

    def stage_weights(self, shape: LayerShape, parts: Parts) -> Parts:
        """The factors, with kernels of 1 where they have none."""
        V, core, U = parts
        ones = (1,) * len(shape.kernel)
        return V.reshape(*V.shape[1:], *ones), core, U.reshape(*U.shape[1:], *ones)

    def parts_of_stages(
        self, shape: LayerShape, cut: Ranks, weights: Sequence[FloatArray]
    ) -> Parts:
        """The other way round."""
        encoder, core, decoder = weights
        V = encoder.reshape(1, cut.rank, shape.in_channels)
        return V, core, decoder.reshape(1, shape.out_features, cut.rank_out)


def _balanced(
    B: FloatArray, core: FloatArray, A: FloatArray, shape: LayerShape, root: float = 1.0
) -> Parts:
    """Factors from B (c, j) and A (f, j_out), both orthonormal, and the core (j_out, j, kh·kw).

    The slices of the core along either axis have about the singular values as norms; half of each
    goes to A and to B, and `root` to both.
    """
    outer = np.sqrt(np.linalg.norm(core, axis=(1, 2)))
    inner = np.sqrt(np.linalg.norm(core, axis=(0, 2)))
    core = core * inverse_or_zero(outer)[:, None, None] * inverse_or_zero(inner)[:, None]
    return (
        (B * inner).T[None] * root,
        core.reshape(len(outer), len(inner), *shape.kernel),
        (A * outer * root)[None],
    )


def _mode(
    fold: Fold, shape: LayerShape, curves: Curves, allowed: RankRule
) -> tuple[IntArray, FloatArray]:
    """Ranks that one projection may have, and their errors."""
    error = curves[fold, 1]
    ranks = allowed(fold.sizes(shape), 1, len(error) - 1)
    return ranks, error[ranks]


def _largest(error_in: FloatArray, error_out: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Pairs of which one may be best if the larger error of both counts.

    At each threshold the smallest rank of either that keeps it is best; so only these pairs, one
    for each error, need to be looked at.
    """
    thresholds = np.zeros(0)
    if error_in.size and error_out.size:
        thresholds = np.union1d(error_in, error_out)
        thresholds = thresholds[thresholds >= max(error_in[-1], error_out[-1])]
    first = np.searchsorted(-error_in, -thresholds)
    return first, np.searchsorted(-error_out, -thresholds), thresholds


def _summed(error_in: FloatArray, error_out: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs: if squares add up, each may be best."""
    first, second = (
        np.arange(0, len(error), max(1, -(-len(error) // _MOST_RANKS)))
        for error in (error_in, error_out)
    )
    pairs = np.meshgrid(first, second, indexing="ij")
    first, second = (index.ravel() for index in pairs)
    return first, second, np.hypot(error_in[first], error_out[second])
