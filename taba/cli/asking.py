"""`taba names`, `clients`, `types`, `agg` and `proj`: which Tabs there are, and what they say."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any, TypeVar, cast

import click
from rich.text import Text

from taba.bounds import MAX_ROWS
from taba.cli import show
from taba.cli.figures import print_clients, print_groups, print_table, sum_of
from taba.cli.sharing import (
    FORMATS,
    PARTIAL,
    SERVER,
    TIMEOUT,
    command_with,
    complete_names,
    form,
    meant_by,
    named,
    print_drawn,
    print_json,
    print_leaves,
    print_lines,
    print_rows,
    query_of,
)
from taba.names import is_glob
from taba.plural import many
from taba.query import Filters, Query, questions

F = TypeVar("F", bound=Callable[..., Any])

LIMIT = click.option("--limit", type=click.IntRange(1, MAX_ROWS), default=50, show_default=True, metavar="N", help="Lines on a terminal.")
DETAIL = click.option("--detail", is_flag=True, help="With the slots from which windows are drawn.")


def filters(function: F) -> F:
    """The options that say which Tabs and Clients are meant. NAME: a Tab, a base name, a glob, or - for names on standard input."""
    for option in (
        PARTIAL,
        click.option("--client-match", metavar="REGEX", help="Only Clients whose whole id matches."),
        click.option("--client", multiple=True, metavar="ID", help="Only this Client, or those like a glob; repeatable."),
        click.option("--label", multiple=True, metavar="KEY:VALUE", callback=_check_labels, help="Only Tabs with this label; repeatable."),
        click.option("--match", metavar="REGEX", help="Only Tabs whose whole name matches."),
        click.argument("name", nargs=-1, shell_complete=complete_names),
    ):
        function = option(function)
    return function


def _check_labels(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not value.partition(":")[1] or value.startswith(":"):
            raise click.BadParameter(f"{value!r}: takes KEY:VALUE, such as exchange:adx")
    return values


def _filters(options: Mapping[str, Any]) -> Filters:
    """The filters that were given; those that were not, not at all."""
    return cast(Filters, {key: options[key] for key in questions.FILTERS if options.get(key)})


_command = command_with(SERVER, FORMATS, TIMEOUT)


@_command("names", "  taba names\n  taba names --match 'price.*' --label exchange:adx\n  taba names --client web/3")
@filters
def names(server: str, timeout: float, as_json: bool, **options: Any) -> None:
    """The names of Tabs, one a line; with NAME…, those of them that are there."""
    options["name"], is_asked = _named(options["name"])
    _list("tab", query_of(server, timeout=timeout).names(**_filters(options)) if is_asked else [], as_json)


@_command("clients", "  taba clients\n  taba clients bids_won\n  taba clients --client-match 'web/.*'\n  taba clients --alive")
@filters
@click.option("--alive", is_flag=True, help="Only those of which a process lives.")
def clients(server: str, timeout: float, as_json: bool, alive: bool, **options: Any) -> None:
    """The ids of Clients, one a line; with NAME…, of those that have these Tabs."""
    options["name"], is_asked = _named(options["name"])
    query, wanted = query_of(server, timeout=timeout), _filters(options)
    found = query.clients(**wanted) if is_asked else []
    if alive:
        living = set(query.alive())
        found = [client for client in found if client in living]
    _list("client", found, as_json)


@_command("types", "  taba types\n  taba types bids_won --json\n  taba types --detail")
@filters
@click.option("--detail", is_flag=True, help="With unit and description.")
def types(server: str, timeout: float, as_json: bool, detail: bool, **options: Any) -> None:
    """The Type of each Tab."""
    options["name"], is_asked = _named(options["name"])
    query, wanted = query_of(server, timeout=timeout), _filters(options)
    if not (as_json or form() or sys.stdout.isatty()):
        print_lines(query.ask(questions.types(wanted, detail).as_text()) if is_asked else "")
        return
    found: dict[str, Any] = query.types(detail=detail, **wanted) if is_asked else {}
    if as_json:
        print_json(found)
        return
    columns = ["tab", "type", "unit", "description"] if detail else ["tab", "type"]
    rows = [(tab, told["type"], told["unit"], told["description"]) if detail else (tab, told) for tab, told in found.items()]
    if form() is not None:
        print_rows(columns, rows)
    elif rows:
        for line in show.named_lines(columns, [[cell or "" for cell in row] for row in rows], get_terminal_size((79, 24)).columns):
            print(line)
    else:
        print_drawn(NOTHING)


@_command(
    "agg",
    "  taba agg bids_won winning_bid_price\n  taba agg 'web.*' --client 'eu/*'\n  taba agg --match 'web\\..*|job\\..*'\n"
    "  taba agg winning_bid_price --by exchange\n  taba agg winning_bid_price --super --json\n  taba agg 'web.*' --tsv | cut -f 1,2",
)
@filters
@click.option("--by", multiple=True, metavar="LABEL", help="Group Tabs of one base name by this label; repeatable.")
@click.option("--super", "all_in_one", is_flag=True, help="One Aggregate over all that match; they must be of one Type.")
@click.option("--all", "with_all", is_flag=True, help="On a terminal all figures of each Tab, not one line.")
@LIMIT
@DETAIL
def agg(
    server: str,
    timeout: float,
    as_json: bool,
    by: tuple[str, ...],
    all_in_one: bool,
    with_all: bool,
    limit: int,
    detail: bool,
    **options: Any,
) -> None:
    """Aggregates: each Tab over all Clients that match.

    NAME is a Tab; or a base name, which shows its Tabs with labels and, last, their sum; or a glob of * and ?; or -, for names on standard
    input. Without NAME… or --match, every Tab. A NAME that is not known is an error, except with --json. On a terminal one line a Tab, what
    moves most first, unless --all, --super or --detail is given; =17 below 1H is what a Tab without windows has now.
    """
    if all_in_one and by:
        raise click.UsageError("--super and --by exclude each other")
    options["name"], is_asked = _named(options["name"])
    query, wanted, given = query_of(server, timeout=timeout), _filters(options), options["name"]
    is_shown, is_people = sys.stdout.isatty(), not (as_json or form())
    if not is_asked:
        found: dict[str, Any] = {}
    elif all_in_one:
        whole = query.superaggregate(detail=detail, **wanted) if is_shown or not is_people else None
        if whole is None:
            print_lines(query.ask(questions.superaggregate(wanted, detail).as_text()))
        elif as_json:
            print_json(whole)
        elif form() is not None:
            print_leaves([], [([], whole)] if whole else [])
        else:
            each = set(_units(query, wanted).values()) if whole else set()
            print_drawn(show.shape(show.with_unit(whole, each.pop() if len(each) == 1 else None)) if whole else NOTHING)
        return
    elif is_people and is_shown and not (by or with_all or detail):
        rows = query.overview(**wanted, limit=limit)
        # where there may be more rows than are shown, what they have together is not known from these
        sums = _sums(query, given, wanted, rows) if len(rows) < limit else []
        if rows:
            print_table([*rows, *sums], get_terminal_size((79, 24)).columns)
        else:
            print_drawn(NOTHING)
        if len(rows) < limit:
            _check_known(given, [line["name"] for line in rows], query)
        return
    elif is_people and not is_shown:
        text = query.ask(questions.aggregates(wanted, by, detail).as_text())
        print_lines(text)
        found = dict.fromkeys(_names_of(text))
    else:
        found = query.aggregates(by=by, detail=detail, **wanted)
    if as_json:
        print_json(found)
        return
    if form() is not None:
        print_leaves(["tab"], (([name], content) for name, content in found.items()))
    elif is_shown:
        of_tabs = _units(query, wanted) if found else {}
        units = {name: of_tabs.get(name) or _unit_of_base(of_tabs, name) for name in found}
        if not found:
            print_drawn(NOTHING)
        elif with_all or detail:
            for name, content in found.items():
                print_drawn(show.tab(name, content, unit=units[name]))
        else:
            print_groups(found, units, limit, get_terminal_size((79, 24)).columns)
    if not by and is_people:
        for name in given:
            _sum(query, name, wanted, found, detail)
    if not by:
        _check_known(given, found, query)


@_command("proj", "  taba proj bids_won\n  taba proj bids_won --client web/3 --json\n  taba proj bids_won --all")
@filters
@click.option("--all", "with_all", is_flag=True, help="On a terminal all figures of each Client, not one line.")
@LIMIT
@DETAIL
def proj(server: str, timeout: float, as_json: bool, with_all: bool, limit: int, detail: bool, **options: Any) -> None:
    """Projections: each Tab of each Client by itself.

    A NAME that is not known is an error, except with --json. On a terminal one line a Client, the greatest first, unless --all or --detail
    is given.
    """
    options["name"], is_asked = _named(options["name"])
    query, wanted = query_of(server, timeout=timeout), _filters(options)
    if not (as_json or form() or sys.stdout.isatty()):
        text = query.ask(questions.projections(wanted, detail).as_text()) if is_asked else ""
        print_lines(text)
        _check_known(options["name"], _names_of(text), query)
        return
    found = query.projections(detail=detail, **wanted) if is_asked else {}
    if as_json:
        print_json(found)
        return
    if form() is not None:
        print_leaves(["tab", "client"], (([tab, client], content) for tab, of in found.items() for client, content in of.items()))
    elif not found:
        print_drawn(NOTHING)
    else:
        units = _units(query, wanted)
        for tab, of in found.items():
            if with_all or detail:
                for client, content in of.items():
                    print_drawn(show.tab(tab, content, client, unit=units.get(tab)))
            else:
                print_clients(tab, of, units.get(tab), limit, get_terminal_size((79, 24)).columns)
    _check_known(options["name"], found, query)


COMMANDS = (names, clients, types, agg, proj)
NOTHING = Text("nothing matches", style="dim")


def _named(given: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """(the names that are meant, whether anything is asked): nothing on standard input is not everything."""
    meant = named(given)
    return meant, bool(meant) or not given


_LINE = re.compile(r'([^\s{]+(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?): ')


def _names_of(text: str) -> list[str]:
    """The names at the beginning of lines that a Server made for people."""
    return [match[1] for line in text.split("\n") if (match := _LINE.match(line)) is not None]


def _units(query: Query, wanted: Filters) -> dict[str, str | None]:
    """The unit of each Tab."""
    return {tab: told["unit"] for tab, told in query.types(detail=True, **wanted).items()}


def _unit_of_base(units: Mapping[str, str | None], name: str) -> str | None:
    """The unit of a group of Tabs: theirs, where all with its base name have one."""
    base = name.partition("{")[0]
    found = {unit for tab, unit in units.items() if tab.partition("{")[0] == base}
    return found.pop() if len(found) == 1 else None


def _of_base(name: str, found: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The Tabs with labels of a base name that is none itself, where there are several."""
    of_base = [tab for tab in found if tab.startswith(name + "{")]
    return of_base if len(of_base) > 1 and name not in found else []


