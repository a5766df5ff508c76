"""What people do to a state by hand: who they are, a warning if root uses another user's state, the line in the log."""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache

from poller.cli.options import use_of
from poller.config import Config, process_environment
from poller.store.journal import Action, Person
from poller.store.opening import stores_of
from poller.store.protocols import State, Stores

log = logging.getLogger("poller.journal")


def person() -> Person:
    """The person who runs this command. SUDO_USER counts only for root: any other user could set it to any name."""
    uid = os.getuid()
    return Person(uid, login_of(uid), process_environment().get("SUDO_USER", "") if os.geteuid() == 0 else "")


def login_of(uid: int) -> str:
    """The login name of a user, or the number if the system has no name for it, as in many containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextmanager
def attached(config: Config, use: str | None) -> Iterator[tuple[Stores, State]]:
    """The stores, and the state of a use for short transactions: other processes may be working on it."""
    stores = stores_of(config)
    with closing(stores.attach(use_of(use, stores))) as state:
        yield stores, state


@contextmanager
def acting(stores: Stores, name: str, subject: str = "", *, reason: str = "") -> Iterator[Action]:
    """An action for the journal of a state. It is logged at the end if it did something."""
    warn_of_root(stores)
    action = Action(person(), name, subject, reason=reason)
    try:
        yield action
    finally:
        if action.entry is not None:
            log.info("journal.recorded", extra=action.entry.fields)


def is_at_work(stores: Stores, state: State) -> bool:
    """Whether a process of this machine, or of another one, works on a state."""
    return stores.holder(state.use) is not None or bool(state.overview().replicas)


def log_done(name: str, subject: str) -> None:
    """Log what a person does if there is no state whose journal can record it."""
    who = person()
    log.info("journal.recorded", extra={**who._asdict(), "action": name, "subject": subject})


def warn_of_root(stores: Stores) -> None:
    """Warn if root is about to write to a state that belongs to another user."""
    owner = stores.owner()
    if owner is not None and os.geteuid() == 0 and owner != 0:
        _warn_of_root(stores.place, owner)


@cache
def _warn_of_root(place: str, owner: int) -> None:
    login = login_of(owner)
    # sudo takes no user that the system has no name for.
    become = f"setpriv --reuid {owner} --regid {owner} --clear-groups" if login == str(owner) else f"sudo -u {login}"
    hint = f"run it as that user: {become} ionos-poller ..."
    log.warning("state.used_by_root", extra={"state_dir": place, "owner": login, "hint": hint})
