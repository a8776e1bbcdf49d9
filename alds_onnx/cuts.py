"""The ways to cut a layer, and what a cut costs and makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from alds_onnx.linalg.arrays import FloatArray, IntArray, read_only
from alds_onnx.schemes import Scheme, distinct, scheme_of
from alds_onnx.schemes.base import Curves, ErrorNorm, Parts
from alds_onnx.schemes.shapes import LayerShape, Ranks

__all__ = [
    "Cut",
    "CutError",
    "Cuts",
    "ErrorCurve",
    "ErrorNorm",
    "Factors",
    "FloatArray",
    "IntArray",
    "LayerShape",
    "Scheme",
    "Spectra",
    "Work",
    "distinct",
    "one_cut",
    "read_only",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(Ranks):
    """How one weight is decomposed: k slices, each of rank j, of the matrix of a scheme."""

    scheme: Scheme = Scheme.ENCODE

    def num_parameters(self, shape: LayerShape) -> int:
        """Entries of all factors together."""
        return sum(self.parameters_of_factors(shape))

    def parameters_of_factors(self, shape: LayerShape) -> tuple[int, ...]:
        """Entries of each factor, in the order in which they are applied."""
        structure = self.scheme.structure
        return structure.sizes(shape, self.num_slices, self.rank, self.rank_out)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cuts:
    """Several cuts of one layer, of one scheme and number of slices; ranks are (cuts,)."""

    scheme: Scheme
    num_slices: int
    rank: IntArray
    rank_out: IntArray

    def where(self, chosen: npt.NDArray[np.bool_]) -> Cuts:
        """Those that are marked."""
        return replace(self, rank=self.rank[chosen], rank_out=self.rank_out[chosen])

    def each(self) -> list[Cut]:
        """All of them, one by one."""
        k, scheme = self.num_slices, self.scheme
        return [
            Cut(num_slices=k, rank=int(rank), scheme=scheme, rank_out=int(rank_out))
            for rank, rank_out in zip(self.rank, self.rank_out, strict=True)
        ]

    def parameters_of_factors(self, shape: LayerShape) -> tuple[IntArray, ...]:
        """Entries of each factor, in the order in which they are applied; each (cuts,)."""
        structure = self.scheme.structure
        return structure.sizes(shape, self.num_slices, self.rank, self.rank_out)

    def num_parameters(self, shape: LayerShape) -> IntArray:
        """Entries of all factors together, (cuts,)."""
        return sum(self.parameters_of_factors(shape), np.zeros_like(self.rank))


def one_cut(cut: Cut) -> Cuts:
    """A single cut."""
    rank, rank_out = np.array([[cut.rank], [cut.rank_out]], np.int64)
    return Cuts(scheme=cut.scheme, num_slices=cut.num_slices, rank=rank, rank_out=rank_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a layer computes in one run.

    Attributes
    ----------
    macs
        Multiply-accumulates of the dense layer.
    inputs, outputs
        Conv: sizes of the spatial axes before and after; () for Gemm and MatMul. `inputs` is None
        where they are not known.
    transposed
        Whether each entry of a weight is used at every position of the *input* of its operator, as
        in ConvTranspose, and not of its output.
    lookups
        Gather: the number of ids, each of which takes one row of a table. None for other operators.
    kept
        Those of `macs` that no cut changes: the recurrence of an LSTM.
    """

    macs: int
    inputs: tuple[int, ...] | None = ()
    outputs: tuple[int, ...] = ()
    transposed: bool = False
    lookups: int | None = None
    kept: int = 0

    def of_cut(self, shape: LayerShape, cut: Cut) -> int | None:
        """Multiply-accumulates of the factors; None where `inputs` are needed and not known."""
        uses = self.uses(shape, cut.scheme)
        if uses is None:
            return None
        sizes = cut.parameters_of_factors(shape)
        return self.kept + sum(n * size for n, size in zip(uses, sizes, strict=True))

    def uses(self, shape: LayerShape, scheme: Scheme) -> tuple[int, ...] | None:
        """How often one run uses an entry of each factor of a scheme; None as in `of_cut`.

        An axis has its output size downstream of the stage that has it in its kernel. A factor is
        applied at every position of its own output, or input if transposed.
        """
        if self.lookups is not None:
            return (0, self.lookups)
        positions = (self.macs - self.kept) // max(1, shape.num_parameters)  # of the dense layer
        done = np.zeros(len(shape.kernel), bool)  # axes that have their output size
        uses: list[int] = []
        for axes in scheme.structure.axes(shape):
            applied, done = done, done | np.array(axes, bool)
            applied = applied if self.transposed else done
            if (applied != self.transposed).all():  # where the dense layer is applied
                uses.append(positions)
                continue
            if self.inputs is None:
                return None
            batch = positions // max(1, prod(self.inputs if self.transposed else self.outputs))
            sizes = zip(applied, self.inputs, self.outputs, strict=True)
            uses.append(batch * prod(after if own else before for own, before, after in sizes))
        return tuple(uses)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorCurve:
    """The relative error of one layer at a fixed number of slices of one of its folds.

    Attributes
    ----------
    num_slices
        k.
    relative_error
        Shape (min(f, c/k·kh·kw) + 1,), f and kernel those of the fold, read-only.
        `relative_error[rank]` is the error after keeping `rank`: max over the slices of
        sigma_{rank+1} / ||W||_2 (ibid., section 2.3), W the fold of `ENCODE` whatever the scheme.
        Falls with the rank; the last entry is 0.
    scheme
        Which fold.
    """

    num_slices: int
    relative_error: FloatArray
    scheme: Scheme = Scheme.ENCODE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectra:
    """The error curves of one weight for all schemes and numbers of slices.

    Errors of different schemes may be compared. The operator norm of a convolution with the kernel
    E is at most sqrt(kh·kw)·||E||_2, and that holds for the spectral norm of each of the four folds
    of E (Singla and Feizi, "Fantastic Four", ICLR 2021). So what a cut leaves out, measured in its
    own fold, bounds the same quantity by the same factor, and all are divided by the same ||W||_2:
    that of the fold of `ENCODE`, for which the error is the paper's. (Divided each by the norm of
    its own fold, they chose models with less accuracy on average.)

    On data, errors are root mean squares of the layer's output, which is the same for all schemes.

    Attributes
    ----------
    shape
        Sizes of the folded weight.
    norm
        ||W||_2, the largest singular value of the whole weight, folded as for `ENCODE`; on data,
        the root mean square of the output.
    curves
        One curve for each fold and k, ascending in k; never empty. There are those that the schemes
        need.
    schemes
        Those that may be chosen.
    error_norm
        How the errors of several projections of one cut add up.
    """

    shape: LayerShape
    norm: float
    curves: tuple[ErrorCurve, ...]
    schemes: tuple[Scheme, ...] = (Scheme.ENCODE,)
    error_norm: ErrorNorm = ErrorNorm.SPECTRAL

    @property
    def by_fold(self) -> Curves:
        """Errors after keeping each rank, by fold and number of slices."""
        return {
            (fold, curve.num_slices): curve.relative_error
            for curve in self.curves
            for fold in curve.scheme.structure.folds
        }

    def curve(self, num_slices: int, scheme: Scheme = Scheme.ENCODE) -> ErrorCurve:
        """Give the curve at k slices of a fold; KeyError if there is none."""
        for curve in self.curves:
            if curve.num_slices == num_slices and curve.scheme is scheme:
                return curve
        raise KeyError(num_slices)

    def relative_error(self, cut: Cut) -> float:
        """Give the error of a cut; KeyError if there is no curve for it."""
        return self.error_norm.combined(self.errors(cut))

    def errors(self, cut: Cut) -> tuple[float, ...]:
        """The errors of the projections that a cut is made of."""
        return tuple(
            float(self.curve(one.num_slices, scheme_of(one.fold)).relative_error[one.rank])
            for one in cut.scheme.structure.projections(cut)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """A decomposed weight: slice i of its fold is about `U[i] @ V[i]`.

    In float64 while they are computed, then in the type in which the model stores them.

    Attributes
    ----------
    shape
        Sizes of the weight.
    U
        Decoder, shape (k, f, j), f that of the fold, read-only. Tucker-2: (1, f, j_out).
    V
        Encoder, shape (k, j, c/k·kh·kw), kernel that of the fold, read-only. Tucker-2: (1, j, c).
    scheme
        Which fold.
    core
        Tucker-2: what stands between, shape (j_out, j, kh, kw), read-only; None otherwise.
    """

    shape: LayerShape
    U: npt.NDArray[Any]
    V: npt.NDArray[Any]
    scheme: Scheme = Scheme.ENCODE
    core: npt.NDArray[Any] | None = None

    @property
    def cut(self) -> Cut:
        """The scheme, number of slices and ranks that these factors have."""
        k, j, _ = self.V.shape
        rank_out = 0 if self.core is None else self.U.shape[2]
        return Cut(num_slices=k, rank=j, scheme=self.scheme, rank_out=rank_out)

    @property
    def parts(self) -> Parts:
        """All of them in the order in which they are applied."""
        return (self.V, self.U) if self.core is None else (self.V, self.core, self.U)

    @classmethod
    def of_parts(cls, shape: LayerShape, scheme: Scheme, parts: Parts) -> Factors:
        """Factors from their arrays, in the order in which they are applied."""
        V, *cores, U = map(read_only, parts)
        return cls(shape=shape, U=U, V=V, scheme=scheme, core=cores[0] if cores else None)

    @classmethod
    def zeros(cls, shape: LayerShape, cut: Cut) -> Factors:
        """Give factors of the right sizes, for models that are only timed."""
        structure = cut.scheme.structure
        weights = [np.zeros(stage.weight_shape(shape)) for stage in structure.stages(shape, cut)]
        return cls.of_parts(shape, cut.scheme, structure.parts_of_stages(shape, cut, weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class CutError:
    """Three names for the error of a cut, all relative to ||W||_2 (ibid., Theorem 1).

    Attributes
    ----------
    relative
        max over the slices of sigma_{i,j+1} / sigma_1: what the search minimises. Sigma_{i,j+1} is
        that of the scheme's fold, and sigma_1 that of `ENCODE` (see `Spectra`). Tucker-2: the
        larger of its two errors.
    spectral
        The true ||W - Ŵ||_2 / ||W||_2, the difference in the scheme's fold; lies between the other
        two. Tucker-2: the larger of the norms in the folds of `ENCODE` and `DECODE`, which is at
        least `relative`. NaN where a plan that was read does not say.
    bound
        sqrt(k) times `relative`: the bound of Theorem 1. Tucker-2: the root of the sum of the
        squares of its two errors, which bounds the operator. NaN as above.
    """

    relative: float
    spectral: float
    bound: float
