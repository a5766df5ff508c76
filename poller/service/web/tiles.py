"""The row of figures below the main sentence of the page."""

from __future__ import annotations

from html import escape

from poller.core.amounts import duration, size
from poller.core.windows import format_time
from poller.ionos.api import WARN_EXPIRY_SECONDS
from poller.pipeline.status import is_stale
from poller.service.web.view import BAD, OK, WARN, View


def tiles(view: View) -> str:
    """The figures: lag, waiting events, dead letters, gaps, and the lifetime of the token."""
    assert view.state is not None  # noqa: S101  # the caller looked
    state = view.state
    waiting = sum(row.waiting for row in state.sinks)
    dead = sum(row.dead_letters for row in state.sinks)
    gaps = sum(gap.is_open for gap in state.gaps)
    accepted = sum(gap.is_accepted for gap in state.gaps)
    used, most = state.outbox.used_bytes, view.config.outbox.max_bytes
    room = f"{size(used)} of {size(most)}"
    shown = [
        _lag_tile(view),
        _tile("Waiting for sinks", f"{waiting:,}", room, BAD if used >= most else OK),
        _tile("Dead letters", f"{dead:,}", "refused for good" if dead else "nothing refused", WARN if dead else OK),
        _tile(
            "Gaps", f"{gaps:,}", f"{accepted:,} accepted" if accepted else "spans not readable", WARN if gaps else OK
        ),
        _token_tile(view),
    ]
    return f'<dl class="tiles">{"".join(shown)}</dl>'


def _tile(name: str, figure: str, more: str, how: str = OK) -> str:
    return f'<div><dt>{escape(name)}</dt><dd class="figure {how}">{escape(figure)}</dd><dd class="more">{escape(more)}</dd></div>'


def _lag_tile(view: View) -> str:
    if not view.polled:
        return _tile("Behind now", "unknown", "no contract yet", WARN)
    worst = min(view.polled, key=lambda row: row.watermark)
    is_late = any(is_stale(row, view.config.poll, view.now) for row in view.polled)
    is_alone = len(view.polled) == 1
    more = f"polled every {duration(view.config.poll.interval_seconds)}" if is_alone else f"contract {worst.contract}"
    return _tile("Behind now", duration(view.now - worst.watermark), more, BAD if is_late else OK)


def _token_tile(view: View) -> str:
    if not view.token_expiries:
        return _tile("API token", "no expiry", "or it does not say when")
    account, expires_at = min(view.token_expiries.items(), key=lambda item: item[1])
    left = expires_at - view.now
    how = BAD if left <= 0 else WARN if left < WARN_EXPIRY_SECONDS else OK
    more = f"account {account}" if len(view.token_expiries) > 1 else f"on {format_time(int(expires_at))[:10]}"
    return _tile("API token", "expired" if left <= 0 else f"{_days(left)} left", more, how)


def _days(seconds: float) -> str:
    """A long wait in days, a short one exactly."""
    return f"{int(seconds) // 86_400} d" if seconds >= 2 * 86_400 else duration(seconds)
