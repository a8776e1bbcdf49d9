"""A cut as a chain of stages: all that the nodes of a decomposed layer need to know of its scheme.

A stage mixes channels, in groups, and has some axes of the layer's kernel; its weight is dense, of
shape (out, in / groups, kernel), with a kernel of 1 along the axes that other stages have. The last
stage makes the layer's outputs. A Gemm or MatMul has two stages without a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy.typing as npt

from alds_onnx.cuts import Cut, Factors, LayerShape, Scheme

Array: TypeAlias = npt.NDArray[Any]
Dims: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One of the operators that replace a layer.

    Attributes
    ----------
    in_channels, out_channels, groups
        As in a convolution.
    axes
        For each axis of the layer's kernel, whether this stage has it.
    """

    in_channels: int
    out_channels: int
    groups: int = 1
    axes: tuple[bool, ...]


def stages(shape: LayerShape, cut: Cut) -> tuple[Stage, ...]:
    """The stages of a cut, in the order in which they are applied."""
    c, f, k, j = shape.in_channels, shape.out_features, cut.num_slices, cut.rank
    axes = range(len(shape.kernel))
    if cut.scheme is Scheme.TUCKER2:
        none, every = (False,) * len(axes), (True,) * len(axes)
        return (
            Stage(in_channels=c, out_channels=j, axes=none),
            Stage(in_channels=j, out_channels=cut.rank_out, axes=every),
            Stage(in_channels=cut.rank_out, out_channels=f, axes=none),
        )
    first = tuple(shape.stays_with_encoder(cut.scheme, axis) for axis in axes)
    second = tuple(not mine for mine in first)
    return (
        Stage(in_channels=c, out_channels=k * j, groups=k, axes=first),
        Stage(in_channels=k * j, out_channels=f, axes=second),
    )


def stage_weights(factors: Factors) -> tuple[Array, ...]:
    """Weights (out, in / groups, kernel) of the stages of `factors.cut`."""
    k, j, _ = factors.V.shape
    shape, scheme = factors.shape, factors.scheme
    f, width = shape.out_features, shape.in_channels // k
    if factors.core is not None:
        ones = (1,) * len(shape.kernel)
        first, last = factors.V.reshape(j, width, *ones), factors.U.reshape(f, -1, *ones)
        return first, factors.core, last
    # Rows of U are those of the fold: f, then the decoder's kernel; (k, f, kh·kw, j)
    U = factors.U.reshape(k, f, -1, j).transpose(1, 0, 3, 2)  # (f, k, j, kh·kw)
    return (
        factors.V.reshape(k * j, width, *shape.encoder_kernel(scheme)),
        U.reshape(f, k * j, *shape.decoder_kernel(scheme)),
    )


def factors_of_stages(shape: LayerShape, cut: Cut, weights: Sequence[Array]) -> Factors:
    """The factors whose `stage_weights` these are."""
    first, *cores, last = weights
    k, j, f = cut.num_slices, cut.rank, shape.out_features
    if cut.scheme is Scheme.TUCKER2:
        U, V = last.reshape(1, f, cut.rank_out), first.reshape(1, j, shape.in_channels)
        return Factors(shape=shape, U=U, V=V, scheme=cut.scheme, core=cores[0])
    folded = shape.folded(cut.scheme)
    outputs = last.reshape(f, k, j, -1).transpose(1, 0, 3, 2)  # (k, f, kh·kw, j)
    return Factors(
        shape=shape,
        U=outputs.reshape(k, folded.out_features, j),
        V=first.reshape(k, j, folded.num_columns // k),
        scheme=cut.scheme,
    )


def match(weights: Sequence[Dims], num_slices: int) -> tuple[LayerShape, Cut] | None:
    """The layer that a chain of stages stands for, and its cut; None if it is none of ours.

    Parameters
    ----------
    weights
        Shapes (out, in / groups, kernel) of the weights of the stages, all with as many axes.
    num_slices
        Groups of the first stage.
    """
    if len({len(dims) for dims in weights}) != 1 or not prod(map(prod, weights)):
        return None
    (codes, width, *_), *_, (f, *_) = weights
    widths = [dims[1] for dims in weights[1:]]
    if widths != [dims[0] for dims in weights[:-1]] or num_slices < 1 or codes % num_slices:
        return None
    kernel = tuple(map(prod, zip(*(dims[2:] for dims in weights), strict=True)))
    shape = LayerShape(out_features=f, in_channels=num_slices * width, kernel=kernel)
    cut = _cut(shape, weights, num_slices)
    return None if cut is None else (shape, cut)


def _cut(shape: LayerShape, weights: Sequence[Dims], num_slices: int) -> Cut | None:
    """The scheme that distributes the kernel like this, the first of its equals; or None."""
    codes, kernel = weights[0][0], weights[0][2:]
    if len(weights) == 3:
        outer = {*kernel, *weights[2][2:]}
        cut = Cut(num_slices=1, rank=codes, scheme=Scheme.TUCKER2, rank_out=weights[1][0])
        return cut if outer == {1} else None
    folds = (s for s in shape.distinct(Scheme) if s is not Scheme.TUCKER2)
    scheme = next((s for s in folds if shape.encoder_kernel(s) == kernel), None)
    if scheme is None:
        return None
    return Cut(num_slices=num_slices, rank=codes // num_slices, scheme=scheme)
