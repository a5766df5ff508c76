"""The commands `archive keygen`, `verify` and `restore` on archives in a directory: exit codes and named errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from poller.archive.directory import DirectoryPlace
from poller.core.evidence.digest import batch_of, decode, digest_key, encode
from tests.archives import Writer, archive_of, entry
from tests.in_process import run_here

LINE = b'{"@uuid":"%08d-0000-4000-8000-000000000000","meta":{"time":"2026-01-01T%02d:%02d:00Z"}}'


def command(where: Path, *args: str) -> tuple[int, list[str], str]:
    code, output, errors = run_here("archive", *args, cwd=where, env={})
    return code, output.decode().splitlines(), errors.decode()


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """The directory of an archive of three batches. A configuration with a sink lies beside it."""
    made, _ = archive_of(3)
    for key, content in made.objects.items():
        DirectoryPlace(tmp_path / "audit").put(key, content)
    (tmp_path / "ionos-poller.toml").write_text('[[sinks]]\nname = "files"\ntype = "file"\npath = "again.ndjson"\n')
    return tmp_path / "audit"


# keygen


@pytest.mark.parametrize("name", ["x.pub", "X.PUB", "a.b.Pub", "sub/x.pub", ".", "..", "sub/.."])
def test_a_private_key_gets_no_name_that_its_public_key_would_take(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    code, output, errors = command(tmp_path, "keygen", name)
    assert (code, output) == (2, [])
    assert "is no name for a private key (name the file of the private key, such as evidence.key" in errors
    assert [path.name for path in tmp_path.rglob("*")] == ["sub"]


def test_where_one_of_two_keys_cannot_be_written_neither_is(tmp_path: Path) -> None:
    code, _, errors = command(tmp_path, "keygen", f"{'x' * 243}.k")
    assert (code, "cannot be written" in errors, list(tmp_path.iterdir())) == (2, True, [])
    assert command(tmp_path, "keygen", "evidence.key")[0] == 0
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "evidence.key": 0o600,
        "evidence.pub": 0o644,
    }


# verify


def test_an_object_that_cannot_be_read_is_named_and_the_others_are_verified(audit: Path) -> None:
    assert command(audit, "verify", ".")[0] == 0
    linked, flipped = (path for path in sorted(audit.rglob("*.gz")) if batch_of(str(path.relative_to(audit))) == 2)
    linked.unlink()
    linked.symlink_to("/etc/passwd")
    flipped.write_bytes(flipped.read_bytes()[::-1])
    code, output, errors = command(audit, "verify", ".")
    assert (code, output[0].endswith("NOT PROVEN: 2 findings")) == (1, True)
    assert f"{linked.relative_to(audit)}: cannot be read: is a link, which is not followed\n" in errors
    assert f"{flipped.relative_to(audit)}: was changed" in errors


@pytest.mark.parametrize("number", ["0", "000", "", "-1", "1.0", "9" * 10, "9" * 5000, "\u0663"])
def test_a_known_digest_has_a_number_that_a_digest_can_have(audit: Path, number: str) -> None:
    code, output, errors = command(audit, "verify", ".", "--head", f"{number}:{'a' * 64}")
    assert (code, output) == (2, [])
    assert "--head: is not N:SHA256 (as `ionos-poller archive list` shows it)" in errors
    known = command(audit, "list", ".")[1][-1].split()[0]
    assert command(audit, "verify", ".", "--head", f"00{known}")[0] == 0


def test_a_file_with_the_number_0_is_no_digest(audit: Path) -> None:
    proven = command(audit, "verify", ".")[1]
    for ending in ("json", "sig"):
        (audit / f"digests/000000000.{ending}").write_bytes((audit / f"digests/000000001.{ending}").read_bytes())
    code, output, errors = command(audit, "verify", ".")
    assert (code, output[1:]) == (1, proven[1:])
    assert [line.partition(": ")[2] for line in errors.splitlines()] == [
        f"digests/000000000.{ending}: is no part of the archive: no digest names it" for ending in ("json", "sig")
    ]


def test_a_place_that_cannot_be_read_is_not_proven_and_not_called_changed(audit: Path) -> None:
    code, output, errors = command(audit, "verify", "audit/none")
    assert (code, output[0]) == (5, "not finished, so nothing is proven")
    assert "not finished: audit/none: there is no such directory (check the path)" in errors
    code, output, _ = command(audit, "verify", "audit/none", "--json")
    told = json.loads(output[0])
    assert (code, told["proven"], told["finished"], told["findings"]) == (5, False, False, [])


def test_a_name_that_is_no_text_is_a_finding_for_machines_too(audit: Path) -> None:
    os.close(os.open(os.fsencode(audit) + b"/data/\xff\xfe.gz", os.O_CREAT | os.O_WRONLY))
    code, output, _ = command(audit, "verify", ".", "--json")
    assert code == 1
    assert [row["where"] for row in json.loads(output[0])["findings"]] == ["data/\\xff\\xfe.gz"]


def test_sparse_files_of_any_size_are_not_read(audit: Path) -> None:
    grown = next(audit.rglob("*.gz"))
    digests = audit / digest_key(2), audit / "digests/000000003.sig"
    other = audit / "data/other"
    other.touch()
    for path in (grown, *digests, other):
        os.truncate(path, 1 << 40)
    code, _, errors = command(audit, "verify", ".")
    assert code == 1
    assert f"{grown.relative_to(audit)}: was changed: it is longer than" in errors
    assert f"{digest_key(2)}: is longer than any digest" in errors
    assert f"{digest_key(3)}: was changed: its signature does not fit" in errors


# restore


def entries_of(*times: tuple[int, int]) -> list[object]:
    return [entry(n, hour).with_line(LINE % (n, hour, minute)) for n, (hour, minute) in enumerate(times, start=1)]


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Two archives of two hours, `raw` and `ecs`. They differ only in the format that their digests name."""
    for name in ("raw", "ecs"):
        place = DirectoryPlace(tmp_path / name)
        Writer(place, None).write(entries_of((0, 10), (0, 50), (1, 10), (1, 50)))  # type: ignore[arg-type]
        path = tmp_path / name / digest_key(1)
        path.write_bytes(encode(msgspec.structs.replace(decode(path.read_bytes()), entry_format=name)))
    (tmp_path / "ionos-poller.toml").write_text('[[sinks]]\nname = "files"\ntype = "file"\npath = "again.ndjson"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("start", "end", "raw", "ecs", "is_told"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:30:00Z", 1, 2, True),
        ("2026-01-01T00:30:00Z", "2026-01-01T00:59:59Z", 1, 2, True),
        ("2026-01-01T00:30:00Z", "2026-01-01T01:30:00Z", 2, 4, True),
        ("2026-01-01T00:30:00Z", "2026-01-01T02:00:00Z", 3, 4, True),
        ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z", 2, 2, False),
        ("2026-01-01", "2026-01-02", 4, 4, False),
    ],
)
def test_a_part_of_an_hour_is_restored_whole_where_the_times_are_not_read(
    places: Path, start: str, end: str, raw: int, ecs: int, is_told: bool
) -> None:
    note = "the times of entries in the format ecs are not read: each hour that the span touches is restored whole"
    for name, count in (("raw", raw), ("ecs", ecs)):
        code, output, errors = command(places, "restore", f"./{name}", "--from", start, "--to", end)
        assert (code, len(output), note in errors) == (0, count, is_told and name == "ecs"), name


@pytest.mark.parametrize("span", [[], ["--from", "2026-01-01T00:30:00Z"]], ids=["all", "a part"])
def test_entries_in_another_format_go_to_no_sink(places: Path, span: list[str]) -> None:
    code, _, errors = command(places, "restore", "./ecs", "--sink", "files", *span)
    assert code == 2
    assert "the archive holds entries in the format ecs, and a sink needs them as the API gave them" in errors
    assert not (places / "again.ndjson").exists()
    assert command(places, "restore", "./raw", "--sink", "files", *span)[0] == 0
    assert len((places / "again.ndjson").read_bytes().splitlines()) == (4 if not span else 3)
    # Only the format of the requested span counts, and this span is empty.
    assert command(places, "restore", "./ecs", "--sink", "files", "--from", "2026-01-02")[0] == 0
