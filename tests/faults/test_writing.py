"""A full disk, a crash, a folder that cannot be written, links, two runs at once."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from tests.faults.harness import OLD, files, finish, start

_EXTERNAL = "--save-as-external-data"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, on which the compressed model (600 KiB) has no room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("options", [(), (_EXTERNAL,)], ids=["inline", "external"])
def test_full_disk(options: tuple[str, ...], tiny_disk: Path) -> None:
    target = tiny_disk / "out.onnx"
    target.write_bytes(OLD)
    found = finish(start(target, *options))
    found.assert_one_line(2)
    assert "No space left" in found.stderr
    assert target.read_bytes() == OLD
    assert files(tiny_disk) == ["out.onnx"]


def _small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("options", [(), (_EXTERNAL,)], ids=["inline", "external"])
def test_file_size_limit(options: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(OLD)
    found = finish(start(target, *options, before=_small_files_only))
    found.assert_one_line(2)
    assert "File too large" in found.stderr
    assert target.read_bytes() == OLD
    assert files(tmp_path) == ["out.onnx"]


@pytest.mark.parametrize("function", ["_open_original", "_compare", "_difference_at_layers"])
def test_crash_of_the_verification(function: str, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(OLD)
    found = finish(
        start(target, patch=f"import alds_onnx.evaluate.verify as m; m.{function} = fail")
    )
    found.assert_one_line(1)
    assert "a bug of two lines" in found.stderr
    assert target.read_bytes() == OLD
    assert files(tmp_path) == ["out.onnx"]


def test_a_report_that_cannot_be_made(tmp_path: Path) -> None:
    """It is made before the model is written: exit 1 says that nothing was."""
    target = tmp_path / "out.onnx"
    target.write_bytes(OLD)
    page = str(tmp_path / "report.html")
    patch = "import alds_onnx.report.html as m; m.report_to_html = fail"
    finish(start(target, "--report", page, patch=patch)).assert_one_line(1)
    assert target.read_bytes() == OLD
    assert files(tmp_path) == ["out.onnx"]


def test_failed_verification(tmp_path: Path) -> None:
    """A rewrite that is wrong is not written."""
    target = tmp_path / "out.onnx"
    target.write_bytes(OLD)
    patch = "import alds_onnx.evaluate.verify as m; m._difference_at_layers = lambda *a: 1.0"
    found = finish(start(target, patch=patch))
    found.assert_one_line(1)
    assert "verification failed" in found.stderr
    assert target.read_bytes() == OLD
    assert files(tmp_path) == ["out.onnx"]


@pytest.mark.parametrize("options", [(), (_EXTERNAL,)], ids=["inline", "external"])
def test_two_runs_at_once(options: tuple[str, ...], tmp_path: Path) -> None:
    """The target is one of the two results, and the other leaves nothing."""
    different = (("--seed", "1"), ("--exclude", "*layer3.0*"))
    results = []
    for i, own in enumerate(different):
        (tmp_path / str(i)).mkdir()
        assert finish(start(tmp_path / str(i) / "out.onnx", *options, *own)).code == 0
        results.append({p.name: p.read_bytes() for p in (tmp_path / str(i)).iterdir()})
    assert results[0] != results[1]
    folder = tmp_path / "both"
    folder.mkdir()
    # Both wait before the model file takes its place, so that they meet there.
    slow = (
        "import time; sync = os.fsync\ndef slow(d):\n    time.sleep(0.5); sync(d)\nos.fsync = slow"
    )
    runs = [start(folder / "out.onnx", *options, *own, patch=slow) for own in different]
    assert [finish(run).code for run in runs] == [0, 0]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} in results
    ort.InferenceSession(str(folder / "out.onnx"))


def test_folder_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    target = tmp_path / "out.onnx"
    target.write_bytes(OLD)
    tmp_path.chmod(0o500)
    try:
        found = finish(start(target))
    finally:
        tmp_path.chmod(0o700)
    found.assert_one_line(2)
    assert "no permission" in found.stderr
    assert target.read_bytes() == OLD
    assert files(tmp_path) == ["out.onnx"]


@pytest.mark.parametrize("exists", [True, False], ids=["old file", "dangling"])
def test_target_that_is_a_link(exists: bool, tmp_path: Path) -> None:
    """The file behind the link is written; the link and its folder stay as they are."""
    for name in ("links", "real"):
        (tmp_path / name).mkdir()
    link, real = tmp_path / "links" / "out.onnx", tmp_path / "real" / "model.onnx"
    link.symlink_to("../real/model.onnx")
    if exists:
        real.write_bytes(OLD)
    assert finish(start(link, _EXTERNAL)).code == 0
    assert link.is_symlink()
    assert files(link.parent) == ["out.onnx"]
    model, data = files(real.parent)
    assert (model, data.startswith("model.onnx.")) == ("model.onnx", True)
    onnx.checker.check_model(str(real))
    ort.InferenceSession(str(real))


def test_full_disk_behind_a_link(tiny_disk: Path, tmp_path: Path) -> None:
    link = tmp_path / "out.onnx"
    link.symlink_to("disk/real.onnx")
    finish(start(link)).assert_one_line(2)
    assert link.is_symlink()
    assert files(tiny_disk) == []
