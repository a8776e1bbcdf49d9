"""SIGINT and SIGTERM at any moment: 130, one line, the old file and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import onnxruntime as ort
import pytest

from tests.faults.harness import OLD, await_file, files, finish, start

_SIGNALS = [signal.SIGINT, signal.SIGTERM]

# Where the run is when the signal comes.
MOMENTS = {
    "reading": "import alds_onnx.graph.files.load as m; m._parse = wait",
    "decomposing": "import numpy as np, scipy.linalg as s; "
    "s.eigvalsh = s.eigh = np.linalg.eigvalsh = np.linalg.eigh = s.svd = np.linalg.svd = wait",
    "verifying": "import alds_onnx.evaluate.verify as m; m._open_original = wait",
    "syncing": "os.fsync = wait",
    "before the replacement": "os.chmod = wait",
}
# The data file and its folder are on the disk, and the model file is next.
_THIRD_SYNC = """
sync, calls = os.fsync, []
def third(descriptor):
    calls.append(descriptor)
    (wait if len(calls) == 3 else sync)(descriptor)
os.fsync = third
"""
# The new pair is in place: too late to stop.
_AFTER = """
replace = os.replace
def late(source, target):
    replace(source, target)
    if str(target).endswith(".onnx"):
        os.kill(os.getpid(), {number})
os.replace = late
"""


@pytest.mark.parametrize("number", _SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupt(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    folder, marker = tmp_path / "out", tmp_path / "now"
    folder.mkdir()
    target = folder / "out.onnx"
    target.write_bytes(OLD)
    process = start(target, patch=MOMENTS[moment], marker=marker)
    await_file(marker, process)
    os.kill(process.pid, number)
    finish(process).assert_one_line(130)
    assert target.read_bytes() == OLD
    assert files(folder) == ["out.onnx"]


@pytest.mark.parametrize("number", _SIGNALS)
@pytest.mark.parametrize("patch", [MOMENTS["syncing"], _THIRD_SYNC], ids=["data", "model"])
def test_interrupt_while_data_is_written(
    patch: str, number: signal.Signals, tmp_path: Path
) -> None:
    """The old pair of files stays, and runs."""
    folder, marker = tmp_path / "out", tmp_path / "now"
    folder.mkdir()
    target = folder / "out.onnx"
    assert finish(start(target, "--save-as-external-data")).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = ("--save-as-external-data", "--exclude", "*layer1*")
    process = start(target, *options, patch=patch, marker=marker)
    await_file(marker, process)
    os.kill(process.pid, number)
    finish(process).assert_one_line(130)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    ort.InferenceSession(str(target))


@pytest.mark.parametrize("number", _SIGNALS)
def test_interrupt_that_comes_too_late(number: signal.Signals, tmp_path: Path) -> None:
    """Never both: an exit code that says nothing was written, and a new file."""
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "out.onnx"
    target.write_bytes(OLD)
    found = finish(start(target, "--save-as-external-data", patch=_AFTER.format(number=number)))
    assert found.code == 0, found.stderr
    ort.InferenceSession(str(target))
    assert len(files(folder)) == 2


@pytest.mark.parametrize("number", _SIGNALS)
def test_interrupt_once_the_model_is_in_place(number: signal.Signals, tmp_path: Path) -> None:
    """The plan is still written: 130 would say that nothing was."""
    target, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    patch = (
        "import alds_onnx.cli.actions as m; before = m.write_bytes\ndef write(data, path):\n"
        f"    os.kill(os.getpid(), {number.value})\n    return before(data, path)\n"
        "m.write_bytes = write"
    )
    found = finish(start(target, "--plan-out", str(plan), patch=patch))
    assert found.code == 0, found.stderr
    assert files(tmp_path) == ["out.onnx", "plan.json"]


@pytest.mark.parametrize("number", _SIGNALS)
def test_interrupt_at_odd_times(number: signal.Signals, tmp_path: Path) -> None:
    """Whatever the moment of an undisturbed run, there is the old file or a whole new one."""
    for i in range(4):
        folder, marker = tmp_path / str(i), tmp_path / f"{i}.now"
        folder.mkdir()
        target = folder / "out.onnx"
        target.write_bytes(OLD)
        patch = f"import threading; pathlib.Path(sys.argv[1]).touch(); threading.Timer({i * 0.3}, "
        patch += f"os.kill, (os.getpid(), {number.value})).start()"
        # The command takes over SIGTERM when it begins: signals before that are the system's.
        patch = (
            "import alds_onnx.steps.prepare as m; before = m.load_model\ndef begin(source):\n    "
            + (patch + "\n    return before(source)\nm.load_model = begin")
        )
        process = start(target, patch=patch, marker=marker)
        await_file(marker, process)
        found = finish(process)
        assert files(folder) == ["out.onnx"]
        if target.read_bytes() != OLD:
            ort.InferenceSession(str(target))
        else:
            found.assert_one_line(130)
