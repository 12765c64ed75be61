"""`taba dead-letters`: what could not be folded, and giving it up."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.text import Text

from taba.bounds import MAX_LETTERS
from taba.cli import show
from taba.cli.keeping import follow
from taba.cli.sharing import FORMATS, SERVER, TIMEOUT, ask_first, form, json_text, print_drawn, print_json, print_rows, query_of
from taba.cli.units import moment

COLUMNS = ("reason", "tab", "type", "client", "time", "value", "detail")


@click.command(
    "dead-letters",
    epilog="""\b
Examples:
  taba dead-letters
  taba dead-letters --json | jq '.[].reason' | sort | uniq -c
  taba dead-letters --discard""",
)
@SERVER
@FORMATS
@TIMEOUT
@click.option("--limit", type=click.IntRange(1, MAX_LETTERS), default=100, show_default=True, metavar="N", help="The newest N.")
@click.option("--discard", is_flag=True, help="Give up all that are there, for ever; how many, status goes on telling.")
@click.option("--dry-run", is_flag=True, help="With --discard: only say how many.")
@click.option("--yes", is_flag=True, help="With --discard: do not ask; needed where standard input is no terminal.")
@click.pass_context
def dead_letters(
    context: click.Context, server: str, timeout: float, as_json: bool, limit: int, discard: bool, dry_run: bool, yes: bool
) -> None:
    """The events that were delivered but cannot be folded, newest first.

    Once what was wrong is put right, taba retry folds them again; --discard gives them up.
    """
    if (dry_run or yes) and not discard:
        raise click.UsageError("--dry-run and --yes go with --discard")
    query = query_of(server, timeout=timeout)
    if discard:
        if not (yes or dry_run):
            ask_first("Give up all dead letters for ever?", "gives them up")
        follow(context, query, "discard", as_json, dry_run)
        return
    answer = query.dead_letters(limit)
    if as_json:
        print_json(answer)
    elif form() is not None:
        print_rows(COLUMNS, ([_value(letter) if column == "value" else letter.get(column) for column in COLUMNS] for letter in answer))
    elif not sys.stdout.isatty():
        for letter in answer:
            print(json_text(letter))
    elif not answer:
        print_drawn(Text("none", style="dim"))
    else:
        print_drawn(show.table(COLUMNS, ([_cell(column, letter) for column in COLUMNS] for letter in answer)))


def _value(letter: Mapping[str, Any]) -> Any:
    value = letter.get("value")
    return letter.get("content") if value is None and "content" in letter else value


def _cell(column: str, letter: Mapping[str, Any]) -> Any:
    value = letter.get(column)
    if column == "time":
        return moment(value) or value
    if column == "value":
        return json.dumps(_value(letter), ensure_ascii=False, default=str)[:60]
    return value
