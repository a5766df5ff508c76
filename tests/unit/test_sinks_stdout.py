"""Standard output of any kind: what is written, which offset is noted before, and which earlier output is found."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config, FileSink
from poller.config import StdoutSink as Settings
from poller.core.delivery import Accepted
from poller.core.errors import OutputError, StateError
from poller.core.events import OutboxEvent
from poller.sinks.build import build_sink
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.system.closed_output import closed_output

LINES = [b'{"n":0}', b'{"n":11}']
BATCH = [OutboxEvent("1", n, 0, n.to_bytes(16), 0, line) for n, line in enumerate(LINES)]
DATA = b'{"n":0}\n{"n":11}\n'


class Output:
    """Standard output of this process on a given descriptor, and the offsets that a sink notes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.noted: list[int | None] = []
        self.opened: list[int] = []

    def sink(self, descriptor: int, offset: int | None = None) -> StdoutSink:
        self.opened.append(descriptor)
        self._patch.setattr("sys.stdout", open(descriptor, "wb", closefd=False))  # noqa: SIM115
        sink = StdoutSink(PRINTED)
        sink.note_offset = self.noted.append
        sink.resume(offset)
        return sink

    def file(self, path: Path, content: bytes | None = None, flags: int = os.O_APPEND, **given: Any) -> StdoutSink:
        if content is not None:
            path.write_bytes(content)
        return self.sink(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), **given)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[Output]:
    output = Output(monkeypatch)
    yield output
    for descriptor in output.opened:
        os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out"


# Nothing to write to


def test_without_standard_output_a_sink_that_is_alone_cannot_be_made_and_another_cannot_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout", closed_output())
    table, other = Settings(name="out"), FileSink(name="f", path="/x")
    for alone in ((), (table,)):
        with pytest.raises(OutputError, match=r"^there is no output: stdout is closed"):
            build_sink(table, Config(sinks=alone), threading.Event())
    sink = build_sink(table, Config(sinks=(table, other)), threading.Event())
    with pytest.raises(OutputError, match="stdout is closed"):
        sink.send(BATCH)


def test_lines_have_the_format_of_the_table(output: Output, path: Path) -> None:
    output.file(path)
    build_sink(Settings(name="out", format="ocsf"), Config(), threading.Event()).send(BATCH)
    assert path.read_bytes().count(b'"class_uid"') == 2


# A pipe, a terminal, a device


@pytest.fixture
def pipe(output: Output) -> Iterator[tuple[int, StdoutSink]]:
    reader, writer = os.pipe()
    yield reader, output.sink(writer)
    os.close(reader)


def test_a_pipe_is_noted_before_anything_is_written_and_forgotten_once_all_of_it_is(
    output: Output, pipe: tuple[int, StdoutSink]
) -> None:
    reader, sink = pipe
    inode = os.fstat(reader).st_ino
    assert sink.send(BATCH) == Accepted()
    assert os.read(reader, 100) == DATA
    assert (output.noted, sink.output_offset) == ([-inode], None)


def test_a_repeat_into_the_same_pipe_begins_with_a_new_line_and_into_another_one_does_not(
    pipe: tuple[int, StdoutSink],
) -> None:
    reader, sink = pipe
    inode = os.fstat(reader).st_ino
    for offset, begin in ((-inode, b"\n"), (-inode - 1, b""), (7, b""), (None, b"")):
        sink.resume(offset)
        sink.send(BATCH)
        assert os.read(reader, 100) == begin + DATA


