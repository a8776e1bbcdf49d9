"""Scoring models on labelled samples, or with a function of the user."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    drop_stderr,
    halves,
    num_classes,
    ranks,
)
from alds_onnx.evaluate.sessions import Execution, Outputs, RunError, Session
from alds_onnx.results import Score
from alds_onnx.settings import Settings
from alds_onnx.steps.data import Data, make_runner
from alds_onnx.steps.survey import Advance, Survey

_Array = npt.NDArray[Any]
_Labels = npt.NDArray[np.int64]
_Numbers = npt.NDArray[np.int64]

_LABELS = "labels"


# With fewer labelled samples than this, halves say nothing, and all choose and judge.
_FEWEST_TO_SPLIT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScores:
    """The scores of one model, as pairs of name and score: top-1 first, or the score of a function.

    `samples` and `output` are as in `Score`; `others` are other graph outputs that look like
    scores. `right` says for each score which samples the model got right; empty for a function.
    """

    values: tuple[tuple[str, float], ...]
    samples: int | None = None
    output: str = ""
    others: tuple[str, ...] = ()
    right: tuple[npt.NDArray[np.bool_], ...] = field(default=(), repr=False, compare=False)


#: Scores a model.
Evaluator: TypeAlias = Callable[[ModelProto, Advance], ModelScores]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """What scores models, and the scores of the original; `held_out` is as in `Score`."""

    evaluator: Evaluator
    before: ModelScores
    held_out: bool | None = None

    def scores(self, after: ModelScores) -> tuple[Score, ...]:
        """Pair the scores of the original with those of a compressed model."""
        before = self.before
        errors = [drop_stderr(*pair) for pair in zip(before.right, after.right, strict=True)]
        return tuple(
            Score(
                name=name,
                before=old,
                after=new,
                samples=before.samples,
                output=before.output,
                drop_stderr=None if error is None else 100 * error,
                held_out=self.held_out,
            )
            for (name, old), (_, new), error in zip(
                before.values, after.values, errors or [None] * len(before.values), strict=True
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scoring:
    """How models are scored.

    `check` gives the scores of the report. `choose` gives those by which attempts are chosen, on
    other samples; None if nothing is chosen by scores, or if the samples cannot be split. `shared`
    of all `labelled` samples are calibration data too.
    """

    check: Judge
    choose: Judge | None = None
    labelled: int | None = None
    shared: int = 0


def make_scoring(
    survey: Survey, data: Data | None, settings: Settings, advance: Advance
) -> Scoring | None:
    """Score the original as the settings ask for it; None without an evaluation.

    Where scores choose what is written, those of the report are of other samples. If the labelled
    samples cannot be read, or do not fit the model, that is a DataError.
    """
    evaluation, loaded = settings.evaluate, survey.loaded
    if evaluation is None:
        return None
    limited = settings.max_drop is not None

    def judge(evaluator: Evaluator, held_out: bool | None) -> Judge:
        before = evaluator(loaded.model, advance)
        check_finite(before)
        return Judge(evaluator=evaluator, before=before, held_out=held_out)

    if callable(evaluation):
        # A limit decides which model is written, which must not depend on the number of threads.
        execution = Execution(
            threads=1 if limited else settings.threads, provider=settings.provider
        )
        return Scoring(check=judge(_Function(evaluation, loaded.folder, execution), None))
    labelled = _read_labelled(evaluation, model_inputs(loaded.model))
    count = len(labelled.labels)
    split = limited and count >= _FEWEST_TO_SPLIT
    parts = halves(labelled.labels, settings.seed) if split else (np.arange(count),)
    runs = [labelled.runs(part) for part in parts]
    shared = _count_shared(runs, data) if data else 0
    own, *others = (
        _TopK(labelled.where, labels, make_runner(feeds, survey, settings))
        for feeds, labels in runs
    )
    return Scoring(
        check=judge(own, not shared and (split or not limited)),
        choose=judge(others[0], held_out=False) if others else None,
        labelled=count,
        shared=shared,
    )


def _count_shared(runs: Sequence[tuple[list[Feed], list[_Labels]]], data: Data) -> int:
    """Count the labelled samples that are calibration data too, byte for byte."""
    parts = (data.fit, data.choose, data.check)
    known = {one for feeds in parts for feed in feeds for one in _digests(feed)}
    return sum(
        one in known
        for feeds, labels in runs
        for feed, own in zip(feeds, labels, strict=True)
        for one in _digests(feed)[: len(own)]
    )


def _digests(feed: Feed) -> list[bytes]:
    """Give a digest of each sample, over all inputs; none if the feed is not a batch."""
    arrays = [feed[name] for name in sorted(feed)]
    sizes = {len(array) if array.ndim else 0 for array in arrays}
    if len(sizes) != 1:
        return []
    digests = []
    for sample in range(sizes.pop()):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            row = np.ascontiguousarray(array[sample])
            # Strings are objects, whose bytes are those of pointers.
            content = row.tobytes() if row.dtype.kind != "O" else repr(row.tolist()).encode()
            digest.update(f"{row.shape}{row.dtype}".encode() + content)
        digests.append(digest.digest())
    return digests


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
        names, right = session.output_names, [place < k for k in choice.tops]
        shares = [int(one.sum()) / len(place) for one in right]
        return ModelScores(
            values=tuple((f"top-{k}", share) for k, share in zip(choice.tops, shares, strict=True)),
            samples=len(place),
            output=names[choice.output],
            others=tuple(names[i] for i in choice.others),
            right=tuple(right),
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Labelled:
    """Labelled samples; `where` names them in messages, `arrays` has one for each of the inputs."""

    where: str
    inputs: tuple[ModelInput, ...]
    arrays: dict[str, _Array]
    labels: _Labels

    def runs(self, numbers: _Numbers) -> tuple[list[Feed], list[_Labels]]:
        """Make a feed and its labels for each run on the samples of these numbers.

        If the batch size is fixed, the last feed is padded with repetitions; its labels are not.
        """
        step, fixed = batch_size(self.inputs)
        feeds: list[Feed] = []
        labels: list[_Labels] = []
        for start in range(0, len(numbers), step):
            own = numbers[start : start + step]
            padding = np.repeat(own[-1:], step - len(own) if fixed else 0)
            feed = {
                spec.name: _taken(self.arrays[spec.name], np.concatenate([own, padding]))
                for spec in self.inputs
            }
            feeds.append({spec.name: fitted(spec, feed, self.where) for spec in self.inputs})
            labels.append(self.labels[own])
        return feeds, labels


def _read_labelled(
    evaluation: str | os.PathLike[str] | Mapping[str, npt.ArrayLike],
    inputs: tuple[ModelInput, ...],
) -> _Labelled:
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
    return _Labelled(where=where, inputs=inputs, arrays=arrays, labels=labels)


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


def _taken(array: _Array, numbers: _Numbers) -> _Array:
    """Take samples; a view where they are neighbours, so that nothing large is copied."""
    first = int(numbers[0])
    if np.array_equal(numbers, np.arange(first, first + len(numbers))):
        return array[first : first + len(numbers)]
    return np.asarray(array[numbers])


def check_finite(scores: ModelScores) -> None:
    """Refuse scores of the original that are NaN or infinite with a UsageError."""
    for name, value in scores.values:
        if not math.isfinite(value):
            raise UsageError(f"'{name}' gives {value} for the original: it must be a finite number")
