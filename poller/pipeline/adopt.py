"""The adoption of a state: `fetch` begins at the point where the script of the tutorial stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from poller.core.errors import ConfigError
from poller.store.journal import Action
from poller.store.protocols import State

log = logging.getLogger("poller.fetch")

_MAX_FILE_BYTES = 64 * 1024
_OPTION = "--adopt-state"


def adopt(path: Path, state: State, accounts: Iterable[str], *, now: float, by: Action) -> None:
    """Begin at the `last_run` of the script's state file. A state that has begun already is not changed.

    Raises: ConfigError if the file cannot be read, or is not such a file.
    """
    if state.contracts.all():
        log.info("state.already_adopted", extra={"file": str(path)})
        return
    text, since = _last_run(path, now)
    state.request_reread(accounts, since, by=by)
    log.info("state.adopted", extra={"file": str(path), "last_run": text})


def _last_run(path: Path, now: float) -> tuple[str, int]:
    """The time as written, and in unix seconds. Without an offset it is UTC, as the script wrote it."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)  # a longer file is cut, and then is no JSON
        text = str(json.loads(content)["last_run"])
        at = datetime.fromisoformat(text)
        since = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
        if since < 0:
            raise ValueError("last_run lies before 1970")
    except OSError as error:
        hint = "check that it exists and that this user may read it"
        raise ConfigError.of(_OPTION, f"{path} cannot be read: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        hint = 'it must hold {"last_run": "2026-05-01T07:42:20+00:00"}'
        raise ConfigError.of(_OPTION, f"{path} is not a state of the tutorial's script", hint) from error
    if since > now:
        hint = "check the clock of this machine, or correct the file"
        raise ConfigError.of(_OPTION, f"last_run in {path}, {text}, lies in the future", hint)
    return text, since
