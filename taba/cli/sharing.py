"""What all commands that ask a Server share: their options, and how answers are printed."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType

from taba import paths
from taba.cli import show
from taba.query import Query, QueryError, questions

FILE_WIDTH = 200  # columns where nobody knows how wide the reader is

COMPLETE_SECONDS = 1.0  # for names that a shell completes
MAX_COMPLETED = 200
MAX_LIKENED = 20_000  # names that one that is not there is compared with: a second

_FORM = "taba.form"  # where a command's context keeps which form was asked for
_PARTIAL = "taba.partial"  # where a command's context keeps whether it takes what can be reached
_SHOWN = "taba.shown"  # where a command's context keeps what is shown to whom it asks
F = TypeVar("F", bound=Callable[..., Any])


def server_option(help: str) -> Callable[[F], F]:
    """The option that says where a Server is."""
    return click.option(
        "--server",
        "-s",
        envvar="TABA_SERVER",
        default=questions.DEFAULT_SERVER,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help=help,
    )


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.meta.setdefault(_SHOWN, {})[parameter.name] = value


def _kept(*names: str, metavar: str, help: str, envvar: str | None = None) -> Callable[[F], F]:
    """An option that no command is given: its context keeps it."""
    return click.option(
        *names, metavar=metavar, envvar=envvar, show_envvar=envvar is not None, expose_value=False, callback=_keep, help=help
    )


SHOWN: tuple[Callable[[Any], Any], ...] = (
    _kept(
        "--token",
        metavar="TOKEN|FILE",
        envvar="TABA_TOKEN",
        help="A token, or a file with one: better, as command lines are for all to see.",
    ),
    _kept("--cacert", metavar="FILE", envvar="TABA_CACERT", help="The authorities of the Server's certificate; default is the system's."),
    _kept("--tls-cert", "certificate", metavar="FILE", help="Who a Server is shown that asks."),
    _kept("--tls-key", "key", metavar="FILE", help="The key of --tls-cert."),
)


def shown(function: F) -> F:
    """The options that say what a Server is shown."""
    for option in reversed(SHOWN):
        function = option(function)
    return function


def SERVER(function: F) -> F:
    """Which Server is asked, and what it is shown."""
    return server_option("Any one Server.")(shown(function))


def query_of(url: str, *, timeout: float, role: str = "Server", away: Callable[[str], object] | None = None) -> Query:
    """Asks the Server or Agent there, `timeout` seconds a time, with what this command was told to show; with --partial, or
    `away`, for what can be reached."""
    context = click.get_current_context()
    told: set[str] = set()

    def tell(left_out: str) -> None:
        if left_out not in told:
            told.add(left_out)
            print(f"{context.command_path}: {show.plain(left_out)}", file=sys.stderr)

    away = away or (tell if context.meta.get(_PARTIAL) else None)
    return Query(url, timeout=timeout, role=role, away=away, **context.meta.get(_SHOWN, {}))


def _keep_partial(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[_PARTIAL] = value


PARTIAL = click.option(
    "--partial",
    is_flag=True,
    expose_value=False,
    callback=_keep_partial,
    help="While a shard is away: what can be reached; standard error names the rest.",
)


class Number(click.FloatRange):
    """A finite number; a NaN is in every range that click knows."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


TIMEOUT = click.option(
    "--timeout",
    type=Number(0.01, 3600),
    default=questions.DEFAULT_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer.",
)
JSON_HELP = "One JSON document, for programs."
AS_JSON = click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
TSV, CSV = "--tsv", "--csv"


