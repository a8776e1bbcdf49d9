"""The command: argv to exit code. Only this package prints.

What answers `--help` and wrong usage is here and in `help` and `arguments`; the work is in
`actions`, which is imported when there is some, because that takes a second.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from alds_onnx.cli.arguments import make_parameters, make_request
from alds_onnx.cli.help import EPILOG, GroupedCommand
from alds_onnx.errors import AldsError
from alds_onnx.interrupts import Interruption, loading

_INTERRUPTED = 130
_BUG = 1


@click.command(
    cls=GroupedCommand,
    params=make_parameters(),
    epilog=EPILOG,
    context_settings={"max_content_width": 100},
)
@click.version_option(package_name="alds-onnx", message="alds-onnx %(version)s")
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Compress a trained ONNX model by low-rank decomposition (ALDS).

    Every convolution, matrix product, recurrent layer and embedding with a constant weight may
    become a pair of smaller ones; ranks are chosen so that the largest relative error is as small
    as the budget allows. onnxruntime checks the result before OUT.onnx is written. IN.onnx is never
    changed.
    """
    with loading():
        from alds_onnx.cli.actions import act  # noqa: PLC0415 - takes a second

    act(make_request(context, values))


def run(argv: Sequence[str]) -> int:  # noqa: PLR0911 - one return for each way to end
    """Run the command; the exit code is 0, 1, 2 or 130."""
    interruption = Interruption()
    try:
        with interruption:
            command.main(list(argv), prog_name="alds-onnx", standalone_mode=False, obj=tuple(argv))
    except click.exceptions.NoArgsIsHelpError as e:
        return _fail(f"nothing to do: give IN.onnx OUT.onnx --cr FRACTION, or --help ({e})", 2)
    except click.ClickException as e:
        return _fail(e.format_message(), e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was written", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of the report went away (`| head`); the model was written before it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:  # noqa: BLE001 - the last resort: a bug must not print a page
        if interruption.came:
            return _fail("interrupted; nothing was written", _INTERRUPTED)
        return _fail_with(e, traceback_wanted="--traceback" in argv)
    return 0


def _fail_with(error: Exception, *, traceback_wanted: bool) -> int:
    """Say what went wrong; the exit code."""
    if traceback_wanted:
        traceback.print_exc()
    if isinstance(error, AldsError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, MemoryError):
        return _fail(f"not enough memory ({error})", 2)
    what = f"{type(error).__name__}: {error}"
    hint = "please report it with the output of --traceback"
    return _fail(f"internal error, nothing was written: {what}; {hint}", _BUG)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    printable = "".join(c if c.isprintable() else "?" for c in line)
    print(f"alds-onnx: error: {printable}", file=sys.stderr)
    return code