def failing_after(monkeypatch: pytest.MonkeyPatch, count: int, then: Any = lambda: None) -> None:
    """Let writes take `count` bytes. After that, `then` is called, and the disk is full."""
    write, left = os.write, [count]

    def limited(descriptor: int, data: Any) -> int:
        if not left[0]:
            then()
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, bytes(data)[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", limited)


def test_a_pipe_that_took_half_a_line_is_remembered_and_one_that_took_nothing_is_not(
    output: Output, pipe: tuple[int, StdoutSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, sink = pipe
    inode = os.fstat(reader).st_ino
    for count, remembered in ((0, None), (1, -inode), (len(DATA) - 1, -inode)):
        sink.resume(None)
        output.noted.clear()
        with monkeypatch.context() as patch:
            failing_after(patch, count)
            with pytest.raises(OutputError, match="output cannot be written: No space left on device"):
                sink.send(BATCH)
        assert (output.noted, sink.output_offset) == ([-inode, remembered], remembered)


def test_a_failure_is_told_also_where_it_cannot_be_noted(output: Output) -> None:
    sink = output.sink(os.open("/dev/full", os.O_WRONLY))

    def note(offset: int | None) -> None:
        output.noted.append(offset)
        if len(output.noted) > 1:
            raise StateError("gone")

    sink.note_offset = note
    with pytest.raises(OutputError, match="output cannot be written: No space left on device") as told:
        sink.send(BATCH)
    assert told.value.hint
    assert output.noted[1:] == [None]


def test_a_reader_that_has_gone_away_has_no_half_line(output: Output) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sink = output.sink(writer)
    with pytest.raises(OutputError, match="the reader of our output has gone away"):
        sink.send(BATCH)
    assert sink.output_offset is None


def test_a_terminal_gets_no_control_characters(output: Output) -> None:
    reader, writer = os.openpty()
    sink = output.sink(writer)
    sink.send([BATCH[0].with_line(b'{"a":"\x1b[31m \xc3\xbc \xff"}')])
    shown = os.read(reader, 1000)
    os.close(reader)
    assert b"\x1b" not in shown
    assert "ü \ufffd".encode() in shown
    assert shown.endswith(b"\n")


# A file


def test_where_a_file_ends_is_noted_before_anything_is_written_and_then_followed(output: Output, path: Path) -> None:
    sink = output.file(path, b"{}\n")
    assert sink.send(BATCH) == Accepted()
    assert (output.noted, sink.output_offset) == ([3], 3 + len(DATA))
    assert sink.send(BATCH) == Accepted()
    assert (output.noted, sink.output_offset) == ([3], 3 + 2 * len(DATA))
    assert path.read_bytes() == b"{}\n" + 2 * DATA


@pytest.mark.parametrize("head", [b"", b"{}\n"])
@pytest.mark.parametrize("written", range(len(DATA) + 1))
def test_what_was_written_and_not_settled_is_completed(output: Output, path: Path, head: bytes, written: int) -> None:
    sink = output.file(path, head + DATA[:written], offset=len(head))
    sink.send(BATCH)
    assert path.read_bytes() == head + DATA
    assert (output.noted, sink.output_offset) == ([], len(head) + len(DATA))


@pytest.mark.parametrize(
    ("content", "offset", "begin", "noted"),
    [
        (b"{}\n", None, b"", 3),
        (b'{"a"', None, b"\n", 5),
        # The file has other content or is shorter: the next output begins on a new line.
        (b'{"other":1}\n', 0, b"", 12),
        (b'{"n":0}\n{"other"', 0, b"\n", 17),
        (b"{}\n", 4, b"", 3),
        (b"{", 4, b"\n", 2),
        (b"{}\n", -5, b"", 3),
        # The offset is not the beginning of a line.
        (b"{}" + DATA, 1, b"", 2 + len(DATA)),
        (b"{}" + DATA[:5], 2, b"\n", 8),
    ],
)
def test_what_is_not_ours_is_left_and_a_line_begins_behind_it(
    output: Output, path: Path, content: bytes, offset: int | None, begin: bytes, noted: int
) -> None:
    sink = output.file(path, content, offset=offset)
    sink.send(BATCH)
    assert path.read_bytes() == content + begin + DATA
    assert (output.noted, sink.output_offset) == ([noted], noted + len(DATA))


def test_in_a_file_that_is_not_appended_to_it_is_the_position_that_counts(output: Output, path: Path) -> None:
    sink = output.file(path, b"{}\n{}\n" + b"z" * 50, flags=0)
    os.lseek(output.opened[0], 3, os.SEEK_SET)
    sink.send(BATCH)
    assert output.noted == [3]
    assert path.read_bytes().startswith(b"{}\n" + DATA + b"z")
    assert sink.output_offset == 3 + len(DATA)
    os.lseek(output.opened[0], 1, os.SEEK_SET)
    sink.resume(None)
    sink.send(BATCH)
    assert path.read_bytes().startswith(b"{\n" + DATA)
    assert output.noted == [3, 2]


def test_a_file_that_may_not_be_read_is_taken_to_be_as_it_was_left(
    output: Output, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refuse(path: Any, *given: Any, **options: Any) -> int:
        if str(path).startswith("/proc/"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(path, *given, **options)

    monkeypatch.setattr(os, "open", refuse)
    for content, offset, begin in (
        (b"{}\n", None, b""),  # no offset is noted
        (b"{}\n", 3, b""),  # no output after the settled part
        (b"{}\n" + DATA[:9], 3, b"\n"),  # output after the settled part: it may end in half a line
        (b"{}\n", 9, b""),  # another file
        (b"{}\n", -9, b""),
    ):
        sink = output.file(path, content, offset=offset)
        sink.send(BATCH)
        assert path.read_bytes() == content + begin + DATA


@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, 0), (1, 0), (7, 0), (8, 8), (9, 8), (len(DATA) - 1, 8)],
)
@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
def test_of_a_batch_that_a_full_disk_cut_whole_lines_stay_and_the_rest_follows(
    output: Output, path: Path, monkeypatch: pytest.MonkeyPatch, count: int, kept: int, flags: int
) -> None:
    sink = output.file(path, b"{}\n", flags=flags)
    os.lseek(output.opened[0], 0, os.SEEK_END)
    with monkeypatch.context() as patch:
        failing_after(patch, count)
        with pytest.raises(OutputError, match="No space left on device"):
            sink.send(BATCH)
    assert path.read_bytes() == b"{}\n" + DATA[:kept]
    assert sink.output_offset == 3
    assert sink.send(BATCH) == Accepted()
    assert path.read_bytes() == b"{}\n" + DATA


def test_half_a_line_that_somebody_else_went_on_behind_is_not_cut(
    output: Output, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = output.file(path, b"")

    def add() -> None:
        os.truncate(path, 4)

    with monkeypatch.context() as patch:
        failing_after(patch, 3, add)
        with pytest.raises(OutputError):
            sink.send(BATCH)
    assert path.read_bytes() == DATA[:3] + b"\0"


def test_a_file_that_cannot_be_cut_is_completed_all_the_same(
    output: Output, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = output.file(path, b"")

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        failing_after(patch, 3)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OutputError, match="No space left"):
            sink.send(BATCH)
    sink.send(BATCH)
    assert path.read_bytes() == DATA


def test_pieces_of_a_batch_that_failed_are_all_looked_for_again(
    output: Output, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.core.events._PIECE", 1)
    output.file(path, b"{}\n")
    sink = StdoutSink(PRINTED, lambda event: event.line)
    with monkeypatch.context() as patch:
        failing_after(patch, len(LINES[0]) + 3)
        with pytest.raises(OutputError):
            sink.send(BATCH)
    assert sink.output_offset == 3
    sink.send(BATCH)
    assert path.read_bytes() == b"{}\n" + DATA


def test_where_others_write_too_our_next_line_is_looked_for_behind_our_last(output: Output, path: Path) -> None:
    sink = output.file(path, b"")
    sink.send(BATCH)
    with path.open("ab") as other:
        other.write(b"other\n")
    sink.send(BATCH)
    assert path.read_bytes() == DATA + b"other\n" + DATA
    assert output.noted == [0, len(DATA) + 6]
    assert sink.output_offset == 2 * len(DATA) + 6
