"""The faults that the simulator makes on request: the grammar of `--fault`, and the random choice.

A fault has the form `[SELECTOR:]KIND[:OPTION]...`, for example

    500:10%                      every tenth API request answers 500
    429:10%:retry-after=2        with a Retry-After header (seconds, or `date+2` for an HTTP date in 2 s)
    contract=31960002:500        every page of one contract
    path=contracts:503:x2        the next two listings of contracts (`after=N`: the first N pass)
    sink=logging:lost-ack:30%    an intake stores, then drops the connection (`sink=*`: every intake)

SELECTOR  `contract=NUMBER`, `path=entries|contracts|root`, `sink=logging|loki|moesif|otlp|opensearch|http|*`; default:
          the whole API.
OPTION    `N%` how often (default always), a duration (`50ms`, `3s`, `1m`), `xN` at most N times, `after=N`,
          `retry-after=N|date+N`, `within=DURATION` (late), `count=N` (rate, pages, limit, null, nan, dense),
          `status=N` (old, dense).
KIND, of the API and the intakes
  400..599      that status with an error body (an intake stores nothing)
  hang          no answer for the duration (30s), then the connection is dropped
  reset         the connection is reset without an answer
  latency       the answer is held back for the duration (100ms)
  mixed         one of the failures below, with equal chances; a duration (2s) applies to hang and drip
                API: 500, 503, 429, hang, reset, truncate, cut, html, missing-hits, wrong-types, drip,
                capped-total
                intakes: 500, 503, 429, hang, reset, lost-ack
  cut           the connection closes in the middle of the body (an intake stores; the status is right)
  drip          the body in 20 pieces over the duration (5s; an intake stores; the status is right)
  html          200 with a page of HTML (an intake stores nothing)
KIND, of the API only
  truncate      half of the JSON, with the right length in the header
  missing-hits  200 with JSON that has no hits
  wrong-types   200 with `hits` of the wrong type
  capped-total  `total` is never above 10,000
  late          this share of the entries younger than `within` (5m), and of those added later, is not shown
                before the duration (3s) is over, counted from when the fault was set or the entry added
  rate          429 for requests beyond `count` (7) in any period of the duration (15s)
  undated       answers have no `Date`
  pages         the list of contracts comes in pages of `count` (2), with a total and a link
  limit         a `limit` above `count` (100) is refused with 400
  unlisted      the list of contracts leaves out the contract of the selector; without one, the list is refused (403)
  null          every `count`-th (100) entry comes as `"_source": null`
  nan           every `count`-th (100) entry is not valid JSON: it has `NaN` in it
  miscount      `total` is one more than there are entries
  shuffle       the entries of a query come in another order with each request
  old           a query from before the duration (90d) ago is refused with `status` (400)
  dense         the entries of a query after the first `count` (20) are refused with `status` (400)
KIND, of the intakes only
  lost-ack      stores, then drops the connection
  partial       stores the first half, then answers 500
  echo          stores, and answers with the request's body, repeated up to 2 MiB
  encoding      stores, and its answer has a false `Content-Encoding: gzip`
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from poller.core.errors import ConfigError, Problem

API_FAILURES = (
    "500",
    "503",
    "429",
    "hang",
    "reset",
    "truncate",
    "cut",
    "html",
    "missing-hits",
    "wrong-types",
    "drip",
)
SINK_FAILURES = ("500", "503", "429", "hang", "reset", "lost-ack")
SINK_NAMES = ("logging", "loki", "moesif", "otlp", "opensearch", "http")
PATHS = ("root", "contracts", "entries")

_BOTH = {  # kind -> default duration in seconds
    "hang": 30.0,
    "reset": 0.0,
    "latency": 0.1,
    "mixed": 2.0,
    "cut": 0.0,
    "drip": 5.0,
    "html": 0.0,
}
_API_ONLY = {
    "truncate": 0.0,
    "missing-hits": 0.0,
    "wrong-types": 0.0,
    "capped-total": 0.0,
    "late": 3.0,
    "rate": 15.0,
    "undated": 0.0,
    "pages": 0.0,
    "limit": 0.0,
    "unlisted": 0.0,
    "null": 0.0,
    "nan": 0.0,
    "miscount": 0.0,
    "shuffle": 0.0,
    "old": 90 * 86_400.0,
    "dense": 0.0,
}
_COUNTS = {"rate": 7, "pages": 2, "limit": 100, "null": 100, "nan": 100, "dense": 20}
# With these, a part of the entries cannot be read, or is served wrongly, and the rest can be read.
ODDITIES = ("null", "nan", "miscount", "shuffle", "old", "dense")
_NO_FAILURES = ("latency", "capped-total", "undated", "pages", "limit", *ODDITIES)
_SINK_ONLY = {"lost-ack": 0.0, "partial": 0.0, "echo": 0.0, "encoding": 0.0}
BAD_BODIES = ("cut", "drip", "echo", "encoding")  # of an intake: the head of its answer is right
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_STATUS = re.compile(r"[45]\d\d")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_OPTIONS = "N% (0 to 100), a duration such as 50ms or 3s, xN, after=N, retry-after=N|date+N, within=DURATION, count=N, status=N"


@dataclass
class Fault:
    """One parsed spec. `contract`, `path` and `sink` empty mean any; `sink` empty means the API."""

    kind: str
    share: float = 1.0
    seconds: float = 0.0
    contract: str = ""
    path: str = ""
    sink: str = ""
    skip: int = 0
    remaining: int = -1  # -1: without limit
    retry_after: str = ""
    within_seconds: float = 300.0
    count: int = 0
    status: int = 400
    recent: deque[float] = field(default_factory=deque)  # for `rate`: when it let requests through

    def concerns(self, path: str, contract: str, sink: str) -> bool:
        """Whether this fault may hit a request to this path and contract of the API, or to this sink."""
        if bool(sink) != bool(self.sink) or (sink and self.sink not in ("*", sink)):
            return False
        if self.kind == "unlisted":
            return path == "contracts"
        if self.kind in ODDITIES and path != "entries":
            return False
        return self.path in ("", path) and self.contract in ("", contract)

    def is_exceeded(self, now: float) -> bool:
        """Whether this request, at `now`, is more than the rate allows."""
        while self.recent and now - self.recent[0] >= self.seconds:
            self.recent.popleft()
        if len(self.recent) >= self.count:
            return True
        self.recent.append(now)
        return False


class Draw(NamedTuple):
    """The faults that hit one request."""

    failure: Fault | None = None
    latency_seconds: float = 0.0
    is_total_capped: bool = False
    is_dated: bool = True
    max_limit: int = 0
    list_page: int = 0
    unlisted: frozenset[str] = frozenset()
    oddities: tuple[Fault, ...] = ()


def _duration_seconds(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _UNITS[match[2]] if match else None


def _set_option(fault: Fault, option: str) -> bool:
    """Set one option. Returns whether it is valid."""
    name, _, value = option.partition("=")
    seconds = _duration_seconds(option)
    if seconds is not None:
        fault.seconds = seconds
    elif re.fullmatch(r"\d+(\.\d+)?%", option) and float(option[:-1]) <= 100:
        fault.share = float(option[:-1]) / 100
    elif re.fullmatch(r"x\d+", option):
        fault.remaining = int(option[1:])
    elif name == "after" and value.isdigit():
        fault.skip = int(value)
    elif name == "retry-after" and re.fullmatch(r"(date\+)?\d+", value):
        fault.retry_after = value
    elif name == "count" and value.isdigit() and int(value):
        fault.count = int(value)
    elif name == "status" and _STATUS.fullmatch(value):
        fault.status = int(value)
    elif name == "within" and _duration_seconds(value) is not None:
        fault.within_seconds = _duration_seconds(value) or 0.0
    else:
        return False
    return True


def parse_fault(spec: str) -> Fault:
    """The fault a spec describes.

    Raises: ConfigError that says what is allowed, if the spec does not follow the grammar above.
    """
    parts = [part.strip() for part in spec.split(":")]
    fault = Fault(kind="")

    def refuse(message: str, allowed: str) -> ConfigError:
        return ConfigError.of(f"fault {spec!r}", message, f"allowed: {allowed}")

    while parts and re.match(r"(contract|path|sink)=", parts[0]):
        name, _, value = parts.pop(0).partition("=")
        allowed = {"contract": (), "path": PATHS, "sink": (*SINK_NAMES, "*")}[name]
        if (allowed and value not in allowed) or (name == "contract" and not value.isdigit()):
            raise refuse(f"{name}={value} names nothing", ", ".join(allowed) or "a contract number")
        setattr(fault, name, value)
    if fault.sink and (fault.contract or fault.path):
        raise refuse("a sink has neither contract nor path", "one of sink=, or contract= and path=")
    kinds = {**_BOTH, **(_SINK_ONLY if fault.sink else _API_ONLY)}
    kind = parts.pop(0) if parts else ""
    if kind not in kinds and not _STATUS.fullmatch(kind):
        raise refuse(f"unknown kind {kind!r}", f"a status 400..599, {', '.join(sorted(kinds))}")
    fault.kind = kind
    fault.seconds, fault.count = kinds.get(kind, 0.0), _COUNTS.get(kind, 0)
    for option in parts:
        if not _set_option(fault, option):
            raise refuse(f"unknown option {option!r}", _OPTIONS)
    return fault


def _befallen(draw: Draw, fault: Fault, kind: str) -> Draw:
    """The draw with one more fault that hits."""
    match kind:
        case "latency":
            return draw._replace(latency_seconds=draw.latency_seconds + fault.seconds)
        case "capped-total":
            return draw._replace(is_total_capped=True)
        case "undated":
            return draw._replace(is_dated=False)
        case "pages":
            return draw._replace(list_page=fault.count)
        case "limit":
            return draw._replace(max_limit=fault.count)
        case "unlisted" if fault.contract:
            return draw._replace(unlisted=draw.unlisted | {fault.contract})
        case "unlisted" | "rate":
            return draw._replace(failure=replace(fault, kind="403" if kind == "unlisted" else "429"))
        case _ if kind in ODDITIES:
            return draw._replace(oddities=(*draw.oddities, fault))
        case _:
            return draw._replace(failure=replace(fault, kind=kind))


def parse_faults(specs: Iterable[str]) -> list[Fault]:
    """All faults of `specs`.

    Raises: ConfigError with the problems of all bad specs at once.
    """
    faults: list[Fault] = []
    problems: list[Problem] = []
    for spec in specs:
        try:
            faults.append(parse_fault(spec))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return faults


class FaultPlan:
    """The active faults and a random generator, with equal results for the same seed and order of requests.

    At most one failure hits a request: that of the first spec that hits. Latencies add up. `struck` counts the hits by
    ("api" or the sink, kind); a plan that replaces another one may continue its counts.
    """

    def __init__(
        self, specs: Iterable[str] = (), seed: int = 1, struck: Counter[tuple[str, str]] | None = None
    ) -> None:
        self.specs = tuple(specs)
        self.struck = Counter() if struck is None else struck
        self._faults = parse_faults(self.specs)
        self.late = [fault for fault in self._faults if fault.kind == "late"]
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def draw(self, *, path: str = "", contract: str = "", sink: str = "") -> Draw:
        """The faults that hit a request to `path` (and `contract`) of the API, or to `sink`."""
        if not self._faults:
            return Draw()
        draw = Draw()
        with self._lock:
            for fault in self._faults:
                if fault.kind == "late" or not fault.concerns(path, contract, sink):
                    continue
                is_failure = fault.kind not in _NO_FAILURES and not (fault.kind == "unlisted" and fault.contract)
                if (is_failure and draw.failure) or not self._hits(fault):
                    continue
                kind = self._resolve(fault)
                self.struck[sink or "api", kind] += 1
                draw = _befallen(draw, fault, kind)
        return draw

    def _hits(self, fault: Fault) -> bool:
        if fault.skip:
            fault.skip -= 1
            return False
        if not fault.remaining or self._rng.random() >= fault.share:
            return False
        if fault.kind == "rate" and not fault.is_exceeded(time.monotonic()):
            return False
        fault.remaining -= fault.remaining > 0
        return True

    def _resolve(self, fault: Fault) -> str:
        if fault.kind != "mixed":
            return fault.kind
        return self._rng.choice(SINK_FAILURES if fault.sink else (*API_FAILURES, "capped-total"))

    def late_seconds(self, contract: str, age_seconds: float = 0.0) -> float:
        """How much too late an entry of this contract is shown; a random choice."""
        delay = 0.0
        with self._lock:
            for fault in self.late:
                is_young = age_seconds <= fault.within_seconds
                if is_young and fault.contract in ("", contract) and self._rng.random() < fault.share:
                    self.struck["api", fault.kind] += 1
                    delay = max(delay, fault.seconds)
        return delay
