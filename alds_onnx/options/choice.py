"""Which cuts and which layers the search chooses from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path

from alds_onnx.cuts import Scheme
from alds_onnx.errors import UsageError
from alds_onnx.options.declare import Converted, Heading, Options, option
from alds_onnx.runtimes import Runtime
from alds_onnx.values import SearchMethod


class Measuring(str, Enum):
    """When cuts are timed, so that slower ones are not chosen.

    What is chosen then depends on the machine, and may differ from run to run.
    """

    NEVER = "never"
    CHEAP = "if it is cheap"
    ALWAYS = "always"


def parse_schemes(text: str) -> tuple[Scheme, ...]:
    """Parse `encode,decode`, or `all`."""
    if text == "all":
        return tuple(Scheme)
    known = {scheme.value: scheme for scheme in Scheme}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' is not one of {', '.join(known)}, all")
    return tuple(known[name] for name in names)


@dataclass(kw_only=True, eq=False)
class Search(Options):
    """Which cuts the search chooses from, and how."""

    heading = Heading.RANKS
    search: SearchMethod = option(
        SearchMethod.EXACT,
        flag="--search",
        choices={method.value: method for method in SearchMethod},
        help="exact: the global optimum; iterative: Algorithm 1 of the ALDS paper.",
    )
    target: Runtime = option(
        Runtime.ORT,
        flag="--target",
        choices={runtime.value: runtime for runtime in Runtime},
        help="Choose only cuts that this runtime is fast at. ort: onnxruntime on this processor; "
        "none: every cut.",
        python="What will run the model: only slices and ranks that it is fast at are chosen. "
        "`ORT` is onnxruntime on this machine's processor, `NONE` allows all.",
        more="The paper chooses from all cuts, which keeps most accuracy; the model is then often "
        "slower than the original. A plan is applied whatever the target is.",
    )
    schemes: Converted[Sequence[Scheme] | None, tuple[Scheme, ...] | None] = option(
        Converted(None, lambda _, given: None if given is None else tuple(given)),
        flag="--schemes NAME,..",
        parse=parse_schemes,
        help="What a convolution may become, comma-separated: encode, decode, split-height, "
        "split-width, tucker2; or all.",
        python="What a convolution may become; the search chooses for each layer.",
        more="encode: kh x kw, then 1x1, which is the paper's; decode: 1x1, then kh x kw; "
        "split-height: kh x 1, then 1 x kw; split-width: 1 x kw, then kh x 1; tucker2: 1x1, kh x "
        "kw, 1x1. Default: all; encode alone with --target none and with --search iterative, which "
        "knows no other.",
    )

    def check(self) -> None:
        """Refuse an empty list of schemes."""
        super().check()
        if self.schemes == ():
            raise UsageError("--schemes names no scheme: give one, such as encode")


@dataclass(kw_only=True, eq=False)
class Timing(Options):
    """Whether cuts are timed in onnxruntime, and what follows from that."""

    heading = Heading.RANKS
    measuring: Measuring = option(
        Measuring.NEVER,
        flag="--measure/--no-measure",
        parse=bool,
        load=lambda wanted: Measuring.ALWAYS if wanted else Measuring.NEVER,
        help="Time cuts in onnxruntime here, and choose none slower than its layer. Default: if it "
        "is cheap, with --target ort.",
        python="Whether cuts are timed in onnxruntime on this machine, so that none is chosen that "
        "is slower than its layer. The command does so by default if it is cheap and --target is "
        "'ort'.",
        more="Each layer is timed on its own; cheap is up to about half a minute. The result then "
        "depends on the machine and on chance; without, the same input and options give the same "
        "bytes. A plan, and what --search iterative chooses, is not timed.",
    )
    allow_slower: bool = option(
        False,
        flag="--allow-slower",
        help="Choose by error and budget alone; of slower cuts, only say which they are.",
    )
    timings: Converted[str | os.PathLike[str] | None, Path | None] = option(
        Converted(None, lambda _, given: None if given is None else Path(given)),
        python="A file that times are kept in for other runs.",
    )
    remeasure: bool = option(
        False,
        flag="--remeasure",
        help="Do not use times that an earlier run has kept.",
    )


@dataclass(kw_only=True, eq=False)
class Selection(Options):
    """Which layers may be decomposed."""

    heading = Heading.RANKS
    include: Converted[Sequence[str], tuple[str, ...]] = option(
        Converted((), lambda _, given: tuple(given)),
        flag="--include PATTERN",
        repeatable=True,
        help="Decompose only layers whose names match (glob; repeatable).",
        python="Globs on layer names: only these layers may be decomposed.",
    )
    exclude: Converted[Sequence[str], tuple[str, ...]] = option(
        Converted((), lambda _, given: tuple(given)),
        flag="--exclude PATTERN",
        repeatable=True,
        help="Keep layers whose names match (glob; repeatable).",
        python="Globs on layer names: these layers stay as they are.",
    )

    def excluded(self, names: Sequence[str]) -> frozenset[str]:
        """The layers that stay whole by `include` and `exclude`; a pattern must match a layer."""
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise UsageError(
                        f"{flag} '{pattern}' matches no layer: --dry-run lists their names"
                    )
        return frozenset(
            name
            for name in names
            if (self.include and not self.includes(name))
            or any(fnmatchcase(name, pattern) for pattern in self.exclude)
        )

    def includes(self, name: str) -> bool:
        """Whether a pattern of `include` asks for a layer."""
        return any(fnmatchcase(name, pattern) for pattern in self.include)
