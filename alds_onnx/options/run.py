"""What a run works with: data, threads, random numbers, and results of earlier runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from alds_onnx.errors import UsageError
from alds_onnx.options.declare import Converted, Heading, Options, option
from alds_onnx.runtimes import Provider
from alds_onnx.values import Objective

if TYPE_CHECKING:  # `--help` answers before onnx is loaded
    from alds_onnx.calibrate.reader import Calibration
    from alds_onnx.evaluate.scores import Evaluation


class Step(str, Enum):
    """The steps of a run, in order; `ATTEMPT` to `MEASURE` come again for every attempt."""

    LOAD = "load"
    SCORES = "scores"
    SPECTRA = "spectra"
    STATISTICS = "statistics"
    SENSITIVITY = "sensitivity"
    INPUTS = "inputs"
    MERGE = "merge"
    ATTEMPT = "attempt"
    SEARCH = "search"
    TIMING = "timing"
    FACTORIZE = "factorize"
    MEASURE = "measure"
    VERIFY = "verify"
    DONE = "done"


class Progress(Protocol):
    """Called as the work goes on."""

    def __call__(self, step: Step, done: int, total: int) -> None:
        """`done` of `total` parts of a step; `total` 0 where it is not known."""


def silent(step: Step, done: int, total: int) -> None:
    """A progress that nobody sees."""


def default_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse `name:1,3,224,224`; the name may hold colons itself."""
    name, colon, dims = text.rpartition(":")
    sizes = dims.split(",") if dims else []
    if not colon or not all(size.strip().isdigit() for size in sizes):
        raise ValueError(f"'{text}' is not like input:1,3,224,224")
    return name, tuple(int(size) for size in sizes)


_Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


def _shapes(_: object, given: Mapping[str, Sequence[int]] | None) -> _Shapes:
    return tuple((name, tuple(sizes)) for name, sizes in dict(given or {}).items())


def _default_objective(data: Data, given: Objective | None) -> Objective:
    if given is not None:
        return given
    on_weights = data.calibration is None
    return Objective.MAX_RELATIVE_ERROR if on_weights else Objective.SUM_OUTPUT_ERROR


@dataclass(kw_only=True, eq=False)
class Data(Options):
    """Real inputs, with and without labels."""

    heading = Heading.DATA
    calibration: Calibration | None = option(
        None,
        flag="--calibration PATH",
        parse=Path,
        help="Real inputs without labels, to keep far more accuracy: an .npz with arrays named by "
        "input, or a folder of .npz or .npy.",
        python="Real inputs without labels, a few hundred if possible; see "
        "`alds_onnx.calibrate.reader.read_feeds`.",
        more="Ranks are then chosen by measured errors of the model's outputs, and factors fitted "
        "to the data, which keeps far more accuracy than the weights alone can.",
    )
    evaluate: Evaluation | None = option(
        None,
        flag="--evaluate LABELLED.npz",
        parse=Path,
        help="Print top-1 and top-5 before and after, on arrays named by input and class numbers "
        "from 0 in the array 'labels'.",
        python="What to score both models by: an .npz with arrays named by input and the integers "
        "`labels`, the same as a mapping, or a function. That gets a function which runs a model, "
        "from {input name: array} to the list of the outputs, and returns a number, higher is "
        "better. With `max_drop` its value chooses the model too: let it use samples that you use "
        "for nothing else, and judge the result by others.",
        more="Use samples that are not in --calibration. A dry run scores nothing, unless "
        "--max-drop needs it.",
    )
    objective: Converted[Objective | None, Objective] = option(
        Converted(None, _default_objective),
        flag="--objective",
        choices={"sum": Objective.SUM_OUTPUT_ERROR, "max": Objective.MAX_OUTPUT_ERROR},
        help="With --calibration: make the sum (default) or the maximum of the output errors "
        "small.",
        python="With --calibration: whether the sum (default) or the maximum of the output errors "
        "that the layers cause is made small.",
    )

    def check(self) -> None:
        """Refuse an objective on outputs without real inputs."""
        super().check()
        on_outputs = self.objective is not Objective.MAX_RELATIVE_ERROR
        if on_outputs and self.calibration is None:
            raise UsageError("--objective is about outputs on real inputs: give --calibration too")


@dataclass(kw_only=True, eq=False)
class Reuse(Options):
    """What is kept for other runs."""

    cache: Converted[str | os.PathLike[str] | None, Path | None] = option(
        Converted(None, lambda _, given: None if given is None else Path(given)),
        flag="--cache DIR",
        parse=Path,
        help="Keep error curves and measurements there: another run on the same model and data "
        "starts at the search.",
        python="A folder for error curves and measurements on data: another run on the same model "
        "and data starts at the search.",
        more="They are kept by what they depend on. The folder may be deleted at any time.",
    )


@dataclass(kw_only=True, eq=False)
class Execution(Options):
    """How the work is done and checked."""

    heading = Heading.CHECKS
    seed: int = option(
        0,
        flag="--seed",
        heading=Heading.RANKS,
        help="Seed of random starts and random inputs.",
    )
    input_shapes: Converted[Mapping[str, Sequence[int]] | None, _Shapes] = option(
        Converted(None, _shapes),
        flag="--input-shape NAME:D1,D2,...",
        parse=parse_shape,
        load=dict,
        repeatable=True,
        help="Shape of an input with free sizes (repeatable).",
        python="Shapes of graph inputs with free sizes, by name.",
    )
    provider: Provider = option(
        Provider.CPU,
        flag="--provider",
        choices={provider.value: provider for provider in Provider},
        help="Where onnxruntime runs the models.",
        python="onnxruntime's execution provider for the checks.",
    )
    threads: Converted[int | None, int] = option(
        Converted(None, lambda _, given: default_threads() if given is None else given),
        flag="--threads N",
        parse=int,
        help="Threads; default: all processors. The model written does not depend on it.",
        python="Number of threads; default: all processors. The model does not depend on it.",
    )
    dry_run: bool = option(
        False,
        flag="--dry-run",
        heading=Heading.OUTPUT,
        help="Decide and report; check and write no model.",
        python="Whether to skip the checks by onnxruntime, and scores that --max-drop does not "
        "need.",
    )
    progress: Progress = option(
        silent,
        python="Called as the work goes on.",
    )

    def check(self) -> None:
        """Refuse numbers out of their range."""
        super().check()
        if self.threads < 1:
            raise UsageError(f"--threads is {self.threads}, but must be at least 1")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}, but must not be negative")
