"""The calibration data of a run: read once, checked, and split if a limit is measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alds_onnx.calibrate.reader import Feed, model_inputs, read_feeds
from alds_onnx.calibrate.runner import Runner
from alds_onnx.settings import Settings
from alds_onnx.steps.survey import Survey

#: One of this many runs is set aside, if there are enough runs.
HOLD_OUT = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """Calibration data, with one feed for each run.

    Ranks and factors are fitted on the runs `fit`, not on those `held_out`, if any were set aside.
    `num_spoilt` samples of both parts have NaN or infinity.
    """

    fit: tuple[Feed, ...]
    held_out: tuple[Feed, ...]
    num_spoilt: int

    @property
    def num_samples(self) -> int:
        """Number of samples in both parts."""
        return count_samples((*self.fit, *self.held_out))


def load_data(survey: Survey, settings: Settings) -> Data | None:
    """Read the calibration data, if there is any. For `--max-error`, set every fifth run aside.

    If it cannot be read or does not fit the model, that is a DataError.
    """
    if settings.calibration is None:
        return None
    feeds = tuple(read_feeds(settings.calibration, model_inputs(survey.loaded.model)))
    apart = settings.max_error is not None and len(feeds) >= HOLD_OUT
    last = HOLD_OUT - 1
    return Data(
        fit=tuple(f for i, f in enumerate(feeds) if not (apart and i % HOLD_OUT == last)),
        held_out=feeds[last::HOLD_OUT] if apart else (),
        num_spoilt=sum(_num_spoilt(feed) for feed in feeds),
    )


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
