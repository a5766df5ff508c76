"""Root works in directories of another user, who puts links and own files in the place of ours."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from poller.core.errors import ConfigError
from poller.system.files import NewFile
from tests.integration.fetching import Bench, Starter, failed
from tests.states import with_dead_letters

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT CHECKED: only root can make files of another user")
MALLORY = 65_534
NAMELESS = 61_184  # a user id of DynamicUser=, which has a name only while the service runs
PRECIOUS = b"root's own words, and enough of them that a cut shows\n" * 3


@pytest.fixture
def place(bench: Starter) -> Bench:
    """A directory of another user, in which root will work, and beside it an important file of root."""
    made = bench(contracts=1, events=50)
    os.chown(made.directory, MALLORY, MALLORY)
    made.directory.parent.chmod(0o755)
    (made.directory.parent / "precious").write_bytes(PRECIOUS)
    return made


def precious(place: Bench) -> Path:
    return place.directory.parent / "precious"


def plant_link(place: Bench, name: str, target: Path | None = None) -> Path:
    link = place.directory / name
    link.parent.mkdir(exist_ok=True)
    os.chown(link.parent, MALLORY, MALLORY)
    link.symlink_to(target or precious(place))
    os.chown(link, MALLORY, MALLORY, follow_symlinks=False)
    return link


@pytest.mark.parametrize("name", ["fetch.lock", "fetch.db", "fetch.db-wal", "fetch.db-shm", "fetch.db-journal"])
def test_no_file_of_the_state_is_followed_as_a_link(name: str, place: Bench) -> None:
    assert place.fetch().code == 0
    for kind in ("fetch.lock", "fetch.db-wal", "fetch.db-shm", "fetch.db-journal"):
        (place.state_dir / kind).unlink(missing_ok=True)
    (place.state_dir / name).unlink(missing_ok=True)
    plant_link(place, f"state/{name}")
    assert "link" in failed(place.fetch(), 4, "link")
    assert precious(place).read_bytes() == PRECIOUS


def test_an_export_follows_no_link_and_cuts_no_file_with_a_second_name(place: Bench) -> None:
    export = ("backfill", "--from", "1h", "--to", "1m", "--output", "out.ndjson")
    # Run it once, to learn the name of its state, which is part of the name of the partial file.
    assert place.run(*export, "--contract", "31960001").code == 0
    (name,) = [path.name for path in place.state_dir.iterdir() if path.suffix == ".db"]
    order = name.removeprefix("backfill-").removesuffix(".db")
    (place.directory / "out.ndjson").unlink()
    for state in place.state_dir.iterdir():
        state.unlink()
    partial = place.directory / f"out.ndjson.{order}.part"
    for plant in (partial.symlink_to, partial.hardlink_to):
        plant(precious(place))
        run = place.run(*export, "--contract", "31960001")
        assert run.code == 2, run.stderr
        assert "link" in run.stderr
        assert precious(place).read_bytes() == PRECIOUS
        partial.unlink()
        for state in place.state_dir.iterdir():
            state.unlink()


def file_sink(place: Bench, path: str) -> str:
    config = place.directory.parent / "config.toml"
    config.write_text(f'[[sinks]]\nname = "a"\ntype = "file"\npath = "{place.directory / path}"\n[http]\nlisten = ""\n')
    return str(config)


def refused(place: Bench, path: str, words: str) -> None:
    run = place.run("--config", file_sink(place, path), "check")
    told = b"\n".join(run.lines).decode()
    assert run.code == 1, told
    assert words in told
    assert precious(place).read_bytes() == PRECIOUS


def test_a_file_sink_follows_no_link(place: Bench) -> None:
    plant_link(place, "trail.ndjson")
    refused(place, "trail.ndjson", "is a link, which is not followed")


def test_a_file_sink_goes_through_no_link_of_another_user(place: Bench) -> None:
    elsewhere = place.directory.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "trail.ndjson").write_bytes(b"{}\n")
    plant_link(place, "logs", elsewhere)
    refused(place, "logs/trail.ndjson", f"a link of another user (uid {MALLORY})")


def test_a_file_sink_goes_through_a_link_of_ours(place: Bench) -> None:
    (place.directory / "elsewhere").mkdir()
    (place.directory / "logs").symlink_to("elsewhere")
    (place.directory / "elsewhere" / "trail.ndjson").write_bytes(b"{}\n")
    run = place.run("--config", file_sink(place, "logs/trail.ndjson"), "check")
    assert run.code == 0, run.lines


@pytest.mark.parametrize(
    ("owner", "mode", "words"),
    [(MALLORY, 0o600, f"belongs to another user (uid {MALLORY})"), (0, 0o666, "can be changed by other users")],
)
def test_a_trail_is_not_appended_to_a_file_that_others_can_change(
    owner: int, mode: int, words: str, place: Bench
) -> None:
    trail = place.directory / "trail.ndjson"
    trail.write_bytes(b"{}\n")
    os.chown(trail, owner, -1)
    trail.chmod(mode)
    refused(place, "trail.ndjson", words)


def test_root_works_in_the_state_of_a_service(place: Bench) -> None:
    """The directory and its files belong to the service. A person inspects and repairs them as root."""
    assert place.fetch().code == 0
    for path in (place.state_dir, *place.state_dir.iterdir()):
        os.chown(path, MALLORY, MALLORY)
    told = place.fetch()
    assert (told.code, place.run("status").code, place.fetch("--since", "1h").code) == (0, 0, 0)
    assert {path.stat().st_uid for path in place.state_dir.iterdir()} == {MALLORY}
    (warning,) = [line for line in told.log if line["message"] == "state.used_by_root"]
    assert (warning["level"], warning["owner"]) == ("WARNING", pwd.getpwuid(MALLORY).pw_name)


def test_a_state_that_root_begins_in_the_directory_of_a_service_is_for_the_service(place: Bench) -> None:
    place.state_dir.mkdir(mode=0o700)
    os.chown(place.state_dir, MALLORY, MALLORY)
    assert place.fetch().code == 0
    made = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in place.state_dir.iterdir()}
    assert made == dict.fromkeys(["fetch.db", "fetch.lock"], (MALLORY, MALLORY))


@pytest.mark.parametrize(
    ("owner", "become"),
    [(MALLORY, "sudo -u nobody ionos-poller"), (NAMELESS, f"setpriv --reuid {NAMELESS} --regid {NAMELESS} --clear-")],
)
def test_the_warning_of_root_says_how_to_be_the_owner_of_the_state(owner: int, become: str, place: Bench) -> None:
    place.state_dir.mkdir(mode=0o700)
    os.chown(place.state_dir, owner, owner)
    (warning,) = [line for line in place.fetch().log if line["message"] == "state.used_by_root"]
    assert f"run it as that user: {become}" in warning["hint"]


def test_what_root_purges_in_the_state_of_a_service_is_kept_for_the_service(place: Bench) -> None:
    with_dead_letters(place.state_dir, "fetch")
    for path in (place.state_dir, *place.state_dir.iterdir()):
        os.chown(path, MALLORY, MALLORY)
    purged = place.run("dead-letters", "purge", "--yes", "--reason", "x", "--use", "fetch")
    assert purged.code == 0
    assert "state.used_by_root" in [line["message"] for line in purged.log]
    assert {path.stat().st_uid for path in place.state_dir.iterdir()} == {MALLORY}


def test_a_state_directory_that_others_can_change_is_refused(place: Bench) -> None:
    place.state_dir.mkdir()
    place.state_dir.chmod(0o777)
    failed(place.fetch(), 4, "other users can change", "chmod o-w")


def test_setup_writes_through_no_link_of_another_user_and_gives_no_key_away(place: Bench) -> None:
    link = plant_link(place, "made.key")
    with pytest.raises(ConfigError, match=f"link of another user \\(uid {MALLORY}\\)"):
        NewFile(link)
    link.unlink()
    link.write_bytes(b"an old key")
    os.chown(link, MALLORY, MALLORY)
    with NewFile(link) as made:
        made.write(b"a new key")
        made.commit()
    assert (link.stat().st_uid, link.stat().st_mode & 0o777) == (0, 0o600)
