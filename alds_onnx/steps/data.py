"""The calibration data of a run: read once, checked, and split into parts with different jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alds_onnx.calibrate.reader import Feed, model_inputs, read_feeds
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.split import Split, example, split
from alds_onnx.calibrate.units import Units, find_units
from alds_onnx.errors import DataError
from alds_onnx.evaluate.samples import Kind
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.settings import Settings
from alds_onnx.steps.survey import Survey


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """Calibration data, with one feed for each run.

    Attributes
    ----------
    halves
        The runs to choose ranks by and to fit factors to, in two halves: what is fitted to the
        first is judged on the second. The second is empty if there is a single sample.
    apart
        How many runs at the end of each half are of kinds of inputs that some fits leave out.
    choose
        The runs on which the trials of `--max-error` are measured; none without that option.
    check
        The runs that nothing is fitted to or chosen by: what the user reads is measured on them.
    left_out
        The samples in `check` of the kinds that some fits leave out, kind by kind.
    num_spoilt
        Number of samples with NaN or infinity in the inputs or outputs, over all parts.
    num_samples
        Number of samples that were given.
    separable
        Whether the samples of a run can be run one by one.
    """

    halves: tuple[tuple[Feed, ...], tuple[Feed, ...]]
    apart: tuple[int, int] = (0, 0)
    choose: tuple[Feed, ...] = ()
    check: tuple[Feed, ...] = ()
    left_out: tuple[Kind, ...] = ()
    num_spoilt: int = 0
    num_samples: int = 0
    separable: bool = True

    @property
    def fit(self) -> tuple[Feed, ...]:
        """Both halves."""
        return (*self.halves[0], *self.halves[1])


def load_data(survey: Survey, settings: Settings) -> Data | None:
    """Read the calibration data, if there is any, and split it.

    If it cannot be read or does not fit the model, that is a DataError.
    """
    if settings.calibration is None:
        return None
    feeds = tuple(read_feeds(settings.calibration, model_inputs(survey.loaded.model)))
    runner = make_runner(feeds, survey, settings)
    try:
        units = find_units(runner, survey.loaded.model)
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e
    return _split(units, settings)


def _split(units: Units, settings: Settings) -> Data:
    """Split the data. Samples with NaN or infinity cannot be checked, so they are in the fit.

    So are those with such outputs, unless most have them: those may be meant, as the scores of
    what is masked.
    """
    spoilt = np.array([_num_spoilt(feed) for feed in units.feeds])
    odd = ~units.finite & (spoilt == 0)
    if 2 * odd.sum() <= len(odd):
        spoilt += odd * np.array([_batch_size(feed) for feed in units.feeds])
    clean = np.flatnonzero(spoilt == 0)
    count = count_samples(units.feeds)
    parts = split(
        units.outputs[clean],
        settings.seed,
        choose=settings.max_error is not None,
        samples_each=count / len(units.feeds),
    )
    apart = np.zeros(len(spoilt), bool)
    apart[clean] = np.isin(parts.kinds, parts.apart)
    first, second = (clean[half] for half in parts.halves)
    halves = [
        (units.batches(half[~apart[half]]), units.batches(half[apart[half]]))
        for half in (np.append(first, np.flatnonzero(spoilt)), second)
    ]
    return Data(
        halves=((*halves[0][0], *halves[0][1]), (*halves[1][0], *halves[1][1])),
        apart=(len(halves[0][1]), len(halves[1][1])),
        choose=units.batches(clean[parts.choose]),
        check=units.batches(clean[parts.check]),
        left_out=_left_out(units, clean, parts),
        num_spoilt=int(spoilt.sum()),
        num_samples=count,
        separable=units.together > 1,
    )


def _left_out(units: Units, clean: npt.NDArray[np.int64], parts: Split) -> tuple[Kind, ...]:
    """Batch the samples to check of each kind that is apart; `clean` are the units of the split."""
    sizes = [_batch_size(feed) for feed in units.feeds]
    starts = np.cumsum([0, *sizes])
    found = []
    for kind in parts.apart:
        members = np.flatnonzero(parts.kinds == kind)
        checked = members[np.isin(members, parts.check)]
        if len(checked):
            middle = clean[example(units.outputs[clean], members)]
            feeds = units.batches(clean[checked])
            found.append(Kind(example=int(starts[middle]), feeds=feeds))
    return tuple(found)


def fit_runner(data: Data, survey: Survey, settings: Settings) -> Runner:
    """Make what runs models on the data to fit to."""
    first, total = len(data.halves[0]), len(data.fit)
    ends = zip((first, total), data.apart, strict=True)
    apart = frozenset(number for end, count in ends for number in range(end - count, end))
    return replace(make_runner(data.fit, survey, settings), first=first, apart=apart)


def make_runner(feeds: Sequence[Feed], survey: Survey, settings: Settings) -> Runner:
    """Make what runs the model, and models like it, on these feeds."""
    return Runner(
        batches=tuple(feeds),
        folder=survey.loaded.folder,
        threads=settings.threads,
        provider=settings.provider,
    )


def count_samples(feeds: Sequence[Feed]) -> int:
    """Count the samples of all feeds along the first axis."""
    return sum(_batch_size(feed) for feed in feeds)


def _batch_size(feed: Feed) -> int:
    first = next(iter(feed.values()), None)
    return len(first) if first is not None and first.ndim else 1


def _num_spoilt(feed: Feed) -> int:
    """Count samples with an input that is not finite; all of the feed if it is not a batch."""
    size = _batch_size(feed)
    spoilt = np.zeros(size, dtype=bool)
    for array in feed.values():
        if array.dtype.kind not in "fc" or np.isfinite(array).all():
            continue
        if array.ndim and len(array) == size:
            spoilt |= ~np.isfinite(array).reshape(size, -1).all(axis=1)
        else:
            spoilt[:] = True
    return int(spoilt.sum())
