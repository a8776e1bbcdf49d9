"""Walking through a model from layer to layer, with the activations of all calibration batches.

Nodes stand in topological order, so what lies between two layers needs only the tensors that are
alive at the first: made before it, read at it or later. Keeping those, the walk through all layers
runs every node once, where running the model anew up to each layer would take the square of that.
The live tensors lie in a temporary folder, so that memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from alds_onnx.calibrate.runner import Runner
from alds_onnx.graph.segment import live_tensors, segment

_Array = npt.NDArray[Any]

# Bytes of one tensor over all batches; few tensors are alive at a time.
_LARGEST_IN_MEMORY = 1 << 25


class Walk:
    """The tensors of one model that are alive at the current node, for every batch.

    Parameters
    ----------
    runner
        The calibration data.
    model
        What to walk through; its main graph only.
    """

    def __init__(self, runner: Runner, model: ModelProto) -> None:
        self.runner = runner
        self._alive = live_tensors(model)
        self._node = 0
        self._folder = tempfile.TemporaryDirectory(prefix="alds-onnx-")
        self._store = _Store(Path(self._folder.name), len(runner.batches))
        given = {value.name for value in model.graph.input}
        for batch, feed in enumerate(runner.batches):
            self._store.put(batch, {name: a for name, a in feed.items() if name in given})

    def __enter__(self) -> Walk:
        """Give the walk itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()

    def go(self, model: ModelProto, node: int) -> None:
        """Run all nodes before `node`.

        Parameters
        ----------
        model
            The model so far: nodes that were walked through may have other weights than at the
            start, the list of nodes is the same.
        node
            Number of a node of the main graph, at or behind the current one.

        Raises
        ------
        RunError
            If onnxruntime does not run the part between.
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

    def rest(self, model: ModelProto) -> ModelProto:
        """Give what is left behind the current node, with all outputs that it makes."""
        names = [output.name for output in model.graph.output]
        return self._segment(model, len(model.graph.node), names)

    def _segment(self, model: ModelProto, stop: int, wanted: Sequence[str]) -> ModelProto:
        given = _types(self._store.get(0))
        return segment(model, self._node, stop, given, wanted)

    def tensor(self, batch: int, name: str) -> _Array:
        """A live tensor of one batch."""
        return np.asarray(self._store.get(batch)[name])


class _Store:
    """Live tensors by batch: large ones in files, mapped on demand; the others in memory."""

    def __init__(self, folder: Path, num_batches: int) -> None:
        self._folder = folder
        self._largest = _LARGEST_IN_MEMORY // num_batches
        self._kept: dict[int, dict[str, Any]] = {}

    def get(self, batch: int) -> Mapping[str, Any]:
        return self._kept[batch]

    def put(self, batch: int, values: Mapping[str, Any]) -> None:
        """Replace the tensors of a batch; those that stay the same are not written again."""
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


def _types(values: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """ONNX element type and rank of arrays."""
    return {
        name: (onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.ndim)
        for name, value in values.items()
        if isinstance(value, np.ndarray)
    }
