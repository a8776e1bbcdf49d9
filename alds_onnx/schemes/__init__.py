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

from alds_onnx.schemes.base import Structure
from alds_onnx.schemes.fold import DECODE, ENCODE, SPLIT_HEIGHT, SPLIT_WIDTH, Fold
from alds_onnx.schemes.folded import Folded
from alds_onnx.schemes.shapes import LayerShape
from alds_onnx.schemes.tucker2 import Tucker2


class Scheme(str, Enum):
    """How a convolution becomes smaller ones: where its kernel and its channels go.

    The first four fold the weight to a matrix and cut that: the encoder keeps some axes of the
    kernel, the decoder has the others. `ENCODE` is the paper's fold; on a kernel of one entry, all
    are the same. `TUCKER2` is the only one with three convolutions.

    Attributes
    ----------
    structure
        The rules of the scheme.
    """

    structure: Structure

    def __new__(cls, value: str, structure: Structure | None = None) -> Scheme:
        """A member whose value is a plain string; `Scheme(value)`, a look-up, needs no more."""
        assert structure is not None
        member = str.__new__(cls, value)
        member._value_ = value
        member.structure = structure
        return member

    ENCODE = "encode", Folded(ENCODE)  # kh x kw, then 1x1
    DECODE = "decode", Folded(DECODE)  # 1x1, then kh x kw
    # kh x 1, then 1 x kw; in 3D kd x 1 x 1, then 1 x kh x kw
    SPLIT_HEIGHT = "split-height", Folded(SPLIT_HEIGHT)
    # 1 x kw, then kh x 1; in 3D 1 x kh x kw, then kd x 1 x 1
    SPLIT_WIDTH = "split-width", Folded(SPLIT_WIDTH)
    TUCKER2 = "tucker2", Tucker2()  # 1x1, then kh x kw, then 1x1


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
