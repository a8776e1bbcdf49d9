"""Scoring models on labelled samples, or with a function of the user."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from alds_onnx.calibrate.reader import (
    Feed,
    ModelInput,
    batch_size,
    fitted,
    model_inputs,
    read_arrays,
)
from alds_onnx.calibrate.runner import Runner
from alds_onnx.errors import DataError, UsageError
from alds_onnx.evaluate.scores import (
    Choice,
    NoScoresError,
    Run,
    choose_output,
    num_classes,
    ranks,
)
from alds_onnx.evaluate.sessions import Execution, Outputs, RunError, Session
from alds_onnx.limits import Score
from alds_onnx.settings import Settings
from alds_onnx.steps.data import make_runner
from alds_onnx.steps.survey import Advance, Survey

_Array = npt.NDArray[Any]
_Labels = npt.NDArray[np.int64]

_LABELS = "labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScores:
    """The scores of one model, as pairs of name and score: top-1 first, or the score of a function.

    `samples` and `output` are as in `Score`; `others` are other graph outputs that look like
    scores.
    """

    values: tuple[tuple[str, float], ...]
    samples: int | None = None
    output: str = ""
    others: tuple[str, ...] = ()


#: Scores a model.
Evaluator: TypeAlias = Callable[[ModelProto, Advance], ModelScores]


def make_evaluator(survey: Survey, settings: Settings) -> Evaluator | None:
    """Make the evaluator that the settings ask for; None without an evaluation.

    If the labelled samples cannot be read, or do not fit the model, that is a DataError.
    """
    evaluation, loaded = settings.evaluate, survey.loaded
    if evaluation is None:
        return None
    if callable(evaluation):
        # A limit decides which model is written, which must not depend on the number of threads.
        threads = settings.threads if settings.max_drop is None else 1
        execution = Execution(threads=threads, provider=settings.provider)
        return _Function(evaluation, loaded.folder, execution)
    where, feeds, labels = _read_labelled(evaluation, model_inputs(loaded.model))
    return _TopK(where, labels, make_runner(feeds, survey, settings))


def make_scores(before: ModelScores, after: ModelScores) -> tuple[Score, ...]:
    """Pair the scores of the original and of the compressed model."""
    return tuple(
        Score(name=name, before=old, after=new, samples=before.samples, output=before.output)
        for (name, old), (_, new) in zip(before.values, after.values, strict=True)
    )


class _Function:
    def __init__(
        self, function: Callable[[Run], float], folder: Path, execution: Execution
    ) -> None:
        self._function, self._folder, self._execution = function, folder, execution
        self._name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, model: ModelProto, advance: Advance) -> ModelScores:
        try:
            session = Session(model, self._folder, self._execution)
        except RunError as e:
            raise DataError(f"evaluate: the model cannot be scored: {e}") from e

        def run(feeds: Mapping[str, _Array]) -> list[_Array]:
            try:
                return list(session.run(feeds))
            except RunError as e:
                raise DataError(f"evaluate: the model cannot be scored: {e}") from e

        returned = self._function(run)
        try:
            value = float(returned)
        except (TypeError, ValueError) as e:
            raise UsageError(f"'{self._name}' must return a number, not {returned!r}") from e
        return ModelScores(values=((self._name, value),))


class _TopK:
    """Scores models by the share of samples whose label is among the k highest scores."""

    def __init__(self, where: str, labels: Sequence[_Labels], runner: Runner) -> None:
        """`where` names the source; `labels` has those of each of the runner's batches."""
        self._where, self._labels, self._runner = where, labels, runner

    def __call__(self, model: ModelProto, advance: Advance) -> ModelScores:
        batches = self._runner.batches
        try:
            session = self._runner.session(model)
            runs = self._runner.map(lambda batch: session.run(batches[batch]), range(len(batches)))
            choice, places = None, []
            for outputs, labels, feed in zip(runs, self._labels, batches, strict=True):
                size = len(next(iter(feed.values())))
                if choice is None:
                    choice = choose_output(session.output_names, outputs, size)
                    _check_range(self._labels, choice, self._where)
                places.append(ranks(_scores(outputs, choice, size)[: len(labels)], labels))
                advance(len(places), len(batches))
        except (RunError, NoScoresError) as e:
            raise DataError(f"the model cannot be scored on {self._where}: {e}") from e
        assert choice is not None
        place = np.concatenate(places)
        names = session.output_names
        return ModelScores(
            values=tuple((f"top-{k}", int((place < k).sum()) / len(place)) for k in choice.tops),
            samples=len(place),
            output=names[choice.output],
            others=tuple(names[i] for i in choice.others),
        )


