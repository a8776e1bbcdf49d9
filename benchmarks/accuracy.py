"""Accuracy against compression, on real models with a true score; no labels, no retraining.

    python benchmarks/accuracy.py                 all models, all methods
    python benchmarks/accuracy.py digits --cr 0.9 one model, one ratio
    python benchmarks/accuracy.py --write         writes accuracy.md and accuracy.png too

Models (tasks.py): the embedded digits (top-1), PP-OCRv4 text recognition (character accuracy), and
Magika, which tells what a file contains (top-1). The score comes from test samples that no method
sees; the true answers are those of the data set, of the text that was rendered, and of the files'
names.

Methods (methods.py), from the plainest to the one that keeps most, each with one step more:

    uniform      k = 1, the same fraction of full rank in every layer (SVD of the weights)
    energy       k = 1, the same fraction of squared singular values in every layer
    iterative    ALDS as its authors run it (Algorithm 1): slices, max relative error
    exact        the global optimum of the same objective: --cr, with all slices and ranks
    fast         the same among cuts that onnxruntime is fast at on this machine: --cr alone
    exact+fit    the ranks of `exact`, factors fitted to calibration data layer by layer
    ranks        ranks by measured output errors, factors by SVD of the weights
    max          as calibrated, but the largest instead of the sum of the output errors
    fast+data    as calibrated, among fast cuts as `fast`: --cr --calibration alone
    calibrated   ranks by measured output errors, factors fitted, with all slices and ranks:
                 --cr --calibration --target none

Noise has two parts, which are measured apart:

    test samples    the number after ± is the standard error of a score, from 2,000 bootstrap draws
                    of test samples: images, files, whole lines of text. Methods are compared on
                    the same draws (paired): the second table gives the difference of each to
                    `calibrated` with its own standard error. Where a method and `calibrated`
                    are right on the very same samples it is 0; where one is always right it is
                    0 too, which says that so few samples cannot show how rare its errors are.
    calibration     --seed, repeated, draws calibration data anew for each seed. Scores are then
                    means over the draws, and a third table gives their standard deviation.

With --samples only so many of the calibration samples are used. Another revision of the package is
measured by the same command with its checkout first in PYTHONPATH.

Seconds are for one compression, the mean over ratios and seeds; those of the calibrated methods
include all measurements. Finished runs are kept in .cache/accuracy.jsonl, by what they depend on,
the sources of the package included: run the same command again to go on after an interrupt.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from curves import Curve, Panel, draw
from methods import METHODS, WITH_DATA, Methods
from scores import Counts, Key, Run, Store, fingerprint, mean
from tasks import TASKS, Feeds, Task
from wheels import CACHE

import alds_onnx

_HERE = Path(__file__).resolve().parent
_TABLES = _HERE / "accuracy.md"
_PLOT = _HERE / "accuracy.png"
_DATA_MODULES = ("filetypes.py", "methods.py", "ocr.py", "tasks.py")
_RATIOS = {
    "digits": (0.5, 0.7, 0.8, 0.85, 0.9, 0.93),
    "recognition": (0.1, 0.2, 0.3),
    "filetypes": (0.3, 0.5, 0.8),
}
_BASE = "original"

Say = Callable[[str], None]
Draw = Callable[[int], Feeds]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Results:
    """All runs of one task: by method, then by ratio, then by seed."""

    base: Counts
    runs: dict[str, list[list[Run]]]

    def counts(self, method: str) -> list[Counts]:
        """Counts by ratio, averaged over the seeds."""
        return [mean([run.counts for run in runs]) for runs in self.runs[method]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """What the runs of all tasks have in common."""

    store: Store
    methods: Methods
    seeds: tuple[int, ...]
    samples: int
    threads: int
    say: Say

    def evaluate(self, task: Task, ratios: Sequence[float], methods: Sequence[str]) -> Results:
        """Run what was not run before, and print the tables as they fill."""
        feeds = cache(lambda seed: _some(task.draw(seed), self.samples, seed))
        base = self._run(task, _BASE, 0.0, 0, feeds).counts
        samples = f"{len(base.total)} {task.sample}s"
        if self.samples:
            samples += f", calibrated on {self.samples}"
        before = f"{_cell(base.score, base.error).strip()} before compression"
        self.say(f"\n{task.name}: {task.unit} in %, {before}; {samples}, {self.threads} thread(s)")
        self.say("removed     " + "".join(f"{cr:>14.0%}" for cr in ratios) + "   seconds")
        results = Results(base=base, runs={})
        for method in methods:
            seeds = self.seeds if method in WITH_DATA else (0,)
            runs = [[self._run(task, method, cr, seed, feeds) for seed in seeds] for cr in ratios]
            results.runs[method] = runs
            cells = "".join(_cell(c.score, c.error) for c in results.counts(method))
            seconds = np.mean([run.seconds for row in runs for run in row])
            self.say(f"{method:12s}{cells}{seconds:10.1f}")
        self._compare(results)
        self._spread(results)
        return results

    def _run(self, task: Task, method: str, cr: float, seed: int, feeds: Draw) -> Run:
        """A run out of the store, or a new one."""
        samples = self.samples if method in WITH_DATA else 0
        key = Key(
            task=task.name, method=method, cr=cr, seed=seed, threads=self.threads, samples=samples
        )
        run = self.store.get(key)
        if run is None:
            data = feeds(seed) if method in WITH_DATA else None  # not counted in the seconds
            model, removed, seconds = onnx.load(task.model), 0.0, 0.0
            if method != _BASE:
                result, seconds = self.methods.compress(task.model, cr, method, data, self.threads)
                model, removed = result.model, result.plan.removed
            counts = task.test(_session(model, self.threads))
            run = Run(counts=counts, removed=removed, seconds=seconds)
            self.store.add(key, run)
        return run

    def _compare(self, results: Results) -> None:
        """The differences to the default, on the same test samples."""
        others = [method for method in results.runs if method != METHODS[-1]]
        if METHODS[-1] not in results.runs or not others:
            return
        reference = results.counts(METHODS[-1])
        self.say("\nless calibrated, ± standard error of the difference")
        for method in others:
            pairs = zip(results.counts(method), reference, strict=True)
            cells = "".join(_cell(*counts.minus(other)) for counts, other in pairs)
            self.say(f"{method:12s}{cells}")

    def _spread(self, results: Results) -> None:
        """How much the scores move with the draw of the calibration data."""
        if len(self.seeds) < 2:
            return
        self.say(f"\nstandard deviation over {len(self.seeds)} draws of calibration data")
        for method in (method for method in results.runs if method in WITH_DATA):
            scores = [[run.counts.score for run in row] for row in results.runs[method]]
            cells = "".join(f"{np.std(row, ddof=1):14.2f}" for row in scores)
            self.say(f"{method:12s}{cells}")


def _some(feeds: Feeds, samples: int, seed: int) -> Feeds:
    """Choose so many samples at random, in one batch; 0 is all, as they are."""
    if not samples:
        return feeds
    joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    count = len(next(iter(joined.values())))
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:samples])
    return [{name: array[chosen] for name, array in joined.items()}]


def _cell(value: float, error: float) -> str:
    return f"{f'{value:.2f} ±{error:.2f}':>14s}"


def _session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options)


def _panel(task: Task, results: Results) -> Panel:
    """What the plot shows of a task; every curve starts at the original."""
    curves = []
    for method, runs in results.runs.items():
        counts = [results.base, *results.counts(method)]
        removed = [0.0, *(float(np.mean([run.removed for run in row])) for row in runs)]
        curve = Curve(
            method=method,
            removed=tuple(100 * fraction for fraction in removed),
            scores=tuple(c.score for c in counts),
            errors=(0.0, *(c.error for c in counts[1:])),
        )
        curves.append(curve)
    base = results.base.score
    return Panel(title=task.name, unit=task.unit, base=base, curves=tuple(curves))


def _versions() -> dict[str, str]:
    """What the scores depend on: the code of the package and of the tasks, and what they run on."""
    package = Path(alds_onnx.__file__).parent
    return {
        "alds-onnx": alds_onnx.__version__,
        "onnxruntime": ort.__version__,
        "onnx": onnx.__version__,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "sources": fingerprint(package.rglob("*.py")),
        "tasks": fingerprint(_HERE / name for name in _DATA_MODULES),
    }


def _markdown(printed: Sequence[str], versions: dict[str, str]) -> str:
    """The page: plot, tables as printed, versions, and this file's docstring."""
    command = " ".join(["python benchmarks/accuracy.py", *sys.argv[1:]])
    tables = "\n".join(printed).strip()
    listed = ", ".join(f"{name} {value}" for name, value in versions.items())
    return f"""# Accuracy against compression

    {command}

![Score of each method against the fraction of the parameters that it removes](accuracy.png)

Error bars are one standard error. The scale is logarithmic in the errors that are left.

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
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="default: all")
    parser.add_argument("--cr", type=float, action="append", help="ratio to try (repeatable)")
    parser.add_argument("--method", choices=METHODS, action="append", help="default: all")
    parser.add_argument(
        "--seed", type=int, action="append", help="draw of the calibration data (repeatable)"
    )
    parser.add_argument("--samples", type=int, default=0, help="of calibration data; default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    parser.add_argument("--fresh", action="store_true", help="do not use runs made before")
    parser.add_argument("--plot", type=Path, help="draw the curves to this PNG")
    parser.add_argument(
        "--write", action="store_true", help=f"write {_TABLES.name} and {_PLOT.name}"
    )
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    options = _options()
    versions = _versions()
    printed: list[str] = []

    def say(text: str) -> None:
        printed.append(text)
        print(text, flush=True)

    bench = Bench(
        store=Store(CACHE / "accuracy.jsonl", versions, fresh=options.fresh),
        methods=Methods(),
        seeds=tuple(dict.fromkeys(options.seed or [0])),
        samples=options.samples,
        threads=options.threads,
        say=say,
    )
    methods = [method for method in METHODS if method in (options.method or METHODS)]
    panels = []
    for name in options.tasks or TASKS:
        task = TASKS[name]()
        ratios = sorted(set(options.cr or _RATIOS[name]))
        panels.append(_panel(task, bench.evaluate(task, ratios, methods)))
    for path in filter(None, (options.plot, _PLOT if options.write else None)):
        draw(panels, path)
    if options.write:
        _TABLES.write_text(_markdown(printed, versions), encoding="utf-8")


if __name__ == "__main__":
    main()
