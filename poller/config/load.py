"""Finds and reads the configuration, and raises all its problems at once.

Precedence: command line, environment, file, default. No other module reads these from the environment or the file. A
missing token is not a problem here, because some commands need none: `Account.credentials()` says what to set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from poller.config.checks import BadValueError
from poller.config.environment import EnvText, NetworkEnvironment, config_variables
from poller.config.files import find_credential
from poller.config.kinds import decode_json
from poller.config.model import Account, Config
from poller.config.reading import Place, Reading
from poller.config.secrets import SecretSource
from poller.config.state_url import take_password
from poller.config.tables import Nested
from poller.config.trust import read_trusted
from poller.core.errors import ConfigError, FileProblem, Problem

LOCAL_CONFIG = Path("ionos-poller.toml")
SYSTEM_CONFIG = Path("/etc/ionos-poller/config.toml")
_MAX_FILE_BYTES = 1024 * 1024


def find_config(path_option: Path | str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to load: the option, $IONOS_POLLER_CONFIG, ./ionos-poller.toml or the system's, in this order; otherwise None.

    A file that the user named is returned even if it does not exist: `load` reports that.
    """
    if named := path_option or environ.get("IONOS_POLLER_CONFIG"):
        return Path(named)
    candidates = (LOCAL_CONFIG, SYSTEM_CONFIG)
    # Not Path.is_file: it raises if we may not enter a directory above.
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113


def load(
    path: Path | None, environ: Mapping[str, str], *, state_dir: Path | None = None, check_files: bool = True
) -> Config:
    """The configuration from this file and the environment (None: from the environment only).

    `check_files=False` is for commands that use no secret: key and certificate files are then not checked.
    Raises: ConfigError with all problems.
    """
    problems: list[Problem] = []
    tree, is_private, text = _read_file(path, problems) if path is not None else ({}, True, "")
    origins: dict[str, str] = {}
    for variable, parts in config_variables(environ):
        try:
            origins[_place(tree, parts, EnvText(environ[variable]))] = variable
        except BadValueError as error:
            problems.append(Problem(variable, error.message, error.hint))
    if state_dir is not None:
        tree.pop("state_dir", None)
    if isinstance(state := tree.get("state"), dict):
        take_password(state, origins)
    reading = Reading(
        environ, origins, base=path.parent if path else Path(), is_private=is_private, check_files=check_files
    )
    config = Nested(type=Config, is_partial=True).read(tree, Place(reading))
    problems += reading.problems
    network = NetworkEnvironment(environ)
    if check_files and network.ca_bundle and not os.access(network.ca_bundle, os.R_OK):
        problems.append(
            FileProblem(network.ca_bundle_variable, f"unreadable file {network.ca_bundle}", "correct or unset it")
        )
    username = environ.get("IONOS_USERNAME", "")
    if ":" in username or not username.isprintable():
        message = "holds a colon, a control character or what is no UTF-8"
        problems.append(Problem("IONOS_USERNAME", message, "correct or unset it"))
    if problems or not isinstance(config, Config):
        raise ConfigError(_placed(problems, path, text))
    if state_dir is None and "state_dir" not in tree:
        # systemd may put several directories into it, separated by colons.
        state_dir = Path(environ.get("STATE_DIRECTORY", "").partition(":")[0] or "state")
    api = config.api
    own = Account(name="default", url=api.url, token=api.token, username=api.username, password=api.password)
    return msgspec.structs.replace(
        config,
        state_dir=state_dir or config.state_dir,
        accounts=_resolve_accounts(config.accounts, own, environ, path, text),
        api=msgspec.structs.replace(api, token=None, username=None, password=None),
        source=path,
        network=network,
    )


def _placed(problems: Sequence[Problem], file: Path | None, text: str) -> list[Problem]:
    """The problems in the order of the file. Problems of keys get their line; problems of variables come last."""
    from poller.config.places import line_of, places

    found = places(text)
    lines = [(problem, line_of(problem.path, found)) for problem in problems]
    lines.sort(key=lambda pair: pair[1] or len(text))
    return [problem._replace(place=f"{file}:{line}") if line else problem for problem, line in lines]


