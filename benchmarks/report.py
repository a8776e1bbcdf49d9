"""How soon the HTML report is readable: from opening it to the last picture, in Chromium.

    python -m benchmarks.report

opens the pages of the embedded model, of PP-OCRv4 recognition (from a wheel) and of a chain of 150
layers, a few times each in a new tab, and prints their size, the pictures that were drawn, what the
browser complained of, and the seconds: the median and the longest.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx.parser
from onnx import ModelProto, numpy_helper

import alds_onnx
from alds_onnx.report.html import report_to_html
from alds_onnx.report.origin import find_origin
from benchmarks.wheels import member
from tests.report.browser import Opened, open_browser

_DIGITS = Path(__file__).parents[1] / "models" / "digits.onnx"
_OCR = ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")
_LAYERS, _WIDTH, _TIMES = 150, 24, 5


def chain() -> ModelProto:
    """Many MatMuls, one behind the other, with random weights."""
    nodes = " ".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(_LAYERS))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> chain (float[N,{_WIDTH}] h0) => '
        f"(float[N,{_WIDTH}] h{_LAYERS}) {{ {nodes} }}"
    )
    generator = np.random.default_rng(0)
    for i in range(_LAYERS):
        weight = generator.standard_normal((_WIDTH, _WIDTH)).astype(np.float32) / _WIDTH**0.5
        model.graph.initializer.append(numpy_helper.from_array(weight, f"w{i}"))
    return model


def main() -> None:
    """Print a line for each page."""
    models = {
        "embedded model": _DIGITS,
        "PP-OCRv4 recognition": member(*_OCR),
        f"{_LAYERS} layers": chain(),
    }
    print("page                       size   pictures   complaints   median   longest")
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        for name, model in models.items():
            made = alds_onnx.compress(model, cr=0.3)
            page = Path(folder) / "report.html"
            page.write_bytes(report_to_html(made.report, find_origin([])))
            seconds = []
            for _ in range(_TIMES):
                start = time.perf_counter()
                opened = Opened(browser, page)
                seconds.append(time.perf_counter() - start)
                drawn, complaints = len(opened.plots()), len(opened.complaints)
                opened.page.close()
            print(
                f"{name:24s} {page.stat().st_size / 1e6:4.1f} MB {drawn:8d} {complaints:12d} "
                f"{np.median(seconds):6.2f} s {max(seconds):7.2f} s"
            )


if __name__ == "__main__":
    main()
