"""JSON that is safe to print: characters that move the cursor, hide text or change its direction are written as escapes."""

from __future__ import annotations

import json


def escaped(text: str) -> str:
    """The same JSON, on one or several lines, with every non-printable character escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
