"""Time that compression saves in onnxruntime, with ranks for it and without.

What: each model whole, compressed for no runtime (--target none: all slices and ranks, as in the
paper) and for onnxruntime on this machine (--target ort), at the same ratios.

    digits                the embedded model
    detection             PP-OCRv4 text detection, one 320 x 320 image
    recognition           PP-OCRv4 text recognition, one 48 x 320 line
    vgg16, resnet50       the layers of these networks at 224 x 224, with random weights

The random weights have singular values that decay as rank^-0.5, so that their errors say nothing
about trained networks; their times do not depend on the numbers in them.

Why: multiply-accumulates alone say little about time; this table says how much is left of them.

How: one thread, batch 1. The three models of a row take turns run by run; the ratio is that of the
medians. Ratios are to the whole model. "unaligned" counts layers whose slices or ranks are not
those the target asks for, "error" is the largest relative error of a layer, and top-1 that of the
embedded model with its calibration images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from wheels import member

import alds_onnx
from alds_onnx import Result, Runtime
from alds_onnx.runtimes import preset

_HERE = Path(__file__).resolve().parent
_MODELS = _HERE.parent / "models"
_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_FOLDER = "rapidocr_onnxruntime/models/"
_TARGETS = (Runtime.NONE, Runtime.ORT)
_FEWEST = 5

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A model, the shape of one run's input, and calibration data where scores are known."""

    name: str
    model: Path
    shape: tuple[int, ...]
    calibration: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One compressed model against the whole one."""

    case: str
    cr: float
    target: str
    parameters: float
    macs: float
    time: float
    unaligned: int
    error: float
    top_1: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for name in options.models:
            case = CASES[name](Path(folder))
            for cr in options.cr:
                rows += measure(case, cr, options.seconds)
                print("\n".join(_line(row) for row in rows[-len(_TARGETS) :]), flush=True)
    text = table(rows)
    print("\n" + text)
    if options.write:
        (_HERE / "latency.md").write_text(text, encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--cr", type=float, nargs="+", default=[0.3, 0.5, 0.7], metavar="FRACTION")
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="for each row (default: 5)"
    )
    parser.add_argument("--write", action="store_true", help="write the table to latency.md")
    return parser


def measure(case: Case, cr: float, seconds: float) -> list[Row]:
    """Compress for each target, and time them and the whole model in turns."""
    found = {target: _compress(case, cr, target) for target in _TARGETS}
    sessions = [_session(case.model.read_bytes())]
    sessions += [_session(r.model.SerializeToString()) for r in found.values()]
    feed = _feed(sessions[0], case.shape)
    whole, *times = _medians(sessions, feed, seconds)
    return [
        Row(
            case=case.name,
            cr=cr,
            target=target.value,
            parameters=1 - result.plan.removed,
            macs=(result.report.macs_after or 0) / (result.report.macs_before or 1),
            time=own / whole,
            unaligned=len(result.report.unaligned),
            error=result.plan.max_relative_error,
            top_1=_top_1(case, cr, target),
        )
        for (target, result), own in zip(found.items(), times, strict=True)
    ]


def _compress(case: Case, cr: float, target: Runtime, **more: Any) -> Result:
    name = onnx.load(case.model, load_external_data=False).graph.input[0].name
    shapes = {name: case.shape}
    return alds_onnx.compress(
        case.model, cr=cr, target=target, input_shapes=shapes, dry_run=True, threads=1, **more
    )


def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _feed(session: ort.InferenceSession, shape: tuple[int, ...]) -> dict[str, Array]:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {session.get_inputs()[0].name: x}


def _medians(
    sessions: Sequence[ort.InferenceSession], feed: dict[str, Array], seconds: float
) -> list[float]:
    """Median seconds of a run of each, run by run in turns, after two runs that do not count."""
    times: list[list[float]] = [[] for _ in sessions]
    end, turn = time.perf_counter() + seconds, -2
    while turn < _FEWEST or time.perf_counter() < end:
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            if turn >= 0:
                own.append(time.perf_counter() - start)
        turn += 1
    return [float(np.median(own)) for own in times]


def _top_1(case: Case, cr: float, target: Runtime) -> float | None:
    if case.calibration is None:
        return None
    result = _compress(case, cr, target, calibration=[{"image": case.calibration}])
    test = np.load(_MODELS / "digits_test.npz")
    (scores,) = _session(result.model.SerializeToString()).run(None, {"image": test["image"]})
    return float((scores.argmax(1) == test["labels"]).mean())


def table(rows: Sequence[Row]) -> str:
    """All rows as Markdown, with what was measured on."""
    block = preset(Runtime.ORT).block
    head = [
        "# Time saved in onnxruntime",
        "",
        f"Printed by `python benchmarks/latency.py --write`: onnxruntime {ort.__version__}, one "
        f"thread, batch 1, blocks of {block} channels. `vgg16` and `resnet50` have random weights.",
        "",
        "| model | removed | target | parameters | MACs | time | time / MACs | unaligned layers "
        "| largest error | top-1, calibrated |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *(_line(row) for row in rows)]) + "\n"


def _line(row: Row) -> str:
    cells = [
        row.case,
        f"{100 * row.cr:g} %",
        row.target,
        f"{row.parameters:.3f}",
        f"{row.macs:.3f}",
        f"**{row.time:.2f}**",
        f"{row.time / row.macs:.2f}",
        str(row.unaligned),
        f"{row.error:.3f}",
        "" if row.top_1 is None else f"{100 * row.top_1:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def digits(folder: Path) -> Case:
    images = np.load(_MODELS / "digits_calibration.npz")["image"]
    return Case(
        name="digits", model=_MODELS / "digits.onnx", shape=(1, 1, 28, 28), calibration=images
    )


def detection(folder: Path) -> Case:
    path = member(_RAPIDOCR, f"{_FOLDER}ch_PP-OCRv4_det_infer.onnx")
    return Case(name="detection", model=path, shape=(1, 3, 320, 320))


def recognition(folder: Path) -> Case:
    path = member(_RAPIDOCR, f"{_FOLDER}ch_PP-OCRv4_rec_infer.onnx")
    return Case(name="recognition", model=path, shape=(1, 3, 48, 320))


def vgg16(folder: Path) -> Case:
    net = _Net()
    for stage, (channels, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for _ in range(depth):
            net.relu(net.conv(channels, 3))
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        net.size = 112 >> stage
    net.add("Flatten")
    net.channels *= net.size**2
    for features in (4096, 4096):
        net.relu(net.gemm(features))
    net.gemm(1000)
    return Case(name="vgg16", model=net.save(folder / "vgg16.onnx"), shape=(1, 3, 224, 224))


def resnet50(folder: Path) -> Case:
    net = _Net()
    net.relu(net.conv(64, 7, stride=2))
    net.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, depth in enumerate([3, 4, 6, 3]):
        for block in range(depth):
            net.bottleneck(64 << stage, stride=2 if stage and not block else 1, first=not block)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(1000)
    return Case(name="resnet50", model=net.save(folder / "resnet50.onnx"), shape=(1, 3, 224, 224))


CASES: dict[str, Callable[[Path], Case]] = {
    "digits": digits,
    "detection": detection,
    "recognition": recognition,
    "vgg16": vgg16,
    "resnet50": resnet50,
}


class _Net:
    """A chain of layers with random weights; `tensor` is what the next one reads."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.tensor, self.channels, self.size = "x", 3, 224
        self._generator = np.random.default_rng(0)
        self._names: Iterator[str] = (f"t{i}" for i in range(1 << 30))

    def add(self, op: str, *others: str, **attributes: Any) -> str:
        output = next(self._names)
        node = helper.make_node(op, [self.tensor, *others], [output], name=output, **attributes)
        self.nodes.append(node)
        self.tensor = output
        return output

    def relu(self, _: str) -> str:
        return self.add("Relu")

    def conv(self, features: int, kernel: int, stride: int = 1) -> str:
        weight = self._weight(features, self.channels, kernel, kernel)
        pads, self.channels = [kernel // 2] * 4, features
        return self.add("Conv", weight, self._zeros(features), pads=pads, strides=[stride] * 2)

    def gemm(self, features: int) -> str:
        weight = self._weight(features, self.channels)
        self.channels = features
        return self.add("Gemm", weight, self._zeros(features), transB=1)

    def bottleneck(self, width: int, *, stride: int, first: bool) -> None:
        """1x1, 3x3 and 1x1, added to the input or to a 1x1 of it."""
        start, channels = self.tensor, self.channels
        self.relu(self.conv(width, 1))
        self.relu(self.conv(width, 3, stride))
        end = self.conv(4 * width, 1)
        if first:
            self.tensor, self.channels = start, channels
            start = self.conv(4 * width, 1, stride)
        self.tensor = end
        self.relu(self.add("Add", start))

    def _weight(self, features: int, *rest: int) -> str:
        """Random singular vectors, roughly orthogonal, with singular values that decay."""
        columns = int(np.prod(rest))
        left = self._generator.standard_normal((features, most := min(features, columns, 512)))
        right = self._generator.standard_normal((most, columns)) / np.sqrt(columns)
        decay = np.arange(1, most + 1) ** -0.5
        noise = self._generator.standard_normal((features, columns)) * 0.02 / np.sqrt(columns)
        array = left * decay @ right / np.sqrt(np.log(most + 1)) + noise
        return self._initializer(array.reshape(features, *rest))

    def _zeros(self, features: int) -> str:
        return self._initializer(np.zeros(features))

    def _initializer(self, array: Array) -> str:
        name = next(self._names)
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def save(self, path: Path) -> Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])
        y = helper.make_tensor_value_info(self.tensor, TensorProto.FLOAT, [1, self.channels])
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.weights)
        opsets = [helper.make_opsetid("", 17)]
        model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path


if __name__ == "__main__":
    sys.exit(main())
