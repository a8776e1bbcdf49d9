"""Budgets of the whole model, kept end to end."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

import alds_onnx
from alds_onnx import BudgetError, Result, Runtime, Scheme, UsageError
from alds_onnx.values import BudgetKind
from tests.conftest import CALIBRATION, DIGITS

# Largest part of a budget that aligned or whole ranks may leave.
UNSPENT = 0.011


def macs_removed(result: Result) -> float:
    report = result.report
    assert report.macs_before
    assert report.macs_after is not None
    return 1 - report.macs_after / report.macs_before


@pytest.mark.parametrize("fraction", [0.2, 0.8])
def test_the_macs_that_were_asked_for_are_removed(fraction: float) -> None:
    result = alds_onnx.compress(DIGITS, cr_macs=fraction, dry_run=True)
    assert fraction <= macs_removed(result) < fraction + UNSPENT
    assert result.plan.budget is not None
    assert result.plan.budget.kind is BudgetKind.MACS
    assert result.plan.budget.before == result.report.macs_before


def test_a_budget_of_macs_costs_no_more_error_than_one_of_parameters_with_as_few() -> None:
    by_parameters = alds_onnx.compress(DIGITS, cr=0.6, dry_run=True)
    by_macs = alds_onnx.compress(DIGITS, cr_macs=macs_removed(by_parameters), dry_run=True)
    assert by_macs.plan.max_relative_error <= by_parameters.plan.max_relative_error


@pytest.mark.parametrize(("cr", "cr_macs"), [(0.3, 0.6), (0.7, 0.3)])
def test_both_budgets_are_kept_and_the_tighter_one_decides(cr: float, cr_macs: float) -> None:
    both = alds_onnx.compress(DIGITS, cr=cr, cr_macs=cr_macs, dry_run=True)
    assert both.plan.removed >= cr
    assert macs_removed(both) >= cr_macs
    alone = [
        alds_onnx.compress(DIGITS, cr=cr, dry_run=True).plan.max_relative_error,
        alds_onnx.compress(DIGITS, cr_macs=cr_macs, dry_run=True).plan.max_relative_error,
    ]
    assert both.plan.max_relative_error == max(alone)
    assert [budget.kind for budget in both.plan.constraints] == [BudgetKind.MACS]


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_macs_of_all_schemes_are_counted_as_the_rows_count_them(fraction: float) -> None:
    result = alds_onnx.compress(
        DIGITS, cr_macs=fraction, target=Runtime.TFLITE, schemes=tuple(Scheme), dry_run=True
    )
    assert fraction <= macs_removed(result) < fraction + UNSPENT
    assert {row.cut.scheme for row in result.plan.layers if row.cut} - {Scheme.ENCODE}


def test_macs_with_calibration_data() -> None:
    images = np.load(CALIBRATION)["image"][:32]
    result = alds_onnx.compress(
        DIGITS, cr=0.3, cr_macs=0.6, calibration=[{"image": images}], dry_run=True
    )
    assert macs_removed(result) >= 0.6
    assert result.plan.removed >= 0.3


def test_macs_out_of_reach_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"at most 0\.\d+ of the .* multiply-acc.*--cr-macs"):
        alds_onnx.compress(DIGITS, cr_macs=0.999, dry_run=True)


def test_macs_of_unknown_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--cr-macs: the shapes .* --input-shape"):
        alds_onnx.compress(_shapeless(), cr_macs=0.5, dry_run=True)


def _shapeless() -> ModelProto:
    """A model with an unknown operator."""
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "unknown": 1]>
        g (float[n, 32] x) => (float[n, 16] y) {
            h = unknown.Twist(x)
            y = MatMul(h, w)
        }
        """
    )
    weight = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model
