"""`taba token new`: makes a token, and the line for the file of --tokens. Nothing is asked and nothing is kept."""

from __future__ import annotations

import click

from taba.cli.sharing import AS_JSON, print_json
from taba.tokens import READ, WRITE, Scope, line_of, new_token


@click.group("token", epilog="\b\nExamples:\n  taba token new --read")
def token() -> None:
    """Tokens for Servers and Agents that ask for one."""


@token.command(
    "new",
    epilog="\b\nExamples:\n  taba token new --write\n  taba token new --admin --json\n  taba token new --write --prefix team_a.",
)
@click.option("--read", "kind", flag_value=READ, default=True, help="For questions (default).")
@click.option("--write", "kind", flag_value=WRITE, help="For events: what Agents have.")
@click.option("--admin", "kind", flag_value="admin", help="For everything.")
@click.option("--client", "clients", multiple=True, metavar="ID", help="Bound to this Client; web/* means all that begin so. Repeatable.")
@click.option("--prefix", "prefixes", multiple=True, metavar="NAME", help="Bound to Tabs whose names begin so. Repeatable.")
@AS_JSON
def new(kind: str, clients: tuple[str, ...], prefixes: tuple[str, ...], as_json: bool) -> None:
    """Make a token: first it, for whoever is to have it; then the line for the file of --tokens, which has its hash alone.

    The file is its owner's alone (chmod 600); SIGHUP has Servers and Agents read it again.
    """
    made = new_token(kind)
    try:
        line = line_of(made, Scope(clients, prefixes))
    except ValueError as error:
        raise click.UsageError(str(error).removeprefix("line 1: ")) from None
    if as_json:
        print_json({"token": made, "line": line})
    else:
        print(made)
        print(line)
