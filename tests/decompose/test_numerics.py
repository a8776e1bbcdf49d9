"""Weights at the ends of their type's range, and LAPACK when it fails."""

from __future__ import annotations

import logging
import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import scipy.sparse.linalg
from onnx import ModelProto, TensorProto, helper, numpy_helper

from alds_onnx.api import Result, compress
from alds_onnx.cuts import Cut, Factors, FloatArray, LayerShape
from alds_onnx.decompose.factorize import compose, cut_error, factorize
from alds_onnx.errors import AldsError, BudgetError, VerificationError
from alds_onnx.graph.rewrite import Replacement, rewrite, with_composed_weights
from alds_onnx.linalg import eigen
from alds_onnx.linalg.eigen import spectral_norm
from alds_onnx.results import Status
from alds_onnx.runtimes import Runtime
from alds_onnx.values import Decision
from tests.decompose.matrices import RESOLUTION
from tests.graph.builders import only_layer

from .matrices import spectra

TYPES = {
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
    "float32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "float64": (TensorProto.DOUBLE, np.dtype(np.float64)),
}
ROWS, COLUMNS = 24, 32
SHAPE = LayerShape(out_features=COLUMNS, in_channels=ROWS)
# Factors in these types are exact to their unit roundoff, a few of which meet in each entry.
ROUNDING = {"float16": 1e-2, "bfloat16": 5e-2, "float32": 1e-5, "float64": 1e-12}


def normal(rank: int = ROWS) -> FloatArray:
    """A matrix of the given rank whose largest entry is 1."""
    generator = np.random.default_rng(0)
    product = generator.standard_normal((ROWS, rank)) @ generator.standard_normal((rank, COLUMNS))
    return np.asarray(product / np.abs(product).max())


