"""`taba note`: says what happened, for who looks at charts."""

from __future__ import annotations

import sys

import click

from taba.cli import show
from taba.cli.sharing import FORMATS, SERVER, TIMEOUT, Number, form, print_json, print_rows, query_of
from taba.cli.units import moment


@click.command(
    "note",
    epilog="""\b
Examples:
  taba note "deploy 1.4"
  git log -1 --format=%s | taba note -
  taba note""",
)
@click.argument("text", nargs=-1)
@click.option("--time", type=Number(0), metavar="SECONDS", help="When it happened, in Unix seconds.  [default: now]")
@SERVER
@FORMATS
@TIMEOUT
def note(server: str, timeout: float, as_json: bool, text: tuple[str, ...], time: float | None) -> None:
    """Note what happened, for a day; without TEXT, show what was noted.

    TEXT is one text, whether or not it is quoted; - is what comes on standard input.
    """
    query = query_of(server, timeout=timeout)
    if text:
        said = sys.stdin.read().strip() if text == ("-",) else " ".join(text)
        kept = query.note(said, time)
        if as_json:
            print_json(kept)
        return
    if time is not None:
        raise click.UsageError("--time says when TEXT happened; there is no TEXT")
    found = query.notes()
    if as_json:
        print_json(found)
    elif form() is not None:
        print_rows(["time", "text"], ([one["time"], one["text"]] for one in found))
    else:
        for one in found:
            print(f"{moment(one['time']) or one['time']}  {show.plain(one['text'])}")
