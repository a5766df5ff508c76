"""What the checks conclude from their input, and what they read in files of other programs."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from poller.checks import Finding, exit_code_of, fail, from_error, ok, warn
from poller.checks.account import check_clock, check_contract, check_token, check_unlisted_contracts
from poller.checks.fluent_bit import check_fluent_bit
from poller.checks.fluent_bit_file import size_bytes
from poller.checks.sinks import check_sink, judge
from poller.checks.state import check_state
from poller.checks.system import check_credentials, check_listen, check_unit
from poller.config import (
    ArchiveSink,
    Config,
    Credentials,
    FileSink,
    LoggingServiceSink,
    LokiSink,
    Secret,
    SecretSource,
    load,
)
from poller.core.answers import Page
from poller.core.delivery import Accepted, CredentialsRefused, Refused, RetryAfter
from poller.core.errors import (
    EXIT_AUTH,
    EXIT_CONFIG,
    EXIT_INCOMPLETE,
    EXIT_OK,
    EXIT_STATE,
    AuthError,
    ConfigError,
    Problem,
    RejectedError,
    StateError,
)
from poller.core.evidence.batches import Head
from poller.core.evidence.digest import digest_key, sha256
from poller.core.windows import Window
from poller.store.overview import TakenBack
from poller.store.sqlite import State, Stores
from poller.store.sqlite.diagnosis import check_space
from tests.support import TOP

NOW = 1_800_000_000.0
DAY = 86_400
GIB, MIB = 1 << 30, 1 << 20


def only(findings: Sequence[Finding], *words: str) -> Finding:
    """The only finding. It has these words, and a remedy unless its level is `ok`."""
    assert len(findings) == 1, findings
    found = findings[0]
    for word in words:
        assert word in f"{found.message} ({found.hint})", (word, found)
    assert (found.hint == "") == (found.level == "ok"), found
    return found


# The exit code


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((), EXIT_OK),
        ((EXIT_INCOMPLETE,), EXIT_INCOMPLETE),
        ((EXIT_INCOMPLETE, EXIT_STATE), EXIT_STATE),
        ((EXIT_STATE, EXIT_AUTH), EXIT_AUTH),
        ((EXIT_AUTH, EXIT_CONFIG, EXIT_STATE), EXIT_CONFIG),
    ],
)
def test_the_exit_code_is_that_of_what_to_mend_first(codes: tuple[int, ...], code: int) -> None:
    findings = [ok("a", "fine"), warn("b", "hm", "do"), *(fail("c", "bad", "do", one) for one in codes)]
    assert exit_code_of(findings) == code


def test_each_problem_of_a_configuration_is_a_finding() -> None:
    error = ConfigError([Problem("poll.interval", "bad", "mend"), Problem("token", "none", "set it")])
    assert [(found.message, found.exit_code) for found in from_error("token", error)] == [
        ("poll.interval: bad", EXIT_CONFIG),
        ("none", EXIT_CONFIG),
    ]
    assert from_error("state", StateError("full", hint="free")) == [fail("state", "full", "free", EXIT_STATE)]


# Token and clock


def token(expires_in_days: float | None) -> Credentials:
    claims = {} if expires_in_days is None else {"exp": NOW + expires_in_days * DAY}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return Credentials("environment variable IONOS_API_TOKEN", token=Secret(f"eyJh.{payload}.sig"))


REFUSED = AuthError("the API refused the credentials (401)")
DENIED = AuthError("the API denied access to the activity log (403)", is_denied=True, hint="grant ACCESS_ACTIVITY_LOG")


@pytest.mark.parametrize(
    ("credentials", "refusal", "level", "words"),
    [
        (token(300), None, "ok", ("accepted", "expires on 2027-", "300 days")),
        (token(14.5), None, "ok", ("accepted",)),
        (token(3), None, "warn", ("expires on", "in 3 days", "Token Manager", "IONOS_API_TOKEN")),
        (token(1.2), None, "warn", ("in 1 d 4 h",)),
        (token(0.01), None, "warn", ("in 14 min",)),
        (token(None), None, "ok", ("does not say when",)),
        (token(-2), REFUSED, "fail", ("expired on 2027-", "Token Manager")),
        (token(-2), None, "warn", ("accepted, though it expired", "clock")),
        (token(300), REFUSED, "fail", ("refused the token (401)", "IONOS_API_TOKEN")),
        (token(300), DENIED, "fail", ("403", "ACCESS_ACTIVITY_LOG")),
        (token(1e300), None, "ok", ("beyond the calendar",)),
        (Credentials("x", username="me", password=Secret("p")), REFUSED, "fail", ("user name and password", "2FA")),
        (Credentials("x", username="me", password=Secret("p")), None, "ok", ("accepted",)),
    ],
)
def test_what_the_token_says_and_what_the_api_made_of_it(
    credentials: Credentials, refusal: AuthError | None, level: str, words: tuple[str, ...]
) -> None:
    found = only([check_token(credentials, NOW, "token", refusal=refusal)], *words)
    assert (found.level, found.exit_code) == (level, EXIT_AUTH if level == "fail" else EXIT_OK)


def test_offline_the_token_speaks_for_itself() -> None:
    assert only([check_token(token(-1), NOW, "token", is_asked=False)], "expired on").exit_code == EXIT_AUTH
    assert only([check_token(token(100), NOW, "token", is_asked=False)], "not tried").level == "ok"


@pytest.mark.parametrize(
    ("skew", "level", "words"),
    [
        (0.0, "ok", ()),
        (-30.0, "ok", ()),
        (31.0, "warn", ("31 s ahead of", "timedatectl")),
        (-600.0, "warn", ("10 min behind",)),
        (7200.0, "fail", ("2.0 h ahead of", "timedatectl")),
        (-7200.0, "fail", ("2.0 h behind",)),
    ],
)
def test_how_far_the_clocks_are_apart(skew: float, level: str, words: tuple[str, ...]) -> None:
    assert only([check_clock(skew)], *words).level == level


class Client:
    """An account that may read some contracts."""

    clock_skew_seconds = None

    def __init__(self, *readable: str) -> None:
        self.readable = readable
        self.limits: list[int] = []

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.limits.append(limit)
        if contract not in self.readable:
            raise RejectedError("the API refused the request (404): unknown", status=404)
        return Page((), 3, is_capped=False, weight_bytes=0, is_mended=False)


def test_a_named_contract_that_no_token_sees_is_told_with_the_words_of_the_api() -> None:
    clients: list[Any] = [Client("2"), Client()]
    findings = list(check_unlisted_contracts(["1", "2"], ["2", "3"], clients, 100))
    assert only(findings, "no token sees it", "poll.contracts", "unknown").name == "contract 1"


def test_a_named_contract_that_is_not_listed_and_can_be_read_is_well() -> None:
    clients: list[Any] = [Client(), Client("1")]
    findings = list(check_unlisted_contracts(["1"], [], clients, 100))
    assert only(findings, "no account lists it", "3 entries").level == "ok"


def test_a_contract_is_asked_for_with_the_configured_page_size() -> None:
    client: Any = Client("1")
    check_contract(client, "1", NOW, 1000)
    assert client.limits == [1000]


def test_an_api_without_a_clock_is_told() -> None:
    assert only([check_clock(None)], "do not say what time it is", "timedatectl").level == "warn"


@pytest.mark.parametrize(
    ("watermark", "taken_back", "words"),
    [
        (NOW + 7200, None, ("contract 1", "ahead of this machine's clock")),
        (NOW - 60, TakenBack(int(NOW - DAY), int(NOW - 2 * DAY)), ("taken back",)),
    ],
)
def test_a_state_shows_that_a_clock_is_or_was_ahead(
    tmp_path: Path, watermark: float, taken_back: TakenBack | None, words: tuple[str, ...]
) -> None:
    state = State.open(tmp_path, "run")
    state.contracts.enrol(["1"], "default", int(watermark), int(NOW))
    if taken_back:
        assert state.contracts.take_back(state.contracts.all()[0], taken_back.watermark, taken_back.at)
    (line,) = state.overview().clock_troubles(NOW)
    state.close()
    for word in words:
        assert word in line


def test_a_state_with_a_good_clock_has_nothing_to_tell_of_it(tmp_path: Path) -> None:
    state = State.open(tmp_path, "run")
    state.contracts.enrol(["1"], "default", int(NOW - 60), int(NOW))
    assert state.overview().clock_troubles(NOW) == []
    state.close()


# State


@pytest.mark.parametrize(
    ("free", "max_bytes", "level", "words"),
    [
        (8 * MIB, GIB, "fail", ("8.0 MiB free", "nearly full", "--state-dir")),
        (500 * MIB, GIB, "warn", ("500.0 MiB free", "outbox.max_bytes, 1GiB")),
        (100 * MIB, 64 * MIB, "warn", ("not much",)),
        (GIB, GIB, "ok", ("1.0 GiB free",)),
    ],
)
def test_how_much_space_is_enough(free: int, max_bytes: int, level: str, words: tuple[str, ...]) -> None:
    found = only([check_space(free, max_bytes, Path("state"))], *words)
    assert (found.level, found.exit_code) == (level, EXIT_STATE if level == "fail" else EXIT_OK)


def test_looking_at_a_state_changes_nothing_and_tells_who_holds_it(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    assert [finding.level for finding in check_state(Stores(directory), 1)] == ["ok", "ok"]
    assert not directory.exists()
    state = State.open(directory, "run")
    held = list(check_state(Stores(directory), 1))[-1]
    state.close()
    free = list(check_state(Stores(directory), 1))[-1]
    assert (held.name, free.name) == ("state run", "state run")
    assert "in use by process" in held.message
    assert "not in use" in free.message
    State.open(directory, "run").close()


def test_a_state_that_was_set_aside_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "run.db").write_bytes(b"no database" * 1000)
    damaged = only(list(check_state(Stores(tmp_path), 1))[2:], "damaged", "--since")
    assert (damaged.name, damaged.exit_code) == ("state run", EXIT_STATE)
    with pytest.raises(StateError):
        State.open(tmp_path, "run")
    aside = only(list(check_state(Stores(tmp_path), 1))[2:], "was set aside as run.db.unusable-", "--since")
    assert (aside.name, aside.exit_code) == ("state run", EXIT_STATE)


# Sinks


def logging_sink(**keys: object) -> LoggingServiceSink:
    source = SecretSource("missing", "", path="sinks[0].api_key")
    return LoggingServiceSink(
        **{
            "name": "logging",
            "url": "https://x.logging.de-txl.ionos.com",
            "tag": "activityLog",
            "api_key": source,
            **keys,
        }
    )


@pytest.mark.parametrize(
    ("outcome", "level", "code", "words"),
    [
        (Accepted(), "ok", EXIT_OK, ("takes events",)),
        (Refused("HTTP 400: empty"), "warn", EXIT_OK, ("has no events", "HTTP 400: empty", "watch")),
        (CredentialsRefused("HTTP 401: no", 401), "fail", EXIT_AUTH, ("HTTP 401: no", "--rotate-key")),
        (CredentialsRefused("unreadable (look)"), "fail", EXIT_CONFIG, ("unreadable", "look")),
        (RetryAfter("connection refused (is it on (really)?)"), "fail", EXIT_INCOMPLETE, ("is it on (really)?",)),
        (RetryAfter("HTTP 503"), "fail", EXIT_INCOMPLETE, ("HTTP 503", "check url")),
    ],
)
def test_what_a_probe_means(outcome: object, level: str, code: int, words: tuple[str, ...]) -> None:
    found = only([judge(logging_sink(), outcome, "sink logging")], *words)  # type: ignore[arg-type]
    assert (found.level, found.exit_code) == (level, code)


def test_only_the_logging_service_may_dislike_what_it_is_probed_with() -> None:
    loki = LokiSink(name="loki", url="http://localhost")
    assert judge(loki, Refused("HTTP 400"), "sink loki").level == "fail"


def test_a_tag_that_no_pipeline_can_have_is_told(tmp_path: Path) -> None:
    import threading

    findings = list(check_sink(logging_sink(tag="activity-log"), Config(), threading.Event()))
    assert [found.level for found in findings] == ["warn", "fail"]
    assert "3 to 20 letters and digits" in findings[0].message


def test_a_file_sink_is_tried_where_it_will_write(tmp_path: Path) -> None:
    import threading

    (tmp_path / "file").touch()
    good, bad = (FileSink(name="a", path=str(tmp_path / where / "{date}.ndjson")) for where in ("new", "file"))
    only(list(check_sink(good, Config(), threading.Event())), "takes events")
    assert only(list(check_sink(bad, Config(), threading.Event())), "Not a directory").exit_code == EXIT_INCOMPLETE


def test_what_another_machine_writes_is_not_tried_on_this_one(tmp_path: Path) -> None:
    # All machines have the same configuration. `check` once failed on each machine without the disk of the other one.
    import threading

    (tmp_path / "file").touch()
    place = tmp_path / "file" / "new"
    for where, is_tried in (("another-machine", False), (socket.gethostname(), True)):
        for sink in (
            FileSink(name="a", path=str(place / "{date}.ndjson"), host=where),
            ArchiveSink(name="b", url=f"file://{place}", host=where),
        ):
            found = list(check_sink(sink, Config(), threading.Event()))
            assert [finding.level for finding in found] == ["fail" if is_tried else "ok"]
            assert is_tried or "another-machine" in found[0].message


def test_an_archive_is_looked_for_where_the_state_says_that_it_is(tmp_path: Path) -> None:
    import threading

    place = tmp_path / "archive"
    digest = b'{"number":2}'
    head = Head("an id", 2, sha256(digest), None, 5, 0, None)
    sink = ArchiveSink(name="a", url=place.as_uri())

    def check(head: Head | None) -> list[Finding]:
        return [
            found for found in check_sink(sink, Config(), threading.Event(), head) if "not signed" not in found.message
        ]

    for unknown in (None, head._replace(number=0)):
        only(check(unknown), place.as_uri())
    works, warned = check(head)
    assert (works.level, warned.level) == ("ok", "warn")
    assert "which is at digest 2" in warned.message
    assert "mount the disk" in warned.hint
    (place / digest_key(2)).parent.mkdir(parents=True)
    (place / digest_key(2)).write_bytes(digest)
    only(check(head), place.as_uri())
    (place / digest_key(2)).write_bytes(b"{}")
    lost = only(check(head), "the archive's newest digest is not here", digest_key(2), "mount the disk")
    assert (lost.level, lost.exit_code) == ("fail", EXIT_INCOMPLETE)


# Port and systemd


def test_a_port_is_free_or_taken_or_not_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = only([check_listen(("127.0.0.1", port), None)], "taken by another program", "http.listen")
        assert taken.exit_code == EXIT_CONFIG
    assert check_listen(("127.0.0.1", port), None).level == "ok"
    assert check_listen(None, None).message == "turned off"
    assert only([check_listen(("192.0.2.1", port), None)], "192.0.2.1").level == "fail"


def test_credentials_of_systemd_that_nothing_uses_are_told(tmp_path: Path) -> None:
    for name, content in (("token", "t"), ("loging.key", "k"), ("logging.key", " \n")):
        (tmp_path / name).write_text(content)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    findings = list(check_credentials(environ, load(None, environ)))
    assert only(findings[:1], "loging.key", "after its sink").level == "warn"
    assert only(findings[1:], "from systemd: token").level == "ok"
    config = tmp_path / "my.toml"
    config.write_text(
        '[[sinks]]\nname = "l"\ntype = "loki"\nurl = "https://x"\nusername = "u"\npassword_file = "loging.key"\n'
    )
    config.chmod(0o600)
    (tmp_path / "loging.key").chmod(0o600)
    told = [found.message for found in check_credentials(environ, load(config, environ))]
    assert told == ["nothing uses the credential my.toml", "from systemd: token"], (
        "it stands in for the file of its name"
    )
    missing = {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}
    assert only(list(check_credentials(missing, load(None, {}))), "LoadCredential=").exit_code == EXIT_CONFIG
    assert list(check_credentials({}, load(None, {}))) == []


def unit(directory: Path, *lines: str, drop_in: str = "") -> list[Finding]:
    (directory / "ionos-poller.service").write_text("\n".join(["[Service]", *lines]))
    if drop_in:
        (directory / "ionos-poller.service.d").mkdir(exist_ok=True)
        (directory / "ionos-poller.service.d" / "my.conf").write_text(f"[Service]\n{drop_in}")
    return list(check_unit([directory]))


def test_the_installed_unit_needs_its_program_credentials_and_configuration(tmp_path: Path) -> None:
    secret, config = tmp_path / "token", tmp_path / "config.toml"
    secret.write_text("t")
    config.write_text("")
    secret.chmod(0o600)
    config.chmod(0o644)
    good = (f"ExecStart=/bin/sh --config {config} run", f"LoadCredential=token:{secret}", "DynamicUser=yes")
    assert list(check_unit([tmp_path])) == []
    only(unit(tmp_path, *good), "its program")
    only(unit(tmp_path, "ExecStart=/nowhere/ionos-poller run"), "/nowhere/ionos-poller is missing", "systemctl edit")
    only(unit(tmp_path, f"LoadCredential=key:{tmp_path}/none"), "is missing", "0600")
    only(unit(tmp_path, f"LoadCredential=key:{tmp_path}/none", "SetCredential=key: "), "its program")
    secret.chmod(0o644)
    only(unit(tmp_path, *good), "others can read", "chmod 600")
    secret.chmod(0o600)
    config.chmod(0o600)
    only(unit(tmp_path, *good), "the unit's user cannot read", "chmod 644")
    only(unit(tmp_path, *good, drop_in="ExecStart=\nExecStart=/bin/sh run"), "its program")


# Fluent Bit


def uncommented(name: str) -> str:
    lines = (TOP / "fluent-bit" / name).read_text().splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith("#"))


GOOD, GOOD_FOR_MOESIF = uncommented("logging-service.conf"), uncommented("moesif.conf")
MOESIFS_MISTAKES = [
    (" --format moesif-action", "", ("takes actions", "--format moesif-action")),
    ("URI               /v1/actions/batch", "", ("URI / is not where", "set URI /v1/actions/batch")),
    ("X-Moesif-Application-Id", "X-Moesif", ("no application id", "header X-Moesif-Application-Id")),
    ("/v1/actions/batch", "/v1/actions", ("/v1/actions is not where", "set URI /v1/actions/batch")),
    ("tls               On", "", ("plain HTTP", "tls on")),
]
MISTAKES = [
    ("Buf_Size          2M", "Buf_Size          4k", "fail", ("Buf_Size 4k loses every longer entry", "2M")),
    ("Buf_Size          2M", "", "fail", ("4096 by default", "2M")),
    ("Buf_Size          2M", "Buf_Size          much", "fail", ("is not a size",)),
    ("Threaded          On", "", "warn", ("stands still", "Threaded on")),
    ("storage.checksum           off", "storage.checksum  on", "warn", ("never sent", "storage.checksum off")),
    ("storage.checksum           off", "STORAGE.CHECKSUM  Yes", "warn", ("never sent", "storage.checksum off")),
    ("json.escape_unicode        off", "", "warn", ("6 bytes", "json.escape_unicode off")),
    ("storage.type      filesystem", "", "warn", ("in memory", "storage.type filesystem")),
    ("    storage.path ", "    # storage.path ", "fail", ("needs storage.path",)),
    ("Parser            ionos-activity", "Parser            nope", "fail", ("no parser nope", "Parsers_File")),
    ("Parser            ionos-activity", "", "warn", ("one text", "Format json")),
    ("Parsers_File               parsers.conf", "Parsers_File  lost.conf", "fail", ("lost.conf", "cannot be read")),
    ("--time-key time", "", "warn", ("Time_Key time finds nothing", "--time-key time")),
    ("ionos-poller fetch", "python3 script.py", "fail", ("does not run `ionos-poller fetch`",)),
    ("ionos-poller fetch", "/nowhere/ionos-poller fetch", "fail", ("no program /nowhere/ionos-poller", "full path")),
    ("ionos-poller fetch", "ionos-poller --config none fetch", "fail", ("ends with 2: none cannot be read", "by hand")),
    ("ionos-poller fetch", "ionos-poller fetch --config=none", "fail", ("ends with 2: none cannot be read", "by hand")),
    ("ionos-poller fetch", "IONOS_API_TOKEN=abc ionos-poller fetch", "fail", ("holds a secret", "token_file")),
    ("Retry_Limit       no_limits", "", "fail", ("gives up after 1 retries", "no_limits")),
    ("Header            APIKEY ${IONOS_LOGGING_KEY}", "", "fail", ("no APIKEY header", "header APIKEY")),
    ("APIKEY ${IONOS_LOGGING_KEY}", "APIKEY abc", "warn", ("others can read", "chmod 600")),
    ("URI               /activityLog", "URI               /activity_log", "fail", ("is no tag", "/activityLog")),
    ("URI               /activityLog", "", "fail", ("URI / is no tag",)),
    ("Format            json", "", "fail", ("msgpack", "Format json")),
    ("tls               On", "", "fail", ("plain HTTP", "tls on")),
    ("Match             activityLog", "Match             other", "fail", ("no [OUTPUT] has a Match", "activityLog")),
    ("Match             activityLog", "Match_Regex       ^audit", "fail", ("no [OUTPUT] has a Match", "activityLog")),
    (
        "Retry_Limit       no_limits",
        "Retry_Limit       many",
        "fail",
        ("many is no number", "set Retry_Limit no_limits"),
    ),
    ("Retry_Limit       no_limits", "Retry_Limit       no_retries", "fail", ("gives up after no_retries retries",)),
    ("Format            json\n    json_date", "Format            msgpack\n    json_date", "fail", ("sends msgpack",)),
    ("[SERVICE]", "", "fail", ("stands in no section",)),
    ("[SERVICE]", "@INCLUDE gone.conf\n[SERVICE]", "fail", ("gone.conf", "@INCLUDE")),
]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ionos-poller` on the PATH, as if it were installed. It cannot read a configuration called `none`."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = '#!/bin/sh\n[ "$*" != "--config none config show" ] || { echo none cannot be read >&2; exit 2; }\n'
    (directory / "ionos-poller").write_text(script)
    (directory / "ionos-poller").chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


def fluent_bit(directory: Path, text: str, config: Config | None = None) -> list[Finding]:
    path = directory / "fluent-bit.conf"
    path.write_text(text)
    path.chmod(0o644)
    (directory / "parsers.conf").write_text((TOP / "fluent-bit" / "parsers.conf").read_text())
    return check_fluent_bit(path, config)


@pytest.mark.parametrize(
    ("right", "wrong", "level", "words"), MISTAKES, ids=[wrong or f"no {right}" for right, wrong, *_ in MISTAKES]
)
@pytest.mark.usefixtures("program")
def test_a_mistake_in_fluent_bits_configuration_is_named(
    tmp_path: Path, right: str, wrong: str, level: str, words: tuple[str, ...]
) -> None:
    assert right in GOOD
    assert only(fluent_bit(tmp_path, GOOD.replace(right, wrong, 1)), *words).level == level


@pytest.mark.parametrize(("right", "wrong", "words"), MOESIFS_MISTAKES)
@pytest.mark.usefixtures("program")
def test_a_mistake_on_the_way_to_moesif_is_named(
    tmp_path: Path, right: str, wrong: str, words: tuple[str, ...]
) -> None:
    assert right in GOOD_FOR_MOESIF
    assert only(fluent_bit(tmp_path, GOOD_FOR_MOESIF.replace(right, wrong, 1)), *words).level == "fail"
    tutorials = GOOD_FOR_MOESIF.replace("X-Moesif-Application-Id", "Authorization")
    assert only(fluent_bit(tmp_path, tutorials)).level == "ok"


@pytest.mark.parametrize(
    ("right", "also_right"),
    [
        ("Match             activityLog", "Match             activity*"),
        ("Match             activityLog", "Match_Regex       ^activity"),
        ("Match             activityLog", "Match_Regex       (?<a>["),
        ("Retry_Limit       no_limits", "Retry_Limit       False"),
        ("Retry_Limit       no_limits", "Retry_Limit       ${LIMIT}"),
        ("Tag               activityLog", "Alias             activityLog"),
        ("Threaded          On", "Threaded          yes"),
        ("Buf_Size          2M", "Buf_Size          1M"),
        ("Command           ionos-poller fetch", "Command           /usr/bin/env ionos-poller fetch"),
    ],
)
@pytest.mark.usefixtures("program")
def test_what_is_as_good_is_no_mistake(tmp_path: Path, right: str, also_right: str) -> None:
    assert right in GOOD
    found = [finding for finding in fluent_bit(tmp_path, GOOD.replace(right, also_right, 1)) if finding.level == "fail"]
    assert [finding for finding in found if "LIMIT" not in finding.message] == []


@pytest.mark.usefixtures("program")
def test_a_line_is_as_long_as_the_command_says(tmp_path: Path) -> None:
    text = GOOD.replace("Buf_Size          2M", "Buf_Size 300k")
    assert only(fluent_bit(tmp_path, text)).level == "ok"
    only(fluent_bit(tmp_path, text.replace("250000", "300000")), "Buf_Size 300k", "Buf_Size 2M")
    only(fluent_bit(tmp_path, text.replace("250000", "3000000")), "above --max-line-bytes, 3000000")


@pytest.mark.usefixtures("program")
def test_our_own_sink_says_which_tag_the_pipeline_has(tmp_path: Path) -> None:
    config = Config(sinks=(logging_sink(tag="audit"),))
    text = GOOD.replace("${IONOS_LOGGING_HOST}", "x.logging.de-txl.ionos.com")
    only(fluent_bit(tmp_path, text, config), "URI /activityLog is not the tag", "URI /audit")
    assert (
        only(fluent_bit(tmp_path, text.replace("URI               /activityLog", "URI /audit"), config)).level == "ok"
    )


@pytest.mark.parametrize("path", sorted((TOP / "fluent-bit").glob("*.[cy][oa]*")), ids=lambda path: path.name)
@pytest.mark.usefixtures("program")
def test_the_configurations_of_this_project_have_no_mistake(path: Path) -> None:
    if path.name == "parsers.conf":
        only(check_fluent_bit(path, None), "no exec input")
    else:
        assert only(check_fluent_bit(path, None)).level == "ok"


@pytest.mark.parametrize("on", ["on", "On", "true", "TRUE", "yes", '"on"'])
@pytest.mark.usefixtures("program")
def test_a_checksum_that_loses_chunks_is_named_in_yaml_however_it_is_spelled(tmp_path: Path, on: str) -> None:
    text = (TOP / "fluent-bit" / "push.yaml").read_text()
    path = tmp_path / "push.yaml"
    path.write_text(text.replace("storage.checksum: off", f"storage.checksum: {on}"))
    assert only(check_fluent_bit(path, None), "never sent", "storage.checksum off").level == "warn"


def test_yaml_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "fluent-bit.yaml"
    path.write_text("pipeline:\n  inputs: [\n")
    only(check_fluent_bit(path, None), "not valid YAML (line")
    path.write_text("- a\n")
    only(check_fluent_bit(path, None), "pipeline:")
    only(check_fluent_bit(tmp_path / "none.conf", None), "No such file", "check that the file exists")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("4k", 4000), ("2M", 2_000_000), ("1gb", 10**9), ("32KB", 32_000), ("False", -1), ("x", None)],
)
def test_fluent_bits_sizes(text: str, size: int | None) -> None:
    assert size_bytes(text) == size
