"""Whether a file may be used: who owns it, and who else can change, replace or read it.

A configuration says where the token is sent, so another user who can write it can steal the token. A file is used only if it
belongs to root or to this user, and nobody else can write or replace it. A secret must also be unreadable for others.
`distrust` decides; `read_trusted` reads the disk.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_ROOT = 0


class Refusal(NamedTuple):
    """Why a file is not used, and what to do about it."""

    message: str
    hint: str


class Rights(NamedTuple):
    """Owner, group and mode of a file or directory. `path` is for messages."""

    path: str
    owner: int
    group: int
    mode: int

    @classmethod
    def of(cls, path: str, found: os.stat_result) -> Rights:
        return cls(path, found.st_uid, found.st_gid, found.st_mode)

    @property
    def is_device(self) -> bool:
        """Whether it is a device such as /dev/null, which stores nothing."""
        return stat.S_ISCHR(self.mode)


class Reader(NamedTuple):
    """The user of this process. `own_group`: the group without other members, which may write our files; None: there is none."""

    user: int
    own_group: int | None = None

    def is_owned(self, rights: Rights) -> bool:
        return rights.owner in (_ROOT, self.user)

    def is_open(self, rights: Rights) -> bool:
        """Whether others can write it."""
        is_group_open = rights.mode & stat.S_IWGRP and rights.group != self.own_group
        return bool(rights.mode & stat.S_IWOTH or is_group_open)


def distrust(file: Rights, directories: Sequence[Rights], reader: Reader) -> Refusal | None:
    """Why this file must not be used; None if nobody else could have written it."""
    path = file.path
    if not reader.is_owned(file):
        return Refusal(
            f"{path} belongs to another user (uid {file.owner}) and is not used",
            f"check what it says, then: chown {reader.user} {path}",
        )
    if reader.is_open(file) and not file.is_device:
        return Refusal(f"other users can change {path}", f"check what it says, then: chmod go-w {path}")
    for directory in directories:
        where = directory.path
        if not reader.is_owned(directory):
            return Refusal(
                f"{path} can be replaced by the owner of its directory {where} (uid {directory.owner})",
                "move it to a directory of your own",
            )
        # In a directory with the sticky bit, only the owner of a file can replace it.
        if reader.is_open(directory) and not directory.mode & stat.S_ISVTX:
            return Refusal(
                f"other users can replace {path}: they can write its directory {where}",
                f"move it to a directory of your own, or: chmod go-w {where}",
            )
    return None


def distrust_link(name: Rights, reader: Reader) -> Refusal | None:
    """Why this name must not be followed; None if it may. Another user's link could choose which of our files is used."""
    if not stat.S_ISLNK(name.mode) or reader.is_owned(name):
        return None
    return Refusal(
        f"{name.path} is a link of another user (uid {name.owner}) and is not followed", "name the file that is meant"
    )


def exposure(file: Rights, reader: Reader) -> Refusal | None:
    """Why this file must not hold a secret; None if only its owner and group can read it."""
    if not file.mode & 0o007 or file.is_device:
        return None
    mode = "600" if file.owner == reader.user else "640"
    return Refusal(f"other users can read {file.path}", f"chmod {mode} {file.path}")


def read_trusted(
    path: Path, max_bytes: int, *, is_named: bool = True, is_secret: bool = False
) -> tuple[bytes, Rights, Refusal | None]:
    """The first `max_bytes` of a file, its rights, and why it must not be used. `is_secret`: others must not be able to read it.

    A file that the user named on a read-only mount is used regardless of owner and mode, because nobody here can change it. So
    a container can use files of its host, and secrets as Kubernetes and Docker Swarm mount them (0644, 0444).  Raises: OSError.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        rights = Rights.of(str(path), os.fstat(file.fileno()))
        is_fixed = is_named and bool(os.fstatvfs(file.fileno()).f_flag & os.ST_RDONLY)
        refusal = None if is_fixed else _refusal(path, rights, is_secret=is_secret)
        is_pipe = stat.S_ISFIFO(rights.mode)
        content = b"" if is_pipe and refusal else file.read(max_bytes)
    if is_pipe and not content:
        refusal = refusal or Refusal(f"{path} is a pipe that nobody writes into", "name a file")
    return content, rights, refusal


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe without waiting for a writer, which may never come."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _refusal(path: Path, rights: Rights, *, is_secret: bool) -> Refusal | None:
    reader = this_reader()
    return (
        distrust_link(Rights.of(str(path), path.lstat()), reader)
        or distrust(rights, _directories(path), reader)
        or (exposure(rights, reader) if is_secret else None)
    )


def this_reader() -> Reader:
    """The user of this process."""
    user = os.geteuid()
    if user == _ROOT:
        return Reader(user)
    try:
        entry = pwd.getpwuid(user)
        group = grp.getgrgid(entry.pw_gid)
    except KeyError:  # a container's user may have no name
        return Reader(user)
    is_alone = group.gr_name == entry.pw_name and set(group.gr_mem) <= {entry.pw_name}
    return Reader(user, entry.pw_gid if is_alone else None)


def _directories(path: Path) -> list[Rights]:
    """The directory of the file's name, and of a link's target: a user who can write them can replace the file."""
    names = dict.fromkeys([os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))])  # noqa: PTH100, PTH120 - the link's own place
    return [Rights.of(name, os.stat(name)) for name in names]  # noqa: PTH116 - text in