def _keep_form(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value:
        form = parameter.opts[0]
        if context.meta.setdefault(_FORM, form) != form:
            raise click.UsageError(f"{context.meta[_FORM]} and {form} exclude each other")
    return value


def FORMATS(function: F) -> F:
    """The options that say in which form programs get an answer."""
    for form, separator in ((CSV, "commas"), (TSV, "tabs")):
        help = f"Rows under the names of their columns, with {separator} between: raw numbers in base units."
        function = click.option(form, is_flag=True, expose_value=False, callback=_keep_form, help=help)(function)
    return click.option("--json", "as_json", is_flag=True, callback=_keep_form, help=JSON_HELP)(function)


def form() -> str | None:
    """TSV, CSV, or None where neither was asked for."""
    found = click.get_current_context().meta.get(_FORM)
    return found if found in (TSV, CSV) else None


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows in the form that was asked for, under the names of their columns."""
    if form() == CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(value) for value in row] for row in rows)
        return
    for row in chain([columns], rows):
        print("\t".join(map(_cell, row)))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return show.plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def print_leaves(first: Sequence[str], items: Iterable[tuple[Sequence[Any], Any]]) -> None:
    """A row for each (cells of the columns `first`, content), with a column for each path that any content has."""
    rows = [(cells, dict(paths.leaves(content))) for cells, content in items]
    columns = list(dict.fromkeys(path for _, leaves in rows for path in leaves))
    print_rows([*first, *columns], ([*cells, *(leaves.get(column) for column in columns)] for cells, leaves in rows))


def print_json(content: Any) -> None:
    """One JSON document: indented for people."""
    print(json_text(content, 2 if sys.stdout.isatty() else None))


def json_text(content: Any, indent: int | None = None, default: Callable[[Any], str] | None = None) -> str:
    """JSON without control characters; where standard output is no UTF-8, what that may lack stands as JSON has it, and means the same."""
    is_unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    return show.escaped(json.dumps(content, ensure_ascii=not is_unicode, indent=indent, default=default))


def print_lines(text: str) -> None:
    """Lines that a Server has made for people, or their programs; what would move a cursor is escaped."""
    for line in text.removesuffix("\n").split("\n") if text else ():
        print(show.plain(line))


def print_drawn(drawn: RenderableType) -> None:
    """What rich has drawn: with colours on a terminal, with NO_COLOR as nothing but text; as plain lines elsewhere."""
    if sys.stdout.isatty():
        # rich's own reading of NO_COLOR goes on to send what makes bold and dim
        Console(highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto").print(drawn)
        return
    out = io.StringIO()
    Console(file=out, highlight=False, width=FILE_WIDTH).print(drawn)
    for line in out.getvalue().splitlines():
        print(line.rstrip())


def named(names: Sequence[str]) -> tuple[str, ...]:
    """The names that were given; - stands for those on standard input, one a line."""
    if "-" not in names:
        return tuple(names)
    lines = (line.strip() for line in sys.stdin)
    return (*(name for name in names if name != "-"), *(line for line in lines if line))


def complete_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of Tabs that begin so, for a shell; none where no Server answers at once."""
    url = context.params.get("server") or os.environ.get("TABA_SERVER") or questions.DEFAULT_SERVER
    try:
        query = Query(url, timeout=COMPLETE_SECONDS, **context.meta.get(_SHOWN, {}))
        found = query.names(name=f"{incomplete.partition('{')[0]}*", limit=MAX_COMPLETED)
    except (QueryError, ValueError):
        return []  # nothing may be printed there
    return [name for name in found if name.startswith(incomplete)]


def meant_by(name: str, query: Query) -> str:
    """What somebody may have meant who wrote a name that is not there."""
    names = query.names()[:MAX_LIKENED]
    near = get_close_matches(name, dict.fromkeys([*(known.partition("{")[0] for known in names), *names]), n=3, cutoff=0.7)
    return f"did you mean {' or '.join(near)}?" if near else "taba names lists those that are there"


def command_with(*options: Callable[[Any], Any]) -> Callable[[str, str], Callable[[F], click.Command]]:
    """What makes commands that take these options, listed in this order after their own: of a name and examples, then of a function."""

    def named_so(name: str, examples: str) -> Callable[[F], click.Command]:
        def decorate(function: F) -> click.Command:
            decorated: Any = function
            for option in reversed(options):
                decorated = option(decorated)
            return click.command(name, epilog="\b\nExamples:\n" + examples)(decorated)

        return decorate

    return named_so


def ask_first(question: str, does: str) -> None:
    """Ask on a terminal; elsewhere say that --yes `does` so without. Raises click.Abort and click.UsageError."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"there is no terminal to ask on; --yes {does} without asking")
    click.confirm(question, abort=True, err=True)
