"""Which files the program accepts: a table of owners and modes, and real files for what a table cannot show."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from poller.config import load
from poller.config.secrets import SecretSource
from poller.config.trust import Reader, Rights, distrust, distrust_link, exposure, this_reader
from poller.core.errors import ConfigError
from tests.support import is_plain

SINK = '[[sinks]]\nname = "l"\ntype = "loki"\nurl = "http://localhost:3100"\n'
ME, MALLORY = 1000, 1001
HOME = Rights("/home/me", ME, ME, 0o040755)
ETC = Rights("/etc/ionos-poller", 0, 0, 0o040755)


def file(owner: int = ME, mode: int = 0o644, group: int = ME) -> Rights:
    return Rights("x.toml", owner, group, 0o100000 | mode)


@pytest.mark.parametrize(
    ("found", "directory"),
    [
        (file(), HOME),
        (file(owner=0), ETC),
        (file(owner=0), HOME),
        (file(), HOME._replace(owner=0, mode=0o041777)),  # /tmp: only its owner can replace a file
        (file(mode=0o664), HOME._replace(mode=0o040775)),  # this user's own group, as with Ubuntu's umask
    ],
)
def test_a_file_counts_that_only_root_or_this_user_can_have_written(found: Rights, directory: Rights) -> None:
    assert distrust(found, [directory], Reader(ME, own_group=ME)) is None


@pytest.mark.parametrize(
    ("found", "directory", "words"),
    [
        (file(owner=MALLORY), HOME, "belongs to another user (uid 1001)"),
        (file(owner=MALLORY), ETC, "belongs to another user (uid 1001)"),
        (file(mode=0o646), HOME, "can change"),
        (file(mode=0o666), HOME, "can change"),
        (file(mode=0o664, group=50), HOME, "can change"),
        (file(), HOME._replace(owner=MALLORY), "can be replaced by the owner"),
        (file(owner=0), HOME._replace(owner=MALLORY), "can be replaced by the owner"),
        (file(), HOME._replace(mode=0o040777), "can replace"),
        (file(), HOME._replace(mode=0o040775, group=50), "can replace"),
        (file(), HOME._replace(owner=MALLORY, mode=0o041777), "can be replaced by the owner"),
    ],
)
def test_a_file_that_another_user_can_have_written_is_refused_with_the_remedy(
    found: Rights, directory: Rights, words: str
) -> None:
    refusal = distrust(found, [ETC, directory], Reader(ME, own_group=ME))
    assert refusal is not None
    assert words in refusal.message
    assert "chown" in refusal.hint or "chmod" in refusal.hint or "move it" in refusal.hint
    assert is_plain(refusal.hint)


NULL = Rights("/dev/null", 0, 0, 0o020666)


def test_a_device_counts_that_all_may_write_since_it_keeps_nothing_but_one_of_another_user_does_not() -> None:
    assert distrust(NULL, [ETC], Reader(ME)) is None
    assert exposure(NULL, Reader(ME)) is None
    assert distrust(NULL._replace(owner=MALLORY), [ETC], Reader(ME)) is not None
    assert distrust(NULL, [ETC._replace(mode=0o040777)], Reader(ME)) is not None


def test_dev_null_is_a_configuration_without_keys_and_no_secret() -> None:
    assert load(Path(os.devnull), {}).sinks == ()
    with pytest.raises(ConfigError, match="is empty"):
        SecretSource("file", os.devnull, path="token").read()


def test_what_is_known_of_a_file_is_its_owner_group_and_mode(tmp_path: Path) -> None:
    found = tmp_path.stat()
    assert Rights.of("x", found) == Rights("x", found.st_uid, found.st_gid, found.st_mode)


def test_a_link_is_followed_if_it_is_ours_or_roots() -> None:
    link = Rights("x", MALLORY, MALLORY, 0o120777)
    refusal = distrust_link(link, Reader(ME))
    assert refusal is not None
    assert refusal.message == "x is a link of another user (uid 1001) and is not followed"
    assert is_plain(refusal.hint)
    for followed in (link._replace(owner=ME), link._replace(owner=0), link._replace(mode=0o100777)):
        assert distrust_link(followed, Reader(ME)) is None


@pytest.mark.parametrize(
    ("name", "group", "members", "own_group"),
    [
        ("me", "me", [], 7),
        ("me", "me", ["me"], 7),
        ("me", "me", ["me", "mallory"], None),
        ("me", "users", [], None),
        (None, "me", [], None),
        ("me", None, [], None),
    ],
)
def test_a_group_is_ours_alone_if_it_has_our_name_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, name: str | None, group: str | None, members: list[str], own_group: int | None
) -> None:
    def user_of(uid: int) -> SimpleNamespace:
        assert uid == ME
        return SimpleNamespace(**{} if name else {}[name], pw_name=name, pw_gid=7)

    def group_of(gid: int) -> SimpleNamespace:
        assert gid == 7
        return SimpleNamespace(**{} if group else {}[group], gr_name=group, gr_mem=members)

    monkeypatch.setattr(os, "geteuid", lambda: ME)
    monkeypatch.setattr("pwd.getpwuid", user_of)
    monkeypatch.setattr("grp.getgrgid", group_of)
    assert this_reader() == Reader(ME, own_group)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert this_reader() == Reader(0)


def test_root_has_no_group_of_its_own() -> None:
    root = Reader(0)
    assert distrust(file(owner=0, mode=0o664, group=0), [ETC], root) is not None
    assert distrust(file(owner=ME), [ETC], root) is not None


def test_a_secret_that_others_can_read_names_the_chmod() -> None:
    me = Reader(ME)
    for mode in (0o600, 0o400, 0o640, 0o440):
        assert exposure(file(mode=mode), me) is None
    for mode in (0o644, 0o604, 0o444, 0o601):
        refusal = exposure(file(mode=mode), me)
        assert refusal is not None
        assert refusal.hint == "chmod 600 x.toml"
    refusal = exposure(file(owner=0, mode=0o644), me)
    assert refusal is not None
    assert refusal.hint == "chmod 640 x.toml"


def test_a_configuration_in_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "open" / "x.toml"
    config.parent.mkdir()
    config.write_text("")
    load(config, {})
    config.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=r"other users can replace .*chmod go-w"):
        load(config, {})


@pytest.mark.parametrize(("mode", "words"), [(0o600, "nobody writes into"), (0o666, "other users can change")])
def test_a_pipe_in_place_of_a_configuration_is_refused_without_waiting_for_its_writer(
    tmp_path: Path, mode: int, words: str
) -> None:
    pipe = tmp_path / "ionos-poller.toml"
    os.mkfifo(pipe)
    pipe.chmod(mode)
    with pytest.raises(ConfigError, match=words):
        load(pipe, {})


def test_a_configuration_may_come_out_of_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b'[poll]\ninterval = "7s"\n')
    os.close(writing)
    try:
        assert load(Path(f"/dev/fd/{reading}"), {}).poll.interval_seconds == 7
    finally:
        os.close(reading)


def test_a_link_counts_where_neither_it_nor_its_target_can_be_replaced(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    (inner / "real.toml").write_text("")
    (outer / "x.toml").symlink_to(inner / "real.toml")
    load(outer / "x.toml", {})
    for directory in (inner, outer):
        directory.chmod(0o777)
        with pytest.raises(ConfigError, match="other users can replace"):
            load(outer / "x.toml", {})
        directory.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_of_another_user_does_not_choose_our_configuration(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "ours.toml").write_text("")
    link = shared / "ionos-poller.toml"
    link.symlink_to(tmp_path / "ours.toml")
    load(link, {})
    os.chown(link, 65_534, -1, follow_symlinks=False)
    with pytest.raises(
        ConfigError, match=r"a link of another user \(uid 65534\)|Permission denied"
    ):  # or the kernel refuses it first
        load(link, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("key", ["config", "token"])
def test_a_file_of_another_user_is_refused_though_it_can_be_read(key: str, tmp_path: Path) -> None:
    config, token = tmp_path / "x.toml", tmp_path / "token"
    token.write_text("abc")
    config.write_text('[api]\ntoken_file = "token"\n')
    load(config, {})
    os.chown(config if key == "config" else token, 65_534, -1)
    with pytest.raises(ConfigError, match=r"belongs to another user \(uid 65534\)"):
        load(config, {})


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Path]:
    """A volume as Kubernetes mounts a Secret: read-only, with links to files of mode 0644 in a directory that all may write."""
    volume = tmp_path / "secret"
    volume.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", volume], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        (volume / "..2026").mkdir()
        (volume / "..2026" / "token").write_text("abc")
        (volume / "..2026" / "token").chmod(0o644)
        (volume / "..data").symlink_to("..2026")
        (volume / "token").symlink_to("..data/token")
        yield volume
    finally:
        subprocess.run(["umount", "-l", volume], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_secret_on_a_read_only_mount_counts_as_kubernetes_and_docker_give_it(kubernetes: Path) -> None:
    source = SecretSource("file", str(kubernetes / "token"), path="api.token_file")
    with pytest.raises(ConfigError, match=r"other users can read .*chmod 600"):
        source.read()
    subprocess.run(["mount", "-o", "remount,ro", kubernetes], check=True)
    assert source.read().reveal() == "abc"


def test_the_private_key_of_a_certificate_that_others_can_read_is_refused(tmp_path: Path) -> None:
    config, key = tmp_path / "x.toml", tmp_path / "client.key"
    (tmp_path / "client.pem").write_text("")
    key.write_text("")
    config.write_text(SINK + 'cert_file = "client.pem"\nkey_file = "client.key"\n')
    load(config, {})
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"other users can read .*chmod 600"):
        load(config, {})


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("http://api.example", True),
        ("http://10.0.0.1", True),
        ("http://127.0.0.1.example", True),
        ("http://localhost.example:80", True),
        ("http://[fe80::1]", True),
        ("http://0.0.0.0", True),
        ("https://api.example", False),
        ("http://127.0.0.1:8080", False),
        ("http://127.9.9.9", False),
        ("http://[::1]:1", False),
        ("http://localhost", False),
        ("http://api.localhost", False),
    ],
)
def test_a_secret_crosses_no_network_in_clear_text_unless_a_person_allows_it(
    url: str, is_refused: bool, tmp_path: Path
) -> None:
    tables = {
        "api.url": '[api]\nurl = "{url}"\n',
        "accounts[0].url": '[[accounts]]\nname = "a"\ntoken = "t"\nurl = "{url}"\n',
        "sinks[0].url": SINK.replace("http://localhost:3100", "{url}") + 'bearer_token = "t"\n',
        "sinks[0].url ": SINK.replace("http://localhost:3100", "{url}") + 'headers = {{ X-Key = "t" }}\n',
    }
    for path, text in tables.items():
        config = tmp_path / "x.toml"
        config.write_text(text.format(url=url))
        if is_refused:
            with pytest.raises(ConfigError, match="clear text") as caught:
                load(config, {})
            assert [problem.path for problem in caught.value.problems] == [path.strip()]
        else:
            load(config, {})


def test_clear_text_can_be_allowed_and_needs_no_leave_where_there_is_no_secret(tmp_path: Path) -> None:
    config = tmp_path / "x.toml"
    open_sink = SINK.replace("localhost", "loki.example")
    for text in (
        '[api]\nurl = "http://api.example"\nallow_plain_http = true\n',
        open_sink,
        open_sink + 'bearer_token = "t"\nallow_plain_http = true\n',
    ):
        config.write_text(text)
        load(config, {})
    load(None, {"IONOS_API_URL": "http://api.example", "IONOS_POLLER_API__ALLOW_PLAIN_HTTP": "true"})
    for wrong in ("yes", "1", ""):
        config.write_text(f'[api]\nallow_plain_http = "{wrong}"\n')
        with pytest.raises(ConfigError, match="true or false"):
            load(config, {})


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    (tmp_path / "token").chmod(0o644)
    config = tmp_path / "x.toml"
    config.write_text('[api]\ntoken_file = "token"\n')
    with pytest.raises(ConfigError, match=r"other users can read .*chmod 600"):
        load(config, {})
