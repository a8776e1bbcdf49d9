"""A layer's sizes, the ways to cut it, and what a cut costs and makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# One number, or one for each of several cuts.
_Count = TypeVar("_Count", int, IntArray)


class Scheme(str, Enum):
    """How a convolution becomes smaller ones: where its kernel and its channels go.

    The first four fold the weight to a matrix and cut that: the encoder keeps some axes of the
    kernel, the decoder has the others. `ENCODE` is the paper's fold; on a kernel of one entry, all
    are the same. `TUCKER2` is the only one with three convolutions.
    """

    ENCODE = "encode"  # kh x kw, then 1x1
    DECODE = "decode"  # 1x1, then kh x kw
    SPLIT_HEIGHT = "split-height"  # kh x 1, then 1 x kw; in 3D kd x 1 x 1, then 1 x kh x kw
    SPLIT_WIDTH = "split-width"  # 1 x kw, then kh x 1; in 3D 1 x kh x kw, then kd x 1 x 1
    TUCKER2 = "tucker2"  # 1x1, then kh x kw, then 1x1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The sizes of a layer's weight, folded to a matrix of shape (f, c·kh·kw).

    Attributes
    ----------
    out_features
        f, at least 0.
    in_channels
        c, at least 0; slices are cut along it.
    kernel
        (kh, kw) or as many axes as the operator has; () for Gemm and MatMul.
    """

    out_features: int
    in_channels: int
    kernel: tuple[int, ...] = ()

    @property
    def kernel_size(self) -> int:
        """kh·kw."""
        return prod(self.kernel)

    @property
    def num_columns(self) -> int:
        """c·kh·kw, the columns of the folded matrix."""
        return self.in_channels * self.kernel_size

    @property
    def num_parameters(self) -> int:
        """Entries of the dense weight."""
        return self.out_features * self.num_columns

    def parameters_per_rank(self, num_slices: int) -> int:
        """Entries that each unit of rank costs: k·f (decoder) + c·kh·kw (encoder).

        Source: Liebenwein et al. 2021, section 2.2.
        """
        return num_slices * self.out_features + self.num_columns

    def max_rank(self, num_slices: int) -> int:
        """Largest rank j whose factors are smaller than the dense weight (0: there is none)."""
        per_rank = self.parameters_per_rank(num_slices)
        return max(0, (self.num_parameters - 1) // per_rank) if per_rank else 0

    def parameters_of_factors(
        self, scheme: Scheme, num_slices: int, rank: _Count, rank_out: _Count
    ) -> tuple[_Count, ...]:
        """Entries of each factor of a cut, or of several, in the order in which they are applied.

        All arguments as in `Cut`.
        """
        if scheme is Scheme.TUCKER2:
            core = rank * rank_out * self.kernel_size
            return rank * self.in_channels, core, rank_out * self.out_features
        folded = self.folded(scheme)
        return rank * folded.num_columns, rank * (num_slices * folded.out_features)

    def stays_with_encoder(self, scheme: Scheme, axis: int) -> bool:
        """Whether an axis of the kernel, with its strides and so on, belongs to the encoder.

        Raises
        ------
        ValueError
            For Tucker-2, which is no fold.
        """
        if scheme is Scheme.TUCKER2:
            raise ValueError("Tucker-2 is not a fold to a matrix")
        if scheme in (Scheme.ENCODE, Scheme.DECODE):
            return scheme is Scheme.ENCODE
        return (axis == 0) == (scheme is Scheme.SPLIT_HEIGHT)

    def encoder_kernel(self, scheme: Scheme) -> tuple[int, ...]:
        """The kernel of the encoder: 1 along the axes that belong to the decoder."""
        return tuple(
            n if self.stays_with_encoder(scheme, axis) else 1 for axis, n in enumerate(self.kernel)
        )

    def decoder_kernel(self, scheme: Scheme) -> tuple[int, ...]:
        """The kernel of the decoder: 1 along the axes that stay with the encoder."""
        return tuple(
            1 if self.stays_with_encoder(scheme, axis) else n for axis, n in enumerate(self.kernel)
        )

    def folded(self, scheme: Scheme) -> LayerShape:
        """The sizes of the matrix of a scheme, as those of a layer whose kernel is the encoder's.

        The decoder's part of the kernel counts as further outputs: 3 x 3 split by height is a layer
        with 3·f outputs and a kernel 3 x 1.
        """
        return LayerShape(
            out_features=self.out_features * prod(self.decoder_kernel(scheme)),
            in_channels=self.in_channels,
            kernel=self.encoder_kernel(scheme),
        )

    def distinct(self, schemes: Iterable[Scheme]) -> tuple[Scheme, ...]:
        """Schemes that differ on this kernel, each by the first of its equals in `Scheme`.

        On a kernel of one entry that is `ENCODE`, whatever was asked for.
        """
        found = {self._first_equal(scheme) for scheme in schemes}
        return tuple(scheme for scheme in Scheme if scheme in found)

    def _first_equal(self, scheme: Scheme) -> Scheme:
        if self.kernel_size == 1:
            return Scheme.ENCODE
        if scheme is Scheme.TUCKER2:
            return scheme
        kernel = self.encoder_kernel(scheme)
        return next(first for first in Scheme if self.encoder_kernel(first) == kernel)

    def slice_counts(self) -> tuple[int, ...]:
        """Every k that divides c and leaves a rank that saves parameters, ascending."""
        c = self.in_channels
        divisors = (k for k in range(1, c + 1) if c % k == 0)
        return tuple(k for k in divisors if self.max_rank(k) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How one weight is decomposed: k slices, each of rank j.

    Attributes
    ----------
    num_slices, rank
        k and j. Tucker-2: 1, and the channels that the inputs are reduced to.
    scheme
        Of which matrix these are the slices.
    rank_out
        Tucker-2: the channels that the outputs are made from; 0 for the other schemes.
    """

    num_slices: int
    rank: int
    scheme: Scheme = Scheme.ENCODE
    rank_out: int = 0

    def num_parameters(self, shape: LayerShape) -> int:
        """Entries of all factors together."""
        return sum(self.parameters_of_factors(shape))

    def parameters_of_factors(self, shape: LayerShape) -> tuple[int, ...]:
        """Entries of each factor, in the order in which they are applied."""
        return shape.parameters_of_factors(self.scheme, self.num_slices, self.rank, self.rank_out)


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
    """

    macs: int
    inputs: tuple[int, ...] | None = ()
    outputs: tuple[int, ...] = ()
    transposed: bool = False

    def of_cut(self, shape: LayerShape, cut: Cut) -> int | None:
        """Multiply-accumulates of the factors; None where `inputs` are needed and not known."""
        uses = self.uses(shape, cut.scheme)
        if uses is None:
            return None
        return sum(n * size for n, size in zip(uses, cut.parameters_of_factors(shape), strict=True))

    def uses(self, shape: LayerShape, scheme: Scheme) -> tuple[int, ...] | None:
        """How often one run uses an entry of each factor of a scheme; None as in `of_cut`.

        Each factor is applied at every position of its own output, or input if transposed. An axis
        has its output size downstream of the factor that has it in its kernel.
        """
        positions = self.macs // max(1, shape.num_parameters)  # of the dense layer
        if scheme is Scheme.ENCODE and not self.transposed:
            return positions, positions
        if self.inputs is None:
            return None
        batch = positions // max(1, prod(self.inputs if self.transposed else self.outputs))
        if scheme is Scheme.TUCKER2:
            return batch * prod(self.inputs), positions, batch * prod(self.outputs)
        between = batch * prod(
            after if shape.stays_with_encoder(scheme, axis) else before
            for axis, (before, after) in enumerate(zip(self.inputs, self.outputs, strict=True))
        )
        return (positions, between) if self.transposed else (between, positions)


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

    Tucker-2 projects W (f, c, kh, kw) along f and along c. Both residuals are those of k = 1 of a
    fold, of `ENCODE` and of `DECODE`, at rank `rank_out` and `rank`; its error is the larger one,
    as that of several slices is the largest.

    Attributes
    ----------
    shape
        Sizes of the folded weight.
    norm
        ||W||_2, the largest singular value of the whole weight, folded as for `ENCODE`.
    curves
        One curve for each scheme and k, ascending in k; never empty. k = 1 of `ENCODE` is always
        there, and k = 1 of `DECODE` where `TUCKER2` is one of the schemes.
    schemes
        Those that may be chosen.
    """

    shape: LayerShape
    norm: float
    curves: tuple[ErrorCurve, ...]
    schemes: tuple[Scheme, ...] = (Scheme.ENCODE,)

    def curve(self, num_slices: int, scheme: Scheme = Scheme.ENCODE) -> ErrorCurve:
        """Give the curve at k slices of a fold.

        Raises
        ------
        KeyError
            If there is none.
        """
        for curve in self.curves:
            if curve.num_slices == num_slices and curve.scheme is scheme:
                return curve
        raise KeyError(num_slices)

    def relative_error(self, cut: Cut) -> float:
        """Give the error of a cut; KeyError if there is no curve for it."""
        return max(self.errors(cut))

    def errors(self, cut: Cut) -> tuple[float, ...]:
        """The errors of the projections that a cut is made of: two for Tucker-2, else one."""
        if cut.scheme is Scheme.TUCKER2:
            inputs, outputs = self.curve(1, Scheme.DECODE), self.curve(1)
            pairs = ((inputs, cut.rank), (outputs, cut.rank_out))
            return tuple(float(curve.relative_error[rank]) for curve, rank in pairs)
        curve = self.curve(cut.num_slices, cut.scheme)
        return (float(curve.relative_error[cut.rank]),)


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

    @classmethod
    def zeros(cls, shape: LayerShape, cut: Cut) -> Factors:
        """Give factors of the right sizes, for models that are only timed."""
        k, j = cut.num_slices, cut.rank
        if cut.scheme is Scheme.TUCKER2:
            return cls(
                shape=shape,
                U=np.zeros((1, shape.out_features, cut.rank_out)),
                V=np.zeros((1, j, shape.in_channels)),
                scheme=cut.scheme,
                core=np.zeros((cut.rank_out, j, *shape.kernel)),
            )
        folded = shape.folded(cut.scheme)
        return cls(
            shape=shape,
            U=np.zeros((k, folded.out_features, j)),
            V=np.zeros((k, j, folded.num_columns // k)),
            scheme=cut.scheme,
        )


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


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Mark an array as read-only, so that a frozen value is frozen all the way down."""
    array.setflags(write=False)
    return array
