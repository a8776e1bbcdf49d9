"""Legal-but-nasty and broken models through alds-onnx and three other tools that rewrite ONNX.

What: every file of tests/corpus/nasty_onnx.py through the commands of alds-onnx (--cr 0.1), onnxsim
and OnnxSlim with their defaults, and through a bare graphsurgeon round trip
(gs.export_onnx(gs.import_onnx(model))). Each run is a process of its own with a time limit.

Usable files (the manifest says rewrite or leave). A tool does harm, and only the first of these
counts, if

    no output       it fails, or takes too long; not where the manifest allows an error
    not legal       onnx.checker accepts the input and not the output
    does not run    onnxruntime runs the input and not the output
    other numbers   relative L2 distance of an output above 1e-3 (alds-onnx: above 0.05, for it
                    approximates; exceptions by case in tests/corpus/driver.py; it is the tests that
                    hold it to equal bits where nothing was decomposed)
    interface       a graph input or output is gone, or a file of the input has changed; a weight
                    that is an input too may go with the weight itself, or if its being one was only
                    a duty (IR version < 4)

Apart from harm, what is lost is counted: metadata_props and doc_string of the model, of its graph,
inputs and outputs, and of nodes whose output is still made; functions; quantization annotations.

Broken files (the manifest says error). Those with no other acceptable outcome must yield no file;
the others are listed apart.

How: the peers live in another environment, so that they are nothing that the project needs:

    python -m venv PEERS
    PEERS/bin/pip install onnxsim onnxslim onnx-graphsurgeon onnxruntime
    python -m benchmarks.robustness --peers-python PEERS/bin/python --write

--big runs the models over 2 GB through alds-onnx instead and measures its memory: the two of the
corpus, whose bulk no layer reads, and one that consists of layers. 8 GB of disk are enough.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from onnx import TensorProto, helper

from tests.corpus.computed import distances, outputs
from tests.corpus.driver import INSTALLED, fingerprints
from tests.corpus.judge import HARM, LOSSES, OURS
from tests.corpus.nasty_onnx import CASES, generate, make_feed
from tests.corpus.tools import TOOLS, Worker

_TABLE = Path(__file__).resolve().with_name("robustness.md")
_COMMAND = "python -m benchmarks.robustness --peers-python PEERS/bin/python --write"

_TOOLS = tuple(name for name in TOOLS if name != "judge")

_KINDS = ("usable", "broken", "debatable")

_GIB = 2**30
_BIG_CR = "0.0000020"  # just below the most that these two models allow
_DENSE_CR = "0.5"
_BIG_CLOSE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What one tool did to one file.

    Attributes
    ----------
    entry
        The file, as in the manifest.
    code
        Exit code; negative: killed by that signal; None: out of time.
    written, traceback
        Whether there is an output, and whether a traceback was printed.
    harm, lost
        As `tests/corpus/judge.py` says; nothing for broken files.
    """

    entry: dict[str, Any]
    code: int | None
    written: bool
    traceback: bool
    harm: str = ""
    lost: dict[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`usable`, `broken`, or `debatable`: broken, but the manifest allows another outcome."""
        if self.entry["expectation"] != "error":
            return "usable"
        return "debatable" if self.entry["also_ok"] else "broken"

    @property
    def losses(self) -> list[str]:
        """What was lost, in words."""
        return [name for name, count in self.lost.items() if count]


class _Bench:
    """One tool over the corpus."""

    def __init__(self, name: str, python: str, folder: Path, timeout: float) -> None:
        self.name, self.timeout = name, timeout
        self._root, self._out = folder / "in", folder / "out"
        self._run = Worker(python, name)
        self._judge = Worker(sys.executable, "judge")

    def all(self, pattern: str | None) -> list[_Row]:
        """Write the corpus for this tool alone, and run the tool on each file."""
        entries = generate(self._root, only=pattern, validate=False, quiet=True)
        rows = [self._one(entry) for entry in entries]
        self._run.close()
        self._judge.close()
        return rows

    def _one(self, entry: dict[str, Any]) -> _Row:
        out = self._out / entry["id"]
        out.mkdir(parents=True)
        source, target, log = self._root / entry["file"], out / "out.onnx", out.with_suffix(".log")
        files = self._hashes(source)
        code = self._run(source, target, log, self.timeout)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        traceback = "Traceback (most recent call last)" in text
        row = _Row(entry=entry, code=code, written=target.exists(), traceback=traceback)
        if row.kind == "usable" and row.written:
            row = replace(row, **self._judged(entry, source, target, out))
        elif row.kind == "usable" and "error" not in entry["also_ok"]:
            row = replace(row, harm="no output")
        if self._hashes(source) != files:
            row = replace(row, harm="interface")
        return row

    def _judged(
        self, entry: dict[str, Any], source: Path, target: Path, out: Path
    ) -> dict[str, Any]:
        question, answer = out.with_suffix(".question"), out.with_suffix(".answer")
        files = {"source": str(source), "target": str(target)}
        question.write_text(json.dumps({"entry": entry, "tool": self.name, **files}), "utf-8")
        self._judge(question, answer, out.with_suffix(".judge"), self.timeout)
        if not answer.exists():
            return {"harm": "does not run"}
        return dict(json.loads(answer.read_text("utf-8")))

    def _hashes(self, source: Path) -> dict[str, str]:
        """Hash of the model, and of what lies in its folder if that is its own."""
        if source.parent != self._root:
            return fingerprints(source.parent)
        return {"": hashlib.sha256(source.read_bytes()).hexdigest()} if source.is_file() else {}


def _tabled(results: dict[str, list[_Row]]) -> list[list[str]]:
    """Rows of text, the first one the heading."""
    first = next(iter(results.values()))
    counts = {kind: sum(row.kind == kind for row in first) for kind in _KINDS}

    def line(title: str, kind: str, holds: Callable[[_Row], object]) -> list[str]:
        sums = (
            sum(row.kind == kind and bool(holds(row)) for row in rows) for rows in results.values()
        )
        return [title, *map(str, sums)]

    def printed(kind: str) -> list[str]:
        return line(f"{kind}: tracebacks printed", kind, lambda row: row.traceback)

    return [
        ["", *results],
        line(f"**{counts['usable']} usable: without harm**", "usable", lambda row: not row.harm),
        *(line(f"harm: {h}", "usable", lambda row, h=h: row.harm == h) for h in HARM),
        *(line(f"lost: {n}", "usable", lambda row, n=n: row.lost.get(n)) for n in LOSSES),
        line("**without harm or loss**", "usable", lambda row: not (row.harm or row.losses)),
        line(
            "refused, as the manifest allows", "usable", lambda row: not (row.written or row.harm)
        ),
        printed("usable"),
        line(f"**{counts['broken']} broken: outputs written**", "broken", lambda row: row.written),
        printed("broken"),
        line("killed or out of time", "broken", lambda row: row.code is None or row.code < 0),
        line(f"{counts['debatable']} debatable: outputs written", "debatable", lambda r: r.written),
        printed("debatable"),
    ]


def _markdown(lines: list[list[str]]) -> str:
    heading, *rest = lines
    rule = ["---", *("---:" for _ in heading[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rest))


def _details(results: dict[str, list[_Row]]) -> str:
    """Which files each tool harms or loses something of."""
    lines = []
    for name, rows in results.items():
        groups: dict[str, list[str]] = {}
        for row in rows:
            what = row.harm or " and ".join(f"lost {loss}" for loss in row.losses)
            if row.kind == "broken" and row.written:
                what = "broken, but written"
            if what:
                groups.setdefault(what, []).append(row.entry["id"])
        text = "; ".join(f"*{what}*: {', '.join(ids)}" for what, ids in sorted(groups.items()))
        lines.append(f"- **{name}**: {text or 'none'}")
    return "\n".join(lines)


def _versions(peers: str) -> dict[str, str]:
    names = ["onnxsim", "onnxslim", "onnx-graphsurgeon", "onnxruntime", "onnx"]
    code = f"import importlib.metadata as m; print([m.version(n) for n in {names}])"
    done = subprocess.run([peers, "-c", code], capture_output=True, text=True, check=True)
    theirs = zip(names, json.loads(done.stdout.replace("'", '"')), strict=True)
    ours = {n: importlib.metadata.version(n) for n in ("alds-onnx", "onnx", "onnxruntime")}
    return {**{f"{n} (peers)": v for n, v in theirs}, **ours}


def _document(table: str, results: dict[str, list[_Row]], versions: dict[str, str]) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    what = str(__doc__).split("How: ")[0].strip()
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"# Robustness\n\n    {_COMMAND}\n\n{table}\n\n"
        f"Versions: {listed}, Python {python}.\n\n"
        f"## Definitions\n\n{what}\n\n## Which files\n\n{_details(results)}\n"
    )


def _big() -> int:
    """Run the command on the models over 2 GB; 1 if one is wrong or takes too much."""
    wrong = 0
    for case in (case for case in CASES if case.big):
        with tempfile.TemporaryDirectory() as folder:
            (entry,) = generate(
                Path(folder), only=f"^{case.id}$", big=True, validate=False, quiet=True
            )
            wrong |= _big_one(entry, Path(folder), _BIG_CR)
    with tempfile.TemporaryDirectory() as folder:
        wrong |= _big_one(_dense(Path(folder)), Path(folder), _DENSE_CR)
    return wrong


def _dense(folder: Path) -> dict[str, Any]:
    """22 MatMuls of 100 MB each: unlike in the corpus, all of the 2.2 GB can be decomposed."""
    (folder / "dense").mkdir()
    with (folder / "dense" / "weights").open("wb") as file:
        tensors = list(_dense_tensors(file))
    sums = [f"m{i}" for i in range(len(tensors))]
    nodes = [
        helper.make_node("MatMul", ["x", tensor.name], [name])
        for tensor, name in zip(tensors, sums, strict=True)
    ]
    nodes.append(helper.make_node("Sum", sums, ["y"]))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, None]) for n in "xy")
    graph = helper.make_graph(nodes, "dense", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "dense" / "model.onnx").write_bytes(model.SerializeToString())
    inputs = {"x": {"shape": [2, 1024], "dtype": "float32"}}
    return {"id": "dense", "file": "dense/model.onnx", "inputs": inputs}


def _dense_tensors(file: IO[bytes]) -> Iterator[TensorProto]:
    """Weights of shape (1024, 25600) and rank 8, written one after the other."""
    generator = np.random.default_rng(0)
    for i in range(22):
        left, right = (generator.standard_normal(s, np.float32) for s in ((1024, 8), (8, 25600)))
        data = (left @ right / 50).tobytes()
        tensor = TensorProto(name=f"W{i}", data_type=TensorProto.FLOAT, dims=[1024, 25600])
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": "weights", "offset": str(file.tell()), "length": str(len(data))}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
        file.write(data)
        yield tensor


def _big_one(entry: dict[str, Any], folder: Path, cr: str) -> int:
    source, target = folder / entry["file"], folder / "out.onnx"
    size = sum(path.stat().st_size for path in source.parent.iterdir())
    shape = [f"--input-shape=x:{','.join(map(str, entry['inputs']['x']['shape']))}"]
    command = [str(INSTALLED), str(source), str(target), *shape]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--cr", cr, "--quiet"])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    distance = _big_distance(entry, source, target) if process.returncode == 0 else float("inf")
    peak, bar = usage.ru_maxrss * 1024, 2 * size + _GIB  # Linux counts in KiB
    print(
        f"{entry['id']}: exit code {process.returncode}, model {size / _GIB:.2f} GiB, "
        f"peak {peak / _GIB:.2f} GiB (bar {bar / _GIB:.2f}), {seconds:.0f} s, "
        f"outputs differ by {distance:.4f}"
    )
    return int(peak >= bar or distance > _BIG_CLOSE)


def _big_distance(entry: dict[str, Any], source: Path, target: Path) -> float:
    feed = make_feed(entry)
    before, after = outputs(source, feed), outputs(target, feed)
    if isinstance(before, str) or isinstance(after, str):
        return float("inf")
    return max(distances(before, after))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--peers-python", help="Python of the environment with the other tools")
    parser.add_argument("--only", metavar="REGEX", help="only the cases whose id matches")
    parser.add_argument("--jobs", type=int, default=2, help="tools at the same time")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one file")
    parser.add_argument("--write", action="store_true", help=f"write {_TABLE.name}")
    parser.add_argument("--big", action="store_true", help="the models over 2 GB instead")
    return parser.parse_args(argv)


def _all_tools(arguments: argparse.Namespace, folder: Path) -> dict[str, list[_Row]]:
    def run(name: str) -> list[_Row]:
        python = sys.executable if name == OURS else arguments.peers_python
        bench = _Bench(name, python, folder / name, arguments.timeout)
        return bench.all(arguments.only)

    tools = _TOOLS if arguments.peers_python else (OURS,)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        return dict(zip(tools, pool.map(run, tools), strict=True))


def main(argv: Sequence[str]) -> int:
    """Run the benchmark."""
    arguments = _arguments(argv)
    if arguments.big:
        return _big()
    with tempfile.TemporaryDirectory() as folder:
        results = _all_tools(arguments, Path(folder))
    table = _markdown(_tabled(results))
    print(table, _details(results), sep="\n\n")
    if arguments.write and arguments.peers_python:
        text = _document(table, results, _versions(arguments.peers_python))
        _TABLE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
