"""Standard output if a write ends in the middle of a line, because of a full disk or the end of the process.

A file with partial output and the `output_offset` in the state stand for a killed process.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.core.errors import OutputError
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.sqlite import State
from tests.states import commit, note_output_offset

CONTRACT = "31960001"
LINES = [b'{"n":%d,"text":"%s"}' % (number, b"x" * 200) for number in range(40)]
ALL = b"".join(line + b"\n" for line in LINES)
EVENTS = [Event((number + 1) * 1_000_000, bytes([number]) * 16, line, True, True) for number, line in enumerate(LINES)]

Make = Callable[..., "Place"]


class Place:
    """A state with forty waiting events, which are delivered to one output after another."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.state = State.open(directory / "state", "fetch")
        self._patch = patch
        self.render: Callable[[OutboxEvent], bytes] | None = None

    def collect(self) -> None:
        self.state.contracts.enrol([CONTRACT], "default", 0, 0)
        commit(self.state, EVENTS, contract=CONTRACT, window=Window(0, 99), now=99)

    def sink(self, descriptor: int, **settings: Any) -> StdoutSink:
        self._patch.setattr("sys.stdout", open(descriptor, "wb", closefd=False))  # noqa: SIM115
        return StdoutSink(msgspec.structs.replace(PRINTED, **settings), self.render)

    def deliver(self, descriptor: int, **settings: Any) -> None:
        """Deliver to one output, as a process does. Raises: OutputError."""
        deliverer = Deliverer(self.state.outbox, self.sink(descriptor, **settings))
        try:
            while deliverer.step(is_last=True).wait_seconds is not None:
                pass
        finally:
            deliverer.abandon()

    def append(self, path: Path, flags: int = os.O_WRONLY | os.O_APPEND | os.O_CREAT, **settings: Any) -> None:
        descriptor = os.open(path, flags, 0o600)
        os.lseek(descriptor, 0, os.SEEK_END)  # as after another command of the same shell has written
        try:
            self.deliver(descriptor, **settings)
        finally:
            os.close(descriptor)

    @property
    def output_offset(self) -> int | None:
        (row,) = self.state.outbox.sinks()
        return row.output_offset


@pytest.fixture(params=["at once", "in pieces"])
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Place]:
    found = Place(tmp_path, monkeypatch)
    if request.param == "in pieces":
        found.render = lambda event: event.line
        monkeypatch.setattr("poller.core.events._PIECE", 7)
    found.state.outbox.register("stdout", "stdout")
    found.collect()
    yield found
    found.state.close()


