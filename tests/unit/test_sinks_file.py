"""The file sink on a real file system: it has only whole lines after any fault."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import stat
import subprocess
import sys
import tempfile
import threading
import zlib
from datetime import UTC, datetime

import pytest

from poller.config import Config, FileSink
from poller.core.delivery import Accepted, RetryAfter
from poller.core.events import OutboxEvent
from poller.sinks.build import build_sink
from tests.support import TOP, UNMEASURED, clean_environment

MIDNIGHT = int(datetime(2026, 5, 2, tzinfo=UTC).timestamp())
PLAIN, GZIP = "none", "gzip"


def event(number, at=MIDNIGHT - 1):
    line = json.dumps({"n": number}, separators=(",", ":")).encode()
    return OutboxEvent("31960001", round(at * 1_000_000), MIDNIGHT, b"i" * 16, 0, line)


def events(*numbers):
    return [event(number) for number in numbers]


def sink(path, compression=PLAIN):
    settings = FileSink(name="archive", path=str(path), compression=compression)
    return build_sink(settings, Config(), threading.Event())


def numbers(path):
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    assert data.endswith(b"\n") or not data
    return [json.loads(line)["n"] for line in data.splitlines()]


def one_batch(*found, compression):
    data = b"".join(event(number).line + b"\n" for number in found)
    return zlib.compress(data, 6, 31) if compression == GZIP else data


both = pytest.mark.parametrize("compression", [PLAIN, GZIP])


@both
def test_each_event_goes_to_the_file_of_its_utc_day(tmp_path, compression):
    target = sink(tmp_path / "deep" / "{date}" / "x-{date}.ndjson", compression)
    batch = [event(1), event(2, MIDNIGHT), event(3), event(4, MIDNIGHT - 0.000001), event(5, -1)]
    assert target.send(batch) == Accepted()
    found = {path.name: numbers(path) for path in tmp_path.glob("deep/*/*")}
    assert found == {"x-2026-05-01.ndjson": [1, 3, 4], "x-2026-05-02.ndjson": [2], "x-1969-12-31.ndjson": [5]}


@both
def test_batches_follow_each_other_and_only_the_owner_reads_them(tmp_path, compression):
    path = tmp_path / "a.ndjson"
    target = sink(path, compression)
    for number in range(5):
        assert target.send(events(number)) == Accepted()
    assert numbers(path) == [0, 1, 2, 3, 4]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_mode_of_a_file_that_was_there_is_left_alone(tmp_path):
    path = tmp_path / "a.ndjson"
    path.touch()
    path.chmod(0o640)
    sink(path).send(events(1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@both
def test_a_file_can_be_renamed_away_or_deleted_between_two_batches(tmp_path, compression):
    path = tmp_path / "a.ndjson"
    target = sink(path, compression)
    target.send(events(1))
    path.rename(tmp_path / "a.1")
    target.send(events(2))
    assert (numbers(tmp_path / "a.1"), numbers(path)) == ([1], [2])
    path.unlink()
    target.send(events(3))
    assert numbers(path) == [3]


@both
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_whatever_a_crash_left_of_a_batch_is_cut_off(tmp_path, compression, batches):
    path = tmp_path / "a.ndjson"
    whole = b"".join(one_batch(10 * at, 10 * at + 1, compression=compression) for at in range(batches))
    torn = one_batch(98, compression=compression)
    kept = [10 * at + more for at in range(batches) for more in (0, 1)]
    for length in range(len(torn)):
        path.write_bytes(whole + torn[:length])
        assert sink(path, compression).send(events(99)) == Accepted()
        assert numbers(path) == [*kept, 99]


@both
def test_a_long_tail_and_zeros_left_by_a_power_cut_are_cut_off(tmp_path, compression):
    path = tmp_path / "a.ndjson"
    whole = one_batch(1, 2, compression=compression)
    # Random digits, so that the torn member is longer than one read.
    torn = one_batch(os.urandom(150_000).hex(), compression=compression)[:-5]
    for tail in (torn, b"\0" * 200_000, torn[:1000] + b"\0" * 5000):
        path.write_bytes(whole + tail)
        sink(path, compression).send(events(3))
        assert numbers(path) == [1, 2, 3]
    path.write_bytes(b"\0" * 4096)
    sink(path, compression).send(events(3))
    assert numbers(path) == [3]


def test_a_member_damaged_by_a_power_cut_is_cut_off(tmp_path):
    path = tmp_path / "a.ndjson.gz"
    member = one_batch(os.urandom(150_000).hex(), compression=GZIP)
    path.write_bytes(one_batch(1, compression=GZIP) + member[:20_000] + b"\xff" * 50_000 + member[70_000:])
    sink(path, GZIP).send(events(3))
    assert numbers(path) == [1, 3]


@both
def test_a_whole_file_is_added_to_however_long_its_last_batch(tmp_path, compression):
    path = tmp_path / "a.ndjson"
    path.write_bytes(one_batch("9" * 5_000_000, os.urandom(200_000).hex(), compression=compression))
    sink(path, compression).send(events(3))
    assert numbers(path)[2:] == [3]


def test_members_of_other_programs_are_kept(tmp_path):
    path = tmp_path / "a.ndjson.gz"
    foreign = gzip.compress(event(1).line + b"\n", mtime=1_700_000_000)
    for before, expected in ((foreign, [1]), (one_batch(0, compression=GZIP) + foreign, [0, 1])):
        path.write_bytes(before)
        sink(path, GZIP).send(events(3))
        assert numbers(path) == [*expected, 3]


def test_a_half_line_left_by_somebody_else_meanwhile_is_cut_off_too(tmp_path):
    path = tmp_path / "a.ndjson"
    target = sink(path)
    target.send(events(1))
    with path.open("ab") as file:
        file.write(b'{"n":')
    target.send(events(2))
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize(
    ("compression", "content"),
    [
        (PLAIN, b"root:x:0:0:root"),
        (PLAIN, gzip.compress(b"{}\n", mtime=0)),
        (GZIP, b'{"n":1}\n'),
    ],
)
def test_a_file_of_another_kind_is_neither_cut_nor_added_to(tmp_path, compression, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    target = sink(path, compression)
    what = "gzip" if compression == GZIP else "lines of JSON"
    for outcome in (target.send(events(1)), target.probe()):
        assert outcome == RetryAfter(f"{path}: holds something else than {what}: move it away or change path")
    assert path.read_bytes() == content


def make_pipe(path):
    os.mkfifo(path)


def make_directory(path):
    path.mkdir()


def make_file_above(path):
    path.parent.rmdir()
    path.parent.touch()


def make_full_device(path):
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("make", [make_pipe, make_directory, make_file_above, make_full_device])
def test_a_place_that_takes_no_file_holds_the_data(tmp_path, make):
    path = tmp_path / "logs" / "a"
    path.parent.mkdir()
    make(path)
    for outcome in (sink(path).send(events(1)), sink(path).probe()):
        assert isinstance(outcome, RetryAfter)
        assert str(tmp_path) in outcome.reason


def test_a_file_that_another_process_is_writing_to_is_left_alone(tmp_path):
    path = tmp_path / "a"
    path.touch()
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        outcome = sink(path).send(events(1))
    assert isinstance(outcome, RetryAfter)
    assert "another process" in outcome.reason
    assert sink(path).send(events(1)) == Accepted()


def test_days_that_were_written_are_not_written_again(tmp_path):
    target = sink(tmp_path / "{date}")
    (tmp_path / "2026-05-02").mkdir()
    batch = [event(1, MIDNIGHT - 1), event(2, MIDNIGHT), event(3, MIDNIGHT - 1), event(4, MIDNIGHT + 1)]
    outcome = target.send(batch)
    assert outcome == Accepted(retry=(1, 3), later=RetryAfter(f"{tmp_path / '2026-05-02'}: Is a directory"))
    rest = [batch[index] for index in outcome.retry]
    assert isinstance(target.send(rest), RetryAfter)
    (tmp_path / "2026-05-02").rmdir()
    assert target.send(rest) == Accepted()
    assert (numbers(tmp_path / "2026-05-01"), numbers(tmp_path / "2026-05-02")) == ([1, 3], [2, 4])


FULL = """
import resource, sys, threading
sys.dont_write_bytecode = True  # a module cut off at the limit would be in everybody's way
from poller.config import Config, FileSink
from poller.core.events import OutboxEvent
from poller.sinks.build import build_sink
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
sink = build_sink(FileSink(name="a", path=sys.argv[1]), Config(), threading.Event())
def batch(count):
    return [OutboxEvent("1", 0, 0, b"i" * 16, 0, b'{"n":%d}' % n) for n in range(count)]
