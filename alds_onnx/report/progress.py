"""The progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn

from alds_onnx.settings import Progress, Step

_STEPS = {
    Step.LOAD: "Reading the model",
    Step.SCORES: "Scoring",
    Step.SPECTRA: "Singular values",
    Step.STATISTICS: "Observing the layers on the data",
    Step.SENSITIVITY: "Probing the layers",
    Step.INPUTS: "Finding inputs",
    Step.ATTEMPT: "Attempt",
    Step.SEARCH: "Choosing slices and ranks",
    Step.TIMING: "Timing cuts",
    Step.FACTORIZE: "Decomposing",
    Step.MEASURE: "Measuring",
    Step.MERGE: "Joining pairs",
    Step.VERIFY: "Checking with onnxruntime",
    Step.DONE: "Done",
}

# Steps that are repeated for every attempt of --max-error and --max-drop.
_OF_AN_ATTEMPT = (Step.SEARCH, Step.TIMING, Step.FACTORIZE, Step.MEASURE)


@contextlib.contextmanager
def progress_bar(console: Console, *, quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on a terminal, and nothing without one."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task: TaskID = bar.add_task(_STEPS[Step.LOAD], total=None)

        attempt = ""

        def show(step: Step, done: int, total: int) -> None:
            nonlocal attempt
            if step is Step.ATTEMPT:
                attempt = f"Attempt {done} of at most {total}: "
                return
            description = (attempt if step in _OF_AN_ATTEMPT else "") + _STEPS[step]
            bar.update(task, description=description, completed=done, total=total or None)

        yield show
