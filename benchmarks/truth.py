"""What the tool reports against the truth on unseen data.

    python benchmarks/truth.py                          five models, two ratios, 64 to 512 samples
    python benchmarks/truth.py digits --samples 64 --cr 0.8
    python benchmarks/truth.py --kinds                  also on kinds of inputs that were left out
    python benchmarks/truth.py --kinds --seed 0 --seed 1 --write      truth.md and truth.png

What: a model is compressed with calibration data, and the numbers of its report, the agreement of
top-1 with the original and the relative L2 error of the output, are compared with the same two on a
test set that had no part in it. How the data are drawn is in pools.py:

    same kinds      calibration and test data are drawn alike. The report is that on calibration
                    data which the tool has held out (or on all, if it holds none out)
    other kinds     the calibration data have none of the kinds in the test data. The report is that
                    on kinds which the tool has left out itself ("-" if it has not)

Why: who deploys a compressed model reads these numbers.

How: as by default (--cr --calibration FILE.npz), but with no cut timed, so that all can be
repeated. The truth is computed in verdicts.py, by onnxruntime and NumPy, with a bootstrap over
independent test samples.

    check       samples that the report rests on; "seen" if they were not held out
    ±           one standard error
    excess      points by which the report is better than the truth
    within      whether the two differ by at most two standard errors, those of both together; a
                report without a standard error counts as one that claims to be exact. With several
                draws: in how many of them

--seed, repeated, draws calibration and test data anew; rows are then means over the draws, whose
noise is that of independent checks: with 32 samples to check on, a single draw is off by 7 points
where the truth is 80 %. Seconds
are for one compression. Finished runs are kept in .cache/truth.jsonl, by what they depend on, the
sources of the package included: run the same command again to go on after an interrupt.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from curves import Estimates, SamplePanel, draw_by_samples
from pools import MOST_SAMPLES, Draw, Unseen
from scores import Kept, fingerprint
from unseen import UNSEEN
from verdicts import (
    AGREEMENT,
    ERROR,
    Figures,
    Line,
    Number,
    Row,
    mean,
    read_row,
    true_figures,
)
from wheels import CACHE

import alds_onnx
from alds_onnx import Measuring
from alds_onnx.results import OutputFidelity, Verification

_HERE = Path(__file__).resolve().parent
_TABLES = _HERE / "truth.md"
_PLOT = _HERE / "truth.png"
# What the data and their truth come from.
_MODULES = ("exported", "filetypes", "ocr", "pictures", "pools", "sentences", "unseen", "verdicts")
_SAMPLES = (64, 128, 256, 512)
_SHARE, _EXCESS = 0.9, 0.04  # the bars: rows within two standard errors, excess of agreement

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a row depends on, but for what the versions tell."""

    model: str
    cr: float
    samples: int
    seed: int
    other_kinds: bool
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """What all runs have in common."""

    kept: Kept
    seeds: tuple[int, ...]
    samples: tuple[int, ...]
    threads: int
    known: bool
    say: Say

    def evaluate(self, model: Unseen, ratios: Sequence[float], *, other_kinds: bool) -> list[Line]:
        """Run what was not run before, and print the table."""

        @lru_cache(maxsize=1)  # the ratios share it
        def draw(seed: int, samples: int) -> Draw:
            return model.draw(seed, samples, other_kinds=other_kinds)

        lines = []
        for samples in self.samples:
            found: dict[float, list[Row]] = {cr: [] for cr in ratios}
            for seed in self.seeds:
                for cr, rows in found.items():
                    key = Key(
                        model=model.name,
                        cr=cr,
                        samples=samples,
                        seed=seed,
                        other_kinds=other_kinds,
                        threads=self.threads,
                    )
                    row = self._row(model, key, draw)
                    if row is not None:
                        rows.append(row)
            lines += [
                Line(model=model.name, cr=cr, samples=samples, rows=tuple(rows))
                for cr, rows in found.items()
                if rows
            ]
        lines.sort(key=lambda line: (line.cr, line.samples))
        if lines:
            self._table(model, lines, other_kinds=other_kinds)
        return lines

    def _row(self, model: Unseen, key: Key, draw: Callable[[int, int], Draw]) -> Row | None:
        """A row of an earlier run, or a new one; None if nothing new may be run."""
        kept = self.kept.get(asdict(key))
        if kept is not None or self.known:
            return None if kept is None else read_row(kept)
        row = _measured(model, key, draw(key.seed, key.samples))
        self.kept.add(asdict(key), asdict(row))
        print(f"{key}: {row.seconds:.1f} s", file=sys.stderr, flush=True)
        return row

    def _table(self, model: Unseen, lines: Sequence[Line], *, other_kinds: bool) -> None:
        numbers = (AGREEMENT, ERROR) if model.has_top_1 else (ERROR,)
        tested = sorted({row.tested for line in lines for row in line.rows})
        self.say(
            f"\n{model.name}, {_experiment(other_kinds)}: in %; tested on "
            f"{' to '.join(map(str, tested[:1] + tested[1:][-1:]))} {model.sample}s; "
            f"{self.threads} thread(s)"
        )
        self.say(" " * 33 + "".join(f"| {number:<44s}" for number in numbers) + "|")
        columns = f"| {'reported':>12s} {'truth':>12s} {'excess':>8s} {'within':>7s}  "
        self.say("removed  samples   check  draws  " + columns * len(numbers) + "| seconds")
        for line in lines:
            cells = "".join(f"| {_cells(line, number)}  " for number in numbers)
            seconds = np.mean([row.seconds for row in line.rows])
            head = (
                f"{line.cr:7.0%} {line.samples:8d} {_checked(line.rows):>8s} {len(line.rows):6d} "
            )
            self.say(f"{head} {cells}|{seconds:8.1f}")