def model(weight: npt.ArrayLike, kind: str) -> ModelProto:
    number, dtype = TYPES[kind]
    tensor = helper.make_tensor(
        "W", number, (ROWS, COLUMNS), np.asarray(weight).astype(dtype).tobytes(), raw=True
    )
    x = helper.make_tensor_value_info("x", number, (4, ROWS))
    y = helper.make_tensor_value_info("y", number, (4, COLUMNS))
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")
    graph = helper.make_graph([node], "g", [x], [y], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compressed(weight: npt.ArrayLike, kind: str, *, dry_run: bool = False) -> Result:
    given = model(weight, kind)
    return compress(given, cr=0.5, target=Runtime.NONE, threads=1, dry_run=dry_run)


def numbers(result: Result) -> list[npt.NDArray[Any]]:
    tensors = result.model.graph.initializer
    return [numpy_helper.to_array(tensor).astype(np.float64) for tensor in tensors]


def approximation(result: Result) -> FloatArray:
    """Ŵ, shape (c, f), from the encoder (k, c/k, j) or (c, j), and the decoder (k·j, f)."""
    encoder, decoder = numbers(result)
    k = len(encoder) if encoder.ndim == 3 else 1
    parts = encoder.reshape(k, ROWS // k, -1) @ decoder.reshape(k, -1, COLUMNS)  # (k, c/k, f)
    return np.asarray(parts.reshape(ROWS, COLUMNS))


def largest(kind: str) -> float:
    return float(ml_dtypes.finfo(TYPES[kind][1]).max)


SIZES = [
    ("float16", 1.0), ("float16", 3e4), ("float16", 1e-3), ("bfloat16", 1e30),
    ("bfloat16", 3e38), ("bfloat16", 1e-30), ("float32", 1e30), ("float32", 1e-30),
    ("float64", 1e30), ("float64", 1e-30), ("float64", 1e-42),
]  # fmt: skip


@pytest.mark.parametrize("rank", [3, ROWS])
@pytest.mark.parametrize(("kind", "size"), SIZES)
def test_a_weight_of_any_size_is_decomposed(kind: str, size: float, rank: int) -> None:
    """Of full and of deficient rank; the factors are finite wherever the weight is."""
    weight = normal(rank) * size
    result = compressed(weight, kind)
    (row,) = result.plan.layers
    assert row.decision is Decision.DECOMPOSE
    assert all(np.isfinite(array).all() for array in numbers(result))
    assert row.error is not None
    if rank == 3:
        error = np.abs(approximation(result) - weight).max() / size
        assert error < ROUNDING[kind]
    else:
        assert 0.1 < row.error.relative <= row.error.spectral < 1
    verification = result.report.verification
    assert verification is not None
    expected = Status.NOT_VALIDATED if kind == "bfloat16" else Status.PASSED  # onnxruntime: no op
    assert verification.status is expected


@pytest.mark.parametrize(
    ("kind", "size"), [("float32", 1e-42), ("float16", 1e-7), ("float64", 1e-310)]
)
def test_subnormal_weights_are_left_alone(kind: str, size: float) -> None:
    """A product of factors in a type with so few digits left is not the weight any more."""
    with pytest.raises(BudgetError, match=r"100 % in MatMul 'layer' .*subnormal"):
        compressed(normal() * size, kind)


@pytest.mark.parametrize("kind", TYPES)
def test_zeros_are_left_alone(kind: str) -> None:
    with pytest.raises(BudgetError, match=r"100 % in MatMul 'layer' \(its weight is all zeros\)"):
        compressed(np.zeros((ROWS, COLUMNS)), kind)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_ill_conditioned(kind: str) -> None:
    """Singular values over thirty decades: what is lost is below the resolution."""
    U, _, Vh = np.linalg.svd(normal(), full_matrices=False)
    weight = U * np.logspace(0, -30, ROWS) @ Vh
    result = compressed(weight, kind)
    assert np.linalg.norm(approximation(result) - weight, 2) < ROUNDING[kind] + 1e-6


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_factors_of_the_largest_weight_are_finite(kind: str) -> None:
    patterns = (np.ones((ROWS, COLUMNS)), np.sign(normal()), normal(), normal(3))
    for weight in (pattern * largest(kind) for pattern in patterns):
        result = compressed(weight, kind, dry_run=True)
        assert all(np.isfinite(array).all() for array in numbers(result))


@pytest.mark.parametrize("size", [1e300, 1.7e308])
def test_the_errors_of_the_largest_float64_are_finite(size: float) -> None:
    """Ŵ and ||W|| may be out of range where W is not."""
    matrix = np.sign(normal().T) * size
    curves = spectra(matrix, SHAPE, (1, 2))
    assert math.isfinite(curves.norm)
    error = cut_error(matrix, factorize(matrix, SHAPE, Cut(num_slices=2, rank=3)), curves)
    assert 0 < error.relative < 1
    assert 0 < error.spectral <= 1.5


def out_of_range(kind: str) -> Replacement:
    layer = only_layer(model(normal(), kind))
    huge = Factors(
        shape=layer.shape,
        U=np.full((1, COLUMNS, 2), largest(kind) * (0.5 if kind == "float16" else 0.1)),
        V=np.ones((1, 2, ROWS)) * 2,
    )
    return Replacement(layers=(layer,), factors=huge)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_factors_that_overflow_are_never_put_into_a_model(kind: str) -> None:
    replacement = out_of_range(kind)
    factors = replacement.factors
    over = Factors(shape=factors.shape, U=factors.U * 20, V=factors.V)
    broken = Replacement(layers=replacement.layers, factors=over)
    with pytest.raises(VerificationError, match="'layer': its approximation is out of the range"):
        rewrite(model(normal(), kind), [broken])


def test_an_approximation_that_overflows_is_refused() -> None:
    """The product, where both factors are in range: there is nothing to compare with then."""
    with pytest.raises(VerificationError, match="FLOAT16, nothing was written"):
        with_composed_weights(model(normal(), "float16"), [out_of_range("float16")])


def test_the_largest_float16_of_both_signs() -> None:
    """Verified, or refused in one line: Ŵ leaves the range that W fills."""
    with pytest.raises(AldsError, match="out of the range of FLOAT16"):
        compressed(np.sign(normal()) * largest("float16"), "float16")


def failing(*_: object, **__: object) -> None:
    raise np.linalg.LinAlgError("did not converge")


def test_eigenvalues_fall_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = spectra(normal().T, SHAPE, (1, 2, 4))
    monkeypatch.setattr(np.linalg, "eigvalsh", failing)
    with caplog.at_level(logging.WARNING):
        got = spectra(normal().T, SHAPE, (1, 2, 4))
    for a, b in zip(got.curves, expected.curves, strict=True):
        np.testing.assert_allclose(a.relative_error, b.relative_error, atol=RESOLUTION)
    said = [r for r in caplog.records if r.name == "alds_onnx.linalg.eigen"]
    assert len(said) == 3  # one for each number of slices
    assert "did not converge" in said[0].getMessage()


def test_eigenvectors_fall_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eigh = scipy.linalg.eigh

    def only_ev(*args: Any, driver: str | None = None, **options: Any) -> Any:
        return eigh(*args, driver=driver, **options) if driver == "ev" else failing()

    cut = Cut(num_slices=2, rank=3)
    expected = compose(factorize(normal().T, SHAPE, cut))
    monkeypatch.setattr(scipy.linalg, "eigh", only_ev)
    monkeypatch.setattr(np.linalg, "eigh", failing)
    with caplog.at_level(logging.WARNING):
        got = compose(factorize(normal().T, SHAPE, cut))
    np.testing.assert_allclose(got, expected, atol=RESOLUTION)
    assert "trying QR iteration" in caplog.text


@pytest.mark.parametrize("error", [
    scipy.sparse.linalg.ArpackNoConvergence("no convergence", np.zeros(0), np.zeros((0, 0))),
    scipy.sparse.linalg.ArpackError(-9),
])  # fmt: skip
def test_lanczos_falls_back(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(eigen, "_DENSE_NORM", 4)
    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", fail)
    with caplog.at_level(logging.WARNING):
        norm = spectral_norm(normal())
    assert norm == pytest.approx(np.linalg.norm(normal(), 2), rel=RESOLUTION)
    assert "ARPACK failed" in caplog.text


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.linalg, "eigvalsh", failing)
    monkeypatch.setattr(np.linalg, "eigh", failing)
    monkeypatch.setattr(scipy.linalg, "eigh", failing)
    with pytest.raises(AldsError, match="LAPACK finds no singular values of a weight"):
        compressed(normal(), "float32")
    with pytest.raises(AldsError, match="LAPACK"):
        factorize(normal().T, SHAPE, Cut(num_slices=1, rank=2))


def test_nothing_is_said_where_lapack_works(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        compressed(normal(), "float32", dry_run=True)
    assert not [r for r in caplog.records if r.name.startswith("alds_onnx")]
