"""What a tool did to a model that it should have left usable; for the benchmark of robustness."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from tests.corpus.computed import Array, distances, outputs
from tests.corpus.driver import read, tolerance
from tests.corpus.nasty_onnx import make_feed

OURS = "alds-onnx"
HARM = ("no output", "not legal", "does not run", "other numbers", "interface")
LOSSES = ("metadata_props", "doc_string", "functions", "annotations")

# A simplifier may add in another order; it may not approximate.
_SAME = 1e-3

_FIRST_IR_WITH_FREE_INITIALIZERS = 4


def judge(question: str, answer: str) -> None:
    """Compare the output of a tool with its input; in a fork, for either may crash it.

    Parameters
    ----------
    question
        Path of a JSON file: {"source", "target", "tool", "entry" (of the manifest)}.
    answer
        Path of the JSON file to write: {"harm": one of HARM or "", "lost": {one of LOSSES: count}}.
    """
    case = json.loads(Path(question).read_text(encoding="utf-8"))
    source, target = Path(case["source"]), Path(case["target"])
    found: dict[str, Any] = {"harm": _harm(case, source, target), "lost": {}}
    with contextlib.suppress(Exception):  # a file that does not even parse is harm already
        found["lost"] = _lost(read(source), read(target))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


def _harm(case: dict[str, Any], source: Path, target: Path) -> str:
    if _is_legal(source) and not _is_legal(target):
        return "not legal"
    with contextlib.suppress(ValueError):  # an input that is no tensor
        feed = make_feed(case["entry"])
        before = outputs(source, feed)
        after = [] if isinstance(before, str) else outputs(target, feed)
        if isinstance(after, str):
            return "does not run"
        if not isinstance(before, str) and not _is_close(case, before, after):
            return "other numbers"
    return "interface" if _interface_lost(read(source), read(target)) else ""


def _is_legal(path: Path) -> bool:
    try:
        onnx.checker.check_model(str(path))
    except Exception:  # noqa: BLE001 - the checker's errors have no common base
        return False
    return True


def _is_close(case: dict[str, Any], before: list[Array], after: list[Array]) -> bool:
    bound = tolerance(case["entry"]["id"])
    if bound is None:
        return True
    limit = bound if case["tool"] == OURS else _SAME
    return all(distance <= limit for distance in distances(before, after))


def _interface_lost(before: ModelProto, after: ModelProto) -> set[str]:
    """Graph inputs and outputs that are gone, but for weights that had to be or are no more.

    Before IR version 4 every initializer had to be an input too; raising the version frees it.
    """
    old, new = before.graph, after.graph
    weights = {t.name for t in old.initializer}
    if before.ir_version >= _FIRST_IR_WITH_FREE_INITIALIZERS:
        weights -= {t.name for t in new.initializer}
    inputs = {v.name for v in old.input} - {v.name for v in new.input} - weights
    return inputs | ({v.name for v in old.output} - {v.name for v in new.output})


def _lost(before: ModelProto, after: ModelProto) -> dict[str, int]:
    """How many entries of each kind went, of what is there in both models."""
    noted = [{a.tensor_name for a in m.graph.quantization_annotation} for m in (before, after)]
    made = {name for node in after.graph.node for name in node.output}
    return {
        "metadata_props": _fewer(_metadata(before), _metadata(after)),
        "doc_string": _fewer(_docs(before), _docs(after)),
        "functions": max(0, len(before.functions) - len(after.functions)),
        "annotations": len((noted[0] - noted[1]) & made),
    }


def _fewer(before: dict[str, int], after: dict[str, int]) -> int:
    return sum(max(0, count - after.get(name, count)) for name, count in before.items())


def _parts(model: ModelProto) -> Iterator[tuple[str, Any]]:
    """What may carry metadata and a doc string, with a name that stays the same."""
    yield "model", model
    yield "graph", model.graph
    yield from ((f"input {v.name}", v) for v in model.graph.input)
    yield from ((f"output {v.name}", v) for v in model.graph.output)
    yield from ((f"node {n.output[0]}", n) for n in model.graph.node if n.output)


def _metadata(model: ModelProto) -> dict[str, int]:
    return {name: len(part.metadata_props) for name, part in _parts(model)}


def _docs(model: ModelProto) -> dict[str, int]:
    return {name: int(bool(part.doc_string)) for name, part in _parts(model)}
