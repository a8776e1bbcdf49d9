"""Which schemes to search over: accuracy, arithmetic and time at the same number of parameters.

What: models compressed by their weights alone, with each scheme alone and with all, for three
targets: none (all slices and ranks), ort (those that onnxruntime is fast at on this machine) and
tflite, whose preset has no slices, as those of coreml and tensorrt.

    digits       the embedded model; score: top-1 on its 1,000 test images
    detection    PP-OCRv4 text detection on 6 pages of rendered lines; score: F1, in percent, of the
                 pixels that count as text (above 0.3) against those of the whole model

Where a scheme makes no difference (a kernel of one entry, Gemm, MatMul) all are `encode`.

Why: the default of --schemes rests on this table.

How: "macs" and "time" are over the whole model's; time is the median of runs in turns, batch 1, one
thread of onnxruntime, which also runs the models made for tflite.

    python benchmarks/schemes.py             prints the tables
    python benchmarks/schemes.py --write     writes schemes.md too
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ocr
import onnx
import onnxruntime as ort
from onnx import ModelProto
from wheels import member

import alds_onnx
from alds_onnx import Runtime, Scheme

_TABLE = Path(__file__).with_suffix(".md")
_MODELS = Path(__file__).resolve().parent.parent / "models"
_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_DETECTION = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
_PAGES, _LINES = 6, 6
_TEXT = 0.3  # PP-OCR's own threshold
_TARGETS = (Runtime.NONE, Runtime.ORT, Runtime.TFLITE)
_SETS = (*((scheme,) for scheme in Scheme), tuple(Scheme))
_SECONDS, _FEWEST = 0.4, 9

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A model, the ratios it is compressed to, one sample, and its score in percent."""

    name: str
    model: Path
    ratios: tuple[float, ...]
    sample: Array
    score: Callable[[ort.InferenceSession], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one compressed model is like."""

    score: float
    macs: float
    time: float


def digits() -> Task:
    """The embedded model."""
    test = np.load(_MODELS / "digits_test.npz")

    def score(session: ort.InferenceSession) -> float:
        found = run(session, test["image"]).argmax(1)
        return 100 * float((found == test["labels"]).mean())

    return Task(
        name="digits",
        model=_MODELS / "digits.onnx",
        ratios=(0.3, 0.5, 0.7),
        sample=test["image"][:1],
        score=score,
    )


def detection() -> Task:
    """Text detection, against itself."""
    model = member(_RAPIDOCR, _DETECTION)
    pages = np.stack([_page(seed) for seed in range(_PAGES)])
    truth = run(_session(onnx.load(model)), pages) > _TEXT

    def score(session: ort.InferenceSession) -> float:
        found = run(session, pages) > _TEXT
        return 200 * float((truth & found).sum()) / float(truth.sum() + found.sum())

    return Task(
        name="detection", model=model, ratios=(0.1, 0.2, 0.3), sample=pages[:1], score=score
    )


TASKS = {"digits": digits, "detection": detection}


def _page(seed: int) -> Array:
    """Lines of text below each other: shape (3, 320, 320)."""
    images = ocr.render(ocr.lines(_LINES, seed=seed), seed=seed)
    page = np.concatenate(list(images), axis=1)
    return np.pad(page, ((0, 0), (0, 320 - page.shape[1]), (0, 0)))


def run(session: ort.InferenceSession, inputs: Array) -> Array:
    """The first output of a model with one input."""
    (output, *_) = session.run(None, {session.get_inputs()[0].name: inputs})
    return np.asarray(output)


def _session(model: ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def time_ratio(original: ort.InferenceSession, other: ort.InferenceSession, sample: Array) -> float:
    """Time of the second over the first, run in turns."""
    sessions, times = (original, other), ([], [])  # type: tuple[Any, Any], tuple[list[float], ...]
    run(original, sample), run(other, sample)
    start = time.perf_counter()
    while len(times[0]) < _FEWEST or time.perf_counter() - start < _SECONDS:
        for session, found in zip(sessions, times, strict=True):
            before = time.perf_counter()
            run(session, sample)
            found.append(time.perf_counter() - before)
    first, second = (float(np.median(found)) for found in times)
    return second / first


def measure(task: Task, target: Runtime, schemes: Sequence[Scheme], ratio: float) -> Cell | None:
    """Compress and score; None where the ratio is out of reach."""
    try:
        result = alds_onnx.compress(
            task.model, cr=ratio, target=target, schemes=schemes, dry_run=True
        )
    except alds_onnx.BudgetError:
        return None
    report = result.report
    session = _session(result.model)
    return Cell(
        score=task.score(session),
        macs=(report.macs_after or 0) / (report.macs_before or 1),
        time=time_ratio(_session(onnx.load(task.model)), session, task.sample),
    )


def table(task: Task) -> Iterator[str]:
    """Lines of one model's table."""
    whole = task.score(_session(onnx.load(task.model)))
    yield f"{task.name}: score of the whole model {whole:.1f}"
    groups = "".join(f"{f'{ratio:.0%} removed':>23}" for ratio in task.ratios)
    yield f"{'':20}{groups}"
    columns = f"{'score':>9}{'macs':>7}{'time':>7}" * len(task.ratios)
    yield f"{'target':7} {'schemes':12}{columns}"
    for target in _TARGETS:
        for schemes in _SETS:
            name = schemes[0].value if len(schemes) == 1 else "all"
            cells = [measure(task, target, schemes, ratio) for ratio in task.ratios]
            yield f"{target.value:7} {name:12}" + "".join(map(_text, cells))


def _text(cell: Cell | None) -> str:
    if cell is None:
        return f"{'-':>9}{'-':>7}{'-':>7}"
    return f"{cell.score:9.1f}{cell.macs:7.2f}{cell.time:7.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TASKS, help="one model; default: all")
    parser.add_argument("--write", action="store_true", help=f"write {_TABLE.name}")
    options = parser.parse_args()
    for name in [options.only] if options.only else TASKS:
        printed = []
        for line in table(TASKS[name]()):
            printed.append(line)
            print(line, flush=True)
        print()
        if options.write:
            write(name, printed)
    return 0


def write(name: str, printed: Sequence[str]) -> None:
    """Put one model's table into the file; those of the others stay."""
    text = _TABLE.read_text(encoding="utf-8") if _TABLE.is_file() else ""
    found = dict(re.findall(r"^## (\w+)\n\n```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    found[name] = "".join(f"{line}\n" for line in printed)
    sections = [f"## {task}\n\n```\n{found[task]}```\n" for task in TASKS if task in found]
    head = "# Schemes\n\nPrinted by `python benchmarks/schemes.py --write`.\n"
    _TABLE.write_text("\n".join([head, *sections]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
