"""Time by rank: exact where time is a straight line, and never falling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from onnx import ModelProto

from alds_onnx.cuts import Cut, LayerShape, Scheme
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.costs import Cuts
from alds_onnx.timing.curves import Grid, TimeCurve, Variant, grid_of, measure_curves
from alds_onnx.timing.layer_models import IsolatedLayer
from alds_onnx.timing.timer import OrtTimer, Timing
from tests.timing.fake import CALL, DENSE, SHAPE, FakeTimes, layer_times

# Times are rounded to float64 only; sums over a grid of ranks lose a few digits of that.
ROUNDING = 1e-9


def variant(scheme: Scheme = Scheme.ENCODE, k: int = 1, *, aligned: bool = True) -> Variant:
    return Variant(name="t1", scheme=scheme, num_slices=k, aligned=aligned)


def every_pair(grid: Grid, of: Variant) -> Cuts:
    """All cuts between the smallest and the largest ranks of a grid."""
    ranks = np.arange(grid.ranks[0], grid.ranks[-1] + 1)
    ranks_out = np.arange(grid.ranks_out[0], grid.ranks_out[-1] + 1)
    rank, rank_out = (axis.ravel() for axis in np.meshgrid(ranks, ranks_out))
    return Cuts(scheme=of.scheme, num_slices=of.num_slices, rank=rank, rank_out=rank_out)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("scheme", "k"), [*((scheme, 1) for scheme in Scheme), (Scheme.ENCODE, 3), (Scheme.DECODE, 2)]
)
def test_times_that_are_straight_in_every_rank_come_back(
    net: ModelProto, fake: FakeTimes, scheme: Scheme, k: int, aligned: bool
) -> None:
    one = variant(scheme, k, aligned=aligned)
    grid = grid_of(SHAPE, one, 16, FREE)
    assert grid is not None
    curve = measure_curves(layer_times(net), {one: grid})[one]
    cuts = every_pair(grid, one)
    expected = CALL + fake.slowness * cuts.num_parameters(SHAPE)
    np.testing.assert_allclose(curve.at(cuts), expected, rtol=ROUNDING)
    assert curve.dense == DENSE + CALL


def test_what_lies_outside_of_the_measured_ranks() -> None:
    grid = Grid(ranks=(4, 8), ranks_out=(2, 6))
    curve = TimeCurve(dense=100.0, grid=grid, times=np.array([[10.0, 30.0], [20.0, 70.0]]))
    rank, rank_out = np.array([1, 4, 8, 9, 8]), np.array([1, 2, 6, 6, 7])
    cuts = Cuts(scheme=Scheme.TUCKER2, num_slices=1, rank=rank, rank_out=rank_out)
    np.testing.assert_array_equal(curve.at(cuts), [10, 10, 70, 101, 101])


def test_noise_makes_no_curve_fall(net: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)

    def time_layer(self: OrtTimer, layer: IsolatedLayer, cuts: Sequence[Cut]) -> list[Timing]:
        return [Timing(dense=200.0, cut=100 * generator.random()) for _ in cuts]

    monkeypatch.setattr(OrtTimer, "time_layer", time_layer)
    for scheme in Scheme:
        one = variant(scheme)
        grid, times = grid_of(SHAPE, one, 16, FREE), layer_times(net)
        assert grid is not None
        curve = measure_curves(times, {one: grid})[one]
        single = [times.timing("t1", cut) for cut in grid.cuts(one)]
        measured = np.array([t.cut for t in single if t]).reshape(curve.times.shape)
        assert (curve.times <= measured * (1 + ROUNDING)).all()
        assert curve.times[-1, -1] == pytest.approx(measured[-1, -1], rel=ROUNDING)
        for axis in (0, 1):
            assert (np.diff(curve.times, axis=axis) >= 0).all()


def test_of_a_variant_that_is_slow_at_its_smallest_rank_nothing_else_is_measured(
    net: ModelProto, fake: FakeTimes
) -> None:
    fake.slow_schemes = frozenset({Scheme.DECODE})
    slow, fast = variant(Scheme.DECODE), variant()
    grid = Grid(ranks=(16, 32, 48))
    curves = measure_curves(layer_times(net), {slow: grid, fast: grid})
    assert fake.asked == 4
    assert curves[slow].grid.ranks == (16,)
    assert curves[slow].largest_rank(Cut(num_slices=1, rank=48, scheme=Scheme.DECODE)) == 0


def test_what_cannot_be_timed_has_no_curve(net: ModelProto, fake: FakeTimes) -> None:
    fake.fails = True
    assert measure_curves(layer_times(net), {variant(): Grid(ranks=(16, 32))}) == {}


@pytest.mark.parametrize(("rank", "expected"), [(10, 10), (40, 32), (32, 32), (31, 31), (64, 32)])
def test_the_largest_rank_that_is_no_slower(rank: int, expected: int) -> None:
    curve = TimeCurve(dense=100.0, grid=Grid(ranks=(16, 48)), times=np.array([[50.0], [150.0]]))
    assert curve.largest_rank(Cut(num_slices=1, rank=rank)) == expected


def test_few_ranks_are_measured_and_they_span_what_is_allowed() -> None:
    shape = LayerShape(out_features=256, in_channels=512, kernel=(3, 3))
    rule = Alignment(preset=preset(Runtime.ORT_AVX512))
    for scheme in Scheme:
        for aligned, wanted in ((True, _is_aligned), (False, lambda rank: not _is_aligned(rank))):
            grid = grid_of(shape, variant(scheme, aligned=aligned), 16, rule)
            assert grid is not None
            for axis in (grid.ranks, grid.ranks_out)[: 1 + (scheme is Scheme.TUCKER2)]:
                assert len(axis) == 3
                assert list(axis) == sorted(axis)
                assert _all_are(axis, wanted)
                assert axis[0] <= 0.1 * axis[-1]
        assert (grid.ranks_out == (0,)) == (scheme is not Scheme.TUCKER2)
        largest = 256 if scheme is Scheme.TUCKER2 else scheme.structure.sliced(shape).max_rank(1)
        assert 0 <= largest - grid.ranks[-1] < 2 or scheme is Scheme.TUCKER2


def _is_aligned(rank: int) -> bool:
    return rank % 16 == 0


def _all_are(ranks: Sequence[int], wanted: Callable[[int], bool]) -> bool:
    return all(wanted(rank) for rank in ranks)


def test_ranks_that_the_rule_forbids_are_not_measured() -> None:
    rule = Alignment(preset=preset(Runtime.ORT_AVX512))
    assert grid_of(SHAPE, variant(k=3, aligned=False), 16, rule) is None
    assert grid_of(SHAPE, variant(k=3, aligned=True), 16, rule) is not None
    assert grid_of(SHAPE, variant(k=2, aligned=True), 16, rule) is None
    depthwise = grid_of(SHAPE, variant(k=48, aligned=False), 16, rule)
    assert depthwise == Grid(ranks=(1,))
