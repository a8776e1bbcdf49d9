"""What a scheme has to answer: sizes, errors, factors. Plain numbers and arrays, no ONNX."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from alds_onnx.linalg.arrays import FloatArray, IntArray
from alds_onnx.schemes.fold import Fold
from alds_onnx.schemes.shapes import LayerShape, Ranks, Stage

if TYPE_CHECKING:
    from alds_onnx.linalg.least_squares import Problem

#: One number, or one for each of several cuts.
Count = TypeVar("Count", int, IntArray)
#: The factors of a weight, in the order in which they are applied.
Parts: TypeAlias = tuple[FloatArray, ...]
#: Cuts of one layer and scheme: the number of slices of all, then rank, second rank and error of
#: each, (cuts,).
Candidates: TypeAlias = tuple[int, IntArray, IntArray, FloatArray]
#: Errors after keeping each rank, by fold and number of slices.
Curves: TypeAlias = Mapping[tuple[Fold, int], FloatArray]
#: Which ranks are allowed for the matrix of a fold (its sizes) at k slices, up to a highest one.
RankRule: TypeAlias = Callable[[LayerShape, int, int], IntArray]


class ErrorNorm(Enum):
    """In which norm errors are measured, and so how those of two projections add up."""

    SPECTRAL = "spectral"  # the larger one counts, as the paper has it for slices
    FROBENIUS = "frobenius"  # root mean squares: squares add up

    def combined(self, errors: Sequence[float]) -> float:
        """The error of several projections together."""
        return max(errors) if self is ErrorNorm.SPECTRAL else math.hypot(*errors)


class Projection(NamedTuple):
    """A matrix that a cut projects to a lower rank, slice by slice: what is left is the error."""

    fold: Fold
    num_slices: int
    rank: int


class Structure(ABC):
    """How a weight becomes smaller ones, and what follows from that.

    Attributes
    ----------
    folds
        Those whose error curves say the error of a cut.
    ranks
        What a plan calls the rank of each of the projections.
    """

    folds: tuple[Fold, ...]
    ranks: tuple[str, ...] = ("rank",)

    @abstractmethod
    def identity(self, shape: LayerShape) -> Hashable:
        """A value that is equal for schemes that are the same on this kernel."""

    @abstractmethod
    def axes(self, shape: LayerShape) -> tuple[tuple[bool, ...], ...]:
        """Which axes of the kernel each stage has."""

    @abstractmethod
    def channels(self, num_slices: int, rank: Count, rank_out: Count) -> tuple[Count, ...]:
        """Channels between one stage and the next, of a cut or of several."""

    @abstractmethod
    def ranks_of_channels(self, channels: Sequence[int], groups: int) -> tuple[int, int, int]:
        """k, j and the second rank of stages with these numbers of outputs, groups in the first."""

    @abstractmethod
    def sliced(self, shape: LayerShape) -> LayerShape | None:
        """Sizes of the matrix that is cut into slices; None if there is always one slice."""

    @abstractmethod
    def projections(self, cut: Ranks) -> tuple[Projection, ...]:
        """The projections that a cut is made of."""

    @abstractmethod
    def candidates(
        self, shape: LayerShape, curves: Curves, allowed: RankRule, norm: ErrorNorm
    ) -> Iterator[Candidates]:
        """The cuts to choose from: those that save parameters and may be best for some budget."""

    @abstractmethod
    def factorize(self, matrix: FloatArray, shape: LayerShape, cut: Ranks) -> Parts:
        """The factors of W (f, c·kh·kw) from the weight alone, balanced."""

    @abstractmethod
    def regress(self, problem: Problem, shape: LayerShape, cut: Ranks, sweeps: int) -> Parts:
        """The factors that reproduce the outputs of a layer on data, balanced."""

    @abstractmethod
    def compose(self, shape: LayerShape, parts: Parts) -> FloatArray:
        """Ŵ, shape (f, c·kh·kw)."""

    @abstractmethod
    def stage_weights(self, shape: LayerShape, parts: Parts) -> Parts:
        """The weights of the stages, (out, in / groups, *kernel) each."""

    @abstractmethod
    def parts_of_stages(
        self, shape: LayerShape, cut: Ranks, weights: Sequence[FloatArray]
    ) -> Parts:
        """The factors whose `stage_weights` these are."""

    def stages(self, shape: LayerShape, cut: Ranks) -> tuple[Stage, ...]:
        """The convolutions that take the layer's place, in the order in which they are applied.

        The first one has a group for each slice.
        """
        between = self.channels(cut.num_slices, cut.rank, cut.rank_out)
        ends = pairwise((shape.in_channels, *between, shape.out_features))
        groups = (cut.num_slices, *(1 for _ in between))
        return tuple(
            Stage(in_channels=before, out_channels=after, groups=n, axes=axes)
            for (before, after), n, axes in zip(ends, groups, self.axes(shape), strict=True)
        )

    def sizes(
        self, shape: LayerShape, num_slices: int, rank: Count, rank_out: Count
    ) -> tuple[Count, ...]:
        """Entries of each factor of a cut, or of several; those of the weights of the stages."""
        between: Sequence[Any] = self.channels(num_slices, rank, rank_out)
        chain = [shape.in_channels, *between, shape.out_features]
        kernels = [prod(shape.kernel_along(axes)) for axes in self.axes(shape)]
        first, *others = (
            before * after * size
            for (before, after), size in zip(pairwise(chain), kernels, strict=True)
        )
        return first // num_slices, *others

    def slice_counts(self, shape: LayerShape) -> tuple[int, ...]:
        """Every k that leaves a rank that saves parameters, ascending."""
        sliced = self.sliced(shape)
        return (1,) if sliced is None else sliced.slice_counts()

    def misfit(self, shape: LayerShape, cut: Ranks, name: str) -> str | None:
        """Why a cut cannot be made of this weight, in a sentence about the scheme of this name."""
        k, sliced = cut.num_slices, self.sliced(shape)
        if sliced is None and k != 1:
            return f"'{name}' has 1 slice, not {k}"
        if shape.in_channels % k:
            return f"{k} slices do not divide {shape.in_channels} channels"
        for one, rank in zip(self.projections(cut), self.ranks, strict=True):
            highest = one.fold.sizes(shape).full_rank(k)
            if one.rank > highest:
                what = f"`{rank}`" if len(self.ranks) > 1 else rank
                return f"{what} {one.rank} is above the full rank, {highest}"
        return None
