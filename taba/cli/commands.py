"""The `taba` command: all commands, grouped by whom they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from click.shell_completion import get_completion_class

import taba
from taba.cli import about, asking, figures, keeping, sharding
from taba.cli.letters import dead_letters
from taba.cli.noting import note
from taba.cli.record import record
from taba.cli.tokens import token
from taba.cli.top import top
from taba.cli.trying import handler

COMPLETE_VARIABLE = "_TABA_COMPLETE"  # as click has it
LONGEST_HELP = 300  # characters of the sentence that says what a command is for: it stands whole
SHELLS = ("bash", "zsh", "fish")


class Grouped(click.Group):
    """A group whose help names its commands by whom they are for."""

    groups: Mapping[str, Sequence[str]] = {}

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in self.groups.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(LONGEST_HELP)) for name in names])


@click.group(
    cls=Grouped,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  taba names --match 'web\\..*'
  taba agg bids_won
  taba status
  tail -F access.log | awk '{print "bytes", $10; fflush()}' | taba record""",
)
@click.version_option(taba.__version__, prog_name="taba", message="%(prog)s %(version)s")
def command() -> None:
    """Ask Taba what many processes are doing, or tell it from a shell.

    On a terminal answers are tables; elsewhere they are lines of text, one Tab a line; with --json one JSON document, with --tsv or --csv
    rows, both with raw numbers in base units.
    """


@click.command("help", epilog="\b\nExamples:\n  taba help\n  taba help agg")
@click.argument("name", nargs=-1)
@click.pass_context
def help_(context: click.Context, name: tuple[str, ...]) -> None:
    """What each command is for, or all about one."""
    found: click.Command = command
    parent = context.parent or context
    at = parent
    for part in name:
        further = found.get_command(at, part) if isinstance(found, click.Group) else None
        if further is None:
            raise click.UsageError(f"there is no command {' '.join(name)!r}")
        at = click.Context(further, info_name=part, parent=at)
        found = further
    print(found.get_help(at))


@click.command(
    "completion",
    epilog="""\b
Examples:
  taba completion bash > ~/.local/share/bash-completion/completions/taba
  taba completion zsh > "${fpath[1]}/_taba"
  taba completion fish > ~/.config/fish/completions/taba.fish""",
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """What has a shell complete commands, options and names of Tabs; it asks the Server of TABA_SERVER for these."""
    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(command, {}, "taba", COMPLETE_VARIABLE).source())


Grouped.groups = {
    "To ask": ("names", "clients", "types", "agg", "proj", "get", "watch", "who", "top"),
    "To tell": ("record", "note"),
    "To operate": (
        "status",
        "latency",
        "dead-letters",
        "retry",
        "delete",
        "prune",
        "upgrade",
        "jobs",
        "shards",
        "reshard",
        "check",
        "store",
        "token",
    ),
    "To write Handlers": ("handlers", "handler"),
    "About this command": ("help", "completion"),
}

for one in (
    *asking.COMMANDS,
    *figures.COMMANDS,
    *about.COMMANDS,
    *keeping.COMMANDS,
    *sharding.COMMANDS,
    top,
    dead_letters,
    note,
    record,
    token,
    handler,
    help_,
    completion,
):
    command.add_command(one)
