"""What Fluent Bit refuses or ignores in a configuration: unknown names, and values that it cannot read.

If a `fluent-bit` is installed, it checks the file (`--dry-run`). The tables of `fluent_bit_keys` serve without one, and for what
`--dry-run` does not check. A plugin that is not in them is not an error: it may be newer, or loaded from a file.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from poller.checks import Finding, fail, warn
from poller.checks.fluent_bit_file import Section, size_bytes
from poller.checks.fluent_bit_keys import COMMON, KEYS, PARSER, PLUGINS, SECTIONS, SERVICE
from poller.checks.programs import ask
from poller.core.errors import EXIT_CONFIG

NAME = "fluent-bit"
_PROGRAM = "fluent-bit"
_ITS_PACKAGES = "/opt/fluent-bit/bin"
_MAX_SAID_CHARS = 200
_NEAR = 0.7
_ON_OR_OFF = ("on", "off", "true", "false", "yes", "no")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_FRACTION = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?")
_TIME = re.compile(r"[0-9]{1,18}[smhdSMHD]?")


class _Key(NamedTuple):
    kind: str
    may_repeat: bool


def refused(section: Section, message: str, hint: str) -> Finding:
    """A failure: Fluent Bit does not start with this, or does not work as intended."""
    return fail(NAME, f"{section.title}: {message}", hint, EXIT_CONFIG)


# The program itself


class Verdict(NamedTuple):
    """The answer of an installed Fluent Bit: whether it accepts the file; None if it could not be asked."""

    is_accepted: bool | None
    findings: Sequence[Finding] = ()


def ask_fluent_bit(path: Path, sections: Sequence[Section]) -> Verdict:
    """Let an installed Fluent Bit check the file. This starts no plugin and opens no connection."""
    program = shutil.which(_PROGRAM) or shutil.which(_PROGRAM, path=_ITS_PACKAGES)
    # With a log file it would write into that file, and as a daemon it would keep running.
    if program is None or any(found.get("log_file") or found.is_on("daemon") for found in _of(sections, "service")):
        return Verdict(None)
    try:
        answer = ask([program, "--dry-run", "-c", str(path.resolve())], directory=path.resolve().parent)
    except (OSError, TimeoutError) as error:
        return Verdict(None, [warn(NAME, f"{program} --dry-run does not answer: {error}", "run it by hand to see why")])
    if answer.code == 0:
        return Verdict(True)
    lines = [line.partition("[error]")[2].strip() for line in answer.said.splitlines() if "[error]" in line]
    if not lines:  # an old version without this option
        return Verdict(None)
    said = next((line for line in lines if not line.startswith("[reload]")), lines[0])
    said = said.partition(" The following properties")[0][:_MAX_SAID_CHARS].removeprefix("[config]").strip()
    if "is used but not set" in answer.said:
        hint = "set its variables as its service has them, and check again"
        return Verdict(None, [warn(NAME, f"fluent-bit --dry-run refuses the file: {said}", hint)])
    return Verdict(False, [fail(NAME, f"fluent-bit --dry-run refuses the file: {said}", "correct it", EXIT_CONFIG)])


# The tables


def check_known(sections: Sequence[Section], *, is_accepted: bool) -> Iterator[Finding]:
    """Check names and values. `is_accepted`: Fluent Bit itself accepts the file, so only values of its plugins are checked."""
    services = _of(sections, "service")
    has_more = any(found.kind == "plugins" for found in sections) or any(
        found.get("plugins_file") for found in services
    )
    for section in sections:
        if section.kind in PLUGINS:
            keys, is_known = _keys_of(section)
            if not is_accepted:
                yield from _check_name(section, has_more=has_more)
                yield from _check_keys(section, keys, is_known=is_known)
            yield from _check_values(section, keys)
        elif section.kind == "parser":
            yield from _check_parser(section)
        elif section.kind == "service":
            yield from _check_ignored(section, _table(SERVICE))
            yield from _check_values(section, _table(SERVICE))
        elif section.kind not in SECTIONS.split():
            message = f"Fluent Bit knows no section [{section.kind.upper()}], and ignores it"
            yield warn(NAME, message, _instead(section.kind, SECTIONS.split()))


def _of(sections: Sequence[Section], kind: str) -> list[Section]:
    return [section for section in sections if section.kind == kind]


@cache
def _table(text: str) -> Mapping[str, _Key]:
    table = {}
    for word in text.split():
        name, _, kind = word.partition(":")
        table[name.removesuffix("*")] = _Key(kind, name.endswith("*"))
    return table


def _keys_of(section: Section) -> tuple[Mapping[str, _Key], bool]:
    """The keys that a section may have, and whether the list is complete."""
    own = KEYS.get((section.kind, _plugin(section)))
    common = _table(COMMON[section.kind])
    return (common, False) if own is None else ({**common, **_table(own)}, True)


def _plugin(section: Section) -> str:
    return section.get("name").lower().partition("://")[0]  # `http://HOST` is an output http


def _check_name(section: Section, *, has_more: bool) -> Iterator[Finding]:
    name = _plugin(section)
    known = PLUGINS[section.kind].split()
    if not name:
        yield refused(section, "has no Name", "set Name to the plugin, as the first key")
    elif name not in known and "${" not in name:
        near = get_close_matches(name, known, 1, _NEAR)
        if near and not has_more:
            message = f"Fluent Bit has no {section.kind} plugin {section.get('name')}"
            yield refused(section, message, f"set Name {near[0]}")
        else:
            hint = "check its name; where fluent-bit is installed, this command asks it"
            yield warn(NAME, f"{section.title}: the {section.kind} plugin is not known here", hint)


def _check_keys(section: Section, keys: Mapping[str, _Key], *, is_known: bool) -> Iterator[Finding]:
    shared = _table(COMMON[section.kind])
    for name, values in section.keys.items():
        key = _find(keys, name)
        if key is None and is_known:
            yield refused(section, f"Fluent Bit does not know the key {section.spelled(name)}", _other(name, keys))
        elif key is not None and not values and name in shared and (key.kind or name in ("tag", "alias")):
            yield refused(section, f"{section.spelled(name)} has no value", "set it, or take it out")
        elif key is not None and len(values) > 1 and not key.may_repeat:
            yield refused(section, f"{section.spelled(name)} is there {len(values)} times", "leave one of them")


def _check_ignored(section: Section, keys: Mapping[str, _Key]) -> Iterator[Finding]:
    for name in section.keys:
        if _find(keys, name) is None:
            message = f"Fluent Bit does not know the key {section.spelled(name)}, and ignores it"
            yield warn(NAME, f"{section.title}: {message}", _other(name, keys))


def _check_parser(section: Section) -> Iterator[Finding]:
    keys = _table(PARSER)
    yield from _check_ignored(section, keys)
    for name in ("name", "format", *(("regex",) if section.get("format") == "regex" else ())):
        if not section.get(name):
            yield refused(section, f"has no {name.capitalize()}", f"set {name.capitalize()}")
    yield from _check_values(section, keys)


def _check_values(section: Section, keys: Mapping[str, _Key]) -> Iterator[Finding]:
    for name, values in section.keys.items():
        key = _find(keys, name)
        for value in values:
            if key is not None and (found := _misread(key.kind, value)):
                what, hint = found
                yield refused(section, f"{section.spelled(name)} {value[:80]} {what}", hint)


def _misread(kind: str, value: str) -> tuple[str, str] | None:
    """What is wrong with a value, and what to do; None if nothing is, or if it depends on Fluent Bit's environment."""
    if "${" in value:
        return None
    match kind:
        case "":
            return None
        case "bool":
            return None if value.lower() in _ON_OR_OFF else ("is neither on nor off", "set it on or off")
        case "size":
            return (
                None if size_bytes(value) is not None else ("is not a size", "set it to a number with K, M or G, as 2M")
            )
        case "int":
            return None if _NUMBER.fullmatch(value) else ("is not a number", "set it to a whole number")
        case "number":
            return None if _FRACTION.fullmatch(value) else ("is not a number", "set it to a number")
        case "time":
            return None if _TIME.fullmatch(value) else ("is not a time", "set it to seconds, or to 5m or 1h")
        case "port":
            is_port = _NUMBER.fullmatch(value) and 0 < int(value) < 1 << 16
            return None if is_port else ("is not a port", "set it to a number from 1 to 65535")
        case _:
            words = kind.split("|")
            return (
                None
                if value.lower() in words
                else (f"is none of {', '.join(words)}", "set it to one of these, or take it out")
            )


def _find(keys: Mapping[str, _Key], name: str) -> _Key | None:
    if name in keys:
        return keys[name]
    return next((key for known, key in keys.items() if known.endswith("...") and name.startswith(known[:-3])), None)


def _other(name: str, keys: Mapping[str, _Key]) -> str:
    return _instead(name, [known for known in keys if not known.endswith("...")])


def _instead(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1, _NEAR)
    return f"write {near[0]}" if near else "take it out, or correct its name"
