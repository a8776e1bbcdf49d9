"""Running a tool on many files, each time in a process of its own, without paying for its imports.

A worker imports the tool once and forks for each file; the benchmark of robustness starts it with
the Python of the tool's environment:

    python tests/corpus/tools.py onnxsim

Imports nothing but the standard library and that one tool.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

Tool = Callable[[str, str], object]

_ROOT = Path(__file__).resolve().parents[2]


def _command(module: str, *more: str, preload: str = "") -> Callable[[], Tool]:
    """A console command: its `main` reads the command line; `preload` is what it imports late."""

    def load() -> Tool:
        main = importlib.import_module(module).main
        importlib.import_module(preload or module)

        def run(source: str, target: str) -> NoReturn:
            sys.argv = [module, source, target, *more]
            sys.exit(main())

        return run

    return load


def _graphsurgeon() -> Tool:
    onnx = importlib.import_module("onnx")
    gs = importlib.import_module("onnx_graphsurgeon")
    return lambda source, target: onnx.save(
        gs.export_onnx(gs.import_onnx(onnx.load(source))), target
    )


def _judge() -> Tool:
    sys.path.insert(0, str(_ROOT))
    judge: Tool = importlib.import_module("tests.corpus.judge").judge
    return judge


TOOLS: dict[str, Callable[[], Tool]] = {
    "alds-onnx": _command(
        "alds_onnx.__main__", "--cr", "0.1", "--threads", "1", preload="alds_onnx.cli.actions"
    ),
    "onnxsim": _command("onnxsim"),
    "OnnxSlim": _command("onnxslim.cli"),
    "graphsurgeon": _graphsurgeon,
    "judge": _judge,
}


def _serve(name: str) -> None:
    """Run the tool on each pair of paths that comes in, in a fork."""
    run = TOOLS[name]()
    for line in sys.stdin:
        print(json.dumps(_forked(run, json.loads(line))), flush=True)


def _forked(run: Tool, task: dict[str, Any]) -> int | None:
    end = time.monotonic() + task["timeout"]
    pid = os.fork()
    if pid == 0:
        _in_child(run, task)
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _in_child(run: Tool, task: dict[str, Any]) -> NoReturn:
    """End the process as the interpreter would, with what it would print."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(number, "wb")) for number in (1, 2))
    code = 0
    try:
        run(task["source"], task["target"])
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException as e:  # noqa: BLE001 - as the interpreter does at the end of a program
        sys.excepthook(type(e), e, e.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Worker:
    """A process that runs one tool, in the environment of the given Python."""

    def __init__(self, python: str, name: str) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, source: Path, target: Path, log: Path, timeout: float) -> int | None:
        """Exit code of the tool; negative: killed by that signal; None: out of time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = {"source": str(source), "target": str(target), "log": str(log), "timeout": timeout}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        select.select([self._process.stdout], [], [], timeout + 60)
        code = json.loads(self._process.stdout.readline())
        return None if code is None else int(code)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    _serve(sys.argv[1])
