"""Laws of the split: parts that share nothing, each with its share of every kind of input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.calibrate.split import Split, describe, example, split, summarize
from alds_onnx.cuts import FloatArray
from tests.graph.builders import normal

Labels = npt.NDArray[np.int64]

# The documented sizes of the check: a quarter, at least 32 samples and at most 1,024 units.
QUARTER, FEWEST, MOST = 0.25, 32, 1024
# Rounding to whole samples, of two parts.
WHOLE = 1

sizes = pytest.mark.parametrize("count", [64, 100, 127, 128, 129, 200, 600])


def cloud(count: int, features: int = 3, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((count, features))


def labelled(counts: Sequence[int], seed: int = 0) -> tuple[FloatArray, Labels]:
    """Samples in random order, those of a kind with the same outputs; and their kinds."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    return 5 * np.eye(len(counts))[labels], labels


def parts_of(found: Split) -> list[Labels]:
    return [*found.halves, found.choose, found.check]


def apart(found: Split) -> npt.NDArray[np.bool_]:
    """Which samples are of kinds that are apart."""
    return np.isin(found.kinds, found.apart)


def same(first: Split, second: Split) -> bool:
    pairs = zip(parts_of(first), parts_of(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs) and first.apart == second.apart


@given(
    count=st.integers(1, 200),
    features=st.integers(1, 4),
    distinct=st.none() | st.integers(1, 5),
    seed=st.integers(0, 99),
    choose=st.booleans(),
    samples_each=st.sampled_from([1.0, 4.0, 32.0]),
)
def test_every_sample_is_in_one_part(
    count: int, features: int, distinct: int | None, seed: int, choose: bool, samples_each: float
) -> None:
    outputs = cloud(count, features, seed)
    if distinct is not None:
        outputs = outputs[np.arange(count) % distinct]
    found = split(outputs, seed, choose=choose, samples_each=samples_each)
    assert sorted(np.concatenate(parts_of(found))) == list(range(count))
    first, second = map(len, found.halves)
    assert 0 <= first - second <= 1
    assert first >= 1, "there is always something to fit to"
    assert len(found.check) <= count / 2
    assert found.kinds.shape == (count,)
    assert set(found.apart) <= set(found.kinds)


@sizes
def test_a_quarter_is_checked_and_at_least_32(count: int) -> None:
    checked = len(split(cloud(count), 0, choose=False).check)
    assert checked == pytest.approx(max(QUARTER * count, FEWEST), abs=WHOLE)


@pytest.mark.parametrize("count", [5, 6, 20, 50, 63])
def test_where_that_would_be_most_samples_half_are_checked(count: int) -> None:
    assert len(split(cloud(count), 0, choose=False).check) == count // 2


def test_no_more_are_checked_than_tell_enough() -> None:
    assert len(split(cloud(4 * MOST + 400, 1), 0, choose=False).check) == MOST


@pytest.mark.parametrize(("count", "each", "checked"), [(40, 8.0, 10), (12, 8.0, 4), (6, 32.0, 2)])
def test_units_of_several_samples_count_as_so_many(count: int, each: float, checked: int) -> None:
    assert len(split(cloud(count), 0, choose=False, samples_each=each).check) == checked


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (2, 1, 2)), (8, (2, 2, 4))],
)
def test_of_few_samples_some_are_fitted_to(count: int, expected: tuple[int, ...]) -> None:
    """A single sample is in the first half; fewer than five others give none to choose by."""
    for choose in (False, True):
        found = split(cloud(count), 0, choose=choose)
        assert (*map(len, found.halves), len(found.check)) == expected
        assert not len(found.choose)
        assert not found.apart


@sizes
def test_samples_to_choose_by_are_there_when_asked_for(count: int) -> None:
    """They are a fifth of what is not checked; the check is the same without them."""
    outputs = cloud(count)
    without, found = (split(outputs, 3, choose=choose) for choose in (False, True))
    assert not len(without.choose)
    assert len(found.choose) == pytest.approx((count - len(found.check)) / 5, abs=WHOLE)
    assert np.array_equal(found.check, without.check)
    assert found.apart == without.apart


@pytest.mark.parametrize("count", [40, 100, 300])
def test_the_seed_decides(count: int) -> None:
    outputs = cloud(count)
    assert same(split(outputs, 7, choose=True), split(outputs.copy(), 7, choose=True))
    checks = {tuple(sorted(split(outputs, seed, choose=True).check)) for seed in range(5)}
    assert len(checks) == 5


COUNTS = (120, 48, 24, 24, 8, 8, 8)


