"""`python -m alds_onnx`, and the console command."""

from __future__ import annotations

import sys

from alds_onnx.interrupts import loading


def main() -> None:
    """Run the command and exit with its code."""
    with loading():
        from alds_onnx.cli import run  # noqa: PLC0415 - Ctrl-C can come while it is imported

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
