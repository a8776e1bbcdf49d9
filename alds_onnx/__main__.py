"""`python -m alds_onnx`, and the console command.

Loads the command inside a guard, because that takes a second in which Ctrl-C can come too.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command and exit with its code."""
    before = [(n, signal.signal(n, _stop)) for n in (signal.SIGINT, signal.SIGTERM)]
    from alds_onnx.cli import run  # noqa: PLC0415 - see above

    for number, handler in before:
        signal.signal(number, handler)
    sys.exit(run(sys.argv[1:]))


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave at once: nothing is open yet, and an exception could be caught by what is loading."""
    os.write(2, b"alds-onnx: error: interrupted; nothing was written\n")
    os._exit(130)


if __name__ == "__main__":
    main()
