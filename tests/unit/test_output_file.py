"""The output file of a backfill: every settled event is in it once, even if the process that wrote it was killed."""

from __future__ import annotations

import errno
import gzip
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poller.core.delivery import Accepted
from poller.core.errors import ConfigError, OutputError
from poller.core.events import OutboxEvent
from poller.sinks.output import OutputFile

NAMES = ["export.ndjson", "export.ndjson.gz"]


def events(first: int, count: int, length: int = 20) -> list[OutboxEvent]:
    return [
        OutboxEvent("31960001", number, 0, number.to_bytes(16, "big"), 0, b'{"n":%0*d}' % (length, number))
        for number in range(first, first + count)
    ]


def lines(*batches: list[OutboxEvent]) -> list[bytes]:
    return [event.line for batch in batches for event in batch]


def read(path: Path) -> list[bytes]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    assert data.endswith(b"\n") or not data
    return data.splitlines()


def opened(path: Path, mark: int | None = None, order: str = "order1") -> OutputFile:
    output = OutputFile(path, order)
    output.resume(mark)
    return output


def partial(path: Path, order: str = "order1") -> Path:
    return path.with_name(f"{path.name}.{order}.part")


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Limit the size of files, to imitate a full disk: the error is EFBIG instead of ENOSPC, everything else is the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_file_has_its_name_only_when_it_is_complete(path: Path) -> None:
    output = opened(path)
    assert isinstance(output.send(events(0, 3)), Accepted)
    assert isinstance(output.send(events(3, 2)), Accepted)
    assert not path.exists()
    output.finish()
    assert read(path) == lines(events(0, 5))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_lines_are_made_as_they_are_asked_for(path: Path) -> None:
    output = OutputFile(path, render=lambda event, max_bytes=None: b"[" + event.line + b"]")
    output.resume(None)
    output.send(events(0, 2))
    output.finish()
    assert read(path) == [b"[" + line + b"]" for line in lines(events(0, 2))]


def test_what_was_written_but_not_settled_is_written_once(path: Path) -> None:
    output = opened(path)
    output.send(events(0, 3))
    settled = output.output_offset
    output.send(events(3, 3))  # killed before it was settled
    again = opened(path, settled)
    assert again.output_offset == settled
    again.send(events(3, 4))
    again.finish()
    assert read(path) == lines(events(0, 7))


def test_what_was_begun_before_anything_was_settled_is_begun_anew(path: Path) -> None:
    opened(path).send(events(0, 3))
    again = opened(path)
    again.send(events(0, 2))
    again.finish()
    assert read(path) == lines(events(0, 2))


def test_a_batch_is_on_the_disk_before_it_counts_as_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
    )
    output = opened(path)
    assert isinstance(output.send(events(0, 3)), Accepted)
    written = partial(path).stat()
    assert (written.st_ino, written.st_size) in synced, "the file, with all of the batch in it"


@pytest.mark.parametrize("torn", range(1, 60, 7))
def test_half_a_batch_leaves_no_half_line(path: Path, torn: int) -> None:
    output = opened(path)
    output.send(events(0, 3))
    with partial(path).open("ab") as file:
        file.write(os.urandom(torn))
    again = opened(path, output.output_offset)
    again.send(events(3, 1))
    again.finish()
    assert read(path) == lines(events(0, 4))


def test_a_crash_between_naming_the_file_and_noting_it_changes_nothing(path: Path) -> None:
    output = opened(path)
    output.send(events(0, 3))
    output.finish()
    again = opened(path, output.output_offset)
    again.finish()
    assert read(path) == lines(events(0, 3))
    assert not partial(path).exists()


def test_a_full_disk_leaves_what_was_settled_and_the_batch_goes_in_once_there_is_room(path: Path) -> None:
    output = opened(path)
    output.send(events(0, 10))
    settled = output.output_offset
    assert settled is not None
    with (
        file_size_limit(settled + 100),
        pytest.raises(OutputError, match=r"File too large.*give it room and run the same command again"),
    ):
        output.send([OutboxEvent("1", 0, 0, b"", 0, os.urandom(5000).hex().encode())])
    assert output.output_offset == settled
    assert partial(path).stat().st_size == settled
    output.send(events(10, 10))
    output.finish()
    assert read(path) == lines(events(0, 20))


def test_an_export_of_nothing_is_an_empty_file(path: Path) -> None:
    opened(path).finish()
    assert read(path) == []
    if path.suffix == ".gz":
        assert path.stat().st_size > 0, "gzip calls an empty file damaged"


