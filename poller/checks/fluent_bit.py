"""Checks of a Fluent Bit configuration around `ionos-poller fetch`: settings that make it lose entries or keep it from starting.

Source: docs/facts.md, "Fluent Bit" and "IONOS Logging Service".
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from poller.checks import Finding, fail, from_error, ok, warn
from poller.checks.fluent_bit_file import Section, read_sections, size_bytes
from poller.checks.fluent_bit_known import NAME, ask_fluent_bit, check_known
from poller.checks.fluent_bit_known import refused as _bad
from poller.checks.programs import ask
from poller.config import Config, LoggingServiceSink
from poller.core.errors import EXIT_CONFIG, ConfigError

MIN_BUFFER_BYTES = 1_000_000
_DEFAULT_BUFFER = "4096"
_MAX_SAID_CHARS = 200
_CONFIG_OPTIONS = ("--config", "--state-dir")
_FOREVER = ("no_limits", "false", "off")


def check_fluent_bit(path: Path, config: Config | None) -> list[Finding]:
    """All problems of the file. `config` is our configuration, if there is one: its sink has the tag of the pipeline."""
    try:
        sections = read_sections(path)
    except ConfigError as error:
        return from_error(NAME, error)
    verdict = ask_fluent_bit(path, sections)
    findings = [*verdict.findings, *check_known(sections, is_accepted=verdict.is_accepted is True)]
    inputs = [section for section in sections if section.kind == "input"]
    commands = [section for section in inputs if _is("exec", section)]
    ours = [section for section in commands if _words_of_fetch(section) is not None]
    pushed = [section for section in inputs if _is("http", section)]
    if not ours and (commands or not pushed):
        return [found for found in findings if found.level == "fail"] or [_no_fetch(commands)]
    findings += [finding for section in ours for finding in _check_exec(section, sections)]
    findings += _check_places(sections, path)
    for section in (*ours, *pushed):
        findings += _check_storage(section, sections)
        findings += _check_outputs(section, sections, config, path)
    said = ", and fluent-bit --dry-run takes it" if verdict.is_accepted else ""
    return findings or [ok(NAME, f"{path}: no setting that loses entries was found{said}")]


def _is(plugin: str, section: Section) -> bool:
    return section.get("name").lower() == plugin


def _no_fetch(commands: Sequence[Section]) -> Finding:
    hint = "set Command to `ionos-poller fetch --time-key time`, as in fluent-bit/ of this project"
    if commands:
        return _bad(commands[0], f"Command does not run `ionos-poller fetch`: {commands[0].get('command')[:80]}", hint)
    return fail(NAME, "there is no exec input that runs `ionos-poller fetch`, and no http input", hint, EXIT_CONFIG)


# The input


def _words_of_fetch(section: Section) -> list[str] | None:
    """The words of the command from our program on; None if it runs another program."""
    try:
        words = shlex.split(section.get("command"))
    except ValueError:
        return None
    for at, word in enumerate(words):
        is_module = word == "poller" and words[at - 1 : at] == ["-m"]
        if (Path(word).name == "ionos-poller" or is_module) and "fetch" in words[at:]:
            return words[at - 2 if is_module else at :]
    return None


def _option(words: Sequence[str], name: str) -> str:
    """The value of an option, empty if it is not given."""
    for at, word in enumerate(words):
        if word == name:
            return words[at + 1] if at + 1 < len(words) else ""
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def _check_exec(section: Section, sections: Sequence[Section]) -> Iterator[Finding]:
    words = _words_of_fetch(section) or []
    yield from _check_program(section, words)
    yield from _check_buffer(section, words)
    yield from _check_parser(section, sections, _option(words, "--time-key"))
    if not section.is_on("threaded"):
        yield warn(NAME, f"{section.title}: all of Fluent Bit stands still while the command runs", "set Threaded on")
    if re.search(r"IONOS_(API_TOKEN|TOKEN|PASSWORD)=(?!\$)", section.get("command")):
        hint = "move it into an environment file or api.token_file: a command line can be seen by every user"
        yield _bad(section, "Command holds a secret", hint)


def _check_program(section: Section, words: Sequence[str]) -> Iterator[Finding]:
    """Check that the program exists and starts with the given configuration. It does not fetch, because entries that it
    printed here would be missing in Fluent Bit.
    """
    program = shutil.which(words[0])
    if program is None:
        hint = "give its full path, which `command -v ionos-poller` shows"
        yield _bad(section, f"Command: there is no program {words[0]}", hint)
        return
    module = words[1:3] if words[1:2] == ["-m"] else []
    options = [part for name in _CONFIG_OPTIONS if (value := _option(words, name)) for part in (name, value)]
    arguments = [*module, *options, "config", "show"]
    try:
        # The user named this file, whose command Fluent Bit runs as well.
        answer = ask([program, *arguments])
        said = answer.said.strip().partition("\n")[0][:_MAX_SAID_CHARS]
        ending = "" if answer.code == 0 else f"ends with {answer.code}: {said}"
    except (OSError, TimeoutError) as error:
        ending = f"does not run: {type(error).__name__}"
    if ending:
        yield _bad(section, f"Command: {shlex.join([program, *arguments])} {ending}", "run it by hand to see why")


def _check_buffer(section: Section, words: Sequence[str]) -> Iterator[Finding]:
    text = section.get("buf_size", _DEFAULT_BUFFER)
    size = size_bytes(text)
    longest = _option(words, "--max-line-bytes")
    wanted = int(longest) + 1 if re.fullmatch(r"[0-9]{1,15}", longest) else MIN_BUFFER_BYTES
    if size is not None and size < wanted:
        given = f"Buf_Size {text}" if "buf_size" in section.keys else "Buf_Size is 4096 by default, which"
        hint = "set Buf_Size 2M" if wanted < 2 * MIN_BUFFER_BYTES else f"set Buf_Size above --max-line-bytes, {longest}"
        yield _bad(section, f"{given} loses every longer entry", hint)


def _check_parser(section: Section, sections: Sequence[Section], time_key: str) -> Iterator[Finding]:
    name = section.get("parser")
    if not name:
        hint = "set Parser to one with Format json, as in fluent-bit/ of this project"
        yield warn(
            NAME, f"{section.title}: without a Parser each entry is one text, with the time of its arrival", hint
        )
        return
    parser = next((found for found in sections if found.kind == "parser" and found.get("name") == name), None)
    if parser is None:
        return  # reported by `_check_places`
    if parser.get("format").lower() != "json":
        yield _bad(parser, "Format is not json", "set Format json: fetch prints JSON lines")
    wanted = parser.get("time_key")
    if wanted and wanted != time_key:
        hint = f"add --time-key {wanted} to Command: Time_Key looks at the top level only"
        yield warn(NAME, f"{parser.title}: Time_Key {wanted} finds nothing in an entry", hint)


# Between input and output


def _check_service(section: Section) -> Iterator[Finding]:
    if section.is_on("storage.checksum"):
        message = "with storage.checksum on, chunks that are open when Fluent Bit is killed are never sent"
        yield warn(NAME, f"{section.title}: {message}", "set storage.checksum off, which sends them after all")
    if section.get("json.escape_unicode", "on").lower() not in ("off", "false", "no"):
        message = "a letter such as `ü` becomes 6 bytes, and the receiver may refuse what was short enough before"
        yield warn(NAME, f"{section.title}: {message}", "set json.escape_unicode off")


def _check_places(sections: Sequence[Section], path: Path) -> Iterator[Finding]:
    """Check what one section needs from another, or from its file."""
    services = [found for found in sections if found.kind == "service"]
    parsers = {found.get("name") for found in sections if found.kind == "parser"}
    has_path = any(service.get("storage.path") for service in services)
    yield from _check_service(
        Section("service", {key: values for found in services for key, values in found.keys.items()})
    )
    for section in sections:
        if section.kind == "input" and not has_path and _storage(section, services) == "filesystem":
            message = "storage.type filesystem needs storage.path in [SERVICE]"
            yield _bad(section, message, "set storage.path to a directory")
        if section.kind in ("input", "filter"):
            for name in section.keys.get("parser", []):
                if name not in parsers and "${" not in name:
                    hint = "name the file that defines it in Parsers_File of [SERVICE]"
                    yield _bad(section, f"there is no parser {name}", hint)
        if section.kind == "parser" and section.path == path and path.suffix.lower() not in (".yaml", ".yml"):
            hint = "move it to a file of its own, and name that in Parsers_File of [SERVICE]"
            yield _bad(section, "Fluent Bit does not start with a [PARSER] in its main file", hint)


def _storage(section: Section, services: Sequence[Section]) -> str:
    """The storage type of an input for waiting entries."""
    inherited = next((service.get("storage.type") for service in services if service.is_on("storage.inherit")), "")
    return section.get("storage.type", inherited).lower()


def _check_storage(section: Section, sections: Sequence[Section]) -> Iterator[Finding]:
    if _storage(section, [found for found in sections if found.kind == "service"]) != "filesystem":
        hint = "set storage.type filesystem there, and storage.path in [SERVICE]"
        yield warn(NAME, f"{section.title}: what waits is kept in memory, and lost at a restart", hint)


# The output


def _check_outputs(
    section: Section, sections: Sequence[Section], config: Config | None, path: Path
) -> Iterator[Finding]:
    # Without a Tag, the http input uses the path of the request as the tag, so any output may match.
    is_open = _is("http", section) and not section.get("tag")
    tag = section.get("tag") or section.get("alias") or f"{section.get('name')}.0"
    outputs = [found for found in sections if found.kind == "output" and (is_open or _matches(found, tag))]
    if not outputs:
        yield _bad(section, f"no [OUTPUT] has a Match for the tag {tag}", f"set Match {tag} in the output")
    for output in outputs:
        yield from _check_retries(output)
        if _is("http", output):
            yield from _check_http(output, section, config, path)


def _matches(output: Section, tag: str) -> bool:
    if pattern := output.get("match_regex"):
        try:
            return re.search(pattern, tag) is not None
        except re.error:  # Fluent Bit's patterns differ from Python's in some points
            return True
    return fnmatchcase(tag, output.get("match"))


def _check_retries(output: Section) -> Iterator[Finding]:
    limit = output.get("retry_limit", "1")
    if not limit.isdigit() and limit.lower() not in (*_FOREVER, "no_retries") and "${" not in limit:
        yield _bad(output, f"Retry_Limit {limit} is no number, which counts as 1", "set Retry_Limit no_limits")
    elif limit.lower() not in _FOREVER:
        yield _bad(output, f"gives up after {limit} retries, and drops what it held", "set Retry_Limit no_limits")


def _check_http(output: Section, section: Section, config: Config | None, path: Path) -> Iterator[Finding]:
    """Check an http output. `section` is the input whose lines it sends."""
    if output.get("format").lower() not in ("json", "json_lines", "json_stream"):
        yield _bad(output, "sends msgpack, which the receiver does not take", "set Format json")
    if output.get("port") == "443" and not output.is_on("tls"):
        yield _bad(output, "speaks plain HTTP to port 443", "set tls on")
    if "moesif" in output.get("host"):
        yield from _check_moesif(output, _words_of_fetch(section))
    else:
        yield from _check_key(output, path)
        yield from _check_uri(output, config)


def _headers(output: Section) -> dict[str, str]:
    """The request headers that it sets, by their names in lower case."""
    pairs = (value.partition(" ") for value in output.keys.get("header", []))
    return {name.lower(): value.strip() for name, _, value in pairs}


def _check_moesif(output: Section, words: Sequence[str] | None) -> Iterator[Finding]:
    """Source: docs/facts.md, "Moesif Actions API". `words` of the command, if there is one."""
    if words is not None and _option(words, "--format") != "moesif-action":
        hint = "add --format moesif-action to Command"
        yield _bad(output, "Moesif takes actions, and the command prints entries", hint)
    if not _headers(output).keys() & {"x-moesif-application-id", "authorization"}:
        hint = "add `header X-Moesif-Application-Id ${MOESIF_APPLICATION_ID}`, with the id in the environment"
        yield _bad(output, "sends no application id", hint)
    uri = output.get("uri", "/")
    if uri != "/v1/actions/batch":
        yield _bad(output, f"URI {uri} is not where Moesif takes arrays of actions", "set URI /v1/actions/batch")


def _check_key(output: Section, path: Path) -> Iterator[Finding]:
    key = _headers(output).get("apikey")
    if not key:
        hint = "add `header APIKEY ${IONOS_LOGGING_KEY}`, with the pipeline's key in the environment"
        yield _bad(output, "sends no APIKEY header", hint)
    elif not key.startswith("${") and path.stat().st_mode & 0o044:
        hint = "write ${IONOS_LOGGING_KEY} and put the key into the environment, or chmod 600 the file"
        yield warn(NAME, f"{output.title}: the key stands in a file that others can read", hint)


def _check_uri(output: Section, config: Config | None) -> Iterator[Finding]:
    """Check that the path is the tag of a log source: our own sink's tag, if it sends to the same pipeline."""
    uri, host = output.get("uri", "/"), output.get("host")
    tags = {
        sink.tag
        for sink in (config.sinks if config is not None else ())
        if isinstance(sink, LoggingServiceSink) and host in sink.url
    }
    if tags and uri.strip("/") not in tags:
        yield _bad(output, f"URI {uri} is not the tag of the pipeline", f"set URI /{min(tags)}")
    elif re.fullmatch(r"/[A-Za-z0-9]{3,20}", uri) is None:
        yield _bad(
            output, f"URI {uri} is no tag", "set URI to / and the tag of the pipeline's log source: /activityLog"
        )