def _sum(query: Query, name: str, wanted: Filters, found: Mapping[str, Any], detail: bool) -> None:
    """Where a base name has found several Tabs of one Type, and is none itself, show them together under it."""
    of_base = _of_base(name, found)
    told = query.ask(questions.types({**wanted, "name": name}, detail=True)) if of_base else {}
    if len({one["type"] for one in told.values()}) != 1:
        return  # what is of several Types has no sum
    question = questions.superaggregate({**wanted, "name": name}, detail)
    if sys.stdout.isatty():
        unit = next(iter(told.values()))["unit"]
        print_drawn(show.tab(name, query.ask(question), f"{many(len(of_base), 'Tab')} together", unit=unit))
    else:
        print(show.plain(f"{name}: {query.ask(question.as_text()).rstrip()}"))


def _sums(query: Query, given: Sequence[str], wanted: Filters, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each base name that has found several Tabs of one Type, and is none itself, a row of all of them."""
    sums = []
    for name in given:
        meant = set(_of_base(name, [line["name"] for line in rows]))
        of_base = [line for line in rows if line["name"] in meant]
        if len({line["type"] for line in of_base}) == 1:
            whole: dict[str, Any] = query.ask(questions.superaggregate({**wanted, "name": name}))
            sums.append(sum_of(name, of_base, whole))
    return sums


def _check_known(given: Sequence[str], found: Mapping[str, Any] | Sequence[str], query: Query) -> None:
    there = {*found, *(name.partition("{")[0] for name in found)}
    missing = [name for name in given if not is_glob(name) and name not in there]
    if missing:
        raise click.ClickException(f"no Tab {missing[0]!r} that matches; {meant_by(missing[0], query)}")


def _list(column: str, items: list[str], as_json: bool) -> None:
    if as_json:
        print_json(items)
    elif form() is not None:
        print_rows([column], ([item] for item in items))
    else:
        sys.stdout.writelines(show.plain(item) + "\n" for item in items)
