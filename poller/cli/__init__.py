"""The command line: composes everything, prints, and maps errors to exit codes. No other package does any of these.

Each command has its own module, which is imported when the command is called, so that `fetch` starts as fast as a bare script.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from poller import __version__
from poller.cli.memory import return_memory_promptly
from poller.cli.messages import tell, wants_color
from poller.cli.options import SuggestingGroup, global_options
from poller.core.errors import (
    EXIT_CONFIG,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    ConfigError,
    OutputError,
    PollerError,
    StoppedError,
)
from poller.system.closed_output import closed_output
from poller.system.log_stream import LogStream
from poller.system.whole_output import whole_output

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Each command and its line in `--help`. The module of the same name in this package defines it.
_COMMANDS = {
    "setup": "Create or reuse a Logging Service pipeline; store its key; write a configuration.",
    "check": "Check the whole set-up; say what to do if something is wrong.",
    "run": "The daemon: polls on a schedule, delivers to every sink.",
    "reload": "Have the daemon load its configuration again; report the result.",
    "fetch": "One poll: new entries as JSON lines on stdout.",
    "backfill": "One-off export of a past range, resumable.",
    "audit": "Compare what the API holds with what was collected.",
    "tail": "Show who did what, live.",
    "status": "Watermark and lag per contract, backlog per sink, the books.",
    "gaps": "Spans that could not be read: list, show, retry, accept.",
    "dead-letters": "Events a sink refused for good: list, show, replay, purge.",
    "sinks": "Sinks known to the state: list, retry, forget.",
    "archive": "Proof of what was collected: keygen, verify, restore.",
    "state": "The state in PostgreSQL: create its tables, copy from files and back.",
    "journal": "What people did to the state by hand: who, when, what, why.",
    "demo": "Show how it works, without an account.",
    "simulate": "Only the simulator, for trying configs.",
    "config": "Example, effective configuration, JSON Schema.",
    "completion": "Print the script for TAB in bash, zsh or fish.",
}


class _LazyGroup(SuggestingGroup):
    """A group that imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"poller.cli.{cmd_name.replace('-', '_')}")
        if not gc.isenabled():  # `__main__` disabled it while the program was loaded: that code is never garbage
            gc.freeze()
            gc.enable()
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101  # a module of this package without one is a bug
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The completions as click makes them, but without importing every command for its help line."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=line) for name, line in _COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_LazyGroup, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="ionos-poller", message="%(prog)s %(version)s")
@global_options
def cli() -> None:
    """Collect the IONOS Cloud Activity Log and deliver it to log receivers.

    \b
    Examples:
      ionos-poller demo                       see it work, no account needed
      IONOS_API_TOKEN=... ionos-poller fetch  the entries since the last fetch
      ionos-poller --config my.toml check     check the whole set-up

    T is a time: 2026-05-01T07:42:20Z, 2026-05-01 (UTC midnight), `now`, or an age such as 90m, 36h, 7d.

    Exit codes: 0 all good; 1 something failed and will be retried, nothing is lost; 2 usage or configuration;
    3 authentication refused; 4 state unusable or held by another process; 5 `archive verify` could not read all; 130 interrupted.
    """


def main(prog_name: str = "ionos-poller") -> NoReturn:
    """Run the command line and end the process with its exit code."""
    # If stderr was closed before the start, messages go nowhere, but the command works.
    descriptor = sys.stderr.fileno() if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY)
    sys.stderr = log = LogStream(descriptor)
    sys.stdout = closed_output() if sys.stdout is None else whole_output(sys.stdout)
    threading.excepthook = _tell_of_crash
    return_memory_promptly()
    code = run(sys.argv[1:], prog_name)
    if code != EXIT_INTERRUPTED:  # after an interrupt, a flush could wait for a slow reader of a pipe
        with suppress(OSError, ValueError, OutputError):  # the reader has closed the pipe
            sys.stdout.flush()
    log.finish()
    # Not sys.exit: it waits for threads, and one may wait half a minute for an answer of the API that nothing needs.
    os._exit(code)


def run(arguments: list[str], prog_name: str = "ionos-poller") -> int:
    """Run a command and return its exit code, also if it fails. Prints each error on stderr, in one line."""
    try:
        result = cli.main(arguments, prog_name=prog_name, standalone_mode=False, color=wants_color())
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (StoppedError, click.Abort):  # click.Abort: the input ended at a prompt
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return EXIT_CONFIG
    except ConfigError as error:
        for problem in error.problems:
            tell(str(problem))
        return error.exit_code
    except PollerError as error:
        tell(str(error))
        return error.exit_code
    except BrokenPipeError:
        return EXIT_INCOMPLETE
    except SystemExit as error:  # by `rich` if the reader has closed the pipe, by click after a completion
        return error.code if isinstance(error.code, int) else EXIT_INCOMPLETE
    except Exception as error:  # noqa: BLE001  # a bad environment, or a bug: committed work is kept, and a traceback does not help a user
        _tell_of_failure(error)
        return EXIT_INCOMPLETE


def _tell_of_crash(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None:
        _tell_of_failure(crash.exc_value)


def _tell_of_failure(error: BaseException) -> None:
    """Print one line for the user; log the trace at DEBUG. Problems of the environment are not reported as a bug."""
    if isinstance(error, OSError) and error.errno in _NO_MORE_FILES:
        tell("too many open files (raise the limit: LimitNOFILE= of systemd, ulimit -n); nothing is lost")
        return
    if isinstance(error, FileNotFoundError) and error.filename is None:  # only getcwd() names no file
        tell("the current directory does not exist any more (change to another one); nothing is lost")
        return
    logging.getLogger("poller").debug("program.failed", exc_info=error)
    tell(
        f"internal error: {type(error).__name__}: {error} (nothing is lost; --log-level debug shows where, please report it)"
    )


__all__ = ["cli", "main", "run"]
