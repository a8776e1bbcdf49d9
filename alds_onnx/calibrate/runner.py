"""Running models over the calibration data, batch by batch, on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
from onnx import ModelProto

from alds_onnx.calibrate.reader import Feed
from alds_onnx.evaluate.sessions import Execution, Session
from alds_onnx.graph.segment import prefix
from alds_onnx.runtimes import Provider

_R = TypeVar("_R")
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runner:
    """Runs models over batches; each batch on one thread, so that results do not depend on threads.

    Attributes
    ----------
    batches
        The calibration data.
    folder
        Where external data of the models lies.
    threads
        How many batches to run side by side.
    provider
        Of onnxruntime.
    """

    batches: tuple[Feed, ...]
    folder: Path
    threads: int
    provider: Provider

    def session(self, model: ModelProto) -> Session:
        """Load a model for runs side by side.

        Raises
        ------
        RunError
            If onnxruntime does not load it.
        """
        return Session(model, self.folder, Execution(threads=1, provider=self.provider))

    def tensors(self, model: ModelProto, names: Sequence[str]) -> Callable[[int], list[_Array]]:
        """A function that gives tensors of the main graph for a batch, by running what they need.

        Raises
        ------
        RunError
            If onnxruntime does not load the part of the model, or a run fails.
        """
        session = self.session(prefix(model, names))
        given = {value.name for value in session.inputs}

        def run(batch: int) -> list[_Array]:
            feed = self.batches[batch]
            outputs = session.run({n: a for n, a in feed.items() if n in given}, names)
            return list(outputs)

        return run

    def map(self, function: Callable[[int], _R], batches: Sequence[int]) -> Iterator[_R]:
        """Results of a function of the batch's number, in order; few of them wait at a time."""
        waiting: deque[Future[_R]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for batch in batches:
                    waiting.append(pool.submit(function, batch))
                    if len(waiting) > self.threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