@pytest.mark.parametrize("seed", range(4))
def test_every_part_has_its_share_of_every_kind(seed: int) -> None:
    """To whole samples, for every kind from the size at which its share is one sample."""
    outputs, labels = labelled(COUNTS, seed)
    found = split(outputs, seed, choose=True)
    for part in parts_of(found):
        share = len(part) / len(labels)
        seen = np.bincount(labels[part], minlength=len(COUNTS))
        assert np.abs(seen - share * np.array(COUNTS)).max() <= 2 * WHOLE
    checked = np.bincount(labels[found.check], minlength=len(COUNTS))
    assert (checked >= np.floor(np.array(COUNTS) / 4)).all()


def test_kinds_that_only_differ_a_little_are_shared_out_too() -> None:
    """Of noisy clusters, the numbers to check vary far less than by chance."""
    labels = np.repeat(np.arange(4), [100, 60, 30, 10])
    outputs = 6 * np.eye(4)[labels] + cloud(200, 4)
    seen = [
        np.bincount(labels[split(outputs, seed, choose=False).check], minlength=4)
        for seed in range(12)
    ]
    shares = np.array([100, 60, 30, 10]) / 200
    by_chance = 50 * shares * (1 - shares) * (1 - 50 / 200)
    assert (((seen - 50 * shares) ** 2).mean(axis=0) < by_chance / 2).all()


def test_kinds_along_a_line_are_shared_out_along_it() -> None:
    """Outputs of a regressor have no clusters, but the mean of the check is that of all."""
    outputs = cloud(1000, 1)
    errors = [
        abs(outputs[split(outputs, seed, choose=False).check].mean() - outputs.mean())
        for seed in range(12)
    ]
    by_chance = float(outputs.std()) * (1 / 250 - 1 / 1000) ** 0.5
    assert np.sqrt(np.mean(np.square(errors))) < by_chance / 2


@pytest.mark.parametrize("count", [64, 128, 256, 512])
def test_about_a_third_is_apart_in_whole_kinds(count: int) -> None:
    for seed in range(4):
        found = split(cloud(count, 5, seed), seed, choose=False)
        assert 0.2 < apart(found).mean() < 0.5
        assert apart(found)[found.check].sum() >= 4
        assert not apart(found)[np.concatenate(found.halves)].all()


@pytest.mark.parametrize("counts", [COUNTS, (20,) * 10, (100, 40, 24, 16, 12, 8)], ids=str)
def test_kinds_are_apart_as_a_whole(counts: tuple[int, ...]) -> None:
    """In the fit too: a kind of which something is fitted to is not left out."""
    chosen = []
    for seed in range(8):
        outputs, labels = labelled(counts, seed)
        found = split(outputs, seed, choose=True)
        kinds = np.unique(labels[apart(found)])
        assert np.array_equal(apart(found), np.isin(labels, kinds))
        assert len(found.apart) == len(kinds) > 0
        assert 0.15 < apart(found).mean() < 0.5
        chosen.append(tuple(kinds))
    assert len(set(chosen)) > 1, "the seed draws them"


@pytest.mark.parametrize("seed", range(3))
def test_a_single_kind_is_never_apart(seed: int) -> None:
    found = split(np.zeros((100, 3)), seed, choose=True)
    assert not found.apart
    assert sorted(np.concatenate(parts_of(found))) == list(range(100))


def test_a_kind_of_most_samples_is_never_apart() -> None:
    outputs, labels = labelled((140, 30, 30))
    for seed in range(6):
        assert not apart(split(outputs, seed, choose=False))[labels == 0].any()


def described(outputs: Sequence[Sequence[npt.NDArray[Any]]]) -> FloatArray:
    """The description of outputs that a model has for each sample."""
    return describe([[part for array in one for part in summarize(array)] for one in outputs])


def classifier(logits: FloatArray) -> list[list[npt.NDArray[Any]]]:
    return [[row] for row in logits.astype(np.float32)]


def test_the_scale_of_an_output_does_not_matter() -> None:
    """Nor does an offset, in none of several outputs."""
    first, second = cloud(60, 4), cloud(60, 2, seed=1)
    plain = described([[a, b] for a, b in zip(first, second, strict=True)])
    other = described([[1000 * a + 7, 1e-3 * b] for a, b in zip(first, second, strict=True)])
    np.testing.assert_allclose(plain, other, rtol=1e-9, atol=1e-9)
    assert (plain**2).sum(axis=1).mean() == pytest.approx(2.0), "each output counts as one"