def _read_file(path: Path, problems: list[Problem]) -> tuple[dict[str, Any], bool, str]:
    """The file's tables, whether only its owner can read it, and its text."""
    import tomllib

    try:
        content, rights, refusal = read_trusted(path, _MAX_FILE_BYTES + 1, is_named=path != LOCAL_CONFIG)
    except OSError as error:
        hint = "check that the file exists and that this user can read it; `ionos-poller config example` prints one"
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}", hint))
        return {}, False, ""
    if refusal is not None:
        problems.append(Problem(str(path), *refusal))
        return {}, False, ""
    is_private = rights.mode & 0o077 == 0
    if len(content) > _MAX_FILE_BYTES:
        problems.append(Problem(str(path), "is larger than 1 MiB", "check that this is the right file"))
        return {}, is_private, ""
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        return tomllib.loads(text), is_private, text
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(Problem(f"{path}:{line}", f"is not UTF-8 (line {line})", "save it as UTF-8"))
    except (ValueError, RecursionError) as error:
        # The error for a number of thousands of digits, or for thousands of brackets, has no position.
        message = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a value is too long or too deep"
        at = re.search(r" \(at line ([0-9]+), ", message)
        where = f"{path}:{at[1]}" if at else str(path)
        problems.append(Problem(where, f"is not valid TOML: {message}", "see `ionos-poller config example`"))
    return {}, is_private, ""


def _place(tree: dict[str, Any], parts: list[str], value: EnvText) -> str:
    """Set one value in the tree. `parts` is its path; list elements are counted from 0. Returns the path as text."""
    if "" in parts:
        raise BadValueError("names no key", "`__` stands between table and key, as in IONOS_POLLER_POLL__INTERVAL")
    node: Any = tree
    path = ""
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        is_list = part in ("sinks", "accounts") if not depth else not is_last and parts[depth + 1].isdigit()
        if isinstance(node, list):
            if not part.isascii() or not part.isdigit() or len(part) > 4 or int(part) > len(node):
                raise BadValueError(
                    "does not name an element of a list", "count from 0, or give the whole list as JSON"
                )
            key: Any = int(part)
            if key == len(node):
                node.append({})
            path = f"{path}[{key}]"
        elif isinstance(node, dict):
            key = part
            path = f"{path}.{part}" if path else part
            if key not in node:
                node[key] = [] if is_list else {}
        else:
            raise BadValueError("goes deeper than the configuration does", "`__` stands between table and key")
        if is_last:
            node[key] = value
        else:
            if isinstance(node[key], EnvText):
                node[key] = decode_json(node[key])
            node = node[key]
    return path


def _resolve_accounts(
    accounts: tuple[Account, ...], own: Account, environ: Mapping[str, str], file: Path | None, text: str
) -> tuple[Account, ...]:
    """At least one account, each with its URL and, if it has one, the source of its secret.

    An account without credentials is not a problem yet. It keeps its place in the file for a later message.
    """
    accounts = accounts or (Account(name="default"),)
    if len(accounts) == 1 and accounts[0].token is None:
        accounts = (_with_fallback(accounts[0], own, environ),)
    lines: list[int | None] = [None] * len(accounts)
    if file is not None and not all(account.token or account.password for account in accounts):
        from poller.config.places import line_of, places

        found = places(text)
        lines = [line_of(f"accounts[{index}]", found) for index in range(len(accounts))]
    return tuple(
        msgspec.structs.replace(account, url=account.url or own.url, place=f"{file}:{line}" if line else "")
        for account, line in zip(accounts, lines, strict=True)
    )


def _with_fallback(account: Account, own: Account, environ: Mapping[str, str]) -> Account:
    """The only account, which has no token, with the credentials from `[api]`, IONOS_* variables or systemd."""
    if not account.username:
        account = msgspec.structs.replace(
            account, token=own.token, username=own.username, password=account.password or own.password
        )
    if account.token is None and not account.username:
        token = _from_variable("IONOS_API_TOKEN", environ) or _from_variable("IONOS_TOKEN", environ)
        username = environ.get("IONOS_USERNAME")
        if token is None and not username:
            token = _from_credential("token", environ)
        account = msgspec.structs.replace(account, token=token, username=None if token else username)
    if account.username and account.password is None:
        password = _from_variable("IONOS_PASSWORD", environ) or _from_credential("password", environ)
        account = msgspec.structs.replace(account, password=password)
    return account


def _from_variable(name: str, environ: Mapping[str, str]) -> SecretSource | None:
    is_text = name == "IONOS_PASSWORD"
    return SecretSource("env", name, path=name, is_text=is_text, environ=environ) if environ.get(name) else None


def _from_credential(name: str, environ: Mapping[str, str]) -> SecretSource | None:
    found = find_credential(environ, (name,))
    return SecretSource("credential", found, path=name, is_text=name == "password") if found else None
