"""Small weights of all kinds, and their singular values computed another way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from alds_onnx.cuts import FloatArray, LayerShape, Scheme, Spectra
from alds_onnx.decompose.spectra import spectra_of_schemes

# Singular values come from Gram matrices in float64, whose square roots resolve about
# sqrt(2^-52) = 1.5e-8 of the largest one; ten times that for the sums in the products.
RESOLUTION = 2e-7
# Sums and products in float64 of numbers of similar size.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Weight:
    """A folded weight and its sizes."""

    shape: LayerShape
    matrix: FloatArray

    @property
    def divisors(self) -> tuple[int, ...]:
        c = self.shape.in_channels
        return tuple(k for k in range(1, c + 1) if c % k == 0)

    def full_rank(self, num_slices: int) -> int:
        return min(self.shape.out_features, self.shape.num_columns // num_slices)


def spectra(matrix: FloatArray, shape: LayerShape, slice_counts: tuple[int, ...]) -> Spectra:
    """Error curves of the paper's scheme."""
    return spectra_of_schemes(matrix, shape, {Scheme.ENCODE: slice_counts})


def layer_shapes() -> st.SearchStrategy[LayerShape]:
    """Sizes with wide, square and narrow slices."""
    return st.builds(
        LayerShape,
        out_features=st.integers(1, 9),
        in_channels=st.sampled_from([1, 2, 3, 4, 6, 8, 12]),
        kernel=st.sampled_from([(), (1,), (3,), (2, 2), (1, 2, 2)]),
    )


def random_matrix(shape: LayerShape, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((shape.out_features, shape.num_columns))


@st.composite
def weights(draw: st.DrawFn) -> Weight:
    """Weights of full or low rank, with slices of zeros and of very different sizes."""
    shape = draw(layer_shapes())
    seed = draw(st.integers(0, 1000))
    matrix = random_matrix(shape, seed)
    rank = draw(st.none() | st.integers(1, 3))
    if rank is not None:
        left = np.random.default_rng(seed + 1).standard_normal((shape.out_features, rank))
        matrix = left @ random_matrix(
            LayerShape(out_features=rank, in_channels=shape.num_columns), seed
        )
    sizes = draw(
        st.lists(
            st.sampled_from([1.0, 1.0, 0.0, 1e-3, 1e3]),
            min_size=shape.in_channels,
            max_size=shape.in_channels,
        )
    )
    return Weight(shape, matrix * np.repeat(sizes, shape.kernel_size))


@st.composite
def weights_and_counts(draw: st.DrawFn) -> tuple[Weight, int]:
    """A weight and a number of slices that divides its channels."""
    weight = draw(weights())
    return weight, draw(st.sampled_from(weight.divisors))


@st.composite
def weights_and_cuts(draw: st.DrawFn) -> tuple[Weight, int, int]:
    """A weight, a number of slices and a rank."""
    weight, num_slices = draw(weights_and_counts())
    return weight, num_slices, draw(st.integers(1, weight.full_rank(num_slices)))


def columns_of_slices(matrix: FloatArray, num_slices: int) -> list[FloatArray]:
    """The slices one by one, by their columns."""
    return np.split(matrix, num_slices, axis=1)


def singular_values(matrix: FloatArray, num_slices: int) -> FloatArray:
    """Shape (k, min(f, n/k)): a full SVD of each slice."""
    parts = columns_of_slices(matrix, num_slices)
    return np.stack([np.linalg.svd(part, compute_uv=False) for part in parts])
