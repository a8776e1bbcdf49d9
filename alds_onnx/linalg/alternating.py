"""Alternating least squares over encoders and decoders, from moments alone.

The inputs are x = (x_1 .. x_T), one part for each of T *taps*; every part has the same layout and
is cut into k slices of m inputs. One encoder E_i (j, m) for each slice serves all taps, and every
tap and slice has a decoder D_ti (f, j) of its own:

    y ≈ Σ_t Σ_i D_ti E_i x_ti

T = 1 is a matrix cut into slices. More taps are a convolution whose encoder sees only some axes of
the kernel: the codes of one encoder come in at T positions, and the decoder's kernel reads them
all. With C = E[x xᵀ] (n, n) and B = E[y xᵀ] (f, n), n = T·k·m:

    decoder    with the encoders fixed, the codes are z = Z x, where Z (T·k·j, n) has the rows of
               E_i in the places of every tap: D = (B Zᵀ)(Z C Zᵀ)⁻¹, all decoders together
    encoder    T = 1: with all else fixed and D_iᵀ D_i = I, E_i = D_iᵀ R_i C_ii⁻¹, where R_i (f, m)
               is the cross moment of what the other slices leave over
               T > 1: the derivative of the error with respect to E_i is zero where
               Σ_t Σ_t'i' D_tiᵀ D_t'i' E_i' C_(t'i')(ti) = Σ_t D_tiᵀ B_ti, a symmetric positive
               definite system for all E together. A few steps of conjugate gradients lower the
               error; their preconditioner is the mean of C_(ti)(ti) over the taps, which with
               Σ_t D_tiᵀ D_ti = I is the whole system where taps and slices are not correlated.

Sweeps go the same way again and again by small steps; each is therefore tried several times as
long, and the length is kept while it lowers the error. Never does a sweep raise it.

A single slice at one tap needs no sweeps: it is a reduced-rank regression.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from alds_onnx.linalg.arrays import FloatArray
from alds_onnx.linalg.least_squares import (
    JITTER,
    Problem,
    components,
    inverse,
    reduced_rank,
    shrunk,
    solved,
)

# A sweep that lowers the squared error by less than this fraction is the last.
_SLOW = 1e-4
# How much longer the next stride is than one that helped, and the longest.
_GROWTH, _LONGEST = 1.5, 20.0
# Steps of conjugate gradients in one sweep, and the part of the residual that ends them.
_STEPS, _RESIDUAL = 2, 1e-10


class Blocks:
    """Alternating least squares over the encoders E_i and all decoders together.

    With `rank_out`, at most so many rows of the decoders differ, over all taps: the decoders side
    by side are outer (f, rank_out) times inner (rank_out, T·k·j). For given encoders, both together
    are a reduced-rank regression of y on the codes.

    Attributes
    ----------
    D
        Decoders, shape (T·k, f, j), taps first.
    E
        Encoders, shape (k, j, m).
    coded
        The rows Z C, shape (T·k, j, n): with them, what the others leave over for a slice costs a
        product of k·j columns, not of n.
    explained
        By how much the squared error is below the power of y after the last solution for the
        decoders.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        num_slices: int,
        rank: int,
        taps: int = 1,
        rank_out: int = 0,
    ) -> None:
        self.rank_out = rank_out
        self.C, self.B, self.power, self.W = problem.C, problem.B, problem.power, problem.W
        f, n = self.B.shape
        self.taps, places = taps, taps * num_slices
        m = n // places
        self.blocks = [slice(i * m, (i + 1) * m) for i in range(places)]
        self.D = np.zeros((places, f, rank))
        self.E = np.zeros((num_slices, rank, m))
        self.coded = np.zeros((places, rank, n))
        self.explained = 0.0

    def solve(self, sweeps: int) -> None:
        """Sweep until the squared error, the power less what is explained, hardly falls.

        A single slice at one tap is solved at once. Others begin where the joint curve is:
        components of each slice's own outputs, one decoder. The cross moments of y with a slice
        would show what it shares with the others too, and all slices would begin with the same.
        """
        if len(self.blocks) == 1:
            self.D[0], self.E[0] = reduced_rank(self.B, self.C, self.E.shape[1])
            return
        k, j, _ = self.E.shape
        self.E = first_encoders(self.W, self.C, num_slices=k, rank=j, taps=self.taps)
        self._decode()
        inverses = [inverse(C) for C in mean_moments(self.C, self.taps, k)]
        stride = 0.0
        for _ in range(sweeps):
            before, best = self.explained, (self.D, self.E)
            stride = self._sweep(inverses, stride)
            if self.explained < before:
                self.D, self.E = best
            if self.explained - before <= _SLOW * (self.power - self.explained):
                break

    def _sweep(self, inverses: Sequence[FloatArray], stride: float) -> float:
        """Improve all encoders, go on by `stride` times what they changed, decode.

        Where that explains less than before, they stay as they were improved. Returns the next
        stride.
        """
        before, old = self.explained, self._orthonormalize()
        new = self._encoded(inverses)
        self.E = new + stride * (new - old)
        self._decode()
        if self.explained >= before:
            return min(max(1.0, _GROWTH * stride), _LONGEST)
        self.E = new
        self._decode()
        return stride / 2

    def _orthonormalize(self) -> FloatArray:
        """Make the decoders of a slice, over all taps, orthonormal; D E stays. Returns all E_i."""
        k, f, j = len(self.E), *self.D.shape[1:]
        stacked = self.D.reshape(self.taps, k, f, j).transpose(1, 0, 2, 3).reshape(k, -1, j)
        Q, R = np.linalg.qr(stacked)  # (k, T·f, j), (k, j, j)
        self.D = Q.reshape(k, self.taps, f, -1).transpose(1, 0, 2, 3).reshape(len(self.D), f, -1)
        self.E = R @ self.E
        self.coded = np.concatenate([R] * self.taps) @ self.coded
        return self.E

    def _encoded(self, inverses: Sequence[FloatArray]) -> FloatArray:
        """Better encoders; at one tap the best E_i for D_i and the others, one after the other."""
        if self.taps > 1:
            return self.encoded(np.stack(inverses), _STEPS)
        E, coded = self.E.copy(), self.coded.copy()
        k, j, _ = E.shape
        decoders = self.D.transpose(1, 0, 2).reshape(-1, k * j)  # (f, k·j)
        for i, block in enumerate(self.blocks):
            seen = coded[:, :, block]  # (k, j, m)
            rest = self.B[:, block] - decoders @ seen.reshape(k * j, -1)  # (f, m)
            E[i] = (self.D[i].T @ rest + seen[i]) @ inverses[i]
            coded[i] = E[i] @ self.C[block]
        return E

    def _decode(self) -> None:
        """The best decoders for the codes of all taps and slices."""
        j = self.E.shape[1]
        gram, cross = self._moments_of_codes()
        if not self.rank_out:
            decoder = solved(gram, cross.T).T  # (f, T·k·j)
        else:
            outer, inner = self._factored(gram, cross)
            decoder = outer @ inner
        self.explained = float(np.vdot(decoder, 2 * cross - decoder @ gram))
        self.D = decoder.reshape(len(decoder), -1, j).transpose(1, 0, 2)

    def _moments_of_codes(self) -> tuple[FloatArray, FloatArray]:
        """Z C Zᵀ (T·k·j, T·k·j) and B Zᵀ (f, T·k·j)."""
        self.coded = coded_rows(self.E, self.C, self.taps)
        coded = self.coded.reshape(-1, len(self.C))  # (T·k·j, n)
        pairs = list(zip(self.blocks, [*self.E] * self.taps, strict=True))
        gram = np.concatenate([coded[:, b] @ E.T for b, E in pairs], axis=1)
        cross = np.concatenate([self.B[:, b] @ E.T for b, E in pairs], axis=1)
        return gram, cross

    def encoded(self, inverses: FloatArray, steps: int) -> FloatArray:
        """Go towards the best encoders for the decoders by steps of conjugate gradients.

        `inverses` (k, m, m) has the preconditioner of each slice.
        """
        E = self.E.copy()
        decoders = np.concatenate(self.D, axis=1)  # (f, T·k·j)
        gram = decoders.T @ decoders
        wanted = [D.T @ self.B[:, b] for D, b in zip(self.D, self.blocks, strict=True)]
        residual = self._over_taps(wanted) - self._applied(gram, self.coded)
        direction = conditioned = residual @ inverses
        size = first = float(np.vdot(residual, conditioned))
        for _ in range(steps):
            if size <= _RESIDUAL**2 * first:
                break
            applied = self._applied(gram, coded_rows(direction, self.C, self.taps))
            step = size / float(np.vdot(direction, applied))
            E += step * direction
            residual = residual - step * applied
            conditioned = residual @ inverses
            before, size = size, float(np.vdot(residual, conditioned))
            direction = conditioned + size / before * direction
        return E

    def _applied(self, gram: FloatArray, coded: FloatArray) -> FloatArray:
        """The left side of the normal equations: Σ_t (Dᵀ D Z C)_(ti)(ti), shape (k, j, m)."""
        rows = coded.reshape(-1, len(self.C))  # (T·k·j, n)
        parts = np.split(gram, len(self.blocks))  # (j, T·k·j) each
        return self._over_taps(
            [part @ rows[:, b] for part, b in zip(parts, self.blocks, strict=True)]
        )

    def _over_taps(self, parts: Sequence[FloatArray]) -> FloatArray:
        """Sum T·k arrays (j, m) over the taps: (k, j, m)."""
        total: FloatArray = np.stack(parts).reshape(self.taps, *self.E.shape).sum(axis=0)
        return total

    def factored(self) -> tuple[FloatArray, FloatArray]:
        """Outer and inner part of the best decoders for the encoders as they are."""
        return self._factored(*self._moments_of_codes())

    def _factored(self, gram: FloatArray, cross: FloatArray) -> tuple[FloatArray, FloatArray]:
        rank = min(self.rank_out, *cross.shape)
        outer, inner = reduced_rank(cross, shrunk(gram, JITTER), rank)
        missing = self.rank_out - rank
        return np.pad(outer, ((0, 0), (0, missing))), np.pad(inner, ((0, missing), (0, 0)))


