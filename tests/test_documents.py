"""What the documents say is what happens."""

from __future__ import annotations

import csv
import inspect
import re
import shlex
import subprocess
import sys
from math import prod
from pathlib import Path

import griffe
import numpy as np
import onnx
import pytest

import alds_onnx
from alds_onnx import cli
from tests.conftest import CALIBRATION, DIGITS, ROOT, TEST
from tests.graph.builders import normal, parse, run

PAGES = sorted((ROOT / "docs").rglob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """The indented lines that call the command."""
    return re.findall(r"^ {4}(alds-onnx .*)$", text, flags=re.MULTILINE)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    setup = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(setup) == 2
    assert setup[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "models/digits.onnx" in setup[0]


def test_the_first_command_of_the_readme_shows_a_true_number(tmp_path: Path) -> None:
    prepare(tmp_path)
    (first,) = re.findall(r"&& \.venv/bin/alds-onnx (models/.*)$", README, flags=re.MULTILINE)
    arguments = [Path(sys.executable).with_name("alds-onnx"), *first.split()]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *top-1 .* points, 40 samples *$", done.stdout, flags=re.MULTILINE)
    assert "random" not in done.stdout


def prepare(folder: Path) -> None:
    """The files that the documents name, with little data, and a small model in place of others."""
    (folder / "models").mkdir()
    model, images = small_model(), np.load(TEST)["image"][:40]
    (scores,) = run(model, {"image": images})
    for path in (folder / "in.onnx", folder / "models" / DIGITS.name):
        path.write_bytes(model.SerializeToString())
    for path in (folder / "samples.npz", folder / "models" / CALIBRATION.name):
        np.savez(path, image=np.load(CALIBRATION)["image"][:40])
    for path in (folder / "labelled.npz", folder / "models" / TEST.name):
        np.savez(path, image=images, labels=scores.argmax(1))


def small_model() -> onnx.ModelProto:
    """A classifier of images with layers named as in the embedded model, made to be cut."""
    names = {"l31": "/layer3.1/conv1/Conv", "l32": "/layer3.2/conv1/Conv", "fc": "/fc/Gemm"}
    generator = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        """Of rank 4, and 2 % of noise."""
        left, right = generator.normal(size=(shape[0], 4)), generator.normal(size=(4, *shape[1:]))
        noise = 0.04 * generator.normal(size=shape)
        return ((np.tensordot(left, right, 1) + noise) / prod(shape[1:]) ** 0.5).astype(np.float32)

    model = parse(
        """
        g (float[n, 1, 28, 28] image) => (float[n, 10] logits) {
            a = Conv<strides = [4, 4]>(image, stem)
            b = Relu(a)
            [l31] c = Conv<pads = [1, 1, 1, 1]>(b, V)
            d = Relu(c)
            [l32] e = Conv<pads = [1, 1, 1, 1]>(d, W)
            f = Relu(e)
            h = GlobalAveragePool(f)
            i = Flatten(h)
            [fc] logits = Gemm<transB = 1>(i, U)
        }
        """,
        {"stem": normal(16, 1, 5, 5) / 255, "V": weight(32, 16, 3, 3),
         "W": weight(32, 32, 3, 3), "U": weight(10, 32)},
    )  # fmt: skip
    for node in model.graph.node:
        node.name = names.get(node.name, node.name)
    return model


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and lines of the blocks of a page that are to be run, in order.

    Those behind a comment `not run here: why` are not.
    """
    found = re.findall(
        r"^(<!-- [^\n]* -->\n)?```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE
    )
    return [
        (kind, code) for note, kind, code in found if not note.startswith("<!-- not run here: ")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_every_command_of_the_documentation_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page, in one folder; Python too."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    for kind, code in blocks(page.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(code, page.name, "exec"), {})
        for line in code.splitlines() if kind == "sh" else ():
            program, *arguments = shlex.split(line)
            assert program == "alds-onnx", line
            assert cli.run(arguments) == 0, capfd.readouterr().err


def test_a_block_that_is_not_run_says_why() -> None:
    """What is not a command of ours cannot be run here, and a misspelt mark would hide a block."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = len(re.findall(r"^```(?:sh|python)$", text, flags=re.MULTILINE))
        run = sum(kind in ("sh", "python") for kind, _ in blocks(text))
        reasons = re.findall(r"^<!-- not run here: \w.{9,} -->\n```sh$", text, flags=re.MULTILINE)
        assert shown == run + len(reasons), page


def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    found = commands(README)
    assert len(found) >= 6
    for line in found:
        arguments = [Path(sys.executable).with_name("alds-onnx"), *line.split()[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_picture_of_the_sweep_is_of_the_table_in_the_readme() -> None:
    with (ROOT / "docs" / "images" / "sweep.csv").open(encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    table = README.split(" --sweep 0.1:0.9:0.1 ")[1].split("![")[0]
    rows = [line.split() for line in table.splitlines() if re.match(r" {4,}0\.\d ", line)]
    assert len(rows) == len(points) == 9
    for row, point in zip(rows, points, strict=True):
        cr, removed, _, parameters, _, _, _, error, score, _, _, latency, *marks = row
        assert cr == point["cr"]
        assert removed == f"{100 * float(point['removed']):.2f}"
        assert parameters == f"{int(point['parameters']):,}"
        assert error == f"{float(point['output_error']):.4g}"
        assert score == f"{100 * float(point['score_after']):.2f}"
        assert latency == f"{float(point['latency_ratio']):.2f}"
        marked = ["*"] * (point["pareto"] == "1") + ["knee"] * (point["suggested"] == "1")
        assert marks == marked


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


@pytest.mark.parametrize("name", ["compress", "sweep", "merge"])
def test_the_reference_shows_the_keywords(name: str) -> None:
    """The source has one parameter, which the extension replaces."""
    extensions = griffe.load_extensions(str(ROOT / "docs" / "signatures.py"))
    package = griffe.load("alds_onnx", extensions=extensions, search_paths=[ROOT])
    function = package["api"][name]
    assert isinstance(function, griffe.Function)
    keywords = list(inspect.signature(getattr(alds_onnx, name)).parameters)
    assert [parameter.name for parameter in function.parameters] == keywords
    assert function.docstring is not None
    sections = function.docstring.parse("numpy")
    (described,) = (part for part in sections if part.kind.value == "parameters")
    assert [parameter.name for parameter in described.value] == keywords


def test_no_path_of_a_machine_in_any_document() -> None:
    for path in ROOT.glob("**/*.md"):
        if ".venv" not in path.parts:
            assert not re.search(r"/(home|root|work|tmp)/", path.read_text(encoding="utf-8")), path