def _checked(rows: Sequence[Row]) -> str:
    """How many samples the reports rest on, in the mean."""
    counts = [row.checked for row in rows if row.reported]
    if not counts:
        return "-"
    return f"{np.mean(counts):.0f}" + ("" if all(row.held_out for row in rows) else " seen")


def _cells(line: Line, number: str) -> str:
    """The columns of a number."""
    pairs = line.pairs(number)
    if not pairs:
        return f"{'-':>12s} {_percent(line.truth(number)):>12s} {'-':>8s} {'-':>7s}"
    both, within = mean(pairs), sum(pair.is_within for pair in pairs)
    verdict = f"{within}/{len(pairs)}" if len(pairs) > 1 else ("yes" if within else "no")
    shown = f"{_percent(both.reported):>12s} {_percent(both.truth):>12s}"
    return f"{shown} {100 * both.excess:+8.2f} {verdict:>7s}"


def _percent(number: Number) -> str:
    stderr = "-" if number.stderr is None else f"{100 * number.stderr:.2f}"
    return f"{100 * number.value:.2f} ±{stderr}"


def _experiment(other_kinds: bool) -> str:
    return "other kinds" if other_kinds else "same kinds"


def _measured(model: Unseen, key: Key, drawn: Draw) -> Row:
    """Compress a model as a user does, read the report, and measure the truth."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "calibration.npz"
        np.savez(data, **drawn.calibration)
        start = time.perf_counter()
        result = alds_onnx.compress(
            model.path,
            cr=key.cr,
            calibration=data,
            measuring=Measuring.NEVER,
            threads=key.threads,
        )
        seconds = time.perf_counter() - start
        compressed = _session(result.model, key.threads)
    verification = result.report.verification
    reported, checked, held_out = _reported(verification, model.has_top_1, key.other_kinds)
    original = _session(onnx.load(model.path), key.threads)
    truth = true_figures(original, compressed, drawn.test, drawn.groups, has_top_1=model.has_top_1)
    return Row(
        reported=reported,
        truth=truth,
        checked=checked,
        held_out=held_out,
        tested=len(np.unique(drawn.groups)),
        seconds=seconds,
    )


def _reported(
    verification: Verification, has_top_1: bool, other_kinds: bool
) -> tuple[Figures | None, int, bool]:
    """The numbers of a report, the samples they rest on, and whether they were held out."""
    if not other_kinds:
        numbers = _figures(verification.fidelity[0], has_top_1)
        return numbers, verification.samples, verification.held_out
    left_out = verification.left_out
    if left_out is None:
        return None, 0, verification.held_out
    return _figures(left_out.fidelity[0], has_top_1), left_out.samples, True


def _figures(fidelity: OutputFidelity, has_top_1: bool) -> Figures:
    error = Number(value=fidelity.relative_l2, stderr=fidelity.relative_l2_stderr)
    if not has_top_1 or fidelity.top1_agreement is None:
        return Figures(error=error)
    stderr = fidelity.top1_agreement_stderr
    return Figures(error=error, agreement=Number(value=fidelity.top1_agreement, stderr=stderr))


def _session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options)


def _summary(lines: Sequence[Line], *, other_kinds: bool) -> Iterator[str]:
    """How often reports are right, and by how much the worst are too good."""
    yield f"\n{_experiment(other_kinds)}, over all models:"
    for number in (AGREEMENT, ERROR):
        known = [line for line in lines if line.pairs(number)]
        if known:
            yield from _summarized(known, number)
    missing = sum(row.reported is None for line in lines for row in line.rows)
    if missing:
        yield f"without these numbers: {missing} reports"


def _summarized(lines: Sequence[Line], number: str) -> Iterator[str]:
    pairs = [pair for line in lines for pair in line.pairs(number)]
    within = sum(pair.is_within for pair in pairs) / len(pairs)
    yield (
        f"{number}: {within:.0%} of {len(pairs)} reports within two standard errors of the truth "
        f"(bar: at least {_SHARE:.0%}, {_verdict(within >= _SHARE)})"
    )
    worst = max(lines, key=lambda line: mean(line.pairs(number)).excess)
    pair = mean(worst.pairs(number))
    bar = f" (bar: {100 * _EXCESS:.0f}, {_verdict(pair.excess <= _EXCESS)})"
    at = f"{worst.name}{bar if number == AGREEMENT else ''}"
    points = f"{100 * pair.excess:+.2f} ±{100 * pair.stderr:.2f} points"
    yield f"{number}: better than the truth by {points} at most: {at}"
    excesses = [pair.excess for pair in pairs]
    if len(pairs) > 1:
        stderr = float(np.std(excesses, ddof=1)) / len(pairs) ** 0.5
        yield f"{number}: mean excess {100 * np.mean(excesses):+.2f} ±{100 * stderr:.2f} points"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _panel(model: Unseen, lines: Sequence[Line], *, other_kinds: bool) -> SamplePanel:
    """What the plot shows of a model: its agreement, or the output error if it has none."""
    number = AGREEMENT if model.has_top_1 else ERROR
    unknown = Number(value=np.nan)
    estimates = []
    for cr in sorted({line.cr for line in lines}):
        chosen = [line for line in lines if line.cr == cr]
        truths = [line.truth(number) for line in chosen]
        known = [line.pairs(number) for line in chosen]
        reports = [mean(pairs).reported if pairs else unknown for pairs in known]
        estimates.append(
            Estimates(
                label=f"{cr:.0%} removed",
                samples=tuple(line.samples for line in chosen),
                reported=tuple(100 * report.value for report in reports),
                reported_errors=tuple(200 * report.known_stderr for report in reports),
                truth=tuple(100 * truth.value for truth in truths),
                truth_errors=tuple(200 * truth.known_stderr for truth in truths),
            )
        )
    title = f"{model.name}, {_experiment(other_kinds)}"
    return SamplePanel(title=title, unit=f"{number}, %", estimates=tuple(estimates))


def _versions() -> dict[str, str]:
    """What the numbers depend on: the code of the package and of the data, and what they run on."""
    package = Path(alds_onnx.__file__).parent
    return {
        "alds-onnx": alds_onnx.__version__,
        "onnxruntime": ort.__version__,
        "onnx": onnx.__version__,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "sources": fingerprint(package.rglob("*.py")),
        "data": fingerprint(_HERE / f"{name}.py" for name in _MODULES),
    }


def _markdown(printed: Sequence[str], versions: dict[str, str]) -> str:
    """The page: plot, tables as printed, versions, and this file's docstring."""
    command = " ".join(["python benchmarks/truth.py", *sys.argv[1:]])
    tables = "\n".join(printed).strip()
    listed = ", ".join(f"{name} {value}" for name, value in versions.items())
    return f"""# The report against the truth

    {command}

![Report and truth against the number of calibration samples](truth.png)

Error bars and bands are two standard errors.

```
{tables}
```

Versions: {listed} (the last two are hashes).

## Definitions

{(__doc__ or "").strip()}
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", choices=[*UNSEEN, []], help="default: all")
    parser.add_argument("--cr", type=float, action="append", help="ratio to try (repeatable)")
    parser.add_argument(
        "--samples", type=int, action="append", help="of calibration data (repeatable)"
    )
    parser.add_argument("--seed", type=int, action="append", help="draw of the data (repeatable)")
    parser.add_argument("--kinds", action="store_true", help="also leave kinds out")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--known", action="store_true", help="run nothing that is not kept")
    parser.add_argument("--fresh", action="store_true", help="do not use runs made before")
    parser.add_argument(
        "--write", action="store_true", help=f"write {_TABLES.name} and {_PLOT.name}"
    )
    options = parser.parse_args()
    if options.samples and not all(0 < n <= MOST_SAMPLES for n in options.samples):
        parser.error(f"--samples must be 1 to {MOST_SAMPLES}")
    return options


def main() -> None:
    """Run the benchmark."""
    options = _options()
    versions = _versions()
    printed: list[str] = []

    def say(text: str) -> None:
        printed.append(text)
        print(text, flush=True)

    bench = Bench(
        kept=Kept(CACHE / "truth.jsonl", versions, fresh=options.fresh),
        seeds=tuple(dict.fromkeys(options.seed or [0])),
        samples=tuple(sorted(set(options.samples or _SAMPLES))),
        threads=options.threads,
        known=options.known,
        say=say,
    )
    lines: dict[bool, list[Line]] = {kinds: [] for kinds in (False, True)[: 1 + options.kinds]}
    panels: dict[bool, list[SamplePanel]] = {kinds: [] for kinds in lines}
    for name in options.models or UNSEEN:
        model = UNSEEN[name]()
        ratios = sorted(set(options.cr or model.ratios))
        for other_kinds, all_lines in lines.items():
            found = bench.evaluate(model, ratios, other_kinds=other_kinds)
            all_lines.extend(found)
            if found:
                panels[other_kinds].append(_panel(model, found, other_kinds=other_kinds))
    for other_kinds, all_lines in lines.items():
        for text in _summary(all_lines, other_kinds=other_kinds):
            say(text)
    if options.write:
        draw_by_samples(list(panels.values()), _PLOT)
        _TABLES.write_text(_markdown(printed, versions), encoding="utf-8")


if __name__ == "__main__":
    main()
