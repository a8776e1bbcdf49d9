"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from alds_onnx.graph.merge import merge_pairs
from tests.conftest import CALIBRATION, DIGITS, ROOT, TEST

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


def test_fine_tuning(tmp_path: Path) -> None:
    """A few steps: the weights have changed, pairs are still pairs, and the budget holds."""
    out, images, test = (tmp_path / name for name in ("out.onnx", "images.npz", "test.npz"))
    np.savez(images, image=np.load(CALIBRATION)["image"][:32])
    np.savez(test, **{name: array[:100] for name, array in np.load(TEST).items()})
    script = [sys.executable, ROOT / "examples" / "finetune.py", DIGITS, out, "--cr", "0.3"]
    options = ["--then", "0.5", "--steps", "4", "--images", images, "--test", test]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*script, *options], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    stages = [line.split()[0] for line in done.stdout.splitlines()]
    assert stages == ["original", "30%", "trained", "50%", "trained", "written:"]
    model = onnx.load(out)
    assert merge_pairs(model, tmp_path).pairs
    before = sum(onnx.numpy_helper.to_array(t).size for t in onnx.load(DIGITS).graph.initializer)
    after = sum(onnx.numpy_helper.to_array(t).size for t in model.graph.initializer)
    assert 0.49 * before <= after <= 0.5 * before
