"""Options that every command takes, before or after its name, and the parameter types that commands share."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from poller.cli import suggestions
from poller.config import Config, find_config, load, parse_duration, parse_time, process_environment
from poller.config.checks import BadValueError, check_contract
from poller.core.errors import ConfigError, Problem
from poller.core.windows import Window

if TYPE_CHECKING:
    from poller.store.protocols import Stores
    from poller.system.telemetry import LogFormat

Function = TypeVar("Function", bound=Callable[..., Any])


class Settings:
    """The global options as given. A command loads the configuration with them."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.state_dir: Path | None = None
        self.log_level: str | None = None
        self.log_format: LogFormat | None = None
        self.variables: Mapping[str, str] = process_environment()

    def setup_logging(self, default_level: str = "info") -> None:
        """Set up logging to stderr, as the options say."""
        from poller.system.telemetry import setup_logging

        setup_logging(self.log_level or default_level, self.log_format)

    def load(self, *, check_files: bool = True) -> Config:
        """Set up logging, and load the configuration.  Raises: ConfigError."""
        self.setup_logging()
        path = find_config(self.config, self.variables)
        return load(path, self.variables, state_dir=self.state_dir, check_files=check_files)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    settings, name = ctx.ensure_object(Settings), str(param.name)
    is_weaker = ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT and getattr(settings, name) is not None
    if value is not None and not is_weaker:
        setattr(settings, name, value)


class PathType(click.Path):
    """A file or directory. An empty name is refused: as a path it would mean the current directory, or nothing.

    `is_new`: a file that will be made, so that `/` and `.` are refused, too.
    """

    def __init__(self, path_type: type[Path] | None = Path, *, is_new: bool = False) -> None:
        # The file is checked when it is read or written. The type is declared so that a shell completes file names.
        super().__init__(path_type=path_type, readable=False)
        self._is_new = is_new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            raise ConfigError.of(_option_name(param), "must not be empty", "a variable of the shell may not be set")
        if self._is_new and not Path(value).name:
            raise ConfigError.of(_option_name(param), f"{value} is a directory", "name a file")
        return super().convert(value, param, ctx)


class _OptionOrVariable(click.Option):
    """An option that an environment variable may set. If it is set, an error also names the variable."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        hint = super().get_error_hint(ctx)
        is_set = ctx is not None and self.value_from_envvar(ctx) is not None
        return f"{hint} or {self.envvar}" if is_set else hint


_OPTIONS = (
    click.Option(
        ["--config"],
        type=PathType(None),
        metavar="FILE",
        help="Configuration (TOML). Default: $IONOS_POLLER_CONFIG, ./ionos-poller.toml, /etc/ionos-poller/config.toml.",
    ),
    click.Option(
        ["--state-dir"],
        type=PathType(),
        metavar="DIR",
        help="Where the state is kept. Default: $IONOS_POLLER_STATE_DIR, else state_dir of FILE, $STATE_DIRECTORY, ./state.",
    ),
    _OptionOrVariable(
        ["--log-level"],
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        envvar="IONOS_POLLER_LOG_LEVEL",
        help="What is logged on stderr. Default: $IONOS_POLLER_LOG_LEVEL, else info.",
    ),
    _OptionOrVariable(
        ["--log-format"],
        type=click.Choice(["json", "text"]),
        envvar="IONOS_POLLER_LOG_FORMAT",
        help="Default: $IONOS_POLLER_LOG_FORMAT, else JSON, and on a terminal short lines that fit it.",
    ),
)
for _option in _OPTIONS:
    _option.expose_value = False
    _option.callback = _keep


def global_options(function: Function) -> Function:
    """Decorator that adds the global options to a group. They are reversed because click reverses the list again."""
    function.__click_params__ = [*reversed(_OPTIONS), *getattr(function, "__click_params__", [])]  # type: ignore[attr-defined]
    return function


class GlobalOptionsCommand(click.Command):
    """A command that also takes the global options, after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_OPTIONS)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, and one line that names the global ones."""
        records = [param.get_help_record(ctx) for param in self.get_params(ctx) if param not in _OPTIONS]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])
        names = ", ".join(option.opts[0] for option in _OPTIONS)
        formatter.write_paragraph()
        formatter.write_text(f"Global options: {names}")
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class SuggestingGroup(click.Group):
    """A group that suggests the closest command if a name is mistyped."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args[0] in names or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        close = get_close_matches(args[0].lower(), names, n=1, cutoff=0.6)
        hint = f"Did you mean '{close[0]}'?" if close else f"`{ctx.command_path} --help` lists them."
        raise click.UsageError(f"No such command '{args[0]}'. {hint}", ctx)


