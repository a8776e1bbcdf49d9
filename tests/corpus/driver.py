"""Making one case of the corpus, running the command on it, and looking at what it did."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

from tests.corpus import nasty_onnx
from tests.corpus.fields import messages

CR = "0.1"
# One pair of known form for each layer, and the same bytes every time.
PAPER = ("--schemes", "encode", "--no-measure")
INSTALLED = Path(sys.executable).with_name("alds-onnx")

# Weights are rank 4 plus 1 % noise and a tenth of the parameters goes: the ranks stay above 4, and
# what is cut is noise, in at most three layers in a row.
_CLOSE = 0.05
_CLOSE_ENOUGH = {
    "conv2d_full_rank": 0.6,  # Gaussian weights have no small singular values to cut
    "value_identity": 1.0,  # all singular values are equal; what is cut is lost whole
    "graph_int_input_model": 0.3,  # the fraction of 10 maxima that lie elsewhere
    "graph_random_nodes": None,  # draws other numbers in every run
}


@dataclass(frozen=True)
class Case:
    """One file of the corpus on disk, and the folder for outputs beside its own folder."""

    entry: dict[str, Any]
    root: Path
    out: Path

    @property
    def path(self) -> Path:
        """The model; it may not exist."""
        return self.root / self.entry["file"]

    @property
    def target(self) -> Path:
        """Where the compressed model goes."""
        return self.out / "out.onnx"

    @property
    def plan(self) -> Path:
        """Where the plan goes."""
        return self.out / "plan.json"

    def arguments(self, threads: int, options: tuple[str, ...] = PAPER) -> list[str]:
        """The command line."""
        files = [str(self.path), str(self.target), "--plan-out", str(self.plan)]
        return [*files, "--cr", CR, *options, "--threads", str(threads)]

    def accepts(self, outcome: str) -> bool:
        """Whether the manifest allows this outcome.

        Where nothing can be cut, less is removed than was asked for: an error.
        """
        if outcome == "error" and "leave" in (self.entry["expectation"], *self.entry["also_ok"]):
            return True
        return outcome in (self.entry["expectation"], *self.entry["also_ok"])


@dataclass(frozen=True)
class Ran:
    """What a run of the command did.

    Attributes
    ----------
    outcome
        `rewrite`, `leave` or `error` as in the manifest, otherwise a sentence.
    rows
        The layers of the plan.
    """

    outcome: str
    rows: tuple[dict[str, Any], ...]
    code: int
    stdout: str
    stderr: str

    @property
    def decomposed(self) -> list[dict[str, Any]]:
        """The rows of the decomposed layers."""
        return [row for row in self.rows if row["decision"] == "decompose"]


def tolerance(case_id: str) -> float | None:
    """How far outputs may be from the original's after a rewrite; None: they cannot be compared."""
    return _CLOSE_ENOUGH.get(case_id, _CLOSE)


def make(case_id: str, folder: Path) -> Case:
    """Write one case; the same bytes whichever others are written."""
    root, out = folder / "in", folder / "out"
    out.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (entry,) = nasty_onnx.generate(
            root, only=f"^{re.escape(case_id)}$", validate=False, quiet=True
        )
    return Case(entry=entry, root=root, out=out)


def run_installed(case: Case, threads: int) -> Ran:
    """Run the installed console command in a process of its own."""
    command = [str(INSTALLED), *case.arguments(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return ran(case, done.returncode, done.stdout, done.stderr)


def ran(case: Case, code: int, stdout: str, stderr: str) -> Ran:
    """Name the outcome of a run that ended with `code`."""
    rows: tuple[dict[str, Any], ...] = ()
    outcome = "error" if code == 2 else f"exit code {code}"
    if code == 0:
        rows = tuple(json.loads(case.plan.read_text(encoding="utf-8"))["layers"])
        is_rewrite = any(row["decision"] == "decompose" for row in rows)
        outcome = "rewrite" if is_rewrite else "leave"
    return Ran(outcome=outcome, rows=rows, code=code, stdout=stdout, stderr=stderr)


def fingerprints(root: Path) -> dict[str, str]:
    """Hash of every file under a folder, links followed."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def console_problems(ran: Ran) -> list[str]:
    """What is wrong with the text printed."""
    problems = []
    if "Traceback" in ran.stdout + ran.stderr:
        problems.append(f"a traceback: {ran.stderr}")
    lines = ran.stderr.splitlines()
    if ran.code == 2 and (len(lines) != 1 or not lines[0].startswith("alds-onnx: error: ")):
        problems.append(f"not one line that begins `alds-onnx: error: `: {ran.stderr!r}")
    if ran.code == 0 and ran.stderr:
        problems.append(f"success, but on stderr: {ran.stderr!r}")
    return problems


def litter(case: Case, code: int) -> list[str]:
    """Files in the output folder that should not be there, or are missing."""
    found = sorted(path.name for path in case.out.iterdir())
    expected: list[str] = []
    if code == 0:
        expected = [case.target.name, case.plan.name, *data_files(case.target)]
    wrong = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    return [f"left behind: {name}" for name in wrong] + [f"not written: {n}" for n in missing]


def data_files(path: Path) -> set[str]:
    """Where a model says that its external data lies."""
    tensors = (m for m in messages(read(path)) if isinstance(m, TensorProto))
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def read(path: Path) -> ModelProto:
    """The protobuf of a file, without its external data."""
    return onnx.load(path, load_external_data=False)
