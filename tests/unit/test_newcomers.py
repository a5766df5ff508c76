"""Typical first mistakes: each is reported in one line of at most 100 columns that says where, what, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from poller.cli import run

LOKI = '[[sinks]]\nname = "a"\ntype = "loki"\nurl = "http://127.0.0.1:9"\n'
LOGGING = '[[sinks]]\nname = "l"\ntype = "logging-service"\nurl = "https://example.org"\ntag = "activityLog"\n'
MOESIF = '[[sinks]]\nname = "m"\ntype = "moesif"\napplication_id_file = "token"\n'
FIELD = "names joined by dots, such as principal.sourceIP or event.resources[].id"
FILES = {
    "token": (b"token\n", 0o600),
    "open": (b"token\n", 0o644),
    "lines": (b"# of 2026\ntoken\n", 0o600),
    "empty": (b"", 0o600),
    "windows": ("token".encode("utf-16"), 0o600),
    "quoted": (b'"token"\n', 0o600),
    "header": (b"Bearer token\n", 0o600),
}
UNIT = 'it has no unit: "60s", "5m" or "1h30m"'
T = "write 2026-05-01T07:42:20Z, 2026-05-01, now, or an age such as 36h"
NO_STATE = "`run` has not run with this --state-dir yet"


class Mistake(NamedTuple):
    """The typed command or the text of ionos-poller.toml, and the three parts of the error: place, message and remedy."""

    command: str
    text: str
    place: str
    message: str
    remedy: str
    mode: int = 0o600


def in_file(text: str, line: int, path: str, message: str, remedy: str, *, mode: int = 0o600) -> Mistake:
    return Mistake("run", text, f"ionos-poller.toml:{line}: {path}", message, remedy, mode)


MISTAKES = [
    # The command line
    Mistake("audit --from 2026-05-01T07:42:20", "", "--from", "'2026-05-01T07:42:20' is not a time with its zone",
            "add Z or +02:00"),
    Mistake("audit --from 60", "", "--from", "'60' is not a time", "an age has a unit, such as 60m or 60h"),
    Mistake("fetch --since tomorrow", "", "--since", "'tomorrow' is not a time", T),
    Mistake("fetch --since 2099-01-01", "", "--since", "lies in the future", "give a time in the past, or an age such as 36h"),
    Mistake("audit --from 1h --to 2h", "", "--from", "is not before --to", "ranges are [from, to)"),
    Mistake("fetch --contract abc", "", "--contract", "'abc' is not a contract number", "such as 31960001"),
    Mistake("fetch --time-key=", "", "--time-key", "'' is not a name of 1 to 60 bytes", "such as time"),
    Mistake("fetch --format moesif-action --max-line-bytes 1023", "", "--max-line-bytes",
            "an event of moesif-action may take 1024 bytes, however short its entry is", "use a larger one, or --format raw"),
    Mistake("fetch --since 29.11.2026", "", "--since", "'29.11.2026' is not a time", T),
    Mistake("fetch --since=-1h", "", "--since", "'-1h' is not a time", T),
    Mistake("audit --from 2026-13-01", "", "--from", "'2026-13-01' is not a date and time that exists", T),
    Mistake("tail --once --since 2099-01-01", "", "--since", "lies in the future",
            "give a time in the past, or an age such as 36h"),
    Mistake("fetch --contract #31960001", "", "--contract", "'#31960001' is not a contract number", "such as 31960001"),
    Mistake("archive keygen open", "", "open", "exists already",
            "name another file; to change keys, see previous_signing_key_file"),
    Mistake("archive verify trail --public-key x", "", "PLACE", "trail is no directory and no archive of the configuration",
            "give a directory, a URL such as s3://bucket/prefix, or the name of a sink of type archive"),
    Mistake("backfill", "", "--from", "missing", "say from when, such as --from 7d or --from 2026-01-01"),
    Mistake("backfill --from 7d", "", "--output", "give either --output or --sink", "such as --output export.ndjson.gz"),
    Mistake("backfill --from 7d --sink loki", LOKI, "--sink", "loki is not in the config", "it has: a"),
    Mistake("dead-letters purge", "", "--reason", "missing", "say why they can go: it is kept in the journal"),
    Mistake("journal --use X!", "", "--use", "is not the name of a use", "run, fetch, or a backfill-... of `status`"),
    Mistake("sinks retry a", LOKI, "", "{here}/state/run.db does not exist", NO_STATE),
    Mistake("audit --from 1h", LOKI, "", "{here}/state/run.db does not exist", NO_STATE),
    Mistake("gaps show 3", "", "", "{here}/state/run.db does not exist", NO_STATE),
    Mistake("status", "", "", "no state in {here}/state",
            "run `ionos-poller fetch` or `run` first, or name another --state-dir"),
    Mistake("--state-dir empty status", "", "", "{here}/empty: cannot be read: Not a directory",
            "check that it belongs to this user, or name another --state-dir"),
    Mistake("reload", LOKI, "", "`run` is not running with the state in {here}/state",
            "start it: it loads the configuration at its start; if it runs with another state_dir, restart it"),
    Mistake("sinks forget a", LOKI, "NAME", "a is a configured sink",
            "remove it from the config first, then `ionos-poller reload`"),
    Mistake("run", '[api]\ntoken_file = "token"\n', "sinks", "nowhere to deliver to",
            "add one, such as the [[sinks]] of `ionos-poller config example`; `fetch` needs none"),
    Mistake("--config nowhere.toml run", "", "nowhere.toml", "cannot be read: No such file or directory",
            "check that the file exists and that this user can read it; `ionos-poller config example` prints one"),
    Mistake("--config . run", "", ".", "cannot be read: Is a directory",
            "check that the file exists and that this user can read it; `ionos-poller config example` prints one"),
    Mistake("--config lines run", "", "lines:2",
            "is not valid TOML: Expected '=' after a key in a key/value pair (at line 2, column 6)",
            "see `ionos-poller config example`"),
    Mistake("--config windows run", "", "windows:1", "is not UTF-8 (line 1)", "save it as UTF-8"),
    # The configuration
    in_file("[api]\ncontracts = [31960001]\n", 2, "api.contracts", "unknown key",
            "`ionos-poller config example` shows every key"),
    in_file("[http]\nlisten = 9464\n", 2, "http.listen", "must be text, not a number", "put it in quotes"),
    in_file('[[sinks]]\nname = "k"\ntype = "kafka"\ntopic = "t"\nbrokers = "a:9092"\n', 5, "sinks[0].brokers",
            "must be a list, not text", 'put it in brackets: ["..."]'),
    in_file(LOKI.replace("loki", "logging"), 3, "sinks[0].type", "'logging' is not a type of sink",
            "did you mean logging-service?"),
    in_file(LOKI.replace('"a"', '"a b"'), 2, "sinks[0].name", "'a b' is not a name",
            "use letters, digits, `_`, `.` and `-`, at most 100"),
    in_file("[[sink]]\n", 1, "sink", "unknown key", "did you mean sinks?"),
    in_file('[state]\nurl = "mysql://u@h/d"\n', 2, "state.url", "must begin with postgresql://",
            "such as postgresql://user@host:5432/database"),
    in_file('[[sinks]]\nname = "a"\ntype = "archive"\nurl = "/srv/audit"\n', 4, "sinks[0].url",
            "must begin with file:/// or s3://", "such as file:///srv/audit or s3://bucket/prefix"),
    in_file('[[sinks]]\nname = "f"\ntype = "file"\npath = "a"\n[state]\nurl = "postgresql://u@h/d"\n', 1, "sinks[0].host",
            "missing: the state is in PostgreSQL, and each machine has a disk of its own",
            'name the machine that writes all of it: host = "collector-1"; or shared = true: each writes a part'),
    in_file('[poll]\ninterval = "60"\n', 2, "poll.interval", "'60' is not a duration", UNIT),
    in_file("[poll]\ninterval = 60\n", 2, "poll.interval", "60 is not a duration", 'quote it with its unit, such as "60s"'),
    in_file('[poll]\nintervall = "60s"\n', 2, "poll.intervall", "unknown key", "did you mean interval?"),
    in_file("[polling]\n", 1, "polling", "unknown key", "did you mean poll?"),
    in_file('[api]\nurl = "api.ionos.com"\n', 2, "api.url", "must begin with https:// or http://", "such as https://host:port/path"),
    in_file('[api]\nurl = "https://api.ionos.com/activitylog/v1"\n', 2, "api.url",
            "ends in /activitylog/v1, which the program appends", "leave that out"),
    in_file(LOKI.replace(":9", ":3100/loki/api/v1/push"), 4, "sinks[0].url",
            "ends in /loki/api/v1/push, which the program appends", "leave that out"),
    in_file(LOGGING.replace(".org", ".org/activityLog") + 'api_key_file = "token"\n', 4, "sinks[0].url",
            "ends in /activityLog, which the program appends", "leave that out"),
    in_file(LOGGING, 1, "sinks[0].api_key", "missing", "give api_key_file or api_key_env, or a systemd credential l.key"),
    in_file('[[sinks]]\nname = "l"\ntype = "lokki"\n', 3, "sinks[0].type", "'lokki' is not a type of sink", "did you mean loki?"),
    in_file('[sinks]\nname = "l"\n', 1, "sinks", "must be a list, not a table", "write [[sinks]]"),
    in_file('[sinks.loki]\nurl = "http://127.0.0.1:3100"\n', 1, "sinks", "must be a list, not a table", "write [[sinks]]"),
    in_file("[api]\ntoken = 17\n", 2, "api.token", "must be text, not a number", "put it in quotes"),
    in_file(LOKI + LOKI, 6, "sinks[1].name", "is the same as that of sinks[0]", "give each a name of its own"),
    in_file('[http]\nlisten = "9464"\n', 2, "http.listen", "'9464' is not an address and port",
            'such as "127.0.0.1:9464"; "" turns it off'),
    in_file('[filter]\nexclude = [{ user = "x" }]\n', 2, "filter.exclude[0].user", "unknown key", "did you mean username?"),
    *(in_file(f'[redact]\nmask = ["{text}"]\n', 2, "redact.mask[0]", f"{text!r} is not a path of a field", FIELD)
      for text in ("$.principal.sourceIP", "/principal/sourceIP", "principal.*", "event.resources.*.id", "event.resources.0.id",
                   "principal->sourceIP")),
    in_file('[redact]\ndrop = ["_source.principal"]\n', 2, "redact.drop[0]", "'_source.principal' begins outside the entry",
            "names joined by dots, from inside `_source`, such as principal.sourceIP"),
    in_file(LOKI + 'redact = { mask = ["/principal/sourceIP"] }\n', 5, "sinks[0].redact.mask[0]",
            "'/principal/sourceIP' is not a path of a field", FIELD),
    in_file(MOESIF + 'action_name = "{$.event.type}"\n', 5, "sinks[0].action_name", "'$.event.type' is not a path of a field",
            FIELD),
    in_file('[filter]\nexclude = [{ "$.event.type" = "x" }]\n', 2, "filter.exclude[0].'$.event.type'", "unknown key",
            "known: contract, type, service, username, action, resource_type, source_ip, status"),
    in_file(LOKI.replace("127.0.0.1:9", "loki.example") + 'username = "a"\npassword = "b"\n', 4, "sinks[0].url",
            "would send the sink's secret in clear text",
            "use https://, or set allow_plain_http = true if the network is yours"),
    Mistake("run", "[api]\ntoken = eyJ\n", "ionos-poller.toml:2", "is not valid TOML: Invalid value (at line 2, column 9)",
            "see `ionos-poller config example`"),
    # Secrets
    in_file('[api]\ntoken_file = "quoted"\n', 2, "api.token_file", "key file quoted stands in quotes", "leave the quotes out"),
    in_file('[api]\ntoken_file = "header"\n', 2, "api.token_file",
            "key file header holds a space or a character beyond ASCII", "give the bare token or key"),
    in_file('[api]\ntoken_file = "."\n', 2, "api.token_file", "unreadable key file .: Is a directory",
            "check that the file exists and that this user can read it"),
    in_file('[api]\ntoken_file = "missing"\n', 2, "api.token_file", "unreadable key file missing: No such file or directory",
            "check that the file exists and that this user can read it"),
    in_file('[api]\ntoken_file = "open"\n', 2, "api.token_file", "other users can read open", "chmod 600 open"),
    in_file('[api]\ntoken_file = "lines"\n', 2, "api.token_file",
            "key file lines holds a control character: it has several lines", "leave the one line of the token or key in it"),
    in_file('[api]\ntoken_file = "empty"\n', 2, "api.token_file", "key file empty is empty", "put the token or key into it"),
    in_file('[api]\ntoken_file = "windows"\n', 2, "api.token_file", "key file windows is UTF-16 text",
            "save it as UTF-8: in PowerShell, Out-File -Encoding ascii -NoNewline"),
    in_file('[api]\ntoken_file = "eyJabc.def"\n', 2, "api.token_file", "is not the name of a file",
            "the secret itself goes into token, or better a file"),
    in_file('[api]\ntoken = "abc"\n', 2, "api.token", "the secret stands in a file that others can read",
            "chmod 600 the file, or keep the secret in its own file", mode=0o644),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{row.command}: {row.message}"[:60] for row in MISTAKES])
def test_a_mistake_is_told_with_its_place_and_what_to_do(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (content, mode) in FILES.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(mode)
    if mistake.text:
        (tmp_path / "ionos-poller.toml").write_text(mistake.text)
        (tmp_path / "ionos-poller.toml").chmod(mistake.mode)
    monkeypatch.chdir(tmp_path)
    assert run(["--log-level", "error", *mistake.command.split()], "ionos-poller") != 0
    (line,) = capsys.readouterr().err.splitlines()
    where = f"{mistake.place}: " if mistake.place else ""
    assert line == f"ionos-poller: {where}{mistake.message} ({mistake.remedy})".format(here=tmp_path)
    assert max(map(len, (where, mistake.message, mistake.remedy))) < 100


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("statsu", "No such command 'statsu'. Did you mean 'status'?"),
        ("sinks lst", "No such command 'lst'. Did you mean 'list'?"),
        ("backfill forgt", "No such command 'forgt'. Did you mean 'forget'?"),
        ("gabs list", "No such command 'gabs'. Did you mean 'gaps'?"),
        ("frobnicate", "No such command 'frobnicate'. `ionos-poller --help` lists them."),
        ("sinks frobnicate", "No such command 'frobnicate'. `ionos-poller sinks --help` lists them."),
    ],
)
def test_a_command_that_does_not_exist_is_told_with_the_one_that_was_meant(
    typed: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(typed.split(), "ionos-poller") == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"Error: {told}"


@pytest.mark.parametrize("command", ["status", "sinks list", "backfill", "tail", "dead-letters purge"])
def test_help_has_the_options_of_the_command_and_a_line_for_the_global_ones(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), "--help"], "ionos-poller") == 0
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "--log-format" in line]
    assert {"--config", "--state-dir", "--log-level"} <= set(line.replace(",", "").split())