class GlobalOptionsGroup(GlobalOptionsCommand, SuggestingGroup):
    """A group that also takes the global options, between its own name and the command's."""

    command_class = GlobalOptionsCommand


def parse_time_option(text: str, name: str, *, is_end: bool = False) -> int:
    """T in whole unix seconds, the unit of the API: rounded down, or up for the end of a range.

    Raises: ConfigError that names the option.
    """
    try:
        at = parse_time(text, datetime.now(UTC).replace(microsecond=0)).timestamp()
        at = math.ceil(at) if is_end else math.floor(at)
        if at < 0:
            raise ValueError(f"{text!r} lies before 1970")
        return at
    except (ValueError, OverflowError) as error:
        message, _, hint = str(error).partition(": ")
        if re.fullmatch(r"[0-9]{1,4}", text.strip()):
            hint = f"an age has a unit, such as {text.strip()}m or {text.strip()}h"
        raise ConfigError.of(
            name, message, hint or "write 2026-05-01T07:42:20Z, 2026-05-01, now, or an age such as 36h"
        ) from None


def span_of(start: int | None, end: int | None) -> Window | None:
    """The requested span; None for all.  Raises: ConfigError."""
    if start is None and end is None:
        return None
    span = Window(start or 0, 1 << 40 if end is None else end)
    if span.end <= span.start:
        raise ConfigError.of("--to", "is not after --from", "check the two times")
    return span


class TimeType(click.ParamType[int]):
    """T: RFC 3339, `YYYY-MM-DD` (UTC midnight), or an age such as `90m`, `36h`, `7d`. Gives unix seconds."""

    name = "T"

    def __init__(self, *, is_end: bool = False) -> None:
        self._is_end = is_end

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_time_option(value, _option_name(param), is_end=self._is_end)


class PastType(TimeType):
    """A T at which reading begins. It must not lie in the future, because nothing would be read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        at = super().convert(value, param, ctx)
        if at > time.time():
            hint = "give a time in the past, or an age such as 36h"
            raise ConfigError.of(_option_name(param), "lies in the future", hint)
        return at


class TimeTextType(click.ParamType[str]):
    """T, checked, but kept as it was typed."""

    name = "T"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        parse_time_option(value, _option_name(param))
        return str(value)


def _option_name(param: click.Parameter | None) -> str:
    if isinstance(param, click.Argument):
        return str(param.name).upper()
    return param.opts[0] if param else "time"


TIME_TEXT = TimeTextType()
TIME = TimeType()
TIME_END = TimeType(is_end=True)
PAST = PastType()


class DurationType(click.ParamType[float]):
    """A duration such as `10s`, `5m`, `1h30m`, `7d`. Gives seconds."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()


def _checked_contracts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Raises: ConfigError if a value is not a contract number: no account can see it."""
    try:
        return tuple(check_contract(value) for value in values)
    except BadValueError as error:
        raise ConfigError.of("--contract", error.message, error.hint) from None


CONTRACTS = click.option(
    "--contract",
    "contracts",
    multiple=True,
    metavar="N",
    callback=_checked_contracts,
    shell_complete=suggestions.contracts,
    help="Only this contract (repeatable).",
)


def check_chosen(config: Config, contracts: Sequence[str]) -> None:
    """Raises: ConfigError if --contract names a contract that the configuration excludes: it would not be read."""
    if left_out := sorted(set(contracts).intersection(config.poll.exclude_contracts)):
        hint = "take it out of that list, or leave out --contract"
        raise ConfigError([Problem("--contract", f"{name} is in poll.exclude_contracts", hint) for name in left_out])


SINKS = click.option(
    "--sink",
    "sinks",
    multiple=True,
    metavar="NAME",
    shell_complete=suggestions.configured_sinks,
    help="Send to this sink of the config (repeatable).",
)

USE = click.option(
    "--use",
    metavar="USE",
    shell_complete=suggestions.uses,
    help="Whose state: run, fetch, or a backfill-... that `status` shows. Default: run, if there is one, else fetch.",
)


def use_of(given: str | None, stores: Stores) -> str:
    """The given use, or the default if none is given.  Raises: ConfigError if it is not the name of a use."""
    if given is not None and not re.fullmatch(r"[a-z0-9-]{1,100}", given):
        raise ConfigError.of("--use", "is not the name of a use", "run, fetch, or a backfill-... of `status`")
    if given is not None:
        return given
    uses = {*stores.uses(), *stores.missing()}  # includes states that were quarantined or have vanished
    return "fetch" if "fetch" in uses and "run" not in uses else "run"
