"""English sentences as tokens of all-MiniLM-L6-v2: from docstrings, and from man pages.

The docstrings are those of Python's standard library, the pages are in Debian's package of the
Linux man-pages project.
"""

from __future__ import annotations

import ast
import gzip
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from wheels import package

LENGTH = 64
_MANPAGES = "manpages=6.03-2"
_LEFT_ASIDE = frozenset(("site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"))
_SHORTEST, _LONGEST, _FEWEST_WORDS = 25, 300, 5
# Escapes of roff: fonts, then characters by name, and what is left of others.
_FONT = re.compile(r"\\f(?:\[\w*\]|\(..|.)")
_NAMED = {"\\-": "-", "\\(aq": "'", "\\(dq": '"', "\\e": "\\", "\\(en": "-", "\\(em": "-"}

Tokens = dict[str, npt.NDArray[np.int64]]


def docstrings() -> tuple[str, ...]:
    """Distinct sentences of the standard library's docstrings, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    texts: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_ASIDE & set(path.relative_to(root).parts):
            texts += _documented(path)
    return tuple(sorted({sentence for text in texts for sentence in _sentences(text)}))


def manuals() -> tuple[str, ...]:
    """Distinct sentences of man pages, in order."""
    folder = package(_MANPAGES) / "usr/share/man"
    found: set[str] = set()
    for path in sorted(folder.glob("man*/*.gz")):
        found.update(_sentences(_plain(gzip.decompress(path.read_bytes()).decode("utf-8"))))
    return tuple(sorted(found))


def tokenized(texts: Iterable[str], tokenizer: Path) -> Tokens:
    """What the model takes: tokens and mask, each of shape (sentences, 64)."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - only one of the models needs it

    tokens = Tokenizer.from_file(str(tokenizer))
    tokens.enable_truncation(LENGTH)
    tokens.enable_padding(length=LENGTH)
    encoded = tokens.encode_batch(list(texts))
    return {
        "input_ids": np.array([row.ids for row in encoded], np.int64),
        "attention_mask": np.array([row.attention_mask for row in encoded], np.int64),
    }


def _documented(path: Path) -> Iterator[str]:
    """The docstrings in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in old code
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _sentences(text: str) -> Iterator[str]:
    """Sentences of the paragraphs that are neither indented nor code."""
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph or paragraph != textwrap.dedent(paragraph):
            continue
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            long_enough = _SHORTEST <= len(sentence) <= _LONGEST
            if long_enough and len(sentence.split()) >= _FEWEST_WORDS:
                yield sentence


def _plain(roff: str) -> str:
    """The text of a man page; a request that is not about fonts ends a paragraph."""
    lines = []
    for line in roff.splitlines():
        if line.startswith((".B ", ".I ", ".BR ", ".IR ", ".RB ", ".RI ", ".BI ", ".IB ")):
            font, _, words = line[1:].partition(" ")
            lines.append(words if len(font) == 1 else _joined(words))
        else:
            lines.append("" if line.startswith((".", "'")) else line)
    text = _FONT.sub("", "\n".join(lines))
    for escape, character in _NAMED.items():
        text = text.replace(escape, character)
    return re.sub(r"\\(?:\(..|\[\w+\]|[&|^~:% ])", "", text)


def _joined(words: str) -> str:
    """The arguments of a request with alternating fonts, which are printed without spaces."""
    parts = re.findall(r'"([^"]*)"|(\S+)', words)
    return "".join(quoted or plain for quoted, plain in parts)
