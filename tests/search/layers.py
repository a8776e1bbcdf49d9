"""Small layers with made-up error curves, and all of their cuts."""

from __future__ import annotations

from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, ErrorCurve, FloatArray, LayerShape, Spectra
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.costs import PARAMETERS_ONLY, CostModel
from alds_onnx.search.frontier import frontier
from alds_onnx.search.minmax import minimize_maximum_error


class Choice(NamedTuple):
    """One choice for one layer; k and j are 0 for the dense weight."""

    num_parameters: int
    error: float
    num_slices: int
    rank: int


def made_up(shape: LayerShape, curves: dict[int, list[float]]) -> Spectra:
    """Spectra from errors by k, starting with that of rank 1; that of rank 0 is the same."""
    return Spectra(
        shape=shape,
        norm=1.0,
        curves=tuple(
            ErrorCurve(
                num_slices=k, relative_error=np.array([*(errors[:1] or [1.0]), *errors, 0.0])
            )
            for k, errors in sorted(curves.items())
        ),
    )


def drawn_curve(generator: np.random.Generator, length: int, ties: bool) -> FloatArray:
    """Falling errors below 1; `ties` makes equal ones likely, within and between curves."""
    errors = np.sort(generator.uniform(0.01, 1.0, length))[::-1]
    return np.ceil(errors * 8) / 8 if ties else errors


@st.composite
def layers(draw: st.DrawFn, *, ties: bool | None = None) -> Spectra:
    """A layer with a curve for each divisor of its channels."""
    shape = LayerShape(
        out_features=draw(st.integers(1, 6)),
        in_channels=draw(st.sampled_from([2, 4, 6])),
        kernel=draw(st.sampled_from([(), (3,)])),
    )
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    ties = draw(st.booleans()) if ties is None else ties
    c = shape.in_channels
    lengths = {
        k: min(shape.out_features, shape.num_columns // k) - 1
        for k in range(1, c + 1)
        if c % k == 0
    }
    curves = {k: list(drawn_curve(generator, n, ties)) for k, n in lengths.items()}
    return made_up(shape, curves)


def models(*, ties: bool | None = None, most: int = 3) -> st.SearchStrategy[dict[str, Spectra]]:
    """One to `most` layers by name, the names in any order."""
    return st.dictionaries(st.sampled_from("abcdef"), layers(ties=ties), min_size=1, max_size=most)


@st.composite
def models_and_budgets(
    draw: st.DrawFn, *, ties: bool | None = None, most: int = 3
) -> tuple[dict[str, Spectra], int]:
    """Layers and a budget between the smallest possible and everything dense."""
    model = draw(models(ties=ties, most=most))
    smallest = sum(min(c.num_parameters for c in choices(s)) for s in model.values())
    dense = sum(s.shape.num_parameters for s in model.values())
    return model, draw(st.integers(smallest, dense))


def choices(spectra: Spectra) -> list[Choice]:
    """List all choices of a layer: dense, or any k and j with fewer parameters."""
    shape = spectra.shape
    dense = shape.out_features * shape.num_columns
    found = [Choice(dense, 0.0, 0, 0)]
    for curve in spectra.curves:
        k = curve.num_slices
        for rank in range(1, len(curve.relative_error)):
            count = rank * (k * shape.out_features + shape.num_columns)
            if count < dense:
                found.append(Choice(count, float(curve.relative_error[rank]), k, rank))
    return found


def undominated(spectra: Spectra) -> list[Choice]:
    """The choices that no other beats, ascending in parameters; the definition, pair by pair."""
    found = choices(spectra)
    best = [
        one
        for one in found
        if not any(
            (o.num_parameters <= one.num_parameters and o.error < one.error)
            or (o.num_parameters < one.num_parameters and o.error <= one.error)
            for o in found
        )
    ]
    return sorted({(c.num_parameters, c.error): c for c in sorted(best, reverse=True)}.values())


def chosen(spectra: Spectra, cut: Cut | None) -> Choice:
    """Give the parameters and the error of a cut."""
    if cut is None:
        return Choice(spectra.shape.num_parameters, 0.0, 0, 0)
    error = float(spectra.curve(cut.num_slices).relative_error[cut.rank])
    return Choice(cut.num_parameters(spectra.shape), error, cut.num_slices, cut.rank)


def cost(model: dict[str, Spectra], cuts: dict[str, Cut | None]) -> int:
    assert cuts.keys() == model.keys()
    return sum(chosen(s, cuts[name]).num_parameters for name, s in model.items())


def errors(model: dict[str, Spectra], cuts: dict[str, Cut | None]) -> list[float]:
    """Errors of all layers, the largest first: what is minimised lexicographically."""
    return sorted((chosen(s, cuts[name]).error for name, s in model.items()), reverse=True)


def best_errors(model: dict[str, Spectra], budget: int) -> list[float]:
    """The lexicographic optimum over all combinations of all choices."""
    combinations = product(*(choices(s) for s in model.values()))
    return min(
        sorted((c.error for c in combination), reverse=True)
        for combination in combinations
        if sum(c.num_parameters for c in combination) <= budget
    )


def search_exact(
    model: dict[str, Spectra],
    budget: int,
    alignment: Alignment = FREE,
    cost_model: CostModel = PARAMETERS_ONLY,
) -> dict[str, Cut | None]:
    """The cuts of the smallest possible largest error."""
    frontiers = [frontier(name, curves, alignment, cost_model) for name, curves in model.items()]
    chosen = minimize_maximum_error(frontiers, budget)
    return {f.name: f.cut(i) for f, i in zip(frontiers, chosen, strict=True)}


def tied(model: dict[str, Spectra]) -> bool:
    """Whether two layers can have the very same error, other than none."""
    found = [c.error for s in model.values() for c in undominated(s) if c.error]
    return len(set(found)) < len(found)


def is_strictly_monotone(values: list[float]) -> bool:
    return all(a < b for a, b in pairwise(values))
