"""Accuracy against compression, on real models with a true score; no labels, no retraining.

    python benchmarks/accuracy.py                 digits and PP-OCRv4 recognition, all methods
    python benchmarks/accuracy.py digits --cr 0.9 one model, one ratio

Methods, from the plainest to the default of alds-onnx:

    uniform      k = 1, the same fraction of full rank in every layer (SVD of the weights)
    energy       k = 1, the same fraction of squared singular values in every layer
    iterative    ALDS as its authors run it (Algorithm 1): slices, max relative error
    exact        the global optimum of the same objective
    exact+fit    the ranks of `exact`, factors fitted to calibration data layer by layer
    ranks        ranks by measured output errors, factors by SVD of the weights
    max          as calibrated, but the largest instead of the sum of the output errors
    calibrated   ranks by measured output errors, factors fitted: --calibration

Needs the packages of the `bench` extra; the PP-OCR wheel is downloaded once. Scores come from data
that no method sees: 1,000 digits (top-1), 200 rendered lines of text (character accuracy).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ocr
import onnx
import onnxruntime as ort

import alds_onnx
from alds_onnx.values import Cut, Decision, LayerPlan, Objective, Plan, SearchMethod

_HERE = Path(__file__).resolve().parent
_MODELS = _HERE.parent / "models"
_CACHE = _HERE / ".cache"
_WHEEL = "rapidocr-onnxruntime==1.4.4"
_MEMBER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"

Feeds = list[dict[str, npt.NDArray[np.float32]]]
Score = Callable[[onnx.ModelProto], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A model, calibration data without labels, a score in percent, and ratios to try."""

    name: str
    unit: str
    model: Path
    calibration: Feeds
    score: Score
    ratios: tuple[float, ...]


def digits() -> Task:
    """The embedded model, scored by top-1 on its test digits."""
    test = np.load(_MODELS / "digits_test.npz")
    images = np.load(_MODELS / "digits_calibration.npz")["image"]

    def score(model: onnx.ModelProto) -> float:
        (logits,) = session(model).run(None, {"image": test["image"]})
        return 100 * float((logits.argmax(1) == test["labels"]).mean())

    return Task(
        name="digits",
        unit="top-1",
        model=_MODELS / "digits.onnx",
        calibration=batches("image", images, 16),
        score=score,
        ratios=(0.5, 0.7, 0.8, 0.85, 0.9, 0.93),
    )


def recognition() -> Task:
    """PP-OCRv4 recognition, scored by character accuracy on lines that were not calibrated on."""
    path = wheel_member()
    seen = ocr.lines(64, seed=1)
    truth = ocr.lines(200, seed=2, avoid=seen)
    images = ocr.render(truth, seed=4)
    alphabet = ocr.characters(onnx.load(path).metadata_props[0].value)

    def score(model: onnx.ModelProto) -> float:
        reader = session(model)
        read: list[str] = []
        for start in range(0, len(images), 20):
            read += ocr.decode(reader.run(None, {"x": images[start : start + 20]})[0], alphabet)
        return ocr.character_accuracy(truth, tuple(read))

    return Task(
        name="recognition",
        unit="character accuracy",
        model=path,
        calibration=batches("x", ocr.render(seen, seed=3), 8),
        score=score,
        ratios=(0.1, 0.2, 0.3),
    )


TASKS = {"digits": digits, "recognition": recognition}


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Load a model quietly."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def batches(name: str, images: npt.NDArray[np.float32], size: int) -> Feeds:
    """Cut images into feeds."""
    return [{name: images[i : i + size]} for i in range(0, len(images), size)]


def wheel_member() -> Path:
    """The recognition model, out of its wheel."""
    target = _CACHE / Path(_MEMBER).name
    if not target.is_file():
        _CACHE.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(_CACHE)]
        subprocess.run([*pip, _WHEEL], check=True)
        with zipfile.ZipFile(next(_CACHE.glob("rapidocr*.whl"))) as wheel:
            target.write_bytes(wheel.read(_MEMBER))
    return target


def compress(task: Task, cr: float, method: str) -> onnx.ModelProto:
    """The model compressed by one of the methods."""
    if method in ("uniform", "energy"):
        plan = plain_plan(task, cr, energy=method == "energy")
        return alds_onnx.compress(task.model, plan=plan, dry_run=True).model
    if method in ("iterative", "exact"):
        search = SearchMethod(method)
        return alds_onnx.compress(task.model, cr=cr, search=search, dry_run=True).model
    if method == "exact+fit":
        plan = alds_onnx.compress(task.model, cr=cr, dry_run=True).plan
        return calibrated(task, plan=plan).model
    if method == "ranks":
        plan = calibrated(task, cr=cr).plan
        return alds_onnx.compress(task.model, plan=plan, dry_run=True).model
    objective = Objective.MAX_OUTPUT_ERROR if method == "max" else None
    return calibrated(task, cr=cr, objective=objective).model


