"""An archive in a directory: objects are written whole and only once, and links of other users are not followed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from poller.archive import PlaceError, TakenError
from poller.archive.directory import DirectoryPlace
from poller.archive.places import open_place
from poller.config import ArchiveSink, Config
from poller.core.evidence.digest import digest_key

KEY = "data/contract=1/x.ndjson.gz"
HOUR = "data/contract=1/date=2026-01-01/hour=09"


@pytest.fixture
def place(tmp_path: Path) -> DirectoryPlace:
    return DirectoryPlace(tmp_path / "audit")


def test_an_object_is_written_once_for_its_owner_alone(place: DirectoryPlace, tmp_path: Path) -> None:
    place.put(KEY, b"text")
    path = tmp_path / "audit" / KEY
    before = path.stat()
    assert before.st_mode & 0o777 == 0o600
    place.put(KEY, b"text")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(TakenError, match=f"{path} is there already, with other content"):
        place.put(KEY, b"other")
    assert place.get(KEY) == b"text"
    assert [(listed.key, listed.size_bytes) for listed in place.listing("data/")] == [(KEY, 4)]
    assert [listed.key for listed in place.listing("dat")] == [KEY]
    assert list(place.listing("digests/")) == []
    place.delete(KEY)
    place.delete(KEY)
    assert place.get(KEY) is None


def test_what_a_kill_left_of_an_object_is_written_over_and_never_counts(place: DirectoryPlace, tmp_path: Path) -> None:
    path = tmp_path / "audit" / KEY
    path.parent.mkdir(parents=True)
    path.with_name(f".{path.name}.part").write_bytes(b"half of a longer te")
    place.put(KEY, b"text")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_kill_right_after_an_object_had_its_name_leaves_no_second_one(place: DirectoryPlace, tmp_path: Path) -> None:
    path = tmp_path / "audit" / KEY
    place.put(KEY, b"text")
    os.link(path, path.with_name(f".{path.name}.part"))
    place.put(KEY, b"text")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EIO])
def test_a_file_system_without_hard_links_will_do(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    if number == errno.EIO:
        with pytest.raises(PlaceError, match=os.strerror(number)):
            place.put(KEY, b"text")
        return
    place.put(KEY, b"text")
    assert place.get(KEY) == b"text"
    assert [listed.key for listed in place.listing("")] == [KEY]


def test_a_full_disk_is_told_and_no_draft_takes_the_rest_of_its_room(
    place: DirectoryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(descriptor: int, content: bytes) -> None:
        os.write(descriptor, content[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("poller.archive.directory.write_whole", half)
        with pytest.raises(PlaceError, match=r"No space left on device .*that there is room"):
            place.put(KEY, b"text")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    place.put(KEY, b"text")
    assert place.get(KEY) == b"text"


@pytest.mark.parametrize("content", [b"text", b"other"])
def test_another_writer_who_was_faster_is_not_written_over(
    place: DirectoryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def faster(source: Path, target: Path) -> None:
        target.write_bytes(content)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", faster)
    if content == b"text":
        place.put(KEY, b"text")
    else:
        with pytest.raises(TakenError):
            place.put(KEY, b"text")
    assert place.get(KEY) == content


def test_a_link_in_the_place_of_an_object_is_not_followed(place: DirectoryPlace, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = tmp_path / "audit" / KEY
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)
    with pytest.raises(PlaceError):
        place.get(KEY)
    with pytest.raises(PlaceError):
        place.put(KEY, b"text")
    assert [listed.size_bytes for listed in place.listing("")] == [0]
    assert secret.read_bytes() == b"secret"


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "data/../../x", "data//x", "data/\0", "data/./x", "data/.."]
)
def test_a_key_leads_nowhere_else(place: DirectoryPlace, key: str) -> None:
    with pytest.raises(PlaceError, match="no key of an object"):
        place.get(key)


def test_a_place_that_cannot_be_used_says_why(place: DirectoryPlace, tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="no such directory"):
        list(place.listing(""))
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(PlaceError, match="check that this user can write there, and that there is room"):
        place.put(KEY, b"text")


def test_a_listing_has_the_order_of_keys(place: DirectoryPlace) -> None:
    keys = ["d/b", "d/a.b", "d/a/x", "d/a/b", "d/c/x", "d/c-x", "e"]
    for key in keys:
        place.put(key, b"")
    assert [listed.key for listed in place.listing("")] == sorted(keys)
    assert [listed.key for listed in place.listing("d/a")] == ["d/a.b", "d/a/b", "d/a/x"]


@pytest.mark.parametrize(
    ("key", "is_draft"),
    [
        (f"{HOUR}/.000000003-50af10eefcb9037f.ndjson.gz.part", True),
        ("digests/.000000003.json.part", True),
        ("digests/.000000003.sig.part", True),
        ("digests/.000000003-50af10eefcb9037f.sig.part", True),
        ("digests/000000003.json.part", False),
        ("digests/.000000003.json.partial", False),
        (".000000003.json.part", False),
        (f"{HOUR}/.notes.part", False),
    ],
)
def test_what_a_kill_left_of_an_object_is_listed_as_a_draft_and_what_looks_like_it_is_not(
    place: DirectoryPlace, tmp_path: Path, key: str, is_draft: bool
) -> None:
    path = tmp_path / "audit" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    assert [(listed.key, listed.is_draft) for listed in place.listing("")] == [(key, is_draft)]
    path.unlink()
    path.symlink_to("elsewhere")
    assert [listed.is_draft for listed in place.listing("")] == [False], "a link is none that we wrote"


def test_a_draft_that_gets_its_name_while_it_is_listed_cuts_no_list_short(
    place: DirectoryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        place.put(digest_key(number), b"text")
    draft = tmp_path / "audit/digests/.000000009.json.part"
    draft.touch()
    listing = place.listing("")
    scan = os.scandir

    class Gone:
        """Lists a directory as it was just before the draft got its final name."""

        def __init__(self, directory: Path) -> None:
            self.entries = list(scan(directory))
            if directory == draft.parent:
                draft.unlink()

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Gone)
    assert [listed.key for listed in listing] == [digest_key(number) for number in range(1, 4)]


def test_a_special_file_is_no_object_and_holds_nobody_up(place: DirectoryPlace, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    os.mkfifo(tmp_path / "audit" / "pipe")
    with pytest.raises(PlaceError, match="pipe: is no regular file"):
        place.get("pipe")


@pytest.mark.parametrize("max_bytes", [-2, -1, 0, 3, 4, 5, 1 << 62])
def test_no_more_is_read_than_a_byte_past_the_bound(place: DirectoryPlace, max_bytes: int) -> None:
    place.put(KEY, b"text")
    assert place.get(KEY, max_bytes) == b"text"[: max(max_bytes, 0) + 1]


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _socket(path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as opened,
        contextlib.chdir(path.parent),
    ):  # the whole path may be too long for a socket
        opened.bind(path.name)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_link, "is a link, which is not followed"),
        (Path.mkdir, "is no regular file"),
        (os.mkfifo, "is no regular file"),
        (_socket, "No such device or address"),
        (lambda path: path.parent.rmdir() or path.parent.write_text(""), "Not a directory"),
    ],
    ids=["a link", "a directory", "a pipe", "a socket", "a file for a directory"],
)
def test_what_lies_in_place_of_an_object_is_told_to_be_of_that_object_alone(
    place: DirectoryPlace, tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "audit" / KEY
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(PlaceError, match=why) as told:
        place.get(KEY)
    assert (told.value.is_of_object, told.value.is_refused, told.value.hint) == (True, False, "")


def _denied(monkeypatch: pytest.MonkeyPatch, function: str, is_denied: Callable[[str], bool], number: int) -> None:
    """Make a function of `os` refuse some paths, because the user who runs the tests may have access to everything."""
    original = getattr(os, function)

    def refuse(path: str | Path, *args: int) -> object:
        if is_denied(str(path)):
            raise OSError(number, os.strerror(number))
        return original(path, *args)

    monkeypatch.setattr(os, function, refuse)


def test_a_file_that_this_user_may_not_read_is_of_that_object_and_a_disk_that_is_away_is_not(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put(KEY, b"text")
    with monkeypatch.context() as patch:
        _denied(patch, "open", lambda path: path.endswith(".gz"), errno.EACCES)
        with pytest.raises(PlaceError, match="check that this user can read it") as told:
            place.get(KEY)
        assert (told.value.is_of_object, told.value.is_refused) == (True, True)
    _denied(monkeypatch, "open", lambda path: path.endswith(".gz"), errno.EIO)
    with pytest.raises(PlaceError, match="Input/output error") as told:
        place.get(KEY)
    assert told.value.is_of_object
    _denied(monkeypatch, "scandir", lambda path: True, errno.EIO)
    with pytest.raises(PlaceError, match="Input/output error") as told:
        place.get(KEY)
    assert not told.value.is_of_object
    assert told.value.may_pass


@pytest.mark.parametrize(
    ("denied", "listed"),
    [
        ("lost+found", [KEY, "digests/1"]),
        ("data/contract=1", ["data/contract=1/", "digests/1"]),
        ("data", None),
        ("digests", None),
        ("", None),
    ],
)
def test_a_directory_that_cannot_be_read_is_told_by_its_name_unless_the_archive_has_none_such(
    place: DirectoryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str, listed: list[str] | None
) -> None:
    place.put(KEY, b"text")
    place.put("digests/1", b"text")
    (tmp_path / "audit/lost+found").mkdir()
    refused = str(tmp_path / "audit" / denied)
    _denied(monkeypatch, "scandir", lambda path: path == refused, errno.EACCES)
    if listed is None:
        with pytest.raises(PlaceError, match="Permission denied"):
            list(place.listing(""))
    else:
        assert [found.key for found in place.listing("")] == listed


def test_a_name_that_is_no_text_is_listed_as_one(place: DirectoryPlace, tmp_path: Path) -> None:
    place.put(KEY, b"text")
    os.close(os.open(os.fsencode(tmp_path / "audit/data") + b"/\xff\xfe.gz", os.O_CREAT | os.O_WRONLY))
    Path(os.fsdecode(os.fsencode(tmp_path / "audit/data") + b"/\xfe")).mkdir()
    os.close(os.open(os.fsencode(tmp_path / "audit/data") + b"/\xfe/x", os.O_CREAT | os.O_WRONLY))
    keys = [listed.key for listed in place.listing("")]
    assert keys == [KEY, "data/\\xfe/x", "data/\\xff\\xfe.gz"]
    assert "".join(keys).encode()


def test_a_probe_leaves_nothing_behind(place: DirectoryPlace, tmp_path: Path) -> None:
    assert place.probe() == ["objects can be written"]
    assert list(tmp_path.iterdir()) == []
    assert DirectoryPlace(tmp_path / "a" / "b").probe() == ["objects can be written"]
    assert list(tmp_path.iterdir()) == []


def test_a_probe_leaves_what_was_there_as_it_was(place: DirectoryPlace, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    assert place.probe() == ["objects can be written"]
    assert list((tmp_path / "audit").iterdir()) == []


def test_a_probe_that_fails_leaves_no_directory_behind(
    place: DirectoryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, flags: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("poller.archive.directory.open_own", full)
    with pytest.raises(PlaceError, match="No space left"):
        place.probe()
    assert list(tmp_path.iterdir()) == []


def test_the_url_says_which_place_it_is(tmp_path: Path) -> None:
    opened = open_place(ArchiveSink(name="a", url=f"file://{tmp_path}"), Config())
    assert isinstance(opened, DirectoryPlace)
    assert opened.url == str(tmp_path)
    for name in ("a b ü", "100% of it", "a+b"):
        for url in ((tmp_path / name).as_uri(), f"file://{tmp_path}/{name}"):
            assert open_place(ArchiveSink(name="a", url=url), Config()).url == str(tmp_path / name)
    assert open_place(ArchiveSink(name="a", url="s3://bucket/x"), Config()).url == "s3://bucket/x"
