"""What a person does to a state by hand: who it is, a warning where it is root in another user's state, the line in the log."""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from poller.config import process_environment
from poller.store.journal import Action, Person

log = logging.getLogger("poller.journal")


def person() -> Person:
    """Who runs this command. Only for root is SUDO_USER believed: everybody else could set it to any name."""
    uid = os.getuid()
    return Person(uid, login_of(uid), process_environment().get("SUDO_USER", "") if os.geteuid() == 0 else "")


def login_of(uid: int) -> str:
    """The login name of a user, or the number where the system knows no name, as in many containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextmanager
def acting(state_dir: Path, name: str, subject: str = "", *, reason: str = "") -> Iterator[Action]:
    """An action for the journal of a state, logged in the end if it did something."""
    warn_of_root(state_dir)
    action = Action(person(), name, subject, reason=reason)
    try:
        yield action
    finally:
        if action.entry is not None:
            _log(action.entry.fields)


def log_done(name: str, subject: str) -> None:
    """Log what a person does where there is no state to note it in."""
    who = person()
    _log({"uid": who.uid, "login": who.login, "sudo_user": who.sudo_user, "action": name, "subject": subject})


def _log(fields: Mapping[str, object]) -> None:
    log.info("journal.recorded", extra=dict(fields))


@cache
def warn_of_root(state_dir: Path) -> None:
    """Warn where root is about to write to a state that belongs to another user."""
    try:
        owner = state_dir.stat().st_uid
    except OSError:  # what uses it says so
        return
    if os.geteuid() == 0 and owner != 0:
        login = login_of(owner)
        hint = f"run it as that user: sudo -u {login} ionos-poller ..."
        log.warning("state.used_by_root", extra={"state_dir": str(state_dir), "owner": login, "hint": hint})
