"""Times of layers: measured once, by any runtime, and together where layers share a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto

from alds_onnx.cuts import Cut
from alds_onnx.evaluate.sessions import Feeds, RunError
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.timing.layer_models import IsolatedLayer
from alds_onnx.timing.layer_times import LayerTimes, TimedWeight
from alds_onnx.timing.store import TimingStore
from alds_onnx.timing.timer import LayerTimer, Timing
from tests.timing.fake import SHAPE

CUT, OTHER = Cut(num_slices=1, rank=4), Cut(num_slices=1, rank=8)


@dataclass
class StubTimer:
    """A runtime in which each layer takes the time that its key says."""

    setup: str = "openvino 1.0"
    runtime: Runtime = Runtime.OPENVINO
    asked: list[tuple[str, Cut]] = field(default_factory=list)

    def time_layer(self, layer: IsolatedLayer, cuts: Sequence[Cut]) -> list[Timing]:
        self.asked += [(layer.key, cut) for cut in cuts]
        if layer.key == "broken":
            raise RunError("no")
        return [Timing(dense=float(layer.key), cut=float(cut.rank)) for cut in cuts]

    def time_models(self, models: Sequence[ModelProto], folder: Path, feeds: Feeds) -> list[float]:
        return [1.0 for _ in models]


@contextmanager
def unwatched() -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def times(timer: LayerTimer, store: TimingStore | None = None, **keys: str) -> LayerTimes:
    """Weights by name, and the keys of the layers that read them."""
    weights = {
        name: TimedWeight(
            shape=SHAPE,
            layers=tuple(
                IsolatedLayer(key=key, skeleton=ModelProto(), shape=(1,)) for key in own.split()
            ),
        )
        for name, own in keys.items()
    }
    return LayerTimes(timer, weights, store or TimingStore(None), unwatched)


def test_layers_that_share_a_weight_are_timed_together() -> None:
    found = times(StubTimer(), shared="100 30", single="100")
    found.measure([("shared", CUT), ("single", CUT)])
    assert found.timing("shared", CUT) == Timing(dense=130.0, cut=8.0)
    assert found.timing("single", CUT) == Timing(dense=100.0, cut=4.0)


def test_nothing_is_measured_twice() -> None:
    timer = StubTimer()
    found = times(timer, a="100", b="100", c="broken")
    for _ in range(2):
        found.measure([(name, cut) for name in "abc" for cut in (CUT, OTHER)])
    assert sorted(timer.asked, key=str) == sorted(
        [(key, cut) for key in ("100", "broken") for cut in (CUT, OTHER)], key=str
    )


def test_what_cannot_be_measured_has_no_time() -> None:
    found = times(StubTimer(), half="100 broken", none="")
    found.measure([("half", CUT), ("none", CUT), ("unknown", CUT)])
    assert [found.timing(name, CUT) for name in ("half", "none", "unknown")] == [None] * 3


def test_times_of_one_setup_are_not_those_of_another() -> None:
    store = TimingStore(None)
    times(StubTimer(), store, a="100").measure([("a", CUT)])
    assert times(StubTimer(), store, a="100").timing("a", CUT)
    assert not times(StubTimer(setup="openvino 2.0"), store, a="100").timing("a", CUT)


def test_the_runtime_says_how_ranks_are_aligned() -> None:
    for runtime in (Runtime.OPENVINO, Runtime.TFLITE):
        found = times(StubTimer(runtime=runtime), a="100")
        assert found.block("a") == preset(runtime).block
