"""A model over 2 GB is compressed with bounded memory, its weights streamed from file to file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto

from tests.graph.builders import normal, parse

_GIB = 1 << 30
_ROWS, _COLUMNS = 14_000_000, 40
_NEEDED_MEMORY, _NEEDED_DISK = 8 * _GIB, 6 * _GIB

# Runs the command and tells the largest resident memory of it and its children, in bytes.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "alds_onnx", *sys.argv[1:]]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


def big_model() -> ModelProto:
    """One small layer to decompose, and a table of 2.24 GB in a data file."""
    graph = "m = MatMul(x, W) g = Gather(t, ids) y = Add(m, g)"
    model = parse(
        f"g (float[6, 48] x, int64[6] ids) => (float[6, 40] y) {{ {graph} }}",
        {"W": normal(48, 40, seed=1)},
    )
    table = model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT)
    table.dims[:] = [_ROWS, _COLUMNS]
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "big.data"), ("length", str(_ROWS * _COLUMNS * 4))):
        table.external_data.add(key=key, value=value)
    return model


@pytest.fixture
def roomy(tmp_path: Path) -> Path:
    """A folder with enough disk, on a machine with enough memory."""
    if not hasattr(os, "sysconf") or sys.platform != "linux":
        pytest.skip("the peak memory of a child is measured on Linux only")
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < _NEEDED_MEMORY:
        pytest.skip(f"needs 8 GiB of free memory, there are {memory / _GIB:.1f}")
    disk = shutil.disk_usage(tmp_path).free
    if disk < _NEEDED_DISK:
        pytest.skip(f"needs 6 GiB of free disk, there are {disk / _GIB:.1f}")
    return tmp_path


def test_peak_memory(roomy: Path) -> None:
    source, folder = roomy / "in.onnx", roomy / "out"
    folder.mkdir()
    source.write_bytes(big_model().SerializeToString())
    size = _ROWS * _COLUMNS * 4
    last = np.arange(_COLUMNS, dtype=np.float32)
    with (roomy / "big.data").open("wb") as file:  # sparse: zeros take no disk
        file.seek(size - last.nbytes)
        file.write(last.tobytes())
    command = [str(source), str(folder / "out.onnx"), "--cr", "0.000002"]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True, check=False
    )
    try:
        assert done.returncode == 0, done.stderr
        assert "rewrite is exact" in done.stdout
        peak = int(done.stdout.split()[-1])
        assert 0 < peak < 2 * size + _GIB
        assert_complete(folder, size, last)
    finally:
        shutil.rmtree(folder)
        (roomy / "big.data").unlink()


def assert_complete(folder: Path, size: int, last: np.ndarray) -> None:
    """The table has come along to its last row, and the layer is decomposed."""
    target, data = sorted(folder.iterdir(), key=lambda path: path.suffix != ".onnx")
    assert size <= data.stat().st_size < size + 65536  # the factors are there too
    written = onnx.load(target, load_external_data=False)
    assert "W" not in [tensor.name for tensor in written.graph.initializer]
    feeds = {"x": np.zeros((6, 48), np.float32), "ids": np.full(6, _ROWS - 1)}
    (y,) = ort.InferenceSession(str(target)).run(None, feeds)
    np.testing.assert_array_equal(y, np.tile(last, (6, 1)))
