"""Every scheme: its fold, its factors, and the error that it says it has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, Factors, FloatArray, LayerShape, Scheme, Spectra, distinct
from alds_onnx.decompose.factorize import compose, cut_error, factorize
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.linalg.slices import slices

FOLDS = tuple(scheme for scheme in Scheme if scheme is not Scheme.TUCKER2)
KERNELS = [(3, 2), (1, 3), (3, 1), (1, 1), (4,), (2, 3, 2), (3, 1, 2), ()]

#: Eigenvalues of a Gram matrix in float64 give singular values to about 1e-8 of the largest.
RESOLUTION = 1e-7
#: Some hundred sums of products in float64.
ROUNDING = 1e-10


def shape_of(kernel: tuple[int, ...], f: int = 5, c: int = 4) -> LayerShape:
    return LayerShape(out_features=f, in_channels=c, kernel=kernel)


def drawn(shape: LayerShape, seed: int = 0) -> FloatArray:
    """Entries with a mean, so that the folds differ in their first singular values."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((shape.out_features, shape.num_columns)) + 0.3


def divisors(c: int) -> tuple[int, ...]:
    return tuple(k for k in range(1, c + 1) if c % k == 0)


def all_spectra(matrix: FloatArray, shape: LayerShape) -> Spectra:
    ks = divisors(shape.in_channels)
    return spectra_of_schemes(matrix, shape, dict.fromkeys(distinct(shape, Scheme), ks))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[LayerShape, Cut]:
    """A shape, and any cut of it, of full rank or less."""
    shape = shape_of(
        draw(st.sampled_from(KERNELS)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 4, 6]))
    )
    scheme = draw(st.sampled_from(distinct(shape, Scheme)))
    k = draw(st.sampled_from(counts(shape, scheme)))
    whole = full(shape, scheme, k)
    rank = draw(st.integers(1, whole.rank))
    rank_out = draw(st.integers(1, whole.rank_out)) if whole.rank_out else 0
    return shape, Cut(num_slices=k, rank=rank, scheme=scheme, rank_out=rank_out)


def counts(shape: LayerShape, scheme: Scheme) -> tuple[int, ...]:
    """Numbers of slices that a scheme can have, whether they save parameters or not."""
    return divisors(shape.in_channels) if scheme.structure.sliced(shape) else (1,)


def full(shape: LayerShape, scheme: Scheme, num_slices: int = 1) -> Cut:
    """The cut of full rank: min(rows, columns) of each matrix that is cut."""
    smallest = Cut(num_slices=num_slices, rank=1, scheme=scheme, rank_out=1)
    sizes = [one.fold.sizes(shape) for one in scheme.structure.projections(smallest)]
    rank, rank_out = [
        *(min(size.out_features, size.num_columns // num_slices) for size in sizes),
        0,
    ][:2]
    return Cut(num_slices=num_slices, rank=rank, scheme=scheme, rank_out=rank_out)


def norm(matrix: FloatArray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).max(initial=0.0))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("scheme", FOLDS, ids=lambda s: s.value)
def test_a_fold_and_back(scheme: Scheme, kernel: tuple[int, ...]) -> None:
    shape = shape_of(kernel)
    matrix = drawn(shape)
    folded = scheme.structure.folds[0].apply(matrix, shape)
    sizes = scheme.structure.folds[0].sizes(shape)
    assert folded.shape == (sizes.out_features, sizes.num_columns)
    assert sizes.num_parameters == shape.num_parameters
    np.testing.assert_array_equal(scheme.structure.folds[0].invert(folded, shape), matrix)


def test_where_an_entry_goes() -> None:
    """Rows: outputs, then the decoder's kernel. Columns: channels, then the encoder's."""
    f, c, kh, kw = 5, 4, 3, 2
    W = np.arange(f * c * kh * kw, dtype=np.float64).reshape(f, c, kh, kw)
    o, i, y, x = 3, 1, 2, 1
    rows_and_columns = {
        Scheme.ENCODE: (o, (i * kh + y) * kw + x),
        Scheme.DECODE: ((o * kh + y) * kw + x, i),
        Scheme.SPLIT_HEIGHT: (o * kw + x, i * kh + y),
        Scheme.SPLIT_WIDTH: (o * kh + y, i * kw + x),
    }
    for scheme, place in rows_and_columns.items():
        folded = scheme.structure.folds[0].apply(W.reshape(f, -1), shape_of((kh, kw)))
        assert folded[place] == W[o, i, y, x]


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ((), "encode"),
        ((1, 1), "encode"),
        ((1, 1, 1), "encode"),
        ((3,), "encode decode tucker2"),
        ((3, 1), "encode decode tucker2"),
        ((1, 3), "encode decode tucker2"),
        ((3, 3), "encode decode split-height split-width tucker2"),
        ((1, 3, 3), "encode decode tucker2"),
        ((3, 1, 3), "encode decode split-height split-width tucker2"),
    ],
    ids=str,
)
def test_no_two_schemes_are_the_same(kernel: tuple[int, ...], expected: str) -> None:
    shape = shape_of(kernel)
    schemes = distinct(shape, Scheme)
    assert " ".join(scheme.value for scheme in schemes) == expected
    folds = [
        scheme.structure.folds[0].column_kernel(shape)
        for scheme in schemes
        if scheme is not Scheme.TUCKER2
    ]
    assert len(set(folds)) == len(folds)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_scheme_asked_for_alone_is_one_that_can_be_built(kernel: tuple[int, ...]) -> None:
    shape = shape_of(kernel)
    for scheme in Scheme:
        (found,) = distinct(shape, [scheme])
        assert found in distinct(shape, Scheme)
        assert found is scheme or shape.kernel_size == 1 or found in FOLDS[:2]