def calibrated(
    task: Task,
    *,
    cr: float | None = None,
    plan: Plan | None = None,
    objective: Objective | None = None,
) -> alds_onnx.Result:
    """Compress with the task's calibration data."""
    return alds_onnx.compress(
        task.model,
        cr=cr,
        plan=plan,
        objective=objective,
        calibration=task.calibration,
        dry_run=True,
    )


METHODS = ("uniform", "energy", "iterative", "exact", "exact+fit", "ranks", "max", "calibrated")


def plain_plan(task: Task, cr: float, *, energy: bool) -> Plan:
    """Ranks of k = 1 by one fraction for all layers, the largest that fits the budget."""
    plan = alds_onnx.compress(task.model, cr=0.01, dry_run=True).plan
    spectra = singular_values(task.model, plan)
    limit = (1 - cr) * plan.parameters
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        rows = [_cut_row(row, spectra.get(row.name), middle, energy) for row in plan.layers]
        removed = sum(row.parameters_before - row.parameters_after for row in rows if row.cut)
        low, high = (middle, high) if plan.parameters - removed <= limit else (low, middle)
    rows = [_cut_row(row, spectra.get(row.name), low, energy) for row in plan.layers]
    return replace(plan, layers=tuple(rows))


def singular_values(path: Path, plan: Plan) -> dict[str, npt.NDArray[np.float64]]:
    """Singular values of the folded weights, by layer."""
    graph = onnx.load(path).graph
    tensors = {t.name: t for t in graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    values = {}
    for row in plan.layers:
        if row.decision is not Decision.SKIP and row.weight in tensors:
            array = onnx.numpy_helper.to_array(tensors[row.weight]).astype(np.float64)
            matrix = array.reshape(array.shape[0], -1)
            values[row.name] = np.linalg.svd(matrix, compute_uv=False)
    return values


def _cut_row(
    row: LayerPlan, values: npt.NDArray[np.float64] | None, fraction: float, energy: bool
) -> LayerPlan:
    """A row cut to a fraction of its rank or energy, or kept if that does not make it smaller."""
    if values is None:
        return row
    rank = max(1, round(fraction * len(values)))
    if energy:
        kept = np.cumsum(values**2) / np.sum(values**2)
        rank = min(len(values), int(np.searchsorted(kept, fraction)) + 1)
    rows, columns = row.shape[0], int(np.prod(row.shape[1:]))
    after = rank * (rows + columns)
    if after >= row.parameters_before:
        return replace(row, decision=Decision.KEEP, cut=None)
    cut = Cut(num_slices=1, rank=rank)
    return replace(row, decision=Decision.DECOMPOSE, cut=cut, parameters_after=after)


def table(task: Task, ratios: Sequence[float], methods: Sequence[str]) -> dict[str, list[float]]:
    """Print and return the scores of all methods at all ratios."""
    base = task.score(onnx.load(task.model))
    print(f"\n{task.name}: {task.unit} in %, {base:.2f} before compression")
    print("removed     " + "".join(f"{cr:>9.0%}" for cr in ratios) + "   seconds", flush=True)
    scores: dict[str, list[float]] = {}
    for method in methods:
        start = time.perf_counter()
        scores[method] = [task.score(compress(task, cr, method)) for cr in ratios]
        seconds = (time.perf_counter() - start) / len(ratios)
        row = "".join(f"{value:9.2f}" for value in scores[method])
        print(f"{method:12s}{row}{seconds:10.1f}", flush=True)
    return {"original": [base] * len(ratios), **scores}


def plot(results: dict[str, tuple[Sequence[float], dict[str, list[float]]]], path: Path) -> None:
    """Draw the curves of all tasks."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only where a plot is wanted

    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4.5), squeeze=False)
    for axis, (name, (ratios, scores)) in zip(axes[0], results.items(), strict=True):
        for method, values in scores.items():
            style = "k:" if method == "original" else "o-"
            axis.plot([100 * r for r in ratios], values, style, label=method, markersize=4)
        axis.set(title=name, xlabel="parameters removed, %", ylabel="score, %")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="default: all")
    parser.add_argument("--cr", type=float, action="append", help="ratio to try (repeatable)")
    parser.add_argument("--method", choices=METHODS, action="append", help="default: all")
    parser.add_argument("--plot", type=Path, help="draw the curves to this PNG")
    options = parser.parse_args()
    results = {}
    for name in options.tasks or TASKS:
        task = TASKS[name]()
        ratios = tuple(options.cr or task.ratios)
        results[name] = (ratios, table(task, ratios, options.method or METHODS))
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