@contextmanager
def quota(size: int) -> Iterator[None]:
    """Limit files to `size` bytes: a write beyond that is cut off there, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


HEAD = b'{"head":1}\n'


@pytest.mark.parametrize("room", [1, 100, 2000, 5000, 8000])
@pytest.mark.parametrize("flags", [os.O_WRONLY | os.O_APPEND, os.O_WRONLY, os.O_RDWR | os.O_APPEND])
def test_a_disk_that_fills_leaves_whole_lines_and_the_next_run_goes_on_behind_them(
    place: Place, tmp_path: Path, room: int, flags: int
) -> None:
    path = tmp_path / "out"
    head = b"{}\n" * 133_000  # the quota applies to the state, too
    path.write_bytes(head)
    with quota(len(head) + room), pytest.raises(OutputError):
        place.append(path, flags)
    written = path.read_bytes().removeprefix(head)
    assert (written[-1:], len(written) > room - 250) in ((b"\n", True), (b"", True))
    place.append(path, flags)
    assert path.read_bytes() == head + ALL


@pytest.mark.parametrize("written", [0, 1, 100, 300, len(ALL) - 1, len(ALL)])
@pytest.mark.parametrize("before", [b"", HEAD])
@pytest.mark.parametrize("batch", [7, 1000])
def test_what_a_killed_process_wrote_is_completed(
    place: Place, tmp_path: Path, written: int, before: bytes, batch: int
) -> None:
    path = tmp_path / "out"
    path.write_bytes(before + ALL[:written])
    note_output_offset(place.state, "stdout", len(before))
    place.append(path, batch_events=batch)
    assert path.read_bytes() == before + ALL
    assert place.output_offset == len(before + ALL)


def test_where_a_process_begins_is_in_the_state_before_it_writes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(HEAD)
    marks = []

    def killed(*args: Any) -> tuple[int, OSError | None]:
        marks.append(place.output_offset)
        raise KeyboardInterrupt

    monkeypatch.setattr("poller.sinks.stdout.write_most", killed)
    with pytest.raises(KeyboardInterrupt):
        place.append(path)
    assert marks == [len(HEAD)]


@pytest.mark.parametrize("mark", [None, 0, 5, 1000, -7])
def test_half_a_line_that_is_not_ours_stays_and_a_new_line_begins(
    place: Place, tmp_path: Path, mark: int | None
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"somebody's {")
    note_output_offset(place.state, "stdout", mark)
    place.append(path)
    assert path.read_bytes() == b"somebody's {\n" + ALL


def test_lines_of_others_between_ours_are_left_alone(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(ALL[:100] + b"\nlog line\n")
    note_output_offset(place.state, "stdout", 0)
    place.append(path)
    assert path.read_bytes() == ALL[:100] + b"\nlog line\n" + ALL


def test_half_a_line_behind_which_others_have_written_is_not_cut(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"

    def mixed(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
        os.write(descriptor, data[:100])
        with path.open("ab") as file:
            file.write(b"other")
        return 100, OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("poller.sinks.stdout.write_most", mixed)
        with pytest.raises(OutputError, match="No space left"):
            place.append(path)
    assert path.read_bytes() == ALL[:100] + b"other"
    place.append(path)
    assert path.read_bytes() == ALL[:100] + b"other\n" + ALL


def test_in_a_file_that_was_emptied_meanwhile_it_begins_anew(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(HEAD)
    note_output_offset(place.state, "stdout", 5000)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    deliverer = Deliverer(place.state.outbox, place.sink(descriptor, batch_events=30))
    assert deliverer.step().settled == 30
    os.truncate(path, 0)
    assert deliverer.step().settled == 10
    os.close(descriptor)
    assert path.read_bytes().splitlines() == LINES[30:]


@pytest.mark.parametrize(("mark", "glue"), [(None, b""), (3, b"\n"), (len(HEAD), b""), (500, b"")])
def test_where_the_file_cannot_be_read_a_new_line_begins_behind_what_is_not_settled(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: int | None, glue: bytes
) -> None:
    path = tmp_path / "out"
    path.write_bytes(HEAD)
    note_output_offset(place.state, "stdout", mark)
    real = os.open

    def refused(name: Any, *args: Any, **options: Any) -> int:
        if str(name).startswith("/proc/self/fd"):
            raise PermissionError(13, "Permission denied")
        return real(name, *args, **options)

    monkeypatch.setattr("os.open", refused)
    place.append(path)
    assert path.read_bytes() == HEAD + glue + ALL


def test_a_file_that_nothing_can_be_cut_off_is_gone_on_with(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"{}\n" * 100_000)
    with monkeypatch.context() as patch:

        def refused(*args: Any) -> None:  # as with an append-only file
            raise PermissionError(1, "Operation not permitted")

        patch.setattr("os.ftruncate", refused)
        with quota(300_000 + 500), pytest.raises(OutputError):
            place.append(path)
    assert path.stat().st_size == 300_500
    place.append(path)
    assert path.read_bytes() == b"{}\n" * 100_000 + ALL


# Pipes


def drained(reader: int) -> bytes:
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 1 << 20)
    except BlockingIOError:
        return b""


def test_a_repeat_into_a_pipe_that_has_half_a_line_begins_with_a_new_line(place: Place) -> None:
    reader, writer = os.pipe()
    other_reader, other = os.pipe()
    note_output_offset(place.state, "stdout", -os.fstat(writer).st_ino)  # by a process that was killed
    os.write(writer, ALL[:100])
    place.deliver(writer)
    assert drained(reader) == ALL[:100] + b"\n" + ALL
    assert place.output_offset is None
    for descriptor in (reader, writer, other_reader, other):
        os.close(descriptor)


def test_another_pipe_has_no_half_line(place: Place) -> None:
    reader, writer = os.pipe()
    note_output_offset(place.state, "stdout", -os.fstat(writer).st_ino - 1)
    place.deliver(writer)
    assert drained(reader) == ALL
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("written", "error", "is_noted"),
    [
        (0, OSError(5, "Input/output error"), False),
        (100, OSError(5, "Input/output error"), True),
        (100, BrokenPipeError(32, "Broken pipe"), False),  # the reader is gone, and the half line with it
    ],
)
def test_only_a_part_that_a_reader_has_is_remembered(
    place: Place, monkeypatch: pytest.MonkeyPatch, written: int, error: OSError, is_noted: bool
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr("poller.sinks.stdout.write_most", lambda *args: (written, error))
    with pytest.raises(OutputError):
        place.deliver(writer)
    assert (place.output_offset == -os.fstat(writer).st_ino) == is_noted
    os.close(reader)
    os.close(writer)
