"""Hostile bytes: success or one line, whatever the input; in bounded memory; with fixed seeds.

A longer run: `python -m tests.fuzz.harness core 1 20000`.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from alds_onnx.calibrate.reader import model_inputs, read_feeds
from alds_onnx.errors import AldsError, DataError, ModelError
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.scopes import ModelIndex
from tests.fuzz import bases, harness, worker
from tests.fuzz.harness import Summary, fuzz

# A child that only reads small files and works on small models needs about 110 MiB.
MOST_MEMORY_MIB = 1024


def report(target: str, summary: Summary) -> str:
    return (
        f"{target}: {summary.tried} tried, {summary.accepted} accepted, {summary.refused} refused "
        f"{dict(summary.kinds)}, {len(summary.violations)} violations, "
        f"{len(summary.crashes)} crashes, {summary.peak_mib} MiB"
    )


@pytest.mark.parametrize(("target", "count"), [("core", 500), ("plan", 500), ("arrays", 500)])
def test_nothing_but_success_or_one_line(target: str, count: int) -> None:
    summary = fuzz(target, seed=0, count=count)
    print(report(target, summary))
    assert summary.violations == []
    assert summary.crashes == {}
    assert summary.tried == count
    assert summary.peak_mib < MOST_MEMORY_MIB
    # A test of only valid or only broken inputs would say little.
    assert min(summary.accepted, summary.refused) > count // 20


def test_with_onnxruntime() -> None:
    """Its own crash on the mutated model is not ours; one that only our model causes is."""
    summary = fuzz("whole", seed=0, count=300)
    print(report("whole", summary))
    assert summary.violations == []
    for index in summary.crashes:
        alone = fuzz("runtime", seed=0, count=1, start=index)
        assert alone.crashes, f"input {index} crashes only with what this package does to it"
        print(f"onnxruntime crashes on input {index}: {summary.crashes[index]}")


@pytest.mark.parametrize("target", worker.TARGETS)
def test_the_same_seed_gives_the_same_inputs(target: str) -> None:
    make, _, _ = worker.TARGETS[target]
    first, again, other = (make(Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_the_bases_are_valid() -> None:
    bases.check_all()


def test_a_violation_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both another error and an empty message."""
    for error in (KeyError("a"), AldsError("")):

        def broken(folder: Path, error: Exception = error) -> None:
            raise error

        monkeypatch.setitem(worker.TARGETS, "plan", (lambda _: b"", broken, worker.INPUT))
        tally = worker.Tally()
        worker.attempt("plan", 0, 3, tmp_path, tally)
        assert [v["index"] for v in tally.violations] == [3]


def test_a_crash_is_noticed_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that dies at one input is started again behind it."""
    script = Path(worker.__file__).read_text()
    place = "        run(folder)\n"
    assert script.count(place) == 1
    command = script.replace(place, f"        if index == 5:\n            os.abort()\n{place}")
    run = harness.subprocess.run

    def replaced(arguments: list[str], **options: object) -> object:
        python, _, _, *rest = arguments
        return run([python, "-c", command, *rest], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(harness.subprocess, "run", replaced)
    summary = fuzz("arrays", seed=0, count=9)
    assert list(summary.crashes) == [5]
    assert summary.tried == 9


X = model_inputs(bases.models()[0])
BIG = "(1000000000000,)"


@pytest.mark.parametrize("claim", [
    bases.npy_claim("'<f4'", BIG),
    bases.npy_claim("'<f4'", "(1000000, 16)", bytes(64)),
    bases.npy_claim("'|V2000000000'", "(40, 16)"),
    bases.npy_claim("'<f4'", "(2, 4611686018427387904, 16)"),
])  # fmt: skip
@pytest.mark.parametrize("archived", [False, True])
def test_headers_that_declare_more_than_there_is(
    claim: bytes, archived: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before np.load asks for the memory."""
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("loaded"))
    path = tmp_path / "data.npz"
    path.write_bytes(bases.npz({"x.npy": claim}) if archived else claim)
    with pytest.raises(DataError, match=r"declares [0-9]+ bytes, [0-9]+ follow"):
        next(iter(read_feeds(path, X)))


def test_an_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    bomb = bytearray(bases.npz({"x.npy": bases.npy(np.zeros((40, 16), np.float32))}))
    where = bomb.find(b"PK\x01\x02") + 24  # the size in the directory
    bomb[where : where + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(bomb)
    with pytest.raises(DataError, match=r"'x.npy' unpacks to 2147483647 bytes"):
        next(iter(read_feeds(path, X)))


def test_an_archive_of_zeros_is_read(tmp_path: Path) -> None:
    """A high ratio alone is no bomb."""
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.zeros((100_000, 16), np.float32))
    assert path.stat().st_size < 16 * 400_000 / 100
    assert sum(len(feed["x"]) for feed in read_feeds(path, X)) == 100_000


def test_samples_of_no_bytes_are_no_samples(tmp_path: Path) -> None:
    """Else a file of a hundred bytes gives feeds for ever."""
    path = tmp_path / "data.npy"
    path.write_bytes(bases.npy_claim("'<f4'", "(4000000000000, 0)"))
    with pytest.raises(DataError, match="has no samples"):
        next(iter(read_feeds(path, X)))


def test_members_for_other_inputs_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", b"not an array")
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((3, 16), np.float32))
        archive.writestr("x.npy", buffer.getvalue())
    assert [feed["x"].shape for feed in read_feeds(path, X)] == [(3, 16)]


def broken_text(model: ModelProto, old: bytes, new: bytes) -> ModelProto:
    """A model in whose bytes something is not UTF-8, as protobuf reads it."""
    data = model.SerializeToString()
    assert len(old) == len(new)
    assert old in data
    result = ModelProto()
    result.ParseFromString(data.replace(old, new))
    return result


@pytest.mark.parametrize("old", [b"first", b"MatMul", b"Relu", b"alpha"])
def test_names_that_are_not_utf8(old: bytes) -> None:
    broken = broken_text(bases.models()[0], old, b"\x80" + old[1:])
    with pytest.raises(ModelError, match=r"the name .* is not UTF-8"):
        ModelIndex(broken)


def test_external_locations_that_are_not_utf8(tmp_path: Path) -> None:
    (model,) = (m for m in bases.models() if b"weights.bin" in m.SerializeToString())
    broken = broken_text(model, b"weights.bin", b"weight\x80.bin")
    onnx.save(broken, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"external data of tensor 'W'.*is not UTF-8"):
        load_model(tmp_path / "m.onnx")
