"""A cut as a chain of stages: all that the nodes of a decomposed layer need to know of its scheme.

A stage mixes channels, in groups, and has some axes of the layer's kernel; its weight is dense, of
shape (out, in / groups, *kernel), with a kernel of 1 along the axes that other stages have. The
last stage makes the layer's outputs. A Gemm or MatMul has two stages without a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy.typing as npt

from alds_onnx.cuts import Cut, Factors, LayerShape, Scheme
from alds_onnx.schemes.shapes import Stage

Array: TypeAlias = npt.NDArray[Any]
Dims: TypeAlias = tuple[int, ...]


def stages(shape: LayerShape, cut: Cut) -> tuple[Stage, ...]:
    """The stages of a cut, in the order in which they are applied."""
    return cut.scheme.structure.stages(shape, cut)


def stage_weights(factors: Factors) -> tuple[Array, ...]:
    """Weights (out, in / groups, *kernel) of the stages of `factors.cut`."""
    return factors.scheme.structure.stage_weights(factors.shape, factors.parts)


def factors_of_stages(shape: LayerShape, cut: Cut, weights: Sequence[Array]) -> Factors:
    """The factors whose `stage_weights` these are."""
    parts = cut.scheme.structure.parts_of_stages(shape, cut, weights)
    return Factors.of_parts(shape, cut.scheme, parts)


def match(weights: Sequence[Dims], num_slices: int) -> tuple[LayerShape, Cut] | None:
    """The layer that a chain of stages stands for, and its cut; None if it is none of ours.

    Parameters
    ----------
    weights
        Shapes (out, in / groups, *kernel) of the weights of the stages, two or more, all with as
        many axes.
    num_slices
        Groups of the first stage; the others have none.
    """
    if len({len(dims) for dims in weights}) != 1 or not prod(map(prod, weights)):
        return None
    (_, width, *_), *_, (f, *_) = weights
    kernel = tuple(map(prod, zip(*(dims[2:] for dims in weights), strict=True)))
    shape = LayerShape(out_features=f, in_channels=num_slices * width, kernel=kernel)
    groups = [num_slices, *(1 for _ in weights[1:])]
    for scheme in Scheme if num_slices > 0 else ():
        structure = scheme.structure
        if len(structure.axes(shape)) != len(weights):
            continue
        channels = [dims[0] for dims in weights]
        k, rank, rank_out = structure.ranks_of_channels(channels, num_slices)
        cut = Cut(num_slices=k, rank=rank, scheme=scheme, rank_out=rank_out)
        sizes = [(one.weight_shape(shape), one.groups) for one in structure.stages(shape, cut)]
        fits = k == 1 or structure.sliced(shape) is not None
        if fits and sizes == list(zip(weights, groups, strict=True)):
            return shape, cut
    return None
