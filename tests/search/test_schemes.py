"""Several schemes on one frontier, against a comparison of every cut with every other."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, LayerShape, Scheme, Spectra, Work, distinct
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.costs import CostModel, ExcludedRanks, Macs
from alds_onnx.search.frontier import frontier
from alds_onnx.search.minmax import smallest_parameters

from .layers import search_exact

RULES = [FREE, *(Alignment(preset=preset(r)) for r in (Runtime.TFLITE, Runtime.ORT_AVX2))]
KERNELS = [(3, 3), (1, 3), (2, 4), (5,), (2, 3, 2), (1, 1)]


def drawn_spectra(shape: LayerShape, schemes: tuple[Scheme, ...], seed: int = 0) -> Spectra:
    matrix = np.random.default_rng(seed).standard_normal((shape.out_features, shape.num_columns))
    ks = {
        scheme: sliced.slice_counts() if (sliced := scheme.structure.sliced(shape)) else ()
        for scheme in distinct(shape, schemes)
    }
    return spectra_of_schemes(matrix, shape, ks)


@st.composite
def layers(draw: st.DrawFn) -> Spectra:
    shape = LayerShape(
        out_features=draw(st.sampled_from([3, 8, 16])),
        in_channels=draw(st.sampled_from([4, 8, 16])),
        kernel=draw(st.sampled_from(KERNELS)),
    )
    schemes = draw(st.lists(st.sampled_from(Scheme), min_size=1, unique=True))
    return drawn_spectra(shape, tuple(schemes), draw(st.integers(0, 99)))


def all_cuts(spectra: Spectra) -> list[Cut]:
    """Every cut of every scheme that saves parameters, Tucker-2 with every pair of ranks."""
    shape = spectra.shape
    found = [
        Cut(num_slices=curve.num_slices, rank=rank, scheme=curve.scheme)
        for curve in spectra.curves
        if curve.scheme in spectra.schemes
        for rank in range(1, len(curve.relative_error))
    ]
    if Scheme.TUCKER2 in spectra.schemes:
        ranks = (
            range(1, len(spectra.curve(1, fold).relative_error))
            for fold in (Scheme.DECODE, Scheme.ENCODE)
        )
        found += [
            Cut(num_slices=1, rank=j, scheme=Scheme.TUCKER2, rank_out=j_out)
            for j, j_out in product(*ranks)
        ]
    return [cut for cut in found if cut.num_parameters(shape) < shape.num_parameters]


def point(spectra: Spectra, cut: Cut | None) -> tuple[int, float]:
    if cut is None:
        return spectra.shape.num_parameters, 0.0
    return cut.num_parameters(spectra.shape), spectra.relative_error(cut)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.preset.runtime.value)
@given(spectra=layers())
def test_a_frontier_holds_the_best_of_all_schemes(rule: Alignment, spectra: Spectra) -> None:
    allowed = [cut for cut in all_cuts(spectra) if rule.allows(spectra.shape, cut)]
    points = {point(spectra, cut) for cut in (None, *allowed)}
    best: list[tuple[int, float]] = []
    for parameters, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((parameters, error))
    found = frontier("layer", spectra, rule)
    assert list(zip(found.cost.tolist(), found.error.tolist(), strict=True)) == best
    for index in range(len(found)):
        cut = found.cut(index)
        assert cut is None or cut in allowed
        assert point(spectra, cut) == (found.cost[index], found.error[index])


@given(layers(), st.integers(1, 3), st.booleans())
def test_a_frontier_of_macs_holds_the_best_of_all_schemes(
    spectra: Spectra, stride: int, known: bool
) -> None:
    """What is not known costs more than the layer, and is not chosen."""
    shape = spectra.shape
    after = tuple(range(2, 2 + len(shape.kernel)))
    before = tuple(stride * n for n in after)
    work = Work(
        macs=2 * prod(after) * shape.num_parameters,
        inputs=before if known else None,
        outputs=after,
    )
    macs = {cut: work.of_cut(shape, cut) for cut in all_cuts(spectra)}
    points = {(work.macs, 0.0)}
    points |= {(n, spectra.relative_error(cut)) for cut, n in macs.items() if n is not None}
    best: list[tuple[int, float]] = []
    for cost, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((cost, error))
    found = frontier("layer", spectra, cost_model=CostModel(cost=Macs(work={"layer": (work,)})))
    assert list(zip(found.cost.tolist(), found.error.tolist(), strict=True)) == best
    for index in range(len(found)):
        cut = found.cut(index)
        assert found.cost[index] == (work.macs if cut is None else macs[cut])


@given(layers(), st.sampled_from(Scheme))
def test_a_ban_holds_for_its_scheme_alone(spectra: Spectra, scheme: Scheme) -> None:
    ban = ExcludedRanks(scheme=scheme, num_slices=1, above=0)
    allowed = [cut for cut in all_cuts(spectra) if (cut.scheme, cut.num_slices) != (scheme, 1)]
    points = {point(spectra, cut) for cut in (None, *allowed)}
    found = frontier("layer", spectra, cost_model=CostModel(excluded={"layer": [ban]}))
    assert {point(spectra, found.cut(i)) for i in range(len(found))} <= points
    assert found.cost[0] == min(points)[0]


@given(layers(), st.floats(0, 1))
def test_more_schemes_are_never_worse(spectra: Spectra, fraction: float) -> None:
    shape = spectra.shape
    schemes = distinct(shape, Scheme)
    more = drawn_spectra(shape, tuple(Scheme))
    fewer = [drawn_spectra(shape, (scheme,)) for scheme in schemes]
    low = max(smallest_parameters({"a": s}) for s in fewer)
    budget = round(low + fraction * (shape.num_parameters - low))
    reached = [point(s, search_exact({"a": s}, budget)["a"])[1] for s in (more, *fewer)]
    assert reached[0] == pytest.approx(min(reached[1:]))


@pytest.mark.parametrize("runtime", [Runtime.TFLITE, Runtime.COREML, Runtime.TENSORRT])
def test_no_slices_in_any_scheme_where_groups_are_slow(runtime: Runtime) -> None:
    shape = LayerShape(out_features=32, in_channels=32, kernel=(3, 3))
    spectra = drawn_spectra(shape, tuple(Scheme))
    for rule in Alignment(preset=preset(runtime)).tiers():
        found = frontier("layer", spectra, rule)
        assert found.num_slices.max() == 1
        schemes = {cut.scheme for i in range(len(found)) if (cut := found.cut(i))}
        assert schemes - {Scheme.ENCODE}


def test_channels_between_the_convolutions_are_aligned() -> None:
    """Above one block, where a rank must be a multiple of it."""
    shape = LayerShape(out_features=64, in_channels=64, kernel=(3, 3))
    rule, block = Alignment(preset=preset(Runtime.ORT_AVX512)), 16
    for scheme in Scheme:
        spectra = drawn_spectra(shape, (scheme,))
        found = frontier("layer", spectra, rule)
        cuts = [cut for i in range(len(found)) if (cut := found.cut(i))]
        assert {cut.scheme for cut in cuts} == {scheme}
        for cut in cuts:
            if (cut.num_slices, cut.rank) != (64, 1):  # depthwise, which is fast too
                ranks = [cut.rank, *([cut.rank_out] if cut.rank_out else [])]
                assert all(r % block == 0 or (cut.num_slices == 1 and r < block) for r in ranks)
                assert cut.num_slices == 1 or 64 // cut.num_slices % block == 0


def test_ties_go_to_the_first_scheme() -> None:
    """Rows of equal numbers: the matrix has rank 1 in every fold."""
    shape = LayerShape(out_features=8, in_channels=8, kernel=(3, 3))
    matrix = np.ones((8, shape.num_columns))
    wanted = (Scheme.SPLIT_HEIGHT, Scheme.SPLIT_WIDTH)
    spectra = spectra_of_schemes(matrix, shape, dict.fromkeys(wanted, (1,)))
    cut = frontier("layer", spectra).cut(0)
    assert cut is not None
    assert cut.scheme is Scheme.SPLIT_HEIGHT
