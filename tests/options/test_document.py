"""Editors, type checkers and `help` see the options as keywords of the functions."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alds_onnx
from alds_onnx.options.declare import declared
from alds_onnx.settings import CompressOptions, MergeOptions, SweepOptions
from tests.conftest import DIGITS, ROOT

FUNCTIONS = [
    (alds_onnx.compress, CompressOptions),
    (alds_onnx.sweep, SweepOptions),
    (alds_onnx.merge, MergeOptions),
]

# A mistake in each line that ends with what mypy says about it.
MISTAKES = """
import alds_onnx

reveal_type(alds_onnx.compress)  # model: .*ModelProto, \\*, cr: float \\| None =, .*threads: int \\| None =.*\\) -> .*Result
reveal_type(alds_onnx.sweep)  # ratios: .*Sequence\\[.*float\\], \\*, .*\\) -> .*Iterator\\[.*Result\\]
reveal_type(alds_onnx.merge)  # model: .*, \\*, seed: int =, .*\\) -> .*MergeResult
alds_onnx.compress("in.onnx", crr=0.5)  # Unexpected keyword argument "crr" for "compress"; did you mean "cr"
alds_onnx.compress("in.onnx", cr="0.5")  # Argument "cr" to "compress" has incompatible type "str"
alds_onnx.compress("in.onnx", threads="2")  # Argument "threads" to "compress" has incompatible type "str"
alds_onnx.compress("in.onnx", 0.5)  # Too many positional arguments for "compress"
alds_onnx.sweep("in.onnx", [0.5], cr=0.5)  # Unexpected keyword argument "cr" for "sweep"
alds_onnx.sweep("in.onnx")  # Missing positional argument "ratios" in call to "sweep"
alds_onnx.merge("in.onnx", calibration=None)  # Unexpected keyword argument "calibration" for "merge"
"""  # noqa: E501 - one line for each mistake
RIGHT = """
from pathlib import Path

import alds_onnx
from alds_onnx.settings import Settings

alds_onnx.compress(model="in.onnx", cr=0.5, cache="folder", input_shapes={"x": [1, 3]}, threads=None)
list(alds_onnx.sweep(Path("in.onnx"), ratios=(0.3, 0.5), include=["a"], schemes=[alds_onnx.Scheme.ENCODE]))
threads: int = Settings(cr=0.5).threads
cache: Path | None = Settings(cr=0.5, cache="folder").cache
"""  # noqa: E501


def types_of(code: str, folder: Path) -> list[str]:
    """What mypy says about code that uses the package, with the line numbers of the code."""
    path = folder / "user.py"
    path.write_text(code)
    cache = f"--cache-dir={ROOT / '.mypy_cache'}"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", cache, path],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return re.findall(r"^\S*user\.py:(.*)$", done.stdout, flags=re.MULTILINE)


def test_a_type_checker_sees_the_keywords(tmp_path: Path) -> None:
    found = types_of(MISTAKES, tmp_path)
    for number, line in enumerate(MISTAKES.splitlines(), start=1):
        if "  # " in line:
            said = [text for text in found if text.startswith(f"{number}: ")]
            assert any(re.search(line.split("  # ")[1], text) for text in said), (line, said)
    assert types_of(RIGHT, tmp_path) == []


@pytest.mark.parametrize(("function", "options"), FUNCTIONS)
def test_the_signature_is_that_of_the_options(function: Callable[..., Any], options: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [field.name for field, _ in declared(options)]
    assert parameters["model"].default is inspect.Parameter.empty
    assert parameters["threads"].default is None
    assert parameters["threads"].annotation == "int | None"
    assert parameters["input_shapes"].annotation == "Mapping[str, Sequence[int]] | None"
    assert parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(("function", "options"), FUNCTIONS)
def test_the_docstring_tells_every_option(function: Callable[..., Any], options: Any) -> None:
    doc = inspect.getdoc(function) or ""
    section = doc.split("Parameters\n----------\n")[1].split("\n\n")[0]
    assert re.findall(r"^\w+$", section, re.MULTILINE) == list(
        inspect.signature(function).parameters
    )
    assert all(len(line) <= 96 for line in section.splitlines())
    keywords = set(inspect.signature(alds_onnx.compress).parameters)
    assert set(re.findall(r"`([a-z_]+)`", section)) <= keywords | {"labels", "read_plan"}
    order = [doc.index(f"\n{title}\n---") for title in ("Parameters", "Raises", "Examples")]
    assert order == sorted(order)
    assert "--" not in section


@pytest.mark.parametrize(("function", "options"), FUNCTIONS)
def test_the_examples_run(
    function: Callable[..., Any], options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    doc = inspect.getdoc(function) or ""
    example = doctest.DocTestParser().get_doctest(doc, {}, options.__name__, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_a_keyword_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'crr'"):
        alds_onnx.compress(DIGITS, crr=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        alds_onnx.compress(DIGITS, 0.5)  # type: ignore[misc]
    with pytest.raises(TypeError, match="ratios"):
        alds_onnx.sweep(DIGITS)  # type: ignore[call-arg]
