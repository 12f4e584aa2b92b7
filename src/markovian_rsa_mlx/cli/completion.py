"""`mrsa completion`: print the script that lets a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .command import Command
from .invocation import as_started

#: The file that a shell reads at its start, and the line to add there.
_PLACES = {
    "bash": 'add to ~/.bashrc: eval "$(mrsa completion bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(mrsa completion zsh)"',
    "fish": "run once: mrsa completion fish > ~/.config/fish/completions/mrsa.fish",
}


@click.command(
    "completion",
    cls=Command,
    examples=('eval "$(mrsa completion bash)"', "mrsa completion fish > ~/.config/fish/completions/mrsa.fish"),
)
@click.argument("shell", type=click.Choice(list(_PLACES)), help="The shell.")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for the shell's completion of commands and options."""
    made = get_completion_class(shell)
    assert made is not None  # click has these three
    root = context.find_root()
    print(f"# {as_started(_PLACES[shell])}")
    print(made(root.command, {}, "mrsa", "_MRSA_COMPLETE").source())
