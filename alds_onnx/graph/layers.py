"""Layers: nodes with a weight that can be decomposed, whatever their operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import FloatArray, LayerShape
from alds_onnx.graph.scopes import ModelIndex, Site
from alds_onnx.graph.weights import WeightSource, read_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """How a node reads its weight, which is folded to the matrix (f, c·kh·kw) of sizes `shape`.

    It is `transposed` if it is (c, f, kh, kw) and not (f, c, kh, kw), or (c, f) and not (f, c).
    `channels_first` tells whether the channels of the activation stand before its rows or
    positions. If it is `mirrored`, the folded matrix is the transposed one of what the node
    multiplies by: the layer shares the weight of a table whose rows are looked up. A recurrent node
    has the rows of each direction apart, (directions, f / directions, c); 0 for all others.
    """

    shape: LayerShape
    transposed: bool
    channels_first: bool
    mirrored: bool = False
    directions: int = 0

    def mirror(self, *, one_hot: bool) -> WeightLayout:
        """Fold a weight without a kernel to the transposed matrix."""
        c, f = self.shape.in_channels, self.shape.out_features
        return replace(
            self,
            shape=LayerShape(out_features=c, in_channels=f, one_hot=one_hot),
            transposed=not self.transposed,
            mirrored=not self.mirrored,
        )

    def to_matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fold a weight to (f, c·kh·kw)."""
        array = weight.swapaxes(0, 1) if self.transposed else weight
        return array.reshape(self.shape.out_features, self.shape.num_columns)

    def to_weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give a folded matrix in the shape in which the node reads its weight."""
        shape = self.shape
        if self.directions:
            return self.by_direction(matrix)
        array = matrix.reshape(shape.out_features, shape.in_channels, *shape.kernel)
        return array.swapaxes(0, 1) if self.transposed else array

    def by_direction(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give the rows of each direction of a recurrent node an axis of their own."""
        return matrix.reshape(self.directions, -1, matrix.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A node that can be decomposed.

    `name` is that in the plan, `weight_name` what the node calls its weight, and `weight_input`
    which of its inputs that is. `activation_rank` is the number of axes of the other operand, None
    if it is not known. `is_sliceable` tells whether more than one slice can be written, here and at
    every layer that shares the factors. `opset` is the version of the default domain.
    """

    site: Site
    name: str
    op: str
    source: WeightSource
    weight_name: str
    weight_input: int
    layout: WeightLayout
    activation_rank: int | None
    is_sliceable: bool
    opset: int

    @property
    def own(self) -> Layer:
        """The layer with the matrix that its node multiplies by."""
        layout = self.layout
        return replace(self, layout=layout.mirror(one_hot=False)) if layout.mirrored else self

    @property
    def shape(self) -> LayerShape:
        """Sizes of the folded matrix."""
        return self.layout.shape

    @property
    def slice_counts(self) -> tuple[int, ...]:
        """Every k that this node can be built with, in the fold of `Scheme.ENCODE`."""
        return self.counts(self.shape)

    def counts(self, folded: LayerShape) -> tuple[int, ...]:
        """Every k that this node can be built with in a fold, given by its sizes."""
        counts = folded.slice_counts()
        return counts if self.is_sliceable else counts[:1]

    @property
    def weight_key(self) -> object:
        """Layers with the same key share a weight, and their factors have the same layout."""
        source = self.source
        if source.strides is None:
            return source.read, self.layout
        if self.shape.one_hot:
            strides = source.strides[::-1] if self.layout.transposed else source.strides
            return source.base, self.shape, strides
        return source.base, source.shape, source.strides, self.layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A node of an operator that can be decomposed which itself cannot, with the reason."""

    site: Site
    name: str
    op: str
    weight_name: str
    dims: tuple[int, ...]
    reason: str


def read_matrix(index: ModelIndex, layer: Layer, folder: Path) -> FloatArray:
    """Read the layer's weight folded to (f, c·kh·kw), in float64."""
    matrix = layer.layout.to_matrix(read_weight(index, layer.source, folder))
    return np.ascontiguousarray(matrix, dtype=np.float64)


def skipped(layer: Layer, reason: str) -> Skipped:
    """Make the row of a layer that cannot be decomposed after all."""
    return Skipped(
        site=layer.site,
        name=layer.name,
        op=layer.op,
        weight_name=layer.weight_name,
        dims=layer.source.shape,
        reason=reason,
    )
