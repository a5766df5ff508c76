"""Which entries are kept: the rules of glob patterns in `[filter]`. Pure.

A rule matches if all its patterns match. Case matters, and a missing field never matches. An entry that matches an exclude rule
is left out. If there are include rules, an entry that matches none of them is left out, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate

from poller.core.mapping.fields import Fields, Value

# Source: docs/facts.md, "IONOS Activity Log API": the paths for each key of a rule. The contract is not read from the entry.
_PATHS = {
    "type": ("event.type",),
    "service": ("principal.sourceService",),
    "username": ("principal.identity.username",),
    "action": ("event.param.action", "event.resources[].action[]"),
    "resource_type": ("event.resources[].type",),
    "source_ip": ("principal.sourceIP",),
    "status": ("event.status",),
}
_PERSONAL = {"username", "source_ip"}

_Slots = dict[str, tuple[int, int | None]]
_Condition = tuple[int, int | None, Callable[[str], object]]
"""The index of the value to test, the index of a second one or None, and the function that says whether a text matches."""


class Filter:
    """The compiled rules; each maps keys such as `type` to a pattern. Safe to use from several threads."""

    def __init__(self, exclude: Sequence[Mapping[str, str]], include: Sequence[Mapping[str, str]]) -> None:
        keys = list(dict.fromkeys(key for rule in (*exclude, *include) for key in rule if key != "contract"))
        slots: _Slots = {"contract": (0, None), **{key: (number, None) for number, key in enumerate(keys, 1)}}
        further = [(key, path) for key in keys for path in _PATHS[key][1:]]
        slots.update((key, (slots[key][0], number)) for number, (key, _) in enumerate(further, len(slots)))
        self._fields = Fields([*(_PATHS[key][0] for key in keys), *(path for _, path in further)])
        self._exclude = [
            (f"exclude[{number}] {_shown(rule)}", _conditions(rule, slots)) for number, rule in enumerate(exclude)
        ]
        self._include = [_conditions(rule, slots) for rule in include]

    @property
    def reasons(self) -> list[str]:
        """All texts that `reason` may return, in the order of the rules."""
        return [*(reason for reason, _ in self._exclude), *(["include"] if self._include else [])]

    def reason(self, contract: str, line: bytes) -> str | None:
        """Why the entry is left out: the first exclude rule that matches, or `include`; None if it goes on."""
        values = [contract, *self._fields.read(line)]
        for reason, conditions in self._exclude:
            if _matches(conditions, values):
                return reason
        if self._include and not any(_matches(conditions, values) for conditions in self._include):
            return "include"
        return None


def _shown(rule: Mapping[str, str]) -> str:
    """The rule as text. It becomes a label of a metric, so personal values are masked."""
    return " ".join(f"{key}={'***' if key in _PERSONAL else pattern}" for key, pattern in rule.items())


def _conditions(rule: Mapping[str, str], slots: _Slots) -> list[_Condition]:
    return [(*slots[key], _matcher(pattern)) for key, pattern in rule.items()]


def _matcher(pattern: str) -> Callable[[str], object]:
    if any(char in "*?[" for char in pattern):
        return re.compile(translate(pattern)).match
    return pattern.__eq__


def _matches(conditions: Sequence[_Condition], values: Sequence[Value]) -> bool:
    for slot, further, is_match in conditions:
        value = values[slot]
        is_met = is_match(value) if type(value) is str else value and any(map(is_match, value))
        if not is_met and (further is None or not any(map(is_match, values[further] or ()))):
            return False
    return True
