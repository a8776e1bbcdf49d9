"""A temporary file for the numbers of new tensors, where memory would not hold them all."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from onnx import TensorProto

from alds_onnx.errors import InputError
from alds_onnx.graph.files.external import packed, point


class Spill:
    """Moves tensors out of memory; the file goes when this object does."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="alds-onnx-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = Path(folder) / "numbers"

    def move(self, tensor: TensorProto) -> None:
        """Write the numbers of an inline tensor to the file, and say so in the tensor.

        Raises
        ------
        InputError
            If there is no room for them.
        """
        numbers = packed(tensor)
        try:
            with self._path.open("ab") as file:
                offset = file.tell()
                file.write(numbers)
        except OSError as e:
            raise InputError(
                f"a large model needs room in the temporary folder '{tempfile.gettempdir()}': "
                f"{e.strerror or e}; set TMPDIR to another one"
            ) from e
        point(tensor, str(self._path), offset, len(numbers))
