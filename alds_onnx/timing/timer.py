"""What times layers and whole models: a protocol, and its implementation for onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, helper

from alds_onnx.cuts import Cut
from alds_onnx.evaluate.latency import time_in_turns
from alds_onnx.evaluate.sessions import Execution, Feeds, Session
from alds_onnx.runtimes import Runtime
from alds_onnx.timing.layer_models import IsolatedLayer

# Turns that count, of each model.
_FEWEST, _MOST, _MOST_WHOLE = 7, 200, 1000
# Seconds of measuring for each variant of a layer, and for whole models.
_SECONDS, _WHOLE_SECONDS = 0.03, 5.0
# Cuts of a layer that are loaded at the same time, which bounds the memory.
_TOGETHER = 16
# The machine disturbs runs in one direction only: a low percentile is steadier than the median,
# and does not depend on one lucky run as the minimum does.
_PERCENTILE = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Nanoseconds of one run, dense and with a cut, measured in turns."""

    dense: float
    cut: float

    @property
    def saved(self) -> float:
        """Nanoseconds that the cut saves; negative if it is slower."""
        return self.dense - self.cut

    @property
    def ratio(self) -> float:
        """Time of the cut over that of the dense one."""
        return self.cut / self.dense


class LayerTimer(Protocol):
    """Measures times in one runtime."""

    @property
    def runtime(self) -> Runtime:
        """The runtime, which says how ranks are aligned (`runtimes.preset`)."""

    @property
    def setup(self) -> str:
        """The runtime, its version, and all else that times depend on beside the machine."""

    def time_layer(self, layer: IsolatedLayer, cuts: Sequence[Cut]) -> list[Timing]:
        """Time a layer with each of its cuts; RunError if the runtime does not run one of them."""

    def time_models(self, models: Sequence[ModelProto], folder: Path, feeds: Feeds) -> list[float]:
        """Nanoseconds of one run of each model, measured in turns.

        External data lies in `folder`. RunError if the runtime does not run one of the models.
        """


@dataclass(frozen=True, slots=True)
class OrtTimer:
    """Measures times in onnxruntime."""

    execution: Execution

    @property
    def runtime(self) -> Runtime:
        """Onnxruntime on this machine."""
        return Runtime.ORT

    @property
    def setup(self) -> str:
        """The version of onnxruntime, the provider and the number of threads."""
        own = self.execution
        return f"{self.runtime.value} {ort.__version__}|{own.provider.value}|{own.threads}"

    def time_layer(self, layer: IsolatedLayer, cuts: Sequence[Cut]) -> list[Timing]:
        """Time a layer with each of its cuts; see `LayerTimer`."""
        kind = layer.skeleton.graph.input[0].type.tensor_type.elem_type
        x = np.random.default_rng(0).standard_normal(layer.shape, np.float32)
        feeds = {"x": x.astype(helper.tensor_dtype_to_np_dtype(kind))}
        found: list[Timing] = []
        for start in range(0, len(cuts), _TOGETHER):
            models = [layer.dense(), *layer.decomposed(cuts[start : start + _TOGETHER])]
            dense, *others = self._times(models, Path(), feeds, _SECONDS * len(models), _MOST)
            found += [Timing(dense=dense, cut=other) for other in others]
        return found

    def time_models(self, models: Sequence[ModelProto], folder: Path, feeds: Feeds) -> list[float]:
        """Nanoseconds of one run of each model, measured in turns; see `LayerTimer`."""
        return self._times(models, folder, feeds, _WHOLE_SECONDS, _MOST_WHOLE)

    def _times(
        self, models: Sequence[ModelProto], folder: Path, feeds: Feeds, seconds: float, most: int
    ) -> list[float]:
        sessions = [Session(model, folder, self.execution) for model in models]
        times = time_in_turns(sessions, feeds, seconds, fewest=_FEWEST, most=most)
        return [float(one) for one in 1e9 * np.percentile(times, _PERCENTILE, axis=1)]
