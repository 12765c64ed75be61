"""`taba delete`, and the jobs: `taba prune`, `taba upgrade`, `taba retry`, `taba jobs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from taba.cli import show
from taba.cli.sharing import AS_JSON, FORMATS, SERVER, TIMEOUT, ask_first, command_with, form, print_drawn, print_json, print_rows, query_of
from taba.cli.units import moment
from taba.plural import many
from taba.query import Query

POLL_SECONDS = 0.2  # between two looks at a job
MAX_SHOWN = 1000  # of what a dry run found; --json has all that the Server kept


_command = command_with(SERVER, AS_JSON, TIMEOUT)
_rows_command = command_with(SERVER, FORMATS, TIMEOUT)


# --- delete ---


@_command("delete", "  taba delete tabs old_name 'price{exchange=\"rub\"}'\n  taba delete clients --yes web/17 web/18")
@click.argument("what", type=click.Choice(["tabs", "clients"]))
@click.argument("name", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask; needed where standard input is no terminal.")
def delete(server: str, timeout: float, as_json: bool, what: str, name: tuple[str, ...], yes: bool) -> None:
    """Delete Tabs, or Clients from every Tab: their States and all that is known of them.

    What is recorded afterwards begins anew.
    """
    if not yes:
        ask_first(f"Delete {many(len(name), what[:-1].capitalize())} for ever?", "deletes")
    query = query_of(server, timeout=timeout)
    counts = query.delete_tabs(name) if what == "tabs" else query.delete_clients(name)
    if as_json:
        print_json(counts)
        return
    print(f"{many(counts[what], what[:-1].capitalize())} deleted, {many(counts['states'], 'State')}")
    missing = len(set(name)) - counts[what]
    if missing:
        where = "taba names" if what == "tabs" else "taba clients"
        raise click.ClickException(f"{missing} of {len(set(name))} names were not there; {where} lists those that are")


# --- jobs ---


@_command("prune", "  taba prune --dry-run\n  taba prune")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.pass_context
def prune(context: click.Context, server: str, timeout: float, as_json: bool, dry_run: bool) -> None:
    """Delete States that have nothing more to say, or that no event has touched for the Server's --forget.

    Where a Type can, idle States are merged into the Client _retired, so that totals never fall.
    Servers do this by themselves, too, every few hours.
    """
    record = follow(context, query_of(server, timeout=timeout), "prune", as_json, dry_run)
    found = record.get("found") or []
    if not as_json and found:
        if sys.stdout.isatty():
            print_drawn(show.table(["action", "tab", "client"], [[one["action"], one["tab"], one["client"]] for one in found[:MAX_SHOWN]]))
        else:
            for one in found[:MAX_SHOWN]:
                print(show.plain(f"{one['action']} {one['tab']} {one['client']}"))


@_command("upgrade", "  taba upgrade")
@click.pass_context
def upgrade(context: click.Context, server: str, timeout: float, as_json: bool) -> None:
    """Rewrite every State that an older version of its Handler wrote, while events flow.

    Not needed for right answers: what is read or folded is upgraded on the way.
    """
    follow(context, query_of(server, timeout=timeout), "upgrade", as_json)


@_command("retry", "  taba retry\n  taba dead-letters")
@click.pass_context
def retry(context: click.Context, server: str, timeout: float, as_json: bool) -> None:
    """Fold dead letters again, once what was wrong is put right: a Handler installed, say.

    What still cannot be folded stays a dead letter.
    """
    follow(context, query_of(server, timeout=timeout), "retry", as_json)


@_rows_command("jobs", "  taba jobs\n  taba jobs --cancel 5f0e2c9a11b3")
@click.option("--cancel", metavar="ID", help="End a job at its next step.")
def jobs(server: str, timeout: float, as_json: bool, cancel: str | None) -> None:
    """The jobs of all Servers, newest first: those that run, and those that ended within a week."""
    query = query_of(server, timeout=timeout)
    records = [query.cancel_job(cancel)] if cancel is not None else query.jobs()
    if as_json:
        print_json(records)
    elif form() is not None:
        columns = ("id", "kind", "state", "done", "total", "started", "message")
        print_rows(columns, ([record[column] for column in columns] for record in records))
    elif not sys.stdout.isatty():
        for record in records:
            print(line_of(record))
    elif not records:
        print_drawn(Text("none", style="dim"))
    else:
        rows = [
            [
                record["id"],
                record["kind"],
                record["state"],
                f"{record['done']}/{record['total']}",
                moment(record["started"]) or record["started"],
                record["message"],
            ]
            for record in records
        ]
        print_drawn(show.table(["id", "kind", "state", "done", "started", "message"], rows))


COMMANDS = (delete, prune, upgrade, retry, jobs)


def line_of(record: dict[str, Any]) -> str:
    """A job in one line."""
    return show.plain(f"{record['id']} {record['kind']} {record['state']} {record['done']}/{record['total']} {record['message']}".rstrip())


def follow(context: click.Context, query: Query, kind: str, as_json: bool, dry_run: bool = False) -> dict[str, Any]:
    """Start a job, show how it goes, and end with failure where it does; its last record."""
    record = query.start_job(kind, dry_run=dry_run)
    with _progress(kind, as_json) as tell:
        while record["state"] == "running":
            tell(record)
            time.sleep(POLL_SECONDS)
            [record] = query.jobs(record["id"])
        tell(record)
    if as_json:
        print_json(record)
    else:
        print(show.plain(f"{kind}: {record['message'] or record['state']}"))
    if record["state"] != "done":
        if not as_json:
            print(f"taba {kind}: the job is {record['state']}; it may be started again", file=sys.stderr)
        context.exit(1)
    return record


@contextmanager
def _progress(kind: str, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal; nothing elsewhere, where only the end is of interest."""
    console = Console(stderr=True, highlight=False)
    if as_json or not console.is_terminal:
        yield lambda record: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[message]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(kind, total=None, message="")
        yield lambda record: progress.update(
            bar, completed=record["done"], total=record["total"] or None, message=show.plain(record["message"])
        )
