"""Files of known type, to score Magika for real: the model that tells what a file contains.

The files come from wheels of pinned versions and the truth is in their names: `.py` is Python.
Calibration and test files come from different projects, and a file that both have (fonts, scripts
that everybody ships) is only tested. Extensions that do not tell the type (`.h`, `.txt`) are not
used, nor are test files with template tags, which are HTML or JSON by name only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from wheels import wheel

MAGIKA = "magika==1.0.3"
_FOLDER = "magika/models/standard_v3_3"
MODEL = f"{_FOLDER}/model.onnx"

TEST = (
    "ansible-core==2.18.1",
    "ansible-lint==24.12.2",
    "awscli==1.36.20",
    "Cython==3.0.11",
    "Django==5.1.4",
    "esphome==2024.11.3",
    "googleapis-common-protos==1.66.0",
    "kolla==23.0.0",
    "localstack-core==4.0.3",
    "pelican==4.10.2",
    "shiny==1.2.1",
)
CALIBRATION = (
    "checkov==3.2.334",
    "debugpy==1.8.9",
    "docutils==0.21.2",
    "grpcio-tools==1.68.1",
    "lektor==3.3.14",
    "mkdocs==1.6.1",
    "Nikola==8.3.1",
    "odoo-addon-mis-builder==19.0.1.2.1",
    "pyccel==2.0.1",
    "pythran==0.17.0",
    "sphinx==8.1.3",
)

# Extension: the model's name for the type.
_TYPES = {
    ".c": "c",
    ".cpp": "cpp",
    ".css": "css",
    ".hpp": "cpp",
    ".html": "html",
    ".js": "javascript",
    ".json": "json",
    ".md": "markdown",
    ".png": "png",
    ".po": "po",
    ".proto": "proto",
    ".py": "python",
    ".rst": "rst",
    ".scss": "scss",
    ".sh": "shell",
    ".so": "elf",
    ".svg": "svg",
    ".woff2": "woff2",
    ".xml": "xml",
    ".yaml": "yaml",
    ".yml": "yaml",
}
_SMALLEST = 256  # bytes: less says too little
_BLOCK, _PART, _PADDING = 4096, 1024, 256  # of the model's config.min.json

Rows = npt.NDArray[np.int32]
Labels = npt.NDArray[np.int64]


def tested(per_type: int, seed: int) -> tuple[Rows, Labels]:
    """Test files, at most `per_type` of each type: model inputs and the index of the truth."""
    with wheel(MAGIKA) as archive:
        names = json.loads(archive.read(f"{_FOLDER}/config.min.json"))["target_labels_space"]
    found = _draw(TEST, per_type, seed, templates=False)
    labels = [names.index(kind) for kind, rows in found.items() for _ in rows]
    return np.stack([row for rows in found.values() for row in rows]), np.array(labels)


def calibrated(per_type: int, seed: int, avoid: Rows) -> Rows:
    """Inputs for calibration, in mixed order, none of them in `avoid`."""
    found = _draw(CALIBRATION, per_type, seed, avoid={row.tobytes() for row in avoid})
    rows = np.stack([row for rows in found.values() for row in rows])
    return np.random.default_rng(seed).permutation(rows)


def every(per_type: int) -> tuple[Rows, tuple[str, ...]]:
    """Files of all projects, at most `per_type` of each type: model inputs and types by name."""
    found = _draw(CALIBRATION + TEST, per_type, seed=0)
    kinds = tuple(kind for kind, rows in found.items() for _ in rows)
    return np.stack([row for rows in found.values() for row in rows]), kinds


def features(data: bytes) -> Rows:
    """What the model sees: the first and the last 1,024 bytes, blanks at the ends stripped.

    At most 4,096 bytes from either end are looked at. The head is padded at its end and the tail
    at its start, with a number that is no byte.
    """
    head = np.frombuffer(data[:_BLOCK].lstrip()[:_PART], np.uint8)
    tail = np.frombuffer(data[-_BLOCK:].rstrip()[-_PART:], np.uint8)
    row = np.full(2 * _PART, _PADDING, np.int32)
    row[: len(head)] = head
    row[2 * _PART - len(tail) :] = tail
    return row


def _draw(
    pins: tuple[str, ...],
    per_type: int,
    seed: int,
    *,
    avoid: Collection[bytes] = (),
    templates: bool = True,
) -> dict[str, list[Rows]]:
    """Distinct files by type, sorted by type."""
    files: dict[str, dict[bytes, Rows]] = defaultdict(dict)
    for pin in pins:
        for kind, data in _files(pin):
            row = features(data)
            template = b"{%" in data or b"{{" in data
            if row.tobytes() not in avoid and (templates or not template):
                files[kind][row.tobytes()] = row
    generator = np.random.default_rng(seed)
    drawn = {}
    for kind, rows in sorted(files.items()):
        order = generator.permutation(len(rows))[:per_type]
        drawn[kind] = [list(rows.values())[i] for i in order]
    return drawn


def _files(pin: str) -> Iterator[tuple[str, bytes]]:
    """Type and content of the files of a wheel that are large enough and have a known extension."""
    with wheel(pin) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
            kind = _TYPES.get(PurePosixPath(entry.filename).suffix)
            if kind and entry.file_size >= _SMALLEST and ".dist-info/" not in entry.filename:
                yield kind, archive.read(entry)
