"""How durations, sizes and counts are written for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A duration in its largest one or two units: `12 s`, `3 min`, `1 h 5 min`, `2 d 3 h`."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left} s"
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if left >= size:
            rest = left % size // smaller_size
            return f"{left // size} {unit} {rest} {smaller}" if rest else f"{left // size} {unit}"
    return f"{left // 60} min"


def size(size_bytes: float) -> str:
    """A size in its largest unit: `12 KiB`, `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} GiB".replace(".0 ", " ")


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun: `1 hour`, `2,000 hours`, `3 entries`. Pass `many` if its plural is none of these."""
    return f"{count:,} {one if count == 1 else many or (one[:-1] + 'ies' if one.endswith('ry') else one + 's')}"
