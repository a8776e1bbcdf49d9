"""Scores with their noise, and a store of runs that lets a long benchmark go on where it stopped.

A score is a ratio, right over all, both counted sample by sample: an image, a line of text, a file.
Its standard error is the spread of 2,000 bootstrap scores, each over as many samples as there are,
drawn with replacement; a line is drawn whole, since its letters are not independent. All methods
see the same draws, so that the difference of two scores has a standard error of its own, which is
far smaller than that of either score: both methods find the same samples hard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_DRAWS = 2000

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """What was right and what there was, for every test sample."""

    correct: Numbers
    total: Numbers

    @property
    def score(self) -> float:
        """In percent."""
        return 100 * float(self.correct.sum() / self.total.sum())

    @property
    def error(self) -> float:
        """Standard error of the score."""
        return float(self._resampled().std())

    def minus(self, other: Counts) -> tuple[float, float]:
        """Difference of two scores on the same samples, and its standard error."""
        spread = self._resampled() - other._resampled()
        return self.score - other.score, float(spread.std())

    def _resampled(self) -> Numbers:
        return 100 * resampled_ratios(self.correct, self.total)


def resampled_ratios(top: Numbers, bottom: Numbers) -> Numbers:
    """The ratio of two sums over samples, in 2,000 bootstrap draws; always the same draws."""
    samples = len(bottom)
    uniform = np.full(samples, 1 / samples)
    times = np.random.default_rng(0).multinomial(samples, uniform, _DRAWS)
    return np.asarray((times @ top) / (times @ bottom))


def mean(counts: Sequence[Counts]) -> Counts:
    """Counts averaged over several draws of the calibration data."""
    correct = np.mean([c.correct for c in counts], axis=0)
    return Counts(correct=correct, total=counts[0].total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a run depends on, but for what `fingerprint` and the versions tell.

    `samples` is how many calibration samples are used of those that are drawn; 0 is all.
    """

    task: str
    method: str
    cr: float
    seed: int
    threads: int
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One compressed model: its counts, the fraction removed, and how long it took."""

    counts: Counts
    removed: float
    seconds: float


class Kept:
    """JSON objects by key, of the same code and versions, one a line."""

    def __init__(self, path: Path, versions: Mapping[str, str], *, fresh: bool) -> None:
        self._path = path
        self._versions = dict(versions)
        self._values: dict[str, Any] = {}
        if path.is_file() and not fresh:
            self._values = dict(self._read(path.read_text("utf-8").splitlines()))

    def get(self, key: Mapping[str, Any]) -> Any:
        """What was kept before, or None."""
        return self._values.get(_canonical(key))

    def add(self, key: Mapping[str, Any], value: Any) -> None:
        """Keep a value, on disk at once."""
        self._values[_canonical(key)] = value
        self._path.parent.mkdir(exist_ok=True)
        line = {"key": dict(key), "versions": self._versions, "value": value}
        with self._path.open("a", encoding="utf-8") as file:
            # A line of its own, even after one that was cut off.
            file.write("\n" + json.dumps(line))

    def _read(self, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
        for line in lines:
            try:
                row: dict[str, Any] = json.loads(line)
            except json.JSONDecodeError:  # empty, or cut off by an interrupt
                continue
            if row["versions"] == self._versions:
                yield _canonical(row["key"]), row["value"]


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)


class Store:
    """Runs of the same code and versions."""

    def __init__(self, path: Path, versions: Mapping[str, str], *, fresh: bool) -> None:
        self._kept = Kept(path, versions, fresh=fresh)

    def get(self, key: Key) -> Run | None:
        """A run made before, or None."""
        row = self._kept.get(asdict(key))
        if row is None:
            return None
        counts = Counts(correct=np.array(row["correct"]), total=np.array(row["total"]))
        return Run(counts=counts, removed=row["removed"], seconds=row["seconds"])

    def add(self, key: Key, run: Run) -> None:
        """Keep a run, on disk at once."""
        value = {
            "removed": run.removed,
            "seconds": run.seconds,
            "correct": run.counts.correct.tolist(),
            "total": run.counts.total.tolist(),
        }
        self._kept.add(asdict(key), value)


def fingerprint(files: Iterable[Path]) -> str:
    """Hash of source files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
