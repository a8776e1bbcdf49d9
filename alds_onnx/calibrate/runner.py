"""Running models on the calibration data, with batches in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
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
    """Runs models, with external data in `folder`, on batches, `threads` of them in parallel.

    Each batch runs on one thread, so that results do not depend on the number of threads. The first
    `first` batches are one half of the samples, the others the second one, if there are any. The
    batches `apart` are of kinds of inputs that are left out of some fits.
    """

    batches: tuple[Feed, ...]
    folder: Path
    threads: int
    provider: Provider
    first: int = 0
    apart: frozenset[int] = frozenset()

    @property
    def halves(self) -> tuple[range, ...]:
        """The numbers of the batches of each half that there is."""
        total = len(self.batches)
        return tuple(half for half in (range(self.first), range(self.first, total)) if half)

    def second_half(self) -> Runner:
        """Run the second half only; all, if there is one half."""
        batches = self.batches[self.halves[-1].start :]
        return replace(self, batches=batches, first=0, apart=frozenset())

    def session(self, model: ModelProto) -> Session:
        """Load a model for runs in parallel."""
        return Session(model, self.folder, Execution(threads=1, provider=self.provider))

    def tensors(self, model: ModelProto, names: Sequence[str]) -> Callable[[int], list[_Array]]:
        """Make a function that computes tensors of the main graph for a batch.

        It runs only the nodes that the tensors need.
        """
        session = self.session(prefix(model, names))
        given = {value.name for value in session.inputs}

        def run(batch: int) -> list[_Array]:
            feed = {name: a for name, a in self.batches[batch].items() if name in given}
            return list(session.run(feed, names))

        return run

    def map(self, function: Callable[[int], _R], batches: Sequence[int]) -> Iterator[_R]:
        """Map a function over batch numbers in parallel, in order, with few results in memory."""
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