print(type(sink.send(batch(10))).__name__)
outcome = sink.send(batch(1000))
print(type(outcome).__name__, outcome.reason)
print(type(sink.send(batch(10))).__name__)
"""


def test_a_full_disk_leaves_no_half_line_and_the_data_waits(tmp_path):
    path = tmp_path / "a.ndjson"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        cwd=TOP,
        env=clean_environment(UNMEASURED),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["Accepted", f"RetryAfter {path}: File too large", "Accepted"]
    assert numbers(path) == [*range(10), *range(10)]


@both
def test_being_interrupted_in_mid_write_leaves_no_half_line(tmp_path, compression, monkeypatch):
    path = tmp_path / "a.ndjson"
    target = sink(path, compression)
    target.send(events(1))
    write = os.write

    def interrupted(descriptor, data):
        write(descriptor, data[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        target.send(events(2))
    monkeypatch.undo()
    assert numbers(path) == [1]
    target.send(events(3))
    assert numbers(path) == [1, 3]


def test_a_path_that_ends_in_gz_is_compressed_as_it_says(tmp_path):
    path = tmp_path / "a.ndjson.gz"
    sink(path).send(events(1, 2))
    assert path.read_bytes() == one_batch(1, 2, compression=GZIP)


def test_a_probe_leaves_no_trace(tmp_path):
    assert sink(tmp_path / "deep" / "er" / "{date}").probe() == Accepted()
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "a"
    path.write_bytes(b'{"n":1}\n{"n":')
    assert sink(path).probe() == Accepted()
    assert path.read_bytes() == b'{"n":1}\n{"n":'


@pytest.mark.parametrize("below", ["", "deep/er"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_probe_fails_where_no_directory_can_be_made(tmp_path, kind, below):
    in_the_way = tmp_path / "disk"
    if kind == "link":  # the disk is not mounted
        in_the_way.symlink_to(tmp_path / "nowhere")
    else:
        in_the_way.touch()
    target = sink(in_the_way / below / "{date}.ndjson")
    assert isinstance(target.probe(), RetryAfter)
    assert isinstance(target.send(events(1)), RetryAfter)
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_a_probe_tries_the_disk_of_the_file_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert sink(tmp_path / "deep" / "{date}").probe() == Accepted()


@both
def test_a_file_that_is_as_we_left_it_is_not_read_again(tmp_path, compression, monkeypatch):
    target = sink(tmp_path / "a", compression)
    for number in range(3):
        assert target.send(events(number)) == Accepted()
        monkeypatch.setattr(os, "pread", None)
    monkeypatch.undo()
    assert numbers(tmp_path / "a") == [0, 1, 2]


def test_a_probe_of_a_full_disk_says_so(tmp_path):
    program = FULL.partition("def batch")[0].replace("1000,", "0,") + "print(sink.probe().reason)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a")],
        cwd=TOP,
        env=clean_environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.strip() == f"{tmp_path}: File too large"


@both
def test_a_batch_is_on_the_disk_before_it_counts_as_accepted(tmp_path, compression, monkeypatch):
    path = tmp_path / "x.ndjson"
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, path.stat().st_size))
    )
    assert sink(path, compression).send(events(1, 2)) == Accepted()
    found = path.stat()
    assert (found.st_ino, found.st_size) in synced, "the file, with all of the batch in it"


@both
def test_the_name_of_a_new_file_is_on_the_disk_too(tmp_path, compression, monkeypatch):
    path = tmp_path / "x.ndjson"
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    written = sink(path, compression)
    assert written.send(events(1)) == Accepted()
    assert tmp_path.stat().st_ino in synced
    synced.clear()
    assert written.send(events(2)) == Accepted()
    assert tmp_path.stat().st_ino not in synced, "it has its name already"


def test_the_last_batch_is_found_wherever_its_header_lies_between_two_blocks(tmp_path, monkeypatch):
    # A header across two blocks was missed, and a settled batch was cut off.
    monkeypatch.setattr("poller.sinks.file._BLOCK_BYTES", 100)
    first = one_batch(1, compression=GZIP)
    for length in range(60, 120):
        last = zlib.compress(random.Random(length).randbytes(length) + b"\n", 6, 31)
        path = tmp_path / f"{length}.gz"
        path.write_bytes(first + last)
        assert sink(path, GZIP).send(events(2)) == Accepted()
        assert path.read_bytes().startswith(first + last), length
