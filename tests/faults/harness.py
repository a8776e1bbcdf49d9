"""The command in a child process in which one thing goes wrong, and a look at what it leaves."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import DIGITS

OLD = b"the old output"
ARGUMENTS = ("--cr", "0.3", "--no-measure", "--quiet")
_SECONDS = 40.0

# Runs the command after a statement that breaks something. `wait` says that a moment has come, by
# a file that the test waits for, and stays there.
_CHILD = """
import os, pathlib, sys, threading, time
def wait(*args, **kwargs):
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(2 if threading.current_thread() is not threading.main_thread() else 60)
def fail(*args, **kwargs):
    raise RuntimeError("a bug\\nof two lines")
{patch}
from alds_onnx.cli import run
sys.exit(run(sys.argv[2:]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    code: int
    stdout: str
    stderr: str

    def assert_one_line(self, code: int) -> None:
        """It ended with an exit code and one line that says why."""
        # click ends the line in which a terminal shows ^C.
        shown = self.stderr.removeprefix("\n") if code == 130 else self.stderr
        lines = [line for line in shown.splitlines() if "warning:" not in line]
        assert self.code == code, self.stderr
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("alds-onnx: error: ")


def start(
    target: Path,
    *options: str,
    source: Path = DIGITS,
    patch: str = "",
    marker: Path | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """Start a run; `before` is called in the child."""
    code = _CHILD.format(patch=patch)
    child = [sys.executable, "-c", code, str(marker or target.with_suffix(".never"))]
    return subprocess.Popen(
        [*child, str(source), str(target), *ARGUMENTS, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,  # noqa: PLW1509 - the tests have no threads
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for the end of a run."""
    try:
        stdout, stderr = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
    return Outcome(code=process.returncode, stdout=stdout, stderr=stderr)


def await_file(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + _SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"'{path}' did not come"
        time.sleep(0.01)


def files(folder: Path) -> list[str]:
    """Names of everything in a folder."""
    return sorted(path.name for path in folder.iterdir())
