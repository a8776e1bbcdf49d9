"""The sizes of a weight, and of the convolutions that take its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod


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
    one_hot
        Whether what the matrix multiplies has a single 1, so that columns of it are looked up.
    """

    out_features: int
    in_channels: int
    kernel: tuple[int, ...] = ()
    one_hot: bool = False

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

    def kernel_along(self, axes: Iterable[bool]) -> tuple[int, ...]:
        """The kernel with 1 along the axes that are not marked."""
        return tuple(n if own else 1 for n, own in zip(self.kernel, axes, strict=True))

    def full_rank(self, num_slices: int = 1) -> int:
        """Largest rank that a slice of the matrix can have: min(f, c/k·kh·kw)."""
        return min(self.out_features, self.num_columns // num_slices)

    def parameters_per_rank(self, num_slices: int) -> int:
        """Entries that each unit of rank costs: k·f (decoder) + c·kh·kw (encoder).

        Source: Liebenwein et al. 2021, section 2.2.
        """
        return num_slices * self.out_features + self.num_columns

    def max_rank(self, num_slices: int) -> int:
        """Largest rank j whose factors are smaller than the dense weight (0: there is none)."""
        per_rank = self.parameters_per_rank(num_slices)
        return max(0, (self.num_parameters - 1) // per_rank) if per_rank else 0

    def slice_counts(self) -> tuple[int, ...]:
        """Every k that divides c and leaves a rank that saves parameters, ascending."""
        c = self.in_channels
        divisors = (k for k in range(1, c + 1) if c % k == 0)
        return tuple(k for k in divisors if self.max_rank(k) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The numbers of a cut.

    Attributes
    ----------
    num_slices, rank
        k and j. Tucker-2: 1, and the channels that the inputs are reduced to.
    rank_out
        Tucker-2: the channels that the outputs are made from; 0 for the other schemes.
    """

    num_slices: int
    rank: int
    rank_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One of the convolutions that are applied in turn in place of a layer.

    Attributes
    ----------
    in_channels, out_channels, groups
        As ONNX's Conv has them.
    axes
        Which axes of the layer's kernel this convolution has; its kernel is 1 along the others.
    """

    in_channels: int
    out_channels: int
    groups: int = 1
    axes: tuple[bool, ...]

    def kernel(self, shape: LayerShape) -> tuple[int, ...]:
        """The kernel of this convolution."""
        return shape.kernel_along(self.axes)

    def weight_shape(self, shape: LayerShape) -> tuple[int, ...]:
        """Sizes of its weight: (outputs, inputs of a group, *kernel)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel(shape))
