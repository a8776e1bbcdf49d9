"""Folding a weight to a matrix, with some axes of its kernel among the columns.

The rows of the matrix are the outputs and the other axes of the kernel, its columns the input
channels and the axes that stay: those of the encoder, once the matrix is cut. With all axes among
the columns it is the paper's W (f, c·kh·kw) (ALDS, section 2.2); other folds have the same entries
in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from alds_onnx.linalg.arrays import IntArray
from alds_onnx.schemes.shapes import LayerShape

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Fold:
    """A way to fold a weight to a matrix.

    Attributes
    ----------
    keeps
        Whether an axis of the kernel, given by its position, is among the columns.
    """

    keeps: Callable[[int], bool]

    def axes(self, shape: LayerShape) -> tuple[bool, ...]:
        """Which axes of the kernel are among the columns."""
        return tuple(self.keeps(axis) for axis in range(len(shape.kernel)))

    def column_kernel(self, shape: LayerShape) -> tuple[int, ...]:
        """The kernel of the encoder: 1 along the axes that are rows."""
        return shape.kernel_along(self.axes(shape))

    def row_kernel(self, shape: LayerShape) -> tuple[int, ...]:
        """The kernel of the decoder: 1 along the axes that are columns."""
        return shape.kernel_along(not own for own in self.axes(shape))

    def num_taps(self, shape: LayerShape) -> int:
        """Entries of the decoder's kernel."""
        return prod(self.row_kernel(shape))

    def sizes(self, shape: LayerShape) -> LayerShape:
        """The sizes of the matrix, as those of a layer whose kernel is the encoder's.

        The decoder's part of the kernel counts as further outputs: 3 x 3 split by height is a layer
        with 3·f outputs and a kernel 3 x 1.
        """
        return LayerShape(
            out_features=shape.out_features * self.num_taps(shape),
            in_channels=shape.in_channels,
            kernel=self.column_kernel(shape),
        )

    def apply(self, matrix: npt.NDArray[_Number], shape: LayerShape) -> npt.NDArray[_Number]:
        """Bring W (f, c·kh·kw) into this fold.

        Returns
        -------
        Shape (f·(decoder's kernel), c·(encoder's kernel)); the columns of one input channel stand
        together. W itself, not a copy, where all axes are among the columns.
        """
        if all(self.axes(shape)):
            return matrix
        tensor = matrix.reshape(shape.out_features, shape.in_channels, *shape.kernel)
        sizes = self.sizes(shape)
        return tensor.transpose(self._order(shape)).reshape(sizes.out_features, sizes.num_columns)

    def invert(self, matrix: npt.NDArray[_Number], shape: LayerShape) -> npt.NDArray[_Number]:
        """Bring this fold back to W (f, c·kh·kw)."""
        if all(self.axes(shape)):
            return matrix
        order = self._order(shape)
        sizes = (shape.out_features, shape.in_channels, *shape.kernel)
        tensor = matrix.reshape([sizes[axis] for axis in order])
        return tensor.transpose(np.argsort(order)).reshape(shape.out_features, shape.num_columns)

    def taps(self, shape: LayerShape) -> IntArray:
        """Which columns of W the encoder reads at each position of the decoder's kernel.

        Returns
        -------
        Shape (positions, c·(encoder's kernel)).
        """
        one = LayerShape(out_features=1, in_channels=shape.in_channels, kernel=shape.kernel)
        return self.apply(np.arange(shape.num_columns)[None], one)

    def _order(self, shape: LayerShape) -> list[int]:
        """Axes of (f, c, kh, kw): first those that are rows, then those that are columns."""
        rows, columns = [0], [1]
        for axis, kept in enumerate(self.axes(shape), start=2):
            (columns if kept else rows).append(axis)
        return rows + columns


ENCODE = Fold(lambda axis: True)
DECODE = Fold(lambda axis: False)
SPLIT_HEIGHT = Fold(lambda axis: axis == 0)
SPLIT_WIDTH = Fold(lambda axis: axis != 0)
