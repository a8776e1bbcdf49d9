"""What the documents say is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import CALIBRATION, DIGITS, ROOT, TEST

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """The indented lines that call the command."""
    return re.findall(r"^ {4}(alds-onnx .*)$", text, flags=re.MULTILINE)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    setup = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(setup) == 2
    assert setup[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "models/digits.onnx" in setup[0]


def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(DIGITS.read_bytes())
    np.savez(tmp_path / "samples.npz", image=np.load(CALIBRATION)["image"][:64])
    test = np.load(TEST)
    np.savez(tmp_path / "labelled.npz", image=test["image"][:40], labels=test["labels"][:40])
    found = commands(README)
    assert len(found) >= 6
    for line in found:
        arguments = [Path(sys.executable).with_name("alds-onnx"), *line.split()[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "digits.onnx").write_bytes(DIGITS.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "passed" in capsys.readouterr().out
    onnx.checker.check_model(tmp_path / "digits-half.onnx", full_check=True)


def test_no_path_of_a_machine_in_any_document() -> None:
    for path in ROOT.glob("**/*.md"):
        if ".venv" not in path.parts:
            assert not re.search(r"/(home|root|work|tmp)/", path.read_text(encoding="utf-8")), path