def first_encoders(
    W: FloatArray, C: FloatArray, *, num_slices: int, rank: int, taps: int
) -> FloatArray:
    """Encoders (k, j, m) to begin with: leading components of what each slice does at all taps.

    W (f, n) with one row for each output and tap is (f·T, k·m); its truncated SVD is taken in the
    metric of the moments of a tap, on average.
    """
    stacked = W.reshape(len(W) * taps, -1)
    return components(stacked, mean_moments(C, taps, num_slices), rank)


def joint_errors(
    problem: Problem, judge: FloatArray, *, num_slices: int, rank: int, taps: int
) -> FloatArray:
    """Relative errors of y ≈ W x at every rank, for encoders as they begin and the best decoder.

    Encoders and decoders are fitted to the moments of the problem, and judged by `judge`, the
    moments E[x xᵀ] (n, n) of other samples. The codes are ordered by rank first, so that those of
    every rank are a prefix. In the basis Q in which they are uncorrelated in the problem, decoders
    are B Qᵀ at every rank, and sums over leading blocks give the squared errors:

        E[||y - Σ_i b_i q_i x||²] = E[yᵀ y] - 2 Σ_i b_iᵀ E[y q_i x] + Σ_il b_iᵀ b_l E[q_i x q_l x]

    Returns the errors (rank + 1,), root mean squares relative to y = W x, which never rise: a rank
    whose error is larger than that of a lower one counts as that.
    """
    W, C = problem.W, problem.C
    cross = judge @ W.T  # (n, f)
    power = float(np.vdot(cross, W.T))
    if problem.power == 0.0 or power <= 0.0:
        return np.zeros(rank + 1)
    if rank == 0:
        return np.ones(1)
    E = first_encoders(W, C, num_slices=num_slices, rank=rank, taps=taps)
    gram, seen = _moments_by_rank(E, C, C @ W.T, taps)
    scale = 1 / _nonzero(np.sqrt(np.diag(gram)))
    root = np.linalg.cholesky(shrunk(gram * scale[:, None] * scale, JITTER))

    def uncorrelated(moments: FloatArray) -> FloatArray:
        """L⁻¹ times moments of codes of unit power."""
        found = scipy.linalg.solve_triangular(root, moments * scale[:, None], lower=True)
        return np.asarray(found)

    decoders = uncorrelated(seen)  # (j·T·k, f)
    if judge is C:
        explained = np.cumsum((decoders**2).sum(axis=1))
    else:
        gram, seen = _moments_by_rank(E, judge, cross, taps)
        among = uncorrelated(uncorrelated(gram).T)
        linear = np.cumsum((decoders * uncorrelated(seen)).sum(axis=1))
        explained = 2 * linear - _leading_sums((decoders @ decoders.T) * among)
    per_rank = taps * num_slices
    squared = np.clip(1 - explained[per_rank - 1 :: per_rank] / power, 0.0, 1.0)
    error: FloatArray = np.minimum.accumulate(np.concatenate([[1.0], np.sqrt(squared)]))
    return error


