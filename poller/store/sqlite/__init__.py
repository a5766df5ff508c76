"""The state in files: one SQLite file per use in the state directory, and every transaction on it.

A file that is not ours, is damaged or is newer than this program is never written to (`database`). This process has one
connection to a state file, however often it is opened, and opens it by no other means (`connection`). What a method does is said
in `store.protocols` and `store.parts`; here stands what is different in files.
"""

from poller.store.sqlite.state import State
from poller.store.sqlite.stores import Stores

__all__ = ["State", "Stores"]
