"""Files on a real disk: written whole, durable, and owned by this user. Tests that need another user run only as root."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poller.core.errors import ConfigError
from poller.system.files import (
    NewFile,
    make_directory,
    open_own,
    sync_directory,
    write_most,
    write_whole,
)

SOMEBODY = 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def none_is_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inode numbers of the files and directories that were synced to the disk, in order."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    return synced


# Writing


def writing_a_few_bytes_until(error: OSError | None, room: int) -> Callable[[int, bytes], int]:
    """An `os.write` that writes at most three bytes at a time, and at most `room` bytes in total."""
    left = [room]
    write = os.write

    def few(descriptor: int, data: bytes) -> int:
        count = min(3, len(data), left[0])
        left[0] -= count
        if not count and error is not None:
            raise error
        return write(descriptor, bytes(data[:count]))

    return few


def test_what_the_system_takes_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", writing_a_few_bytes_until(None, 100))
    with (tmp_path / "file").open("wb") as file:
        assert write_most(file.fileno(), b"0123456789") == (10, None)
        write_whole(file.fileno(), b"abcde")
    assert (tmp_path / "file").read_bytes() == b"0123456789abcde"


def test_how_much_a_disk_took_until_it_was_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "write", writing_a_few_bytes_until(full, 7))
    with (tmp_path / "file").open("wb") as file:
        assert write_most(file.fileno(), b"0123456789") == (7, full)
        with pytest.raises(OSError, match="No space left") as error:
            write_whole(file.fileno(), b"a")
    assert error.value is full
    assert (tmp_path / "file").read_bytes() == b"0123456"


def test_a_pipe_that_never_blocks_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data, got = bytes(range(256)) * 1024, b""
    written: list[tuple[int, OSError | None]] = []
    thread = threading.Thread(target=lambda: written.append(write_most(writing, data)))
    thread.start()
    while len(got) < len(data):
        got += os.read(reading, 65_536)
    thread.join()
    assert (written, got) == ([(len(data), None)], data)
    os.close(reading)
    os.close(writing)


# Opening


def opened(path: Path, flags: int = os.O_WRONLY | os.O_CREAT, *owners: int) -> os.stat_result:
    descriptor = open_own(path, flags, owners=owners)
    assert not os.get_inheritable(descriptor)
    os.write(descriptor, b"new")
    found = os.fstat(descriptor)
    os.close(descriptor)
    return found


def test_a_file_is_created_for_its_owner_alone_and_an_own_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        opened(path, os.O_WRONLY)
    assert stat.S_IMODE(opened(path).st_mode) == 0o600
    path.write_bytes(b"0123456789")
    path.chmod(0o664)
    assert stat.S_IMODE(opened(path).st_mode) == 0o664
    assert path.read_bytes() == b"new3456789"
    opened(path, os.O_WRONLY | os.O_APPEND)
    assert path.read_bytes() == b"new3456789new"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_CREAT])
def test_what_others_may_have_put_there_is_not_written_to(tmp_path: Path, flags: int) -> None:
    path, real = tmp_path / "file", tmp_path / "real"
    real.write_bytes(b"mine")
    path.symlink_to(real)
    with pytest.raises(OSError, match="is a link, which is not followed") as error:
        open_own(path, flags)
    assert error.value.errno == errno.ELOOP
    path.unlink()
    path.hardlink_to(real)
    with pytest.raises(OSError, match="has a second name") as error:
        open_own(path, flags)
    assert error.value.errno == errno.EPERM
    path.unlink()
    real.rename(path)
    path.chmod(0o602)
    with pytest.raises(OSError, match="can be changed by other users") as error:
        open_own(path, flags)
    assert error.value.errno == errno.EPERM
    assert path.read_bytes() == b"mine"


def test_what_is_no_file_is_left_to_who_asks(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path.chmod(0o666)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert stat.S_ISFIFO(opened(path, os.O_WRONLY | os.O_NONBLOCK).st_mode)
    os.close(reading)


@as_root
def test_a_file_of_another_user_is_written_only_where_he_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"his")
    os.chown(path, SOMEBODY, -1)
    for owners in ((), (SOMEBODY - 1,)):
        with pytest.raises(OSError, match=f"belongs to another user .uid {SOMEBODY}.") as error:
            opened(path, os.O_WRONLY, *owners)
        assert error.value.errno == errno.EPERM
    assert path.read_bytes() == b"his"
    opened(path, os.O_WRONLY, SOMEBODY)
    assert path.read_bytes() == b"new"


def test_links_of_ours_on_the_way_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real" / "deep"
    real.mkdir(parents=True)
    (tmp_path / "near").symlink_to("real/../real")
    (tmp_path / "far").symlink_to(tmp_path / "near")
    for number, way in enumerate((tmp_path / "near" / "deep", tmp_path / "far" / "deep", real / ".." / "deep")):
        opened(way / str(number))
    monkeypatch.chdir(tmp_path)
    opened(Path("far/deep/3"))
    assert sorted(path.name for path in real.iterdir()) == ["0", "1", "2", "3"]
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "missing" / "file")
    with pytest.raises(NotADirectoryError):
        opened(real / "0" / "file")


def chain(directory: Path, count: int) -> Path:
    """A path that leads through `count` links."""
    (directory / "link-0").mkdir()
    for number in range(1, count + 1):
        (directory / f"link-{number}").symlink_to(f"link-{number - 1}")
    return directory / f"link-{count}"


def test_forty_links_are_followed_and_not_more(tmp_path: Path) -> None:
    last = chain(tmp_path, 41)
    opened(last.with_name("link-40") / "file")
    with pytest.raises(OSError, match="a directory on the way is a link") as error:
        opened(last / "file")
    assert error.value.errno == errno.ELOOP


@as_root
def test_a_link_of_another_user_on_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real")
    os.chown(link, SOMEBODY, -1, follow_symlinks=False)
    with pytest.raises(OSError, match=f"link of another user .uid {SOMEBODY}.") as error:
        opened(link / "file")
    assert error.value.errno == errno.ELOOP
    with pytest.raises(ConfigError, match="cannot be written"):
        NewFile(link / "file")
    assert list((tmp_path / "real").iterdir()) == []


# Directories


def test_a_directory_and_those_above_are_made_closed_to_others_and_last(tmp_path: Path, synced: list[int]) -> None:
    make_directory(tmp_path / "a" / "b" / "c")
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert [stat.S_IMODE(path.stat().st_mode) & 0o027 for path in made] == [0, 0, 0]
    assert [stat.S_IMODE(path.stat().st_mode) & 0o700 for path in made] == [0o700] * 3
    assert synced == [path.parent.stat().st_ino for path in made], "each new name is in its parent"
    make_directory(made[-1])
    assert len(synced) == 3
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"):
        make_directory(tmp_path / "file")


def test_who_may_use_a_new_directory_is_as_with_a_free_umask_too(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_directory(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    ("number", "is_told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True), (errno.ENOSPC, True)]
)
def test_a_file_system_that_need_not_be_told_is_fine_and_one_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_told: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if is_told:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_directory(tmp_path)
    else:
        sync_directory(tmp_path)


# New files


def test_a_new_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with NewFile(path) as file:
        file.write(b"half")
    assert list(tmp_path.iterdir()) == []
    with NewFile(path) as file:
        file.write(b"whole")
        assert not path.exists()
        file.commit()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"whole", 0o600)


def test_a_file_that_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("real")
    with NewFile(link) as file:
        file.write(b"new")
        file.commit(0o644)
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_device_a_pipe_and_a_socket_are_not_replaced_by_a_new_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(os.devnull)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for path in list(tmp_path.iterdir()):
            with pytest.raises(ConfigError, match="is a device, a pipe or a socket, which is not replaced"):
                NewFile(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "pipe", "socket"]


def test_where_nothing_can_be_written_is_told_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        NewFile(tmp_path / "missing" / "key")


def test_a_new_file_is_on_the_disk_before_it_has_its_name_and_then_its_name(tmp_path: Path, synced: list[int]) -> None:
    with NewFile(tmp_path / "key") as file:
        assert (file.draft.parent, stat.S_IMODE(file.draft.stat().st_mode)) == (tmp_path, 0o600)
        assert file.draft.name.startswith(".key.")
        file.write(b"whole")
        assert synced == [file.draft.stat().st_ino]
        file.commit(0o640)
    assert synced == [(tmp_path / "key").stat().st_ino, tmp_path.stat().st_ino]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["write", "fsync", "fchmod", "rename"])
def test_a_new_file_that_fails_at_any_step_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "key"
    path.write_text("old")

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(Path if step == "rename" else os, step, fail)
    with pytest.raises(ConfigError) as error, NewFile(path) as file:  # noqa: PT012 - any of its steps
        file.write(b"new")
        file.commit()
    (problem,) = error.value.problems
    assert (problem.path, problem.message) == (str(path), "cannot be written: the disk is broken")
    assert problem.hint
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("key", "old")]


@as_root
def test_what_root_makes_is_of_who_had_it_or_of_the_owner_of_a_directory(tmp_path: Path) -> None:
    def made(path: Path, for_owner_of: Path | None = None) -> tuple[int, int]:
        with NewFile(path) as file:
            file.write(b"new")
            file.commit(for_owner_of=for_owner_of)
        return path.stat().st_uid, path.stat().st_gid

    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, SOMEBODY, 777)
    path = tmp_path / "file"
    assert made(path) == (0, os.getegid())
    os.chown(path, 0, 778)
    assert made(path) == (0, 778), "as it was"
    assert made(path, state) == (0, 778)
    assert made(tmp_path / "another", state) == (SOMEBODY, 777)
    assert made(tmp_path / "another") == (0, os.getegid()), "not to who put a file of his own there"


@as_root
def test_a_link_of_another_user_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("real")
    os.chown(link, SOMEBODY, -1, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"link: cannot be written: is a link of another user .uid {SOMEBODY}."):
        NewFile(link)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
