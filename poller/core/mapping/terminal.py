"""JSON as a terminal may show it: characters that move the cursor, hide text or turn its direction are written as escapes."""

from __future__ import annotations

import json


def escaped(text: str) -> str:
    """The same JSON, over one or several lines, with every character escaped that is not printed as itself."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