def _scores(outputs: Outputs, choice: Choice, size: int) -> _Array:
    output = outputs[choice.output]
    if num_classes(output, size) != choice.num_classes:
        raise NoScoresError("the shape of its scores differs from run to run")
    return np.asarray(output)


def _check_range(labels: Sequence[_Labels], choice: Choice, where: str) -> None:
    highest = max(int(part.max()) for part in labels)
    if highest >= choice.num_classes:
        raise DataError(
            f"{where}: a label is {highest}, but the model has {choice.num_classes} classes: "
            f"labels are 0 to {choice.num_classes - 1}"
        )


def _read_labelled(
    evaluation: str | os.PathLike[str] | Mapping[str, npt.ArrayLike],
    inputs: tuple[ModelInput, ...],
) -> tuple[str, list[Feed], list[_Labels]]:
    """Read labelled samples: what names them in messages, and a feed and its labels for each run.

    If the batch size is fixed, the last feed is padded with repetitions; its labels are not.
    """
    if isinstance(evaluation, Mapping):
        where = "the labelled data"
        arrays = {name: np.asarray(array) for name, array in evaluation.items()}
    else:
        where, arrays = f"'{evaluation}'", _read_file(Path(evaluation), inputs)
    labels = _check_labels(arrays, where)
    if not inputs:
        raise DataError(f"the model has no input: {where} cannot be scored")
    for spec in inputs:
        array = arrays.get(spec.name)
        if array is None:
            raise DataError(f"{where} has no array for input '{spec.name}'")
        count = len(array) if array.ndim else 0
        if count != len(labels):
            raise DataError(
                f"{where} has {len(labels)} labels, but {count} samples of input '{spec.name}'"
            )
    step, fixed = batch_size(inputs)
    feeds: list[Feed] = []
    for start in range(0, len(labels), step):
        stop = start + step if fixed else min(start + step, len(labels))
        feed = {spec.name: _part(arrays[spec.name], start, stop) for spec in inputs}
        feeds.append({spec.name: fitted(spec, feed, where) for spec in inputs})
    return where, feeds, [labels[i : i + step] for i in range(0, len(labels), step)]


def _read_file(path: Path, inputs: tuple[ModelInput, ...]) -> dict[str, _Array]:
    if not path.is_file():
        raise DataError(
            f"'{path}' does not exist: give an .npz file with an array for each input, and "
            f"'{_LABELS}'"
        )
    found = read_arrays(path, [*(spec.name for spec in inputs), _LABELS])
    if isinstance(found, np.ndarray):
        raise DataError(f"'{path}' is one array: give an .npz with arrays and '{_LABELS}'")
    return found


def _check_labels(arrays: Mapping[str, _Array], where: str) -> _Labels:
    """Give the labels as int64, after making sure that none is negative."""
    labels = arrays.get(_LABELS)
    if labels is None:
        raise DataError(f"{where} has no array '{_LABELS}': one class number for each sample")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{where}: '{_LABELS}' must be integers of shape (samples,), not {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if not len(labels):
        raise DataError(f"{where} has no samples")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{where}: a label is {bad}, but labels are class numbers from 0")
    return labels.astype(np.int64)


def _part(array: _Array, start: int, stop: int) -> _Array:
    """Take a slice. Beyond the end, the last sample is repeated."""
    if stop <= len(array):
        return array[start:stop]
    return array[np.minimum(np.arange(start, stop), len(array) - 1)]


def check_finite(scores: ModelScores) -> None:
    """Refuse scores of the original that are NaN or infinite with a UsageError."""
    for name, value in scores.values:
        if not math.isfinite(value):
            raise UsageError(f"'{name}' gives {value} for the original: it must be a finite number")