def probabilities(logits: FloatArray) -> FloatArray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def test_classes_are_kinds_of_a_classifier() -> None:
    """From logits and from probabilities: a class is apart, or it is not."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(16), 16))
    logits = 12 * np.eye(16)[labels] + 0.1 * cloud(256, 16)
    for rows in (logits, probabilities(logits)):
        found = split(described(classifier(rows)), 0, choose=False)
        checked = np.bincount(labels[found.check], minlength=16)
        assert ((checked >= 2) & (checked <= 6)).all()
        assert 0.2 < apart(found).mean() < 0.5
        per_class = np.array([apart(found)[labels == c].mean() for c in range(16)])
        assert (np.minimum(per_class, 1 - per_class) < 0.3).all()


def test_probabilities_count_by_their_ratios() -> None:
    """Rare classes tell samples apart too: 0.01 is further from 0.001 than 0.51 is from 0.5."""
    rare = np.array([[0.5, 0.5, 0.0], [0.49, 0.5, 0.01], [0.5, 0.49, 0.01], [0.51, 0.49, 0.0]])
    found = described(classifier(rare))
    distances = np.linalg.norm(found[:, None] - found, axis=2)
    assert distances[0, 1] > 3 * distances[0, 3]


def boxes(label: int, count: int) -> npt.NDArray[np.float32]:
    """What a detector finds: four sides, a score and a class for each box."""
    found = normal(count, 6, seed=label)
    found[:, 4], found[:, 5] = 0.9, label
    return found


def test_a_detector_is_described_by_what_and_how_it_detects() -> None:
    """Numbers of boxes differ from sample to sample; the same scene has the same description."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 20))
    outputs = [[boxes(label, 3 + 2 * label), np.array([3 + 2 * label])] for label in labels]
    found = described(outputs)
    assert np.isfinite(found).all()
    assert len(np.unique(found.round(9), axis=0)) == 5
    parts = split(found, 1, choose=False)
    assert np.array_equal(apart(parts), np.isin(labels, np.unique(labels[apart(parts)])))
    assert np.bincount(labels[parts.check], minlength=5).min() >= 5


def test_a_detector_that_finds_nothing_is_described_too() -> None:
    outputs = [[boxes(0, count)] for count in (0, 4, 0, 7)]
    found = described(outputs)
    assert np.isfinite(found).all()
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("layout", ["classes first", "classes last"])
def test_maps_are_described_by_their_channels(layout: str) -> None:
    """A segmentation is a kind by its classes, whichever axis these are."""
    labels = np.arange(40) % 4
    maps = normal(40, 4, 6, 6) + 9 * np.eye(4, dtype=np.float32)[labels][:, :, None, None]
    if layout == "classes last":
        maps = maps.transpose(0, 2, 3, 1)
    found = described([[one] for one in maps])
    middle = np.stack([found[labels == label].mean(axis=0) for label in range(4)])
    nearest = ((found[:, None] - middle) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(nearest, labels)


def test_embeddings_are_grouped_by_direction_of_largest_spread() -> None:
    """Two poses of one thing are far from each other, others near: the kinds follow the poses."""
    poses = np.repeat([0, 1], 32)
    outputs = cloud(64, 24) * 0.05
    outputs[:, 0] += poses
    found = split(described(classifier(outputs)), 0, choose=False)
    assert poses[found.check].sum() == 16


ODD: dict[str, Any] = {
    "nan": np.array([np.nan, 1.0]),
    "infinite": np.array([np.inf, -np.inf]),
    "huge": np.array([3e38, -3e38], np.float32),
    "beyond": np.array([1e300, 1.0]),
    "words": np.array(["a", "b"], dtype=object),
    "truth": np.array([True, False]),
    "integers": np.array([2**62, 0]),
    "scalar": np.array(3.0),
    "empty": np.zeros(0, np.float32),
    "no boxes": np.zeros((0, 6), np.float32),
    "no columns": np.zeros((3, 0, 2), np.float32),
    "complex": np.array([1j, 2.0]),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_outputs_are_described_by_finite_numbers(kind: str) -> None:
    """Beside others of the same shape, so that all of them can be compared."""
    plain = np.zeros_like(ODD[kind]) if ODD[kind].dtype != object else ODD[kind]
    found = described([[ODD[kind]], [plain], [ODD[kind]], [plain]] * 4)
    assert len(found) == 16
    assert np.isfinite(found).all()
    parts = split(found, 0, choose=False)
    assert sorted(np.concatenate(parts_of(parts))) == list(range(16))


def test_the_example_of_a_kind_is_the_sample_in_its_middle() -> None:
    outputs, labels = labelled((30, 20, 10))
    outputs += 0.2 * cloud(60, 3)
    for label in range(3):
        members = np.flatnonzero(labels == label)
        distances = ((outputs - outputs[members].mean(axis=0)) ** 2).sum(axis=1)
        assert example(outputs, members) == members[distances[members].argmin()]


def test_no_samples_have_no_parts() -> None:
    found = split(np.zeros((0, 3)), 0, choose=True)
    assert not any(map(len, parts_of(found)))
    assert not found.apart


def test_outputs_that_not_all_samples_have_do_not_count() -> None:
    """A sequence of other length for another sample."""
    found = described([[np.ones(2)], [np.zeros(2), np.ones(3)], [np.ones(2), np.zeros(3)]])
    assert found.shape == (3, 2)
    assert described([[], []]).shape == (2, 1)
