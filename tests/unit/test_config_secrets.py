"""Secrets: they are never shown; their sources; and what an account logs in with."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import Config, LoggingServiceSink, LokiSink, Secret, SecretSource, load
from poller.config.describe import effective
from poller.core.errors import ConfigError, FileProblem, Problem, TransientError
from tests.support import is_plain

CANARY = "canary-7f3a"
SINK = '[[sinks]]\nname = "logs"\ntype = "logging-service"\nurl = "https://x"\ntag = "t"\n'


def write(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "ionos-poller.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def reveal(config: Config) -> str:
    """The login of the first account: the token, or user:password."""
    found = config.accounts[0].credentials()
    if found.token:
        return found.token.reveal()
    assert found.password
    return f"{found.username}:{found.password.reveal()}"


def test_a_secret_shows_in_no_form() -> None:
    secret = Secret(CANARY)
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>40}",
        f"{[secret]}",
    ):
        assert CANARY not in text
    assert secret.reveal() == CANARY
    assert (secret == Secret(CANARY), secret == CANARY, len({secret, Secret(CANARY)})) == (True, False, 1)


@pytest.mark.parametrize("save", [pickle.dumps, copy.deepcopy, json.dumps, msgspec.json.encode, msgspec.msgpack.encode])
@pytest.mark.parametrize("what", [Secret(CANARY), SecretSource("inline", "", path="x", inline=Secret(CANARY))])
def test_a_secret_is_not_serialised(save: Any, what: object) -> None:
    with pytest.raises(TypeError) as caught:
        save(what)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"abc", "abc"), (b"abc\n", "abc"), (b"abc\r\n", "abc")],
)
def test_one_newline_at_the_end_of_a_key_file_is_not_part_of_the_key(
    tmp_path: Path, content: bytes, value: str
) -> None:
    (tmp_path / "key").write_bytes(content)
    assert SecretSource("file", str(tmp_path / "key"), path="x").read().reveal() == value


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b" \t\n", "is empty"),
        (b"canary\n\n", "control character"),
        (b"canary\r\nX-Evil: 1", "control character"),
        (b"canary\0", "control character"),
        (b"canary\x7f", "control character"),
        ("canary\u2028".encode(), "control character"),
        (b"canary canary", "holds a space"),
        (b"canary ", "holds a space"),
        ("canary\u00e4".encode(), "beyond ASCII"),
        (b"canary\xff", "not UTF-8"),
        (b"canary" * 20_000, "larger than 64 KiB"),
    ],
)
def test_what_cannot_be_a_token_is_refused_without_being_shown(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=part) as caught:
        SecretSource("file", str(file), path="api.token_file").read()
    (problem,) = caught.value.problems
    assert problem.path == "api.token_file"
    assert str(file) in problem.message
    assert is_plain(problem.message)
    assert is_plain(problem.hint) if "UTF-8" not in part else problem.hint == ""
    assert "canary" not in f"{caught.value}{caught.value.__cause__!r}"


@pytest.mark.parametrize(("value", "revealed"), [("abc\r\n\n", "abc"), ("\ufeffabc", "abc"), (" abc", " abc")])
def test_a_variable_is_read_as_a_file_would_be(value: str, revealed: str) -> None:
    assert SecretSource("env", "P", path="x", is_text=True, environ={"P": value}).read().reveal() == revealed


@pytest.mark.parametrize("environ", [{}, {"P": ""}, {"P": "\n"}])
def test_a_variable_that_is_not_set_is_told(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        SecretSource("env", "P", path="x", environ=environ).read()
    (problem,) = caught.value.problems
    assert (problem.path, problem.message, problem.hint) == ("x", "the environment variable P is not set", "set P")


@pytest.mark.parametrize("value", ['"abc"', "'abc'", '""'])
def test_a_token_in_quotes_is_told_and_a_password_may_have_them(value: str) -> None:
    with pytest.raises(ConfigError, match="environment variable P stands in quotes") as caught:
        SecretSource("env", "P", path="x", environ={"P": value}).read()
    assert caught.value.problems[0].hint
    assert SecretSource("env", "P", path="x", is_text=True, environ={"P": value}).read().reveal() == value
    for bare in ('"', "\"abc'", '"abc'):
        assert SecretSource("env", "P", path="x", environ={"P": bare}).read().reveal() == bare


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("file", "key file /k"),
        ("credential", "systemd credential /k"),
        ("env", "environment variable /k"),
        ("inline", "value in the configuration"),
        ("missing", "missing"),
    ],
)
def test_a_source_is_named_by_where_it_is(origin: Any, shown: str) -> None:
    source = SecretSource(origin, "/k", path="api.token")
    assert (str(source), repr(source)) == (shown, f"<SecretSource api.token: {shown}>")


def test_an_empty_key_file_may_be_filled_at_any_time_and_an_empty_value_may_not(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    inline = SecretSource("inline", "", path="x", inline=Secret(" "))
    for source, kind in ((SecretSource("file", str(tmp_path / "key"), path="x"), FileProblem), (inline, Problem)):
        with pytest.raises(ConfigError, match="is empty") as caught:
            source.read()
        assert type(caught.value.problems[0]) is kind
        assert is_plain(caught.value.problems[0].hint)


@pytest.mark.parametrize(
    ("number", "kind", "has_remedy"),
    [(errno.EMFILE, TransientError, True), (errno.EIO, TransientError, False), (errno.EACCES, ConfigError, True)],
)
def test_what_keeps_a_key_file_from_being_read_for_now_is_told_from_what_a_person_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], has_remedy: bool
) -> None:
    def fail(*args: object, **options: object) -> int:
        raise OSError(number, "words")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises((TransientError, ConfigError), match=r"key file .*key.*: words") as caught:
        SecretSource("file", str(tmp_path / "key"), path="x").read()
    assert type(caught.value) is kind
    hint = caught.value.problems[0].hint if isinstance(caught.value, ConfigError) else caught.value.hint
    assert bool(hint) is has_remedy
    assert is_plain(hint or "none")


def test_sources_are_the_same_if_what_they_give_is() -> None:
    one = SecretSource("inline", "p", path="x", inline=Secret("a"))
    assert one == SecretSource("inline", "p", path="y", inline=Secret("a"))
    others = [
        SecretSource("inline", "p", path="x", inline=Secret("b")),
        SecretSource("inline", "q", path="x", inline=Secret("a")),
        SecretSource("inline", "p", path="x", inline=Secret("a"), is_text=True),
        SecretSource("env", "p", path="x", inline=Secret("a")),
    ]
    assert one not in [*others, "a", None]
    assert len({one, SecretSource("inline", "p", path="y", inline=Secret("a")), *others}) == 5
    assert {Secret("a"), Secret("a"), Secret("b")} == {Secret("a"), Secret("b")}


def test_a_key_file_of_64_kib_is_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"x" * 64 * 1024)
    (tmp_path / "key").chmod(0o600)
    assert len(SecretSource("file", str(tmp_path / "key"), path="x").read().reveal()) == 64 * 1024
    (tmp_path / "key").write_bytes(b"x" * (64 * 1024 + 1))
    with pytest.raises(ConfigError, match="is larger than 64 KiB"):
        SecretSource("file", str(tmp_path / "key"), path="x").read()


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    with pytest.raises(ConfigError, match=r"token is a pipe .*read again"):
        load(write(tmp_path, '[api]\ntoken_file = "token"\n'), {})


def test_a_file_that_cannot_be_looked_at_is_told_as_one_that_cannot_be_read(tmp_path: Path) -> None:
    """As in a directory that is closed to this user, which no test of root has: a name too long fails at the same step."""
    with pytest.raises(ConfigError, match=r"unreadable key file .*File name too long \(check that the file exists"):
        load(write(tmp_path, f'[api]\ntoken_file = "./{"a" * 300}"\n'), {})


def test_a_password_may_hold_spaces_and_any_letter() -> None:
    source = SecretSource("env", "P", path="x", is_text=True, environ={"P": "pass wörd"})
    assert source.read().reveal() == "pass wörd"


def test_a_key_file_is_read_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("old\n")
    (sink,) = load(write(tmp_path, SINK + 'api_key_file = "key"'), {}).sinks
    assert isinstance(sink, LoggingServiceSink)
    assert sink.api_key.read().reveal() == "old"
    (tmp_path / "key").write_text("new\n")
    assert sink.api_key.read().reveal() == "new"
    (tmp_path / "key").unlink()
    with pytest.raises(ConfigError, match="unreadable key file"):
        sink.api_key.read()


def test_a_missing_key_file_is_no_problem_to_commands_that_need_no_secret(tmp_path: Path) -> None:
    path = write(tmp_path, SINK + '[api]\nca_file = "no.pem"\ntoken_file = "no"\n')
    config = load(path, {}, check_files=False)
    (sink,) = config.sinks
    assert isinstance(sink, LoggingServiceSink)
    with pytest.raises(
        ConfigError, match=r"missing .give api_key_file or api_key_env, or a systemd credential logs.key"
    ):
        sink.api_key.read()
    with pytest.raises(ConfigError, match="unreadable key file"):
        config.accounts[0].credentials()


def test_a_secret_in_the_file_is_named_as_that(tmp_path: Path) -> None:
    config = load(write(tmp_path, '[api]\ntoken = "canary"\n'), {})
    assert config.accounts[0].token is not None
    assert str(config.accounts[0].token) == "value in the configuration"
    assert config.accounts[0].credentials().origin == "value in the configuration"


def test_a_secret_in_the_file_wants_a_private_file(tmp_path: Path) -> None:
    text = f'[api]\ntoken = "{CANARY}"\n'
    assert reveal(load(write(tmp_path, text, 0o600), {})) == CANARY
    for mode in (0o640, 0o604, 0o610, 0o644):
        with pytest.raises(ConfigError, match="others can read") as caught:
            load(write(tmp_path, text, mode), {})
        assert caught.value.problems[0].path == "api.token"
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize(("key", "name"), [("headers", "Authorization"), ("query", "api-key")])
def test_a_header_or_parameter_that_carries_a_secret_wants_a_private_file(tmp_path: Path, key: str, name: str) -> None:
    text = '[[sinks]]\nname = "a"\ntype = "http"\nurl = "https://x"\n'
    text += f'{key} = {{ {name} = "{CANARY}" }}\n'
    assert CANARY not in effective(load(write(tmp_path, text, 0o600), {}))
    with pytest.raises(ConfigError, match="others can read") as caught:
        load(write(tmp_path, text, 0o644), {})
    assert CANARY not in str(caught.value)
    load(write(tmp_path, text.replace(name, "X-Environment"), 0o644), {})
    with pytest.raises(ConfigError, match="allow_plain_http"):
        load(write(tmp_path, text.replace("https", "http"), 0o600), {})


def test_of_a_private_key_that_we_may_not_read_systemds_copy_is_taken(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "evidence.key").write_text("a key")
    (credentials / "evidence.key").chmod(0o600)
    text = '[evidence]\nsigning_key_file = "/nowhere/evidence.key"\n'
    config = load(write(tmp_path, text), {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert config.evidence.signing_key_file == credentials / "evidence.key"


def test_systemd_credentials_are_found_by_name(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in ("token", "logs.key", "m.application-id", "l.bearer-token", "redact.hash-key"):
        (credentials / name).write_text(f"value of {name}".replace(" ", "-") + "\n")
    text = SINK + '[[sinks]]\nname = "m"\ntype = "moesif"\n[[sinks]]\nname = "l"\ntype = "loki"\nurl = "https://x"\n'
    config = load(
        write(tmp_path, text + '[redact]\nhash = ["a"]\n', 0o644), {"CREDENTIALS_DIRECTORY": str(credentials)}
    )
    assert reveal(config) == "value-of-token"
    logs, moesif, loki = config.sinks
    assert logs.api_key.read().reveal() == "value-of-logs.key"  # type: ignore[union-attr]
    assert moesif.application_id.read().reveal() == "value-of-m.application-id"  # type: ignore[union-attr]
    assert isinstance(loki, LokiSink)
    assert loki.bearer_token
    assert loki.bearer_token.read().reveal() == "value-of-l.bearer-token"
    assert config.redact.hash_key
    assert config.redact.hash_key.read().reveal() == "value-of-redact.hash-key"


def test_a_file_that_only_systemd_may_read_is_found_among_its_credentials_by_its_name(tmp_path: Path) -> None:
    credentials, elsewhere = tmp_path / "credentials", tmp_path / "etc"
    credentials.mkdir()
    elsewhere.mkdir()
    (credentials / "my.key").write_text("copy")
    path = write(tmp_path, f'[api]\ntoken_file = "{elsewhere}/my.key"\n', 0o644)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert reveal(load(path, environ)) == "copy"
    (elsewhere / "my.key").write_text("itself")
    assert reveal(load(path, environ)) == "itself"
    (elsewhere / "my.key").unlink()
    with pytest.raises(ConfigError, match=r"etc/my\.key"):
        load(path, {})


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("", {"IONOS_API_TOKEN": "1", "IONOS_TOKEN": "2", "IONOS_USERNAME": "u", "IONOS_PASSWORD": "p"}, "1"),
        ("", {"IONOS_TOKEN": "2", "IONOS_USERNAME": "u", "IONOS_PASSWORD": "p"}, "2"),
        ("", {"IONOS_API_TOKEN": "", "IONOS_TOKEN": "2"}, "2"),
        ("", {"IONOS_USERNAME": "u", "IONOS_PASSWORD": "p"}, "u:p"),
        ('[api]\ntoken_env = "MINE"', {"MINE": "m", "IONOS_API_TOKEN": "1"}, "m"),
        ('[api]\ntoken = "inline"', {"IONOS_API_TOKEN": "1"}, "inline"),
        ('[api]\nusername = "v"', {"IONOS_API_TOKEN": "1", "IONOS_PASSWORD": "p"}, "v:p"),
        ('[api]\nusername = "v"\npassword = "w"', {"IONOS_PASSWORD": "p"}, "v:w"),
        ('[api]\ntoken = "t"', {"IONOS_POLLER_API__TOKEN_ENV": "MINE", "MINE": "m"}, None),
        ('[[accounts]]\nname = "a"\ntoken = "own"', {"IONOS_API_TOKEN": "1"}, "own"),
        ('[[accounts]]\nname = "a"', {"IONOS_API_TOKEN": "1"}, "1"),
        ('[api]\ntoken = "t"\n[[accounts]]\nname = "a"', {"IONOS_API_TOKEN": "1"}, "t"),
    ],
)
def test_the_most_explicit_credentials_win(
    tmp_path: Path, text: str, environ: dict[str, str], expected: str | None
) -> None:
    path = write(tmp_path, text)
    if expected is None:
        with pytest.raises(ConfigError, match="given more than once"):
            load(path, environ)
    else:
        assert reveal(load(path, environ)) == expected


def test_bare_variables_win_over_systemds_files_and_a_file_serves_basic_login_too(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("file")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "IONOS_TOKEN": "variable"}
    assert reveal(load(None, environ)) == "variable"
    (tmp_path / "password").write_text("secret words")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "IONOS_USERNAME": "u"}
    assert reveal(load(None, environ)) == "u:secret words"


def test_several_accounts_each_have_their_own(tmp_path: Path) -> None:
    (tmp_path / "b.token").write_text("of-b")
    text = '[api]\nurl = "https://all"\n[[accounts]]\nname = "a"\ntoken = "of-a"\n[[accounts]]\nname = "b"\n'
    text += 'url = "https://b"\n[[accounts]]\nname = "c"\n'
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "IONOS_API_TOKEN": "of-nobody"}
    a, b, c = load(write(tmp_path, text), environ).accounts
    assert (a.url, b.url) == ("https://all", "https://b")
    assert [account.credentials().token for account in (a, b)] == [Secret("of-a"), Secret("of-b")]
    with pytest.raises(ConfigError, match=r"no IONOS API token .*c\.token"):
        c.credentials()


@pytest.mark.parametrize(
    ("environ", "hint"),
    [({}, "set IONOS_API_TOKEN"), ({"IONOS_USERNAME": "u"}, "set IONOS_PASSWORD")],
)
def test_a_missing_token_is_told_when_it_is_needed(environ: dict[str, str], hint: str) -> None:
    config = load(None, environ)
    with pytest.raises(ConfigError, match=hint):
        config.accounts[0].credentials()


def test_a_loaded_config_shows_no_secret(tmp_path: Path) -> None:
    environ = {
        "IONOS_API_TOKEN": CANARY,
        "HTTPS_PROXY": f"http://u:{CANARY}@proxy:1",
        "IONOS_POLLER_SINKS": json.dumps(
            [
                {
                    "name": "l",
                    "type": "loki",
                    "url": "https://x",
                    "bearer_token": CANARY,
                    "headers": {"X-Key": CANARY},
                }
            ]
        ),
    }
    config = load(None, environ)
    assert config.accounts[0].credentials().token == Secret(CANARY)
    for text in (
        repr(config.accounts),
        repr(config.network),
        effective(config),
        effective(config, as_json=True),
    ):
        assert CANARY not in text
    assert "********" in effective(config)
    assert 'token_env = "IONOS_API_TOKEN"' in effective(config)


def test_the_mark_that_windows_puts_in_front_of_a_text_is_not_part_of_a_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"\xef\xbb\xbf" + CANARY.encode() + b"\r\n")
    token.chmod(0o600)
    assert SecretSource("file", str(token), path="api.token_file").read().reveal() == CANARY
    environ = {"IONOS_API_TOKEN": "\ufeff" + CANARY}
    assert SecretSource("env", "IONOS_API_TOKEN", path="api.token", environ=environ).read().reveal() == CANARY


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_token_file_in_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    token = tmp_path / "token"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    token.write_bytes(mark + CANARY.encode(encoding))
    token.chmod(0o600)
    with pytest.raises(ConfigError, match="UTF-16") as caught:
        SecretSource("file", str(token), path="api.token_file").read()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("origin", "remedy"),
    [
        ("file", "replace /etc/key: it is read again each time"),
        ("credential", "replace the file that LoadCredential= names, then restart: the service has a copy"),
        ("env", "set /etc/key again, then restart"),
        ("inline", "replace api.token in the configuration, then reload"),
    ],
)
def test_how_a_new_secret_comes_into_force_depends_on_where_it_is(origin: Any, remedy: str) -> None:
    assert SecretSource(origin, "/etc/key", path="api.token").remedy == remedy


def test_a_file_of_several_lines_where_one_token_belongs_is_told_as_that(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("# the token of 2026\ncanary\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="it has several lines") as caught:
        SecretSource("file", str(file), path="api.token_file").read()
    assert "canary" not in str(caught.value)


def test_a_password_in_the_url_of_the_state_is_taken_out_of_it_and_masked(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[state]\nurl = "postgresql://poller:ca%6eary@db.example/poller"\n')
    path.chmod(0o600)
    config = load(path, {})
    assert config.state.url == "postgresql://poller@db.example/poller"
    assert config.state.password is not None
    assert config.state.password.read().reveal() == "canary"
    assert "canary" not in effective(config)


def test_a_password_in_the_url_of_the_state_needs_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[state]\nurl = "postgresql://poller:canary@db.example/poller"\n')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read") as caught:
        load(path, {})
    assert "canary" not in str(caught.value)


def test_the_environment_gives_url_and_password_of_the_state() -> None:
    state = load(None, {"IONOS_POLLER_STATE__URL": "postgresql://u:canary@127.0.0.1/x"}).state
    assert state.password is not None
    assert (state.url, state.password.read().reveal()) == ("postgresql://u@127.0.0.1/x", "canary")
