"""Pools of samples, out of which calibration data and test data are drawn.

Each sample of a pool is of a kind. A draw, which depends on the seed alone, is one of two:

    of the same kinds   the pool in random order: calibration data from its front, test data from
                        its end, so that both are drawn alike and none is in both
    of other kinds      kinds are left out at random: calibration data without them, test data of
                        nothing else

64 samples of calibration data are the first of the 128 of the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_SAMPLES = 512

Inputs = dict[str, npt.NDArray[Any]]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """Calibration data and test data.

    Attributes
    ----------
    calibration, test
        Arrays by input name.
    groups
        A number for each test sample: those of the same number are not independent.
    """

    calibration: Inputs
    test: Inputs
    groups: Indices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unseen:
    """A model and its pool of samples.

    Attributes
    ----------
    name, sample
        Of the model; what a sample is.
    path
        Of the original.
    ratios
        How far it is compressed.
    has_top_1
        Whether rows of the output are scores.
    kinds
        The kind of each sample of the pool.
    inputs
        From places in the pool and a seed to what the model takes.
    tests
        Number of samples to test on, at most.
    copies
        How often each of them is tested, where `inputs` does not only depend on the place.
    apart
        A kind that is in no draw of the same kinds.
    left_out
        Fraction of the kinds that a draw of other kinds leaves out, if none is apart.
    """

    name: str
    sample: str
    path: Path
    ratios: tuple[float, ...]
    kinds: tuple[str, ...]
    inputs: Callable[[Indices, int], Inputs]
    tests: int
    has_top_1: bool = True
    copies: int = 1
    apart: str = ""
    left_out: float = 0.5

    def draw(self, seed: int, samples: int, *, other_kinds: bool) -> Draw:
        """Draw calibration data and test data."""
        first, last = self.places(seed, samples, other_kinds=other_kinds)
        copies = [self.inputs(last, 1000 + seed + copy) for copy in range(self.copies)]
        return Draw(
            calibration=self.inputs(first, seed),
            test={name: np.concatenate([copy[name] for copy in copies]) for name in copies[0]},
            groups=np.tile(last, self.copies),
        )

    def places(self, seed: int, samples: int, *, other_kinds: bool) -> tuple[Indices, Indices]:
        """Draw places in the pool: for calibration, and for the test."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(self.kinds))
        kinds = np.array(self.kinds)[order]
        if not other_kinds:
            order = order[kinds != self.apart]
            return order[:samples], order[samples:][-self.tests :]
        others = np.isin(kinds, [self.apart] if self.apart else self._other_kinds(generator))
        return order[~others][:samples], order[others][-self.tests :]

    def _other_kinds(self, generator: np.random.Generator) -> list[str]:
        """Kinds to leave out, at random, with enough samples of others to calibrate on."""
        kinds, counts = np.unique(self.kinds, return_counts=True)
        chosen: list[str] = []
        left = len(self.kinds)
        for i in generator.permutation(len(kinds)):
            if len(chosen) < self.left_out * len(kinds) and left - counts[i] >= MOST_SAMPLES:
                chosen.append(str(kinds[i]))
                left -= counts[i]
        return chosen
