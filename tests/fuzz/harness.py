"""Runs the worker in child processes, again after each crash, and adds up what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.fuzz.worker import INDEX, SECONDS_PER_INPUT

_MOST_CRASHES = 20
# A child that does not even answer its own alarm.
_SPARE_SECONDS = 60


@dataclass
class Summary:
    """What came of a target's inputs.

    Attributes
    ----------
    tried, accepted, refused
        Inputs; the last two are the fine ends.
    violations
        Inputs that raised something else, took too long, or gave a message of several lines.
    crashes
        Numbers of the inputs at which the child died, and its exit status.
    unverified
        Inputs whose rewritten model was found to be wrong, so that nothing was written.
    peak_mib
        Largest resident memory of a child.
    """

    accepted: int = 0
    refused: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    crashes: dict[int, str] = field(default_factory=dict)
    unverified: list[int] = field(default_factory=list)
    peak_mib: int = 0

    @property
    def tried(self) -> int:
        return self.accepted + self.refused + len(self.violations) + len(self.crashes)


def fuzz(target: str, *, seed: int, count: int, start: int = 0, batch: int = 2000) -> Summary:
    """Try inputs `start` to `start + count` of a target."""
    summary = Summary()
    with tempfile.TemporaryDirectory(prefix="alds-fuzz-") as name:
        folder, end = Path(name), start + count
        while start < end and len(summary.crashes) < _MOST_CRASHES:
            start = _child(target, seed, start, min(batch, end - start), folder, summary)
    return summary


def _child(target: str, seed: int, start: int, count: int, folder: Path, summary: Summary) -> int:
    """Run one child; the number of the first input that is still to be tried."""
    (folder / INDEX).write_text(str(start))
    numbers = [str(number) for number in (seed, start, count)]
    command = [sys.executable, "-m", "tests.fuzz.worker", target, *numbers, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    limit = count * SECONDS_PER_INPUT / 10 + _SPARE_SECONDS
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=limit, check=False
        )
        status = f"status {done.returncode}: {done.stderr.decode(errors='replace')[-600:]}"
    except subprocess.TimeoutExpired:
        done, status = None, f"no end after {limit} s"
    if done is None or done.returncode:
        crashed = int((folder / INDEX).read_text())
        summary.crashes[crashed] = status
        if crashed > start:  # what was fine before it, counted by running it again
            _child(target, seed, start, crashed - start, folder, summary)
        return crashed + 1
    _add(summary, json.loads(done.stdout.decode().splitlines()[-1]))
    return start + count


def _add(summary: Summary, tally: dict[str, Any]) -> None:
    summary.accepted += tally["accepted"]
    summary.refused += tally["refused"]
    summary.kinds.update(tally["kinds"])
    summary.violations += tally["violations"]
    summary.unverified += tally["unverified"]
    summary.peak_mib = max(summary.peak_mib, tally["peak_mib"])


if __name__ == "__main__":  # a longer run: python -m tests.fuzz.harness TARGET SEED COUNT
    found = fuzz(sys.argv[1], seed=int(sys.argv[2]), count=int(sys.argv[3]))
    print(json.dumps({"tried": found.tried} | vars(found), indent=1))