def _leading_sums(matrix: FloatArray) -> FloatArray:
    """Sums over the leading 1 x 1, 2 x 2, ... blocks of a symmetric matrix."""
    lower = np.tril(matrix, -1).sum(axis=1)
    return np.cumsum(2 * lower + np.diag(matrix))


def _moments_by_rank(
    E: FloatArray, C: FloatArray, cross: FloatArray, taps: int
) -> tuple[FloatArray, FloatArray]:
    """Moments of codes, ordered by rank first, with themselves and with y.

    From encoders (k, j, m), E[x xᵀ] (n, n) of inputs that are taps first, and E[x yᵀ] (n, f), to
    (j·T·k, j·T·k) and (j·T·k, f).
    """
    k, j, m = E.shape
    if taps == 1:
        rows = np.zeros((j, k, k, m))
        index = np.arange(k)
        rows[:, index, index, :] = E.transpose(1, 0, 2)
        codes = rows.reshape(j * k, k * m)
        return codes @ C @ codes.T, codes @ cross
    places = taps * k
    coded = coded_rows(E, C, taps).reshape(places, j, places, m)
    encoders = np.concatenate([E] * taps)  # (T·k, j, m)
    # Of the codes of each place with those of each other, (T·k, T·k, j, j); then by rank first.
    gram = np.matmul(coded.transpose(0, 2, 1, 3), encoders.transpose(0, 2, 1))
    gram = gram.transpose(2, 0, 3, 1).reshape(j * places, j * places)
    seen = (encoders @ cross.reshape(places, m, -1)).transpose(1, 0, 2).reshape(j * places, -1)
    return gram, seen


def _nonzero(values: FloatArray) -> FloatArray:
    """The values, with 1 in place of 0."""
    return np.where(values > 0, values, 1.0)


def mean_moments(C: FloatArray, taps: int, num_slices: int) -> list[FloatArray]:
    """Second moments (m, m) of each slice's inputs, on average over the taps."""
    m = len(C) // (taps * num_slices)
    blocks = [C[i : i + m, i : i + m] for i in range(0, len(C), m)]
    sums = [sum(blocks[i + num_slices :: num_slices], blocks[i]) for i in range(num_slices)]
    return [total / taps for total in sums] if taps > 1 else sums


def coded_rows(E: FloatArray, C: FloatArray, taps: int) -> FloatArray:
    """The rows Z C of the codes of encoders E (k, j, m) at every tap, shape (T·k, j, n)."""
    k, j, m = E.shape
    rows = E @ C.reshape(taps, k, m, -1)  # (T, k, j, n)
    return rows.reshape(taps * k, j, -1)