def refusal(path: Path, mark: int | None) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(path, mark)
    (problem,) = caught.value.problems
    assert problem.path == "--output"
    assert problem.hint, "what to do"
    return str(problem)


def test_a_file_that_is_there_already_is_not_touched(path: Path) -> None:
    path.write_bytes(b"precious")
    assert f"{path} exists already (name another file" in refusal(path, None)
    assert path.read_bytes() == b"precious"


def test_a_file_that_came_meanwhile_is_not_touched_either(path: Path) -> None:
    output = opened(path)
    output.send(events(0, 3))
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match=f"exists already.*the complete export is in {partial(path)}"):
        output.finish()
    assert path.read_bytes() == b"precious"
    assert partial(path).exists()


def test_a_link_that_leads_nowhere_is_not_replaced(path: Path) -> None:
    path.symlink_to("elsewhere")
    assert f"{path} exists already (name another file" in refusal(path, None)
    path.unlink()
    output = opened(path)
    output.send(events(0, 3))
    path.symlink_to("elsewhere")
    with pytest.raises(OutputError, match="exists already"):
        output.finish()
    assert path.is_symlink()
    assert partial(path).exists()


@pytest.mark.parametrize("mark", [None, 100])
def test_a_directory_that_does_not_exist_is_told(path: Path, mark: int | None) -> None:
    told = refusal(path.parent / "missing" / path.name, mark)
    assert "No such file or directory" in told
    assert ("check that the directory exists" in told) == (not mark)


def test_a_file_in_the_place_of_the_directory_is_told(path: Path) -> None:
    path.write_bytes(b"")
    assert "Not a directory" in refusal(path / "export.ndjson", None)


def test_a_partial_file_that_lost_what_was_settled_is_told(path: Path) -> None:
    output = opened(path)
    output.send(events(0, 3))
    assert output.output_offset is not None
    os.truncate(partial(path), output.output_offset - 1)
    assert "shorter than what was written" in refusal(path, output.output_offset)
    partial(path).unlink()
    assert "--restart begins anew" in refusal(path, output.output_offset)


def test_two_backfills_to_the_same_file_do_not_mix(path: Path) -> None:
    one, other = opened(path, order="one"), opened(path, order="other")
    one.send(events(0, 3))
    other.send(events(100, 30))
    again = opened(path, one.output_offset, order="one")
    again.send(events(3, 1))
    again.finish()
    assert read(path) == lines(events(0, 4))
    with pytest.raises(OutputError, match="exists already"):
        other.finish()
    assert read(path) == lines(events(0, 4))


# Starting again


def test_beginning_anew_deletes_what_was_written(path: Path) -> None:
    output = opened(path)
    output.send(events(0, 3))
    OutputFile(path, "order1").discard(output.output_offset, is_finished=False)
    assert not list(path.parent.iterdir())
    output = opened(path)
    output.send(events(0, 3))
    output.finish()
    OutputFile(path, "order1").discard(output.output_offset, is_finished=True)
    assert not list(path.parent.iterdir())


def test_beginning_anew_deletes_an_empty_export(path: Path) -> None:
    opened(path).finish()
    OutputFile(path, "order1").discard(None, is_finished=True)
    assert not path.exists()


@pytest.mark.parametrize(("mark", "is_finished"), [(None, False), (None, True), (5, False), (5, True)])
def test_beginning_anew_never_deletes_a_file_that_is_not_ours(path: Path, mark: int | None, is_finished: bool) -> None:
    path.write_bytes(b"precious")
    OutputFile(path, "order1").discard(mark, is_finished=is_finished)
    assert path.read_bytes() == b"precious"


def test_beginning_anew_leaves_devices_and_links_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    link = tmp_path / "link"
    link.symlink_to(target)
    OutputFile(link, "order1").discard(None, is_finished=True)
    assert link.is_symlink()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    OutputFile(pipe, "order1").discard(None, is_finished=True)
    assert pipe.exists()


def test_what_cannot_be_deleted_is_told(path: Path) -> None:
    partial(path).mkdir()
    with pytest.raises(ConfigError) as caught:
        OutputFile(path, "order1").discard(5, is_finished=False)
    (problem,) = caught.value.problems
    assert problem == ("--output", f"{path}: Is a directory", "delete it by hand", "")


# What cannot be undone


def test_a_disk_that_fails_altogether_is_told_by_its_first_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = opened(path)

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", lambda descriptor: fail())
    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        output.send(events(0, 3))
    assert output.output_offset == 0
