"""Standard errors of what is measured on samples, from the sums of each sample.

The bootstrap draws as many samples as there are, with replacement, again and again: the spread of a
number over these draws estimates its standard error [1]_, whatever the distribution of the samples.

References
----------
.. [1] B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall, 1993.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_Array: TypeAlias = npt.NDArray[np.float64]

_NUM_DRAWS = 1_000
_SEED = 0
# Largest number of samples that are drawn at once.
_MOST_DRAWN = 1 << 19


def relative_stderr(noise: _Array, signal: _Array) -> float | None:
    """Estimate the standard error of √(Σ noise / Σ signal) over samples.

    Parameters
    ----------
    noise, signal
        Sums of squares of each sample.

    Returns
    -------
    float or None
        None for a single sample, and where so few samples have a signal that some draws have none.
    """
    if len(noise) > 1 and not noise.any():
        return 0.0
    return _stderr(np.stack([noise, signal], axis=1), lambda sums: np.sqrt(sums[:, 0] / sums[:, 1]))


def agreement_stderr(agreeing: _Array, rows: _Array) -> float | None:
    """Estimate the standard error of Σ agreeing / Σ rows over samples.

    Where all samples agree, all draws do, which is no proof that others would. So the result is at
    least that of the rule of succession: the one with two more samples, one of which agrees in all
    its rows and one in none. With one row for each sample this is √(p(1 - p) / n), where
    p = (agreeing + 1) / (n + 2) for n samples.

    Parameters
    ----------
    agreeing, rows
        Numbers of rows of each sample. Rows of the same sample are not taken to be independent.

    Returns
    -------
    float or None
        None unless at least two samples have rows.
    """
    agreeing, rows = agreeing[rows > 0], rows[rows > 0]
    drawn = ratio_stderr(agreeing, rows)
    if drawn is None:
        return None
    fractions = np.concatenate([agreeing / rows, [0.0, 1.0]])
    return max(drawn, float(fractions.std() / len(rows) ** 0.5))


def ratio_stderr(part: _Array, whole: _Array) -> float | None:
    """Estimate the standard error of Σ part / Σ whole over samples; None if it is not known."""
    return _stderr(np.stack([part, whole], axis=1), lambda sums: sums[:, 0] / sums[:, 1])


def _stderr(sums: _Array, statistic: Callable[[_Array], _Array]) -> float | None:
    """Estimate the standard error of a statistic of the sums of (samples, columns)."""
    count = len(sums)
    if count < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(_draw(sums))
    if not np.isfinite(values).all():
        return None
    # The variance of a draw is that of `count` samples about their own mean, which is too small.
    return float(values.std(ddof=1) * (count / (count - 1)) ** 0.5)


def _draw(sums: _Array) -> _Array:
    """Give the column sums of each draw, a few draws at a time."""
    generator, count = np.random.default_rng(_SEED), len(sums)
    step = max(1, _MOST_DRAWN // count)
    columns = np.ascontiguousarray(sums.T)
    parts = []
    for start in range(0, _NUM_DRAWS, step):
        chosen = generator.integers(count, size=(min(step, _NUM_DRAWS - start), count))
        parts.append(np.stack([column[chosen].sum(axis=1) for column in columns], axis=1))
    return np.concatenate(parts)
