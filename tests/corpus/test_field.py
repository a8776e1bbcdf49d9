"""Small models in the forms in which exports arrive: what can be removed, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import alds_onnx
from alds_onnx.results import Status
from tests.corpus import field_cases

# Cases that the package can cut, and the fraction of the parameters that it removes.
CASES = {
    "conv_transpose": 0.5,
    "einsum": 0.5,
    "equal_singular_values": 0.2,
    "fused_conv": 0.5,
    "lstm": 0.4,
    "shared_through_identity": 0.5,
    "tied_embedding": 0.7,
    "weight_norm": 0.5,
}
# Weights are rank 4 plus 1 % noise; nothing of a permutation is noise.
CLOSE = dict.fromkeys(CASES, 0.05) | {"equal_singular_values": 0.8}
# What made weights from constants is gone, and what it was made from beyond the weight itself.
GONE = {"Identity", "ReduceL2", "Div", "Mul"}
BEYOND = {"weight_norm": 96}


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_is_asked_for_is_removed_and_merged_back(name: str, with_data: bool) -> None:
    model, samples, removable = getattr(field_cases, name)()
    assert removable == CASES[name]
    data = {key: np.asarray(array) for key, array in samples.items()}
    result = alds_onnx.compress(
        model, cr=removable, calibration=[data] if with_data else None, threads=1
    )
    assert removable <= result.plan.removed < removable + 0.06
    verification = result.report.verification
    assert verification is not None
    assert verification.status is Status.PASSED
    if with_data:
        assert verification.fidelity[0].relative_l2 < CLOSE[name]
    merged = alds_onnx.merge(result.model, threads=1)
    assert merged.report.parameters_after == result.plan.parameters - BEYOND.get(name, 0)
    assert [node.op_type for node in merged.model.graph.node] == [
        node.op_type for node in model.graph.node if node.op_type not in GONE
    ]


def test_the_cases_are_written(tmp_path: Path) -> None:
    field_cases.main(tmp_path)
    for path in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(path)
    assert len(list(tmp_path.glob("*.onnx"))) == len(field_cases.CASES)
