"""The child process: makes inputs, tries each, and prints what came of them as JSON.

    python -m tests.fuzz.worker TARGET SEED START COUNT FOLDER

It runs under a limit on its address space. Before each input is tried its number and its bytes are
in FOLDER, so that a crash tells which one it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import onnx
import onnxruntime as ort

from alds_onnx.api import compress
from alds_onnx.calibrate.reader import model_inputs, read_feeds
from alds_onnx.errors import AldsError, VerificationError
from alds_onnx.evaluate.random_inputs import Hints
from alds_onnx.evaluate.samples import random_samples
from alds_onnx.evaluate.sessions import Execution, RunError
from alds_onnx.graph.files.load import load_model
from alds_onnx.plans import read_plan
from tests.fuzz import bases, mutate

MEMORY = 4 << 30
SECONDS_PER_INPUT = 30

MODEL, INPUT, INDEX, OUT = "model.onnx", "input", "index", "out.onnx"


class TooSlowError(BaseException):
    """An input took longer than any of its kind may."""


@dataclass
class Tally:
    """What came of the inputs."""

    accepted: int = 0
    refused: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    unverified: list[int] = field(default_factory=list)


def make_model(rng: Random) -> bytes:
    """Bytes of a mutated model: of its fields, of its bytes, or of both."""
    pool = bases.models()
    model = rng.choice(pool)
    kind = rng.random()
    if kind < 0.7:
        model = mutate.mutated_model(rng, model)
    data = bases.serialized(model)
    return data if kind < 0.6 else mutate.mutated_bytes(rng, data, bases.serialized(pool[0]))


def make_plan(rng: Random) -> bytes:
    return mutate.mutated_json(rng, _plan())


def make_arrays(rng: Random) -> bytes:
    return mutate.mutated_arrays(rng, bases.arrays())


_cached: dict[str, Any] = {}


def _plan() -> Any:
    if "plan" not in _cached:
        _cached["plan"] = bases.plan()
    return _cached["plan"]


def try_core(folder: Path) -> None:
    """Everything but onnxruntime."""
    with _without_runtime():
        _compress(folder)


def try_whole(folder: Path) -> None:
    """Everything."""
    _compress(folder)


def _compress(folder: Path) -> None:
    result = compress(folder / MODEL, cr=0.3, threads=1)
    result.save(folder / OUT)
    onnx.checker.check_model(str(folder / OUT))


def try_runtime(folder: Path) -> None:
    """Only onnxruntime, on the mutated model as it is."""
    loaded = load_model(folder / MODEL)
    with contextlib.suppress(RunError):
        random_samples(loaded.model, folder, Execution(threads=1), shapes={}, hints=Hints(), seed=0)


def try_plan(folder: Path) -> None:
    plan = read_plan(folder / INPUT)
    with _without_runtime():
        compress(bases.models()[0], plan=plan, threads=1)


def try_arrays(folder: Path) -> None:
    for _ in islice(read_feeds(folder / INPUT, model_inputs(bases.models()[0])), 100):
        pass


@contextlib.contextmanager
def _without_runtime() -> Iterator[None]:
    """Let onnxruntime load nothing: the package then goes on without it."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("not in this test")

    kept = ort.InferenceSession
    ort.InferenceSession = refuse
    try:
        yield
    finally:
        ort.InferenceSession = kept


TARGETS: dict[str, tuple[Callable[[Random], bytes], Callable[[Path], None], str]] = {
    "core": (make_model, try_core, MODEL),
    "whole": (make_model, try_whole, MODEL),
    "runtime": (make_model, try_runtime, MODEL),
    "plan": (make_plan, try_plan, INPUT),
    "arrays": (make_arrays, try_arrays, INPUT),
}


def attempt(target: str, seed: int, index: int, folder: Path, tally: Tally) -> None:
    """Try one input; the only fine ends are success and an AldsError of one line."""
    make, run, name = TARGETS[target]
    # The models are the same whatever is done with them: a crash of one target is tried in others.
    data = make(Random(f"{make.__name__}/{seed}/{index}"))
    (folder / INDEX).write_text(str(index))
    (folder / name).write_bytes(data)
    signal.alarm(SECONDS_PER_INPUT)
    try:
        run(folder)
        tally.accepted += 1
    except AldsError as e:
        tally.refused += 1
        tally.kinds[type(e).__name__] += 1
        if not str(e) or len(str(e).splitlines()) != 1:
            tally.violations.append({"index": index, "error": f"not one line: {e!r}"})
        if isinstance(e, VerificationError):
            tally.unverified.append(index)
    except (Exception, TooSlowError) as e:  # noqa: BLE001 - whatever it is, it is a finding
        where = traceback.extract_tb(e.__traceback__)[-3:]
        place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(where))
        tally.violations.append(
            {"index": index, "error": f"{type(e).__name__}: {e}"[:300], "where": place}
        )
    finally:
        signal.alarm(0)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlowError(f"over {SECONDS_PER_INPUT} s")


def main(target: str, seed: int, start: int, count: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _too_slow)
    warnings.simplefilter("ignore")  # numpy's, about the files
    logging.disable(logging.CRITICAL)
    bases.write_data(folder)
    tally = Tally()
    for index in range(start, start + count):
        attempt(target, seed, index, folder, tally)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(vars(tally) | {"peak_mib": peak}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
