"""`completion`: the script that lets a shell complete commands, options, and the names of sinks and contracts."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from poller.cli.options import GlobalOptionsCommand
from poller.core.errors import EXIT_OK

_PROGRAM = "ionos-poller"
_VARIABLE = "_IONOS_POLLER_COMPLETE"  # click completes a command if this variable is set


class _Bash(BashComplete):
    """click's class, without its check of the version of the bash on the path: another bash may read the script."""

    @staticmethod
    def _check_version() -> None:
        """Check nothing."""


_SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command("completion", cls=GlobalOptionsCommand)
@click.argument("shell", type=click.Choice([*_SHELLS]))
def command(shell: str) -> int:
    """Print the script that completes commands, options, sinks and contracts at TAB. For bash 4.4 or newer, zsh and fish.

    \b
    Examples:
      ionos-poller completion fish > ~/.config/fish/completions/ionos-poller.fish
      eval "$(ionos-poller completion bash)"      in ~/.bashrc
      eval "$(ionos-poller completion zsh)"       in ~/.zshrc, behind compinit
    """
    root = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](root, {}, _PROGRAM, _VARIABLE).source(), nl=False)
    return EXIT_OK
