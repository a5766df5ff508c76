"""`completion`: the script that lets a shell complete commands, options, and the names of sinks and contracts."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from poller.cli.options import GlobalOptionsCommand
from poller.core.errors import EXIT_OK

_PROGRAM = "ionos-poller"
_VARIABLE = "_IONOS_POLLER_COMPLETE"  # how click's own mechanism knows that it is asked


class _Bash(BashComplete):
    """click's, but for its look at the version of the bash on the path: the one that reads the script may be another."""

    @staticmethod
    def _check_version() -> None:
        """Leave it to the shell that reads the script."""


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
