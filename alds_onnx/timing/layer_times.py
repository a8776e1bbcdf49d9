"""Times of the layers of one model, measured when they are first needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from alds_onnx.cuts import Cut, LayerShape
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.runtimes import preset
from alds_onnx.timing.layer_models import IsolatedLayer
from alds_onnx.timing.store import TimingStore
from alds_onnx.timing.timer import LayerTimer, Timing

_log = logging.getLogger(__name__)

#: Opened while times are measured; what it gives is called with the layers done and their number.
Watch: TypeAlias = Callable[[], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedWeight:
    """A weight, and every layer that reads it, in isolation; none if one cannot be timed."""

    shape: LayerShape
    layers: tuple[IsolatedLayer, ...]


class LayerTimes:
    """Times of cuts of the weights of one model, which are given by name.

    The store has the times that are known already, the timer measures the others.
    """

    def __init__(
        self,
        timer: LayerTimer,
        weights: Mapping[str, TimedWeight],
        store: TimingStore,
        watch: Watch,
    ) -> None:
        self.timer, self._weights = timer, weights
        self._store, self._watch = store, watch
        self._failed: set[tuple[str, Cut]] = set()

    def shape(self, name: str) -> LayerShape:
        """Sizes of a weight."""
        return self._weights[name].shape

    def block(self, name: str) -> int:
        """The runtime is fast at ranks that are multiples of this; 1 if all are alike."""
        return preset(self.timer.runtime).block if self.shape(name).kernel else 1

    def measure(self, wanted: Iterable[tuple[str, Cut]]) -> None:
        """Time cuts of weights that are not known yet, in every layer that reads the weight."""
        groups: dict[str, tuple[IsolatedLayer, list[Cut]]] = {}
        for name, cut in wanted:
            for layer in self._layers(name):
                known = self._get(layer, cut) or (layer.key, cut) in self._failed
                _, cuts = groups.setdefault(layer.key, (layer, []))
                if not known and cut not in cuts:
                    cuts.append(cut)
        missing = [group for group in groups.values() if group[1]]
        if not missing:
            return
        with self._watch() as advance:
            for done, (layer, cuts) in enumerate(missing, start=1):
                self._time(layer, cuts)
                advance(done, len(missing))

    def _time(self, layer: IsolatedLayer, cuts: Sequence[Cut]) -> None:
        try:
            found = self.timer.time_layer(layer, cuts)
        except RunError as e:
            _log.info("a layer in isolation was not timed: %s", e)
            self._failed.update((layer.key, cut) for cut in cuts)
            return
        for cut, timing in zip(cuts, found, strict=True):
            self._store.add(self.timer.setup, layer.key, cut, timing)

    def timing(self, name: str, cut: Cut) -> Timing | None:
        """Times of all layers that read a weight; None if one was not or cannot be measured."""
        found = [self._get(layer, cut) for layer in self._layers(name)]
        known = [timing for timing in found if timing is not None]
        if not known or len(known) != len(found):
            return None
        return Timing(dense=sum(t.dense for t in known), cut=sum(t.cut for t in known))

    def save(self) -> None:
        """Keep the times for other runs."""
        self._store.save()

    def _layers(self, name: str) -> tuple[IsolatedLayer, ...]:
        return self._weights[name].layers if name in self._weights else ()

    def _get(self, layer: IsolatedLayer, cut: Cut) -> Timing | None:
        return self._store.get(self.timer.setup, layer.key, cut)
