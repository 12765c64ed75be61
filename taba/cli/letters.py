"""`taba dead-letters`: what could not be folded, and giving it up."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.padding import Padding
from rich.text import Text

from taba.bounds import MAX_LETTERS
from taba.cli import show
from taba.cli.keeping import follow
from taba.cli.sharing import FORMATS, SERVER, TIMEOUT, ask_first, form, json_text, print_drawn, print_json, print_rows, query_of
from taba.cli.units import moment

COLUMNS = ("reason", "tab", "type", "client", "time", "value", "detail")
MOST_SHOWN = 60  # characters of a value


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

    Once what was wrong is put right, taba retry folds them again; --discard gives them up. On a terminal one line a Tab and Client.
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
        _draw(answer)
        if len(answer) == limit:
            print_drawn(Text(f"the newest {limit}; --limit shows more", style="dim"))


def _draw(letters: Sequence[Mapping[str, Any]]) -> None:
    """For people: under each reason what it is about, each Tab of each Client in one row however many events there are."""
    by_reason: dict[tuple[str, str], dict[tuple[str, str, str], list[Mapping[str, Any]]]] = {}
    for letter in letters:
        why = (str(letter.get("reason")), str(letter.get("detail") or ""))
        about = (str(letter.get("tab") or ""), str(letter.get("type") or ""), str(letter.get("client") or ""))
        by_reason.setdefault(why, {}).setdefault(about, []).append(letter)
    for (reason, detail), found in by_reason.items():
        print_drawn(Text(show.plain(f"{reason}: {detail}" if detail else reason), style="bold"))
        rows = [[*about, sum(map(_events, of)), _moment(of[0].get("time")), _text(of[0])] for about, of in found.items()]
        print_drawn(Padding(show.table(("tab", "type", "client", "events", "newest", "its value"), rows), (0, 0, 1, 2), expand=False))


def _events(letter: Mapping[str, Any]) -> int:
    """How many events a letter stands for: one, or those that were folded before they came."""
    count = letter.get("events", 1)
    return count if isinstance(count, int) else 1


def _moment(value: Any) -> Any:
    return moment(value) or value


def _text(letter: Mapping[str, Any]) -> str:
    return json.dumps(_value(letter), ensure_ascii=False, default=str)[:MOST_SHOWN]


def _value(letter: Mapping[str, Any]) -> Any:
    value = letter.get("value")
    return letter.get("content") if value is None and "content" in letter else value