@given(cuts(), st.integers(0, 99))
def test_the_reported_error_is_that_of_what_is_built(
    case: tuple[LayerShape, Cut], seed: int
) -> None:
    shape, cut = case
    matrix = drawn(shape, seed)
    factors = factorize(matrix, shape, cut)
    found = cut_error(matrix, factors, all_spectra(matrix, shape))
    difference = matrix - compose(factors)
    if cut.scheme is Scheme.TUCKER2:
        expected = _larger_projection_error(matrix, factors)
        assert found.relative == pytest.approx(expected / norm(matrix), abs=RESOLUTION)
        assert found.relative <= found.spectral + RESOLUTION
        assert found.relative <= found.bound + RESOLUTION
        return
    parts = slices(cut.scheme.structure.folds[0].apply(difference, shape), cut.num_slices)
    worst = max(norm(part) for part in parts)
    assert found.relative == pytest.approx(worst / norm(matrix), abs=RESOLUTION)
    whole = norm(cut.scheme.structure.folds[0].apply(difference, shape))
    assert found.spectral == pytest.approx(whole / norm(matrix), abs=RESOLUTION)
    assert found.relative - RESOLUTION <= found.spectral <= found.bound + RESOLUTION


def _larger_projection_error(matrix: FloatArray, factors: Factors) -> float:
    """What is outside of the spaces that the first and the last factor span."""
    A, _ = np.linalg.qr(factors.U[0])
    B, _ = np.linalg.qr(factors.V[0].T)
    columns = Scheme.DECODE.structure.folds[0].apply(matrix, factors.shape)
    return max(norm(matrix - A @ (A.T @ matrix)), norm(columns - (columns @ B) @ B.T))


@given(cuts())
def test_tucker2_is_the_projection_on_both_spaces(case: tuple[LayerShape, Cut]) -> None:
    shape, cut = case
    if cut.scheme is not Scheme.TUCKER2:
        return
    matrix = drawn(shape)
    factors = factorize(matrix, shape, cut)
    A, _ = np.linalg.qr(factors.U[0])
    B, _ = np.linalg.qr(factors.V[0].T)
    tensor = (A @ (A.T @ matrix)).reshape(shape.out_features, shape.in_channels, -1)
    projected = np.einsum("ock,cd->odk", tensor, B @ B.T).reshape(matrix.shape)
    np.testing.assert_allclose(compose(factors), projected, atol=ROUNDING)


