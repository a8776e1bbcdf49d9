"""Times between runs: kept for the same machine and setup of a runtime, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from alds_onnx.cuts import Cut
from alds_onnx.timing import store
from alds_onnx.timing.store import TimingStore, default_file
from alds_onnx.timing.timer import Timing

CUT = Cut(num_slices=4, rank=16)
TIMING = Timing(dense=2000.0, cut=1500.0)
ORT = "ort 1.0|cpu|1"


def kept(file: Path) -> None:
    first = TimingStore(file)
    first.add(ORT, "layer", CUT, TIMING)
    first.save()


def test_times_come_back_in_the_next_run(tmp_path: Path) -> None:
    file = tmp_path / "new" / "timings.json"
    kept(file)
    assert TimingStore(file).get(ORT, "layer", CUT) == TIMING


def test_times_are_those_of_one_layer_cut_and_setup(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    kept(file)
    assert TimingStore(file).get("openvino 2025|cpu|1", "layer", CUT) is None
    assert TimingStore(file).get(ORT, "other", CUT) is None
    assert TimingStore(file).get(ORT, "layer", Cut(num_slices=4, rank=15)) is None
    assert TimingStore(file).get(ORT, "layer", Cut(num_slices=2, rank=16)) is None


def test_times_of_another_machine_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "timings.json"
    kept(file)
    monkeypatch.setattr(store, "_machine", lambda: "another")
    assert TimingStore(file).get(ORT, "layer", CUT) is None


def test_what_another_run_has_kept_meanwhile_stays(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    mine, other = TimingStore(file), TimingStore(file)
    mine.add(ORT, "mine", CUT, TIMING)
    other.add(ORT, "other", CUT, TIMING)
    mine.save()
    other.save()
    both = TimingStore(file)
    assert both.get(ORT, "mine", CUT) == both.get(ORT, "other", CUT) == TIMING


def test_measuring_again_reads_nothing_but_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    kept(file)
    again = TimingStore(file, fresh=True)
    assert again.get(ORT, "layer", CUT) is None
    again.add(ORT, "new", CUT, TIMING)
    again.save()
    assert TimingStore(file).get(ORT, "layer", CUT) == TIMING


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"schema": 1, "nanoseconds": {}}',
        b'{"schema": 2, "nanoseconds": [1]}',
        b'{"schema": 2, "nanoseconds": {"a": 3}}',
        b'{"schema": 2, "nanoseconds": {"a": ["x", 1]}}',
    ],
)
def test_a_broken_file_counts_as_empty_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "timings.json"
    file.write_bytes(content)
    assert TimingStore(file).get(ORT, "layer", CUT) is None
    kept(file)
    assert TimingStore(file).get(ORT, "layer", CUT) == TIMING
    assert [path.name for path in tmp_path.iterdir()] == ["timings.json"]


def test_times_that_are_none_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    kept(file)
    text = file.read_text(encoding="utf-8")
    for wrong in ("-1.0", "0.0", "NaN", "Infinity"):
        file.write_text(text.replace("2000.0", wrong), encoding="utf-8")
        assert TimingStore(file).get(ORT, "layer", CUT) is None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept(tmp_path / "file" / "timings.json")
    kept(tmp_path)


def test_the_place_follows_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_file() == tmp_path / "alds-onnx" / "timings.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_file() == Path.home() / ".cache" / "alds-onnx" / "timings.json"
