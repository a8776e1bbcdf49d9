"""The schemes, each with its rules in a file of its own; here they get their names.

    encode          ─┐
    decode           │ folded.py: a fold (fold.py) that is cut into slices
    split-height     │
    split-width     ─┘
    tucker2           tucker2.py

What a scheme has to answer is in base.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import cache

from alds_onnx.schemes.base import Structure
from alds_onnx.schemes.fold import DECODE, ENCODE, SPLIT_HEIGHT, SPLIT_WIDTH, Fold
from alds_onnx.schemes.shapes import LayerShape


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

    @property
    def structure(self) -> Structure:
        """The rules of the scheme."""
        return _structures()[self]


@cache
def _structures() -> dict[Scheme, Structure]:
    """The rules of all schemes. They need SciPy, which `--help` and wrong usage do not wait for."""
    from alds_onnx.schemes.folded import Folded  # noqa: PLC0415
    from alds_onnx.schemes.tucker2 import Tucker2  # noqa: PLC0415

    return {
        Scheme.ENCODE: Folded(ENCODE),
        Scheme.DECODE: Folded(DECODE),
        Scheme.SPLIT_HEIGHT: Folded(SPLIT_HEIGHT),
        Scheme.SPLIT_WIDTH: Folded(SPLIT_WIDTH),
        Scheme.TUCKER2: Tucker2(),
    }


def scheme_of(fold: Fold) -> Scheme:
    """The scheme that cuts the matrix of a fold and nothing else."""
    return next(scheme for scheme in Scheme if scheme.structure.folds == (fold,))


def distinct(shape: LayerShape, schemes: Iterable[Scheme]) -> tuple[Scheme, ...]:
    """Schemes that differ on this kernel, each by the first of its equals in `Scheme`.

    On a kernel of one entry that is `ENCODE`, whatever was asked for.
    """
    wanted = {scheme.structure.identity(shape) for scheme in schemes}
    first: dict[object, Scheme] = {}
    for scheme in Scheme:
        first.setdefault(scheme.structure.identity(shape), scheme)
    return tuple(scheme for identity, scheme in first.items() if identity in wanted)