@given(cuts())
def test_parameters_are_counted_as_built(case: tuple[LayerShape, Cut]) -> None:
    shape, cut = case
    factors = factorize(drawn(shape), shape, cut)
    assert factors.cut == cut
    core = 0 if factors.core is None else factors.core.size
    assert cut.num_parameters(shape) == factors.U.size + factors.V.size + core
    assert cut.parameters_of_factors(shape)[0] == factors.V.size


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_full_rank_loses_nothing(kernel: tuple[int, ...]) -> None:
    shape = shape_of(kernel)
    matrix = drawn(shape)
    for scheme in distinct(shape, Scheme):
        for k in counts(shape, scheme):
            composed = compose(factorize(matrix, shape, full(shape, scheme, k)))
            np.testing.assert_allclose(composed, matrix, atol=RESOLUTION)


@given(cuts(), st.integers(0, 9))
def test_errors_bound_the_operator(case: tuple[LayerShape, Cut], seed: int) -> None:
    """What makes errors of different folds comparable: all bound the same, by the same factor.

    The singular values of a convolution on a torus are those of its Fourier coefficients
    (Sedghi et al. 2019): a way to the norm that knows no fold.
    """
    shape, cut = case
    matrix = drawn(shape, seed)
    factors = factorize(matrix, shape, cut)
    found = cut_error(matrix, factors, all_spectra(matrix, shape))
    sizes = (shape.out_features, shape.in_channels, *shape.kernel)
    difference = (matrix - compose(factors)).reshape(sizes)
    torus = [5] * len(shape.kernel)
    waves = np.fft.fftn(difference, torus, axes=range(2, len(sizes))) if torus else difference
    symbols = np.moveaxis(waves.reshape(*sizes[:2], -1), -1, 0)
    operator = float(np.linalg.norm(symbols, 2, axis=(1, 2)).max())
    limit = found.bound * norm(matrix) * math.sqrt(shape.kernel_size)
    assert operator <= limit * (1 + ROUNDING) + RESOLUTION * norm(matrix)


def test_all_folds_are_relative_to_the_same_norm() -> None:
    shape = shape_of((3, 2))
    matrix = drawn(shape)
    found = all_spectra(matrix, shape)
    assert found.norm == pytest.approx(norm(matrix))
    for scheme in FOLDS:
        first = norm(scheme.structure.folds[0].apply(matrix, shape)) / norm(matrix)
        assert found.curve(1, scheme).relative_error[0] == pytest.approx(first)


def test_other_schemes_leave_the_curves_of_the_paper_alone() -> None:
    shape = shape_of((3, 2))
    matrix = drawn(shape)
    alone = spectra_of_schemes(matrix, shape, {Scheme.ENCODE: (2, 4)})
    found = all_spectra(matrix, shape)
    assert alone.schemes == (Scheme.ENCODE,)
    for curve in alone.curves:
        same = found.curve(curve.num_slices)
        np.testing.assert_array_equal(same.relative_error, curve.relative_error)


def test_zeros_and_huge_weights() -> None:
    shape = shape_of((3, 2))
    cut = Cut(num_slices=1, rank=2, scheme=Scheme.TUCKER2, rank_out=3)
    zeros = np.zeros((shape.out_features, shape.num_columns))
    assert not compose(factorize(zeros, shape, cut)).any()
    matrix = drawn(shape)
    for scale in (1e-150, 1e150):
        composed = compose(factorize(matrix * scale, shape, cut))
        expected = compose(factorize(matrix, shape, cut))
        np.testing.assert_allclose(composed / scale, expected, rtol=1e-7, atol=ROUNDING)


def test_factors_of_tucker2_are_balanced() -> None:
    """So that half precision holds them: no factor is far from the others in scale."""
    shape = shape_of((3, 3), f=16, c=16)
    matrix = drawn(shape) * 1e-3
    cut = Cut(num_slices=1, rank=8, scheme=Scheme.TUCKER2, rank_out=8)
    factors = factorize(matrix, shape, cut)
    assert factors.core is not None
    assert np.abs(factors.core).max() < 10
    assert np.abs(factors.U).max() == pytest.approx(np.abs(factors.V).max(), rel=2)
