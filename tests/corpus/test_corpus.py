"""The command on legal-but-nasty and on broken models, each with what must happen to it.

`nasty_onnx.py` writes the files; every worker of pytest-xdist writes only the cases that it runs.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from alds_onnx import cli
from tests.corpus.computed import Array, distances, outputs, reference_outputs, same_bits
from tests.corpus.driver import (
    PAPER,
    Case,
    Ran,
    console_problems,
    fingerprints,
    litter,
    make,
    ran,
    read,
    run_installed,
    tolerance,
)
from tests.corpus.fields import LAYERS, compare, layer_nodes, messages
from tests.corpus.nasty_onnx import CASES, make_feed

_CASES = [case for case in CASES if not case.big]
_ERRORS = [case.id for case in _CASES if case.expect == "error"]
_ONE_OF_EACH_CATEGORY = list({case.cat: case.id for case in reversed(_CASES)}.values())
_INSTALLED = dict.fromkeys([*_ERRORS, *_ONE_OF_EACH_CATEGORY])


@pytest.mark.parametrize("case_id", [case.id for case in _CASES])
def test_case(case_id: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = make(case_id, tmp_path)
    files = fingerprints(case.root)
    done = _run_here(case, capfd)
    assert case.accepts(done.outcome), f"{done.outcome}: {done.stderr or done.rows}"
    problems = [*console_problems(done), *litter(case, done.code)]
    if fingerprints(case.root) != files:
        problems.append("the input was changed")
    if done.code == 0:
        problems += _plan_problems(case, done)
        problems += _model_problems(case, done)
    assert problems == []


@pytest.mark.parametrize("case_id", [case.id for case in _CASES])
def test_case_by_default(case_id: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With all schemes, among which the check of the rewrite tells right from wrong."""
    case = make(case_id, tmp_path)
    files = fingerprints(case.root)
    done = _run_here(case, capfd, options=())
    assert case.accepts(done.outcome), f"{done.outcome}: {done.stderr or done.rows}"
    assert [*console_problems(done), *litter(case, done.code)] == []
    assert fingerprints(case.root) == files


@pytest.mark.parametrize("case_id", _INSTALLED)
def test_installed_command(case_id: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = make(case_id, tmp_path)
    here = _run_here(case, capfd)
    written = fingerprints(case.out)
    for name in written:
        (case.out / name).unlink()
    files = fingerprints(case.root)
    done = run_installed(case, threads=2)
    assert (done.code, done.stderr) == (here.code, here.stderr)
    assert fingerprints(case.out) == written, "other bytes with another number of threads"
    assert [*console_problems(done), *litter(case, done.code)] == []
    assert fingerprints(case.root) == files


def test_corpus_is_whole() -> None:
    assert len(_CASES) == 244


def _run_here(
    case: Case, capfd: pytest.CaptureFixture[str], options: tuple[str, ...] = PAPER
) -> Ran:
    """In this process: imports would take ten times as long as the work."""
    capfd.readouterr()
    code = cli.run(case.arguments(threads=1, options=options))
    captured = capfd.readouterr()
    return ran(case, code, captured.out, captured.err)


def _plan_problems(case: Case, done: Ran) -> list[str]:
    """What the rows of the plan get wrong."""
    model = read(case.path)
    problems = [
        f"{row['name']}: no reason"
        for row in done.rows
        if row["decision"] != "decompose" and not row["reason"]
    ]
    layers = [row for row in done.rows if row["op"] in LAYERS]
    if len(layers) != len(layer_nodes(model)):
        problems.append(f"{len(layer_nodes(model))} layers, {len(layers)} rows")
    if done.outcome == case.entry["expectation"]:
        for output, wanted in case.entry["nodes"].items():
            problems += _row_problems(model, done, output, wanted)
    return problems


def _row_problems(model: onnx.ModelProto, done: Ran, output: str, wanted: str) -> list[str]:
    """Compare the row of the main graph's node that makes `output` with what the manifest says."""
    (node,) = (node for node in model.graph.node if node.output[:1] == [output])
    names = [m.name for m in messages(model) if isinstance(m, onnx.NodeProto)]
    name = node.name if node.name and names.count(node.name) == 1 else output
    rows = [row for row in done.rows if row["name"] == name]
    if not rows:
        is_layer = any(node == layer for layer in layer_nodes(model))
        return [f"{output}: no row"] if is_layer or wanted == "rewrite" else []
    (row,) = rows
    decision, reason = row["decision"], row["reason"]
    whole = decision == "keep" and reason == "whole at this budget" and len(done.rows) > 1
    is_right = decision == "decompose" or whole if wanted == "rewrite" else decision != "decompose"
    return [] if is_right else [f"{output}: {decision} ({reason}), expected {wanted}"]


def _model_problems(case: Case, done: Ran) -> list[str]:
    """What the model written gets wrong: its fields, its legality, what it computes."""
    before, after = read(case.path), read(case.target)
    found = compare(before, after, case.path.parent, case.out)
    problems = list(found.problems)
    decided = sorted((row["op"], row["weight"]) for row in done.decomposed)
    if sorted((layer.op, layer.weight) for layer in found.decomposed) != decided:
        problems.append(f"decomposed {found.decomposed}, but the plan says {decided}")
    onnx.checker.check_model(str(case.target))
    return problems + _output_problems(case, exact=done.outcome == "leave")


def _output_problems(case: Case, *, exact: bool) -> list[str]:
    """Run both models; the compressed one after the input's folder is gone from its place."""
    try:
        feed = make_feed(case.entry)
    except ValueError:  # an input that is no tensor
        return []
    run = outputs
    before = run(case.path, feed)
    if isinstance(before, str):
        run = reference_outputs
        before = run(case.path, feed)
    case.root.rename(case.root.with_name("moved"))
    after = run(case.target, feed)
    if isinstance(before, str):
        return []
    if isinstance(after, str):
        return [f"the output does not run: {after}"]
    return _differences(case.entry["id"], before, after, exact=exact)


def _differences(
    case_id: str, before: list[Array], after: list[Array], *, exact: bool
) -> list[str]:
    if exact:
        same = len(before) == len(after) and all(map(same_bits, before, after))
        return [] if same else ["the outputs are not the same bit for bit"]
    found, bound = distances(before, after), tolerance(case_id)
    is_close = bound is None or all(distance <= bound for distance in found)
    return [] if is_close else [f"outputs differ by {found}, more than {bound}"]
