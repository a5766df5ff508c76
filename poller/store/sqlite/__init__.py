"""The state in files: one SQLite file per use in the state directory, and every transaction on it.

A file that is not ours, is damaged, or is newer than this program is never written to (`database`). This process has exactly one
connection to a state file, and no other code opens the file (`connection`). Methods are documented in `store.protocols` and
`store.parts`. This package documents only the differences of files.
"""

from poller.store.sqlite.state import State
from poller.store.sqlite.stores import Stores

__all__ = ["State", "Stores"]
