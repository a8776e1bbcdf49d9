"""Walking through a model from layer to layer, with the activations of all calibration batches.

Nodes are in topological order, so the nodes between two layers need only the tensors that are live
at the first one: computed upstream of it, and read by it or downstream. Because the walk keeps
these, it runs every node once; running the model from its inputs for each layer would take a time
that is quadratic in the number of layers. Large live tensors are kept in a temporary folder, so
that memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from alds_onnx.calibrate.runner import Runner
from alds_onnx.graph.segment import live_tensors, segment

_Array = npt.NDArray[Any]

# Bytes of one tensor over all batches. Few tensors are live at a time.
_LARGEST_IN_MEMORY = 1 << 25


class Walk(contextlib.AbstractContextManager["Walk"]):
    """The tensors of a model's main graph that are live at the current node, for every batch."""

    def __init__(self, runner: Runner, model: ModelProto) -> None:
        self.runner = runner
        self._alive = live_tensors(model)
        self._node = 0
        self._folder = tempfile.TemporaryDirectory(prefix="alds-onnx-")
        self._store = _Store(Path(self._folder.name), len(runner.batches))
        given = {value.name for value in model.graph.input}
        for batch, feed in enumerate(runner.batches):
            self._store.put(batch, {name: a for name, a in feed.items() if name in given})

    def __exit__(self, *_: object) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()

    def go(self, model: ModelProto, node: int) -> None:
        """Run all nodes from the current one up to, but without, number `node` of the main graph.

        The model has the same nodes as that at the start, but their weights may have changed since.
        """
        if node <= self._node:
            return
        wanted = self._alive(node)
        part = self._segment(model, node, wanted)
        names = [output.name for output in part.graph.output]
        session = self.runner.session(part) if names else None
        taken = {value.name for value in session.inputs} if session else set()

        def run(batch: int) -> None:
            before = self._store.get(batch)
            after = {name: before[name] for name in wanted if name in before}
            if session is not None:
                feeds = {name: np.asarray(before[name]) for name in taken}
                after |= dict(zip(names, session.run(feeds, names), strict=True))
            self._store.put(batch, after)

        for _ in self.runner.map(run, range(len(self.runner.batches))):
            pass
        self._node = node

    def remaining(self, model: ModelProto) -> ModelProto:
        """Cut out the nodes from the current one to the end, with all outputs that they compute."""
        names = [output.name for output in model.graph.output]
        return self._segment(model, len(model.graph.node), names)

    def _segment(self, model: ModelProto, stop: int, wanted: Sequence[str]) -> ModelProto:
        # The ONNX element type and the rank of each live array.
        given = {
            name: (onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.ndim)
            for name, value in self._store.get(0).items()
            if isinstance(value, np.ndarray)
        }
        return segment(model, self._node, stop, given, wanted)

    def tensor(self, batch: int, name: str) -> _Array:
        """Give a live tensor of one batch."""
        return np.asarray(self._store.get(batch)[name])


class _Store:
    """Live tensors by batch. Large ones are memory-mapped files, the others are in memory."""

    def __init__(self, folder: Path, num_batches: int) -> None:
        self._folder = folder
        self._largest = _LARGEST_IN_MEMORY // num_batches
        self._kept: dict[int, dict[str, Any]] = {}

    def get(self, batch: int) -> Mapping[str, Any]:
        return self._kept[batch]

    def put(self, batch: int, values: Mapping[str, Any]) -> None:
        """Replace the tensors of a batch, without writing unchanged ones again."""
        before = self._kept.get(batch, {})
        kept = {
            name: value if before.get(name) is value else self._filed(value)
            for name, value in values.items()
        }
        self._kept[batch] = kept
        for name, value in before.items():
            if kept.get(name) is not value and isinstance(value, np.memmap):
                with contextlib.suppress(FileNotFoundError):
                    Path(str(value.filename)).unlink()

    def _filed(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            return value
        if value.nbytes <= self._largest:
            return value
        handle, name = tempfile.mkstemp(suffix=".npy", dir=self._folder)
        with open(handle, "wb") as file:
            np.save(file, value, allow_pickle=False)
        return np.load(name, mmap_mode="r", allow_pickle=False)
