"""Lines of English text with their truth, and a reader, to score PP-OCRv4 recognition for real.

Words come from Python's own documentation (pydoc_data.topics); lines of calibration and test data
are drawn with different seeds and never coincide. Rendered with the DejaVu fonts that Matplotlib
carries, in several sizes and weights, with grey background, blur and noise.
"""

from __future__ import annotations

import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT, WIDTH = 48, 320
_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
)

Lines = tuple[str, ...]
Images = npt.NDArray[np.float32]
Counts = npt.NDArray[np.float64]


def lines(count: int, seed: int, avoid: Lines = ()) -> Lines:
    """Draw distinct lines of two to four words, at most 26 letters, none of them in `avoid`."""
    text = " ".join(topics.values())
    words = sorted(set(re.findall(r"\b[A-Za-z]{2,12}\b[.,]?", text)))
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        line = " ".join(generator.choice(words, generator.integers(2, 5)))
        if len(line) <= 26 and line not in avoid:
            found[line] = None
    return tuple(found)


def numbers(count: int, seed: int) -> Lines:
    """Draw distinct lines without a word: prices, dates, times, and numbers of telephones."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        a, b, c, d = (int(n) for n in generator.integers(0, 100, 4))
        forms = (
            f"${a}{b:02}.{c:02}",
            f"{a},{b:02}{c % 10}.{d:02}",
            f"20{a:02}-{b % 12 + 1:02}-{c % 28 + 1:02}",
            f"{a % 24:02}:{b % 60:02}:{c % 60:02}",
            f"+{a % 90 + 10} {b:02} {c:02}{d:02} {a * d:04}",
            f"{a}.{b:02} x {c} = {(100 * a + b) * c / 100:.2f}",
        )
        found[str(generator.choice(forms))] = None
    return tuple(found)


def render(texts: Lines, seed: int) -> Images:
    """Images as the model takes them: shape (lines, 3, 48, 320), in -1 to 1, padded with 0."""
    generator = np.random.default_rng(seed)
    return np.stack([_render(text, generator) for text in texts])


def _render(text: str, generator: np.random.Generator) -> Images:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(
        str(folder / generator.choice(_FONTS)), int(generator.integers(20, 40))
    )
    left, top, right, bottom = font.getbbox(text)
    margin = int(generator.integers(3, 9))
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    paper, ink = int(generator.integers(200, 256)), int(generator.integers(0, 80))
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=ink)
    if generator.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(0.6))
    width = min(WIDTH, max(1, round(size[0] * HEIGHT / size[1])))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    pixels = np.clip(pixels + generator.normal(0, 6, pixels.shape), 0, 255)
    canvas = np.zeros((3, HEIGHT, WIDTH), np.float32)
    canvas[:, :, :width] = pixels / 127.5 - 1
    return canvas


def characters(metadata: str) -> list[str]:
    """The model's alphabet from its `character` metadata: blank first, the space last."""
    return ["", *metadata.splitlines(), " "]


def decode(scores: npt.NDArray[Any], alphabet: list[str]) -> Lines:
    """Greedy CTC: the best class of each step, repeats and blanks removed."""
    texts = []
    for row in scores.argmax(-1):
        changed = np.append(True, row[1:] != row[:-1])
        texts.append("".join(alphabet[c] for c in row[changed & (row != 0)]))
    return tuple(texts)


def correct_characters(truth: Lines, read: Lines) -> tuple[Counts, Counts]:
    """Letters less edit distance, and letters, of every line."""
    letters = np.array([len(line) for line in truth], np.float64)
    wrong = [_distance(a, b) for a, b in zip(truth, read, strict=True)]
    return letters - wrong, letters


def _distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]
