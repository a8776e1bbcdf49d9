"""The rules of the presets: what may be chosen, and what a search makes of it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alds_onnx import runtimes
from alds_onnx.cuts import Cut, LayerShape, Spectra
from alds_onnx.runtimes import Preset, Runtime, preset
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.choose import affordable
from alds_onnx.search.frontier import frontier
from alds_onnx.search.iterative import search_iterative
from alds_onnx.search.minmax import smallest_parameters

from ..decompose.matrices import spectra
from .layers import choices, cost, errors, models_and_budgets, search_exact, tied

Case = tuple[dict[str, Spectra], int]
RUNTIMES = st.sampled_from(Runtime)


def blocks_of(block: int, **changed: object) -> Alignment:
    """A rule with blocks as small as the layers of these tests."""
    fields = {"most_slices": None, "most_product_slices": 1, "depthwise": False} | changed
    return Alignment(
        preset=Preset(runtime=Runtime.ORT, block=block, why="", source="", **fields)  # type: ignore[arg-type]
    )


RULES = st.builds(
    blocks_of,
    st.sampled_from([1, 2, 3]),
    most_slices=st.sampled_from([None, 1, 2]),
    most_product_slices=st.sampled_from([None, 1, 2]),
    depthwise=st.booleans(),
)
SHAPES = st.builds(
    LayerShape,
    out_features=st.integers(1, 96),
    in_channels=st.sampled_from([3, 8, 16, 24, 32, 64]),
    kernel=st.sampled_from([(), (3,), (1, 1), (3, 3)]),
)


def allowed(block: int, shape: LayerShape, k: int, j: int) -> bool:
    """The rule for onnxruntime, case by case, as its source has it."""
    c = shape.in_channels
    if not shape.kernel:
        return k == 1
    if k == 1:
        return j % block == 0 or j < block
    depthwise = len(shape.kernel) == 2 and k == c and j == 1 and k * j % block == 0
    return depthwise or (c // k % block == 0 and j % block == 0)


@pytest.mark.parametrize(("runtime", "block"), [(Runtime.ORT_AVX512, 16), (Runtime.ORT_AVX2, 8)])
@given(shape=SHAPES)
def test_onnxruntime(runtime: Runtime, block: int, shape: LayerShape) -> None:
    rule = Alignment(preset=preset(runtime))
    for k in (k for k in range(1, shape.in_channels + 1) if shape.in_channels % k == 0):
        expected = [j for j in range(1, 41) if allowed(block, shape, k, j)]
        assert rule.ranks(shape, k, 40).tolist() == expected
        for j in range(1, 41):
            assert rule.allows(shape, Cut(num_slices=k, rank=j)) == (j in expected)


@given(SHAPES)
def test_none_allows_all(shape: LayerShape) -> None:
    counts = shape.slice_counts()
    assert FREE.counts(shape, counts) == counts
    assert FREE.tiers() == (FREE,)
    for k in counts:
        assert FREE.ranks(shape, k, 12).tolist() == list(range(1, 13))


@given(RUNTIMES, SHAPES)
def test_the_smallest_cut_is_allowed_everywhere(runtime: Runtime, shape: LayerShape) -> None:
    """So what can be reached does not depend on the runtime."""
    assert Alignment(preset=preset(runtime)).allows(shape, Cut(num_slices=1, rank=1))


@given(RUNTIMES, SHAPES)
def test_finer_rules_allow_more_but_no_more_slices(runtime: Runtime, shape: LayerShape) -> None:
    rule = Alignment(preset=preset(runtime))
    for k in shape.slice_counts():
        most = rule.preset.most_slices if shape.kernel else rule.preset.most_product_slices
        known = set(rule.ranks(shape, k, 40).tolist())
        for finer in rule.tiers()[1:]:
            more = set(finer.ranks(shape, k, 40).tolist())
            assert known <= more
            known = more
            assert not more or most is None or k <= most


@given(models_and_budgets(ties=False), RULES)
def test_no_allowed_combination_is_better(case: Case, rule: Alignment) -> None:
    model, budget = case
    assume(not tied(model))
    options = {
        name: [
            c
            for c in choices(s)
            if not c.rank or rule.allows(s.shape, Cut(num_slices=c.num_slices, rank=c.rank))
        ]
        for name, s in model.items()
    }
    fitting = [
        sorted((c.error for c in combination), reverse=True)
        for combination in product(*options.values())
        if sum(c.num_parameters for c in combination) <= budget
    ]
    assert errors(model, search_exact(model, budget, rule)) == min(fitting)


@given(models_and_budgets(most=6), RULES)
def test_all_searches_keep_to_the_rule_and_the_budget(case: Case, rule: Alignment) -> None:
    model, budget = case
    generator = np.random.default_rng(0)
    points = search_iterative(model, budget, generator, rule)
    iterative = {name: point.cut for name, point in points.items()}
    exact = search_exact(model, budget, rule)
    for cuts in (exact, iterative):
        assert cost(model, cuts) <= budget
        assert all(cut is None or rule.allows(model[n].shape, cut) for n, cut in cuts.items())
    assert errors(model, exact)[0] <= errors(model, iterative)[0]


@given(models_and_budgets(most=6), RULES)
def test_none_is_what_the_paper_has(case: Case, rule: Alignment) -> None:
    model, budget = case
    exact = search_exact(model, budget)
    assert search_exact(model, budget, FREE) == exact
    assert errors(model, exact)[0] <= errors(model, search_exact(model, budget, rule))[0]


@pytest.mark.parametrize("runtime", [Runtime.TFLITE, Runtime.COREML, Runtime.TENSORRT])
@given(shape=SHAPES)
def test_no_grouped_convolutions_where_they_are_slow(runtime: Runtime, shape: LayerShape) -> None:
    rule = Alignment(preset=preset(runtime))
    for wanted in rule.tiers():
        assert set(wanted.counts(shape, shape.slice_counts())) <= {1}


def test_what_can_be_reached_is_the_same_everywhere() -> None:
    shape = LayerShape(out_features=48, in_channels=32, kernel=(3, 3))
    matrix = np.random.default_rng(0).standard_normal((48, shape.num_columns))
    curves = {"layer": spectra(matrix, shape, shape.slice_counts())}
    for runtime in Runtime:
        rule = Alignment(preset=preset(runtime))
        reached = int(frontier("layer", curves["layer"], rule).cost[0])
        assert reached == smallest_parameters(curves)


@pytest.mark.parametrize(
    ("machine", "found", "block"),
    [
        ("x86_64", ["X86_V3", "X86_V4"], 16),
        ("AMD64", ["AVX2", "AVX512F", "AVX512_SKX"], 16),
        ("x86_64", ["X86_V3"], 8),
        ("aarch64", ["ASIMDHP"], 16),
    ],
)
def test_the_block_of_this_machine(
    machine: str, found: list[str], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = {"SIMD Extensions": {"baseline": [], "found": found}}
    monkeypatch.setattr(runtimes.platform, "machine", lambda: machine)
    monkeypatch.setattr(runtimes.np, "show_config", lambda mode: extensions)
    runtimes._block_of_this_machine.cache_clear()
    try:
        assert preset(Runtime.ORT).block == block
    finally:
        runtimes._block_of_this_machine.cache_clear()


def test_every_runtime_has_a_preset_that_says_why() -> None:
    for runtime in Runtime:
        known = preset(runtime)
        assert known.runtime is runtime
        assert known.why
        assert known.source


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(1, 3))
def test_the_first_rule_that_costs_little_is_taken(reached: list[float], price: float) -> None:
    at = affordable(reached, price)
    assert reached[at] <= price * reached[-1]
    assert all(one > price * reached[-1] for one in reached[:at])
