"""`python -m alds_onnx`, and the console command.

Loads the command inside a guard, because that takes a second in which Ctrl-C can come too.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command and exit with its code."""
    try:
        from alds_onnx.cli import run  # noqa: PLC0415 - that is the point
    except KeyboardInterrupt:
        print("alds-onnx: error: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
