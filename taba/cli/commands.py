"""The commands of `taba`: each asks one question and shows the answer, for people on a terminal, as text or JSON elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from shutil import get_terminal_size
from typing import Any, TypeVar, cast

import click
from rich.console import RenderableType
from rich.text import Text

import taba
from taba.cli import show
from taba.cli.figures import COMMANDS as FIGURES
from taba.cli.figures import print_rows, sum_of
from taba.cli.keeping import COMMANDS
from taba.cli.record import record
from taba.cli.sharding import COMMANDS as SHARDING
from taba.cli.sharing import AS_JSON, SERVER, TIMEOUT, print_drawn, print_json, query_of
from taba.cli.tokens import token
from taba.cli.trying import handler
from taba.errors import TabaError
from taba.installing import install_hint
from taba.query import BadRequest, Filters, Query, QueryError, Question, questions

F = TypeVar("F", bound=Callable[..., Any])

DETAIL = click.option("--detail", is_flag=True, help="With the slots from which windows are drawn.")


def filters(function: F) -> F:
    """The options that say which Tabs and Clients are meant. NAME: a Tab, a base name, or a glob."""
    for option in (
        click.option("--client-match", metavar="REGEX", help="Only Clients whose whole id matches."),
        click.option("--client", multiple=True, metavar="ID", help="Only this Client, or those like a glob; repeatable."),
        click.option("--label", multiple=True, metavar="KEY:VALUE", callback=_check_labels, help="Only Tabs with this label; repeatable."),
        click.option("--match", metavar="REGEX", help="Only Tabs whose whole name matches."),
        click.argument("name", nargs=-1),
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


@click.group(
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

    On a terminal answers are tables; elsewhere they are lines of text, one Tab a line; with --json one JSON document.
    """


def asking(name: str, example: str) -> Callable[[F], click.Command]:
    """A command with the options that every question has; `example` stands in its help."""

    def decorate(function: F) -> click.Command:
        return command.command(name, epilog="\b\nExamples:\n" + example)(SERVER(AS_JSON(TIMEOUT(function))))

    return decorate


@asking("names", "  taba names\n  taba names --match 'price.*' --label exchange:adx\n  taba names --client web/3")
@filters
def names(server: str, timeout: float, as_json: bool, **options: Any) -> None:
    """The names of Tabs, one a line; with NAME…, those of them that are there."""
    _list(query_of(server, timeout=timeout).names(**_filters(options)), as_json)


@asking("clients", "  taba clients\n  taba clients bids_won\n  taba clients --client-match 'web/.*'\n  taba clients --alive")
@filters
@click.option("--alive", is_flag=True, help="Only those of which a process lives.")
def clients(server: str, timeout: float, as_json: bool, alive: bool, **options: Any) -> None:
    """The ids of Clients, one a line; with NAME…, of those that have these Tabs."""
    query, wanted = query_of(server, timeout=timeout), _filters(options)
    found = query.clients(**wanted)
    if alive:
        living = set(query.alive())
        found = [client for client in found if client in living]
    _list(found, as_json)


@asking("types", "  taba types\n  taba types bids_won --json\n  taba types --detail")
@filters
@click.option("--detail", is_flag=True, help="With unit and description.")
def types(server: str, timeout: float, as_json: bool, detail: bool, **options: Any) -> None:
    """The Type of each Tab."""

    def shown(content: dict[str, Any]) -> list[Any]:
        if not content:
            return []
        if not detail:
            return [show.table(["Tab", "Type"], list(content.items()))]
        rows = [(tab, told["type"], told["unit"] or "", told["description"] or "") for tab, told in content.items()]
        return [show.table(["Tab", "Type", "Unit", "Description"], rows)]

    _answer(query_of(server, timeout=timeout), questions.types(_filters(options), detail), as_json, shown)


@asking(
    "agg",
    "  taba agg bids_won winning_bid_price\n  taba agg 'web.*' --client 'eu/*'\n  taba agg --match 'web\\..*|job\\..*'\n"
    "  taba agg winning_bid_price --by exchange\n  taba agg winning_bid_price --super --json",
)
@filters
@click.option("--by", multiple=True, metavar="LABEL", help="Group Tabs of one base name by this label; repeatable.")
@click.option("--super", "all_in_one", is_flag=True, help="One Aggregate over all that match; they must be of one Type.")
@click.option("--all", "with_all", is_flag=True, help="On a terminal all figures of each Tab, not one line.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N", help="Lines on a terminal.")
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

    NAME is a Tab; or a base name, which shows its Tabs with labels and, last, their sum; or a glob of * and ?. Without NAME… or --match,
    every Tab. A NAME that is not known is an error, except with --json. On a terminal one line a Tab, what moves most first, unless --all,
    --by, --super or --detail is given.
    """
    if all_in_one and by:
        raise click.UsageError("--super and --by exclude each other")
    query, wanted = query_of(server, timeout=timeout), _filters(options)
    if sys.stdout.isatty() and not (as_json or all_in_one or by or with_all or detail):
        rows = query.overview(**wanted, limit=limit)
        if rows:
            # where there may be more rows than are shown, what they have together is not known from these
            sums = _sums(query, options["name"], wanted, rows) if len(rows) < limit else []
            print_rows([*rows, *sums], get_terminal_size((79, 24)).columns)
        else:
            print_drawn(Text("nothing matches", style="dim"))
        _check_known(options["name"], "".join(f"{line['name']}: \n" for line in rows), len(rows) == limit, query.names)
    elif all_in_one:
        one = questions.superaggregate(wanted, detail)
        _answer(query, one, as_json, lambda content: [show.shape(content)] if content else [])
    else:
        found = _answer(
            query, questions.aggregates(wanted, by, detail), as_json, lambda content: [show.tab(*item) for item in content.items()]
        )
        for name in options["name"] if not as_json and not by else ():
            _sum(query, name, wanted, found, detail)
        _check_known(options["name"], found, as_json or bool(by), query.names)


@asking("proj", "  taba proj bids_won\n  taba proj bids_won --client web/3 --json")
@filters
@DETAIL
def proj(server: str, timeout: float, as_json: bool, detail: bool, **options: Any) -> None:
    """Projections: each Tab of each Client by itself.

    A NAME that is not known is an error, except with --json.
    """
    query = query_of(server, timeout=timeout)
    found = _answer(
        query,
        questions.projections(_filters(options), detail),
        as_json,
        lambda content: [show.tab(name, projection, client) for name, of in content.items() for client, projection in of.items()],
    )
    _check_known(options["name"], found, as_json, query.names)


@asking("latency", "  taba latency")
def latency(server: str, timeout: float, as_json: bool) -> None:
    """Seconds from record to visible, of the last minute: p50, p95, p99."""
    answer = query_of(server, timeout=timeout).latency()
    if as_json:
        print_json(answer)
    else:
        print("  ".join(f"{key} {_seconds(value)}" for key, value in answer.items()))


@asking("dead-letters", "  taba dead-letters\n  taba dead-letters --json | jq '.[].reason' | sort | uniq -c")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="The newest N.")
def dead_letters(server: str, timeout: float, as_json: bool, limit: int) -> None:
    """The events that were delivered but cannot be folded, newest first."""
    answer = query_of(server, timeout=timeout).dead_letters(limit)
    if as_json:
        print_json(answer)
    elif not sys.stdout.isatty():
        for letter in answer:
            print(json.dumps(letter, ensure_ascii=False))
    elif not answer:
        print_drawn(Text("none", style="dim"))
    else:
        columns = ["reason", "tab", "type", "client", "time", "value", "detail"]
        print_drawn(show.table(columns, ([_cell(column, letter) for column in columns] for letter in answer)))


@asking("status", "  taba status\n  taba status --json\n  taba status --agent-url http://127.0.0.1:8379")
@click.option(
    "--agent-url",
    envvar="TABA_AGENT_URL",
    show_envvar=True,
    metavar="URL",
    help=f"The Agent of this host.  [default: {questions.DEFAULT_AGENT}]",
)
@click.pass_context
def status(context: click.Context, server: str, timeout: float, as_json: bool, agent_url: str | None) -> None:
    """How the Server does, and this host's Agent.

    An Agent that does not answer is an error only when its address was given.
    With --json: the Server's status with the Agent's under "agent".
    """
    of_server = _status(query_of(server, timeout=timeout))
    of_agent = _status(query_of(agent_url or questions.DEFAULT_AGENT, timeout=timeout, role="Agent"))
    errors = [answer for answer in (of_server, of_agent if agent_url else None) if isinstance(answer, QueryError)]
    if as_json:
        content: dict[str, Any] = {} if isinstance(of_server, QueryError) else dict(of_server)
        content["agent"] = None if isinstance(of_agent, QueryError) else of_agent
        if isinstance(of_server, QueryError):
            content["error"] = str(of_server)
        print_json(content)
    else:
        for role, url, answer in (("Server", server, of_server), ("Agent", agent_url or questions.DEFAULT_AGENT, of_agent)):
            if isinstance(answer, QueryError):
                if answer not in errors:
                    print_drawn(Text(str(answer), style="dim"))
            else:
                print_drawn(show.status(role, url, answer))
    for error in errors:
        print(f"taba status: {error}", file=sys.stderr)
    if errors:
        context.exit(1)


@asking("handlers", "  taba handlers\n  taba handlers --json | jq .types_missing\n  taba handlers --local")
@click.option("--local", is_flag=True, help="What is installed here, without asking a Server.")
def handlers(server: str, timeout: float, as_json: bool, local: bool) -> None:
    """The Types that a Server knows: version, where each comes from; and what failed to load, and why."""
    content = _local_handlers() if local else _server_handlers(query_of(server, timeout=timeout).status())
    if as_json:
        print_json(content)
        return
    rows = [[type, of["version"], of["origin"], of["errors"]] for type, of in content["handlers"].items()]
    if sys.stdout.isatty():
        print_drawn(show.table(["Type", "version", "from", "errors"], rows))
    else:
        for type, version, origin, errors in rows:
            print(f"{type}: version {version}, from {origin}" + (f", {errors} errors" if errors else ""))
    for type in content["types_missing"]:
        print(f"missing: {show.plain(type)}: Tabs of this Type are there, and no Handler")
    for problem in content["problems"]:
        print(f"problem: {show.plain(problem)}")


command.add_command(handler)
command.add_command(record)
command.add_command(token)
for further in (*COMMANDS, *FIGURES, *SHARDING):
    command.add_command(further)


# --- what the commands share ---


def _answer(query: Query, question: Question[Any], as_json: bool, draw: Callable[[Any], list[RenderableType]]) -> str:
    """Show the answer; gives what of it was shown as text, in which the names stand."""
    if as_json:
        print_json(query.ask(question))
        return ""
    if not sys.stdout.isatty():
        text = query.ask(question.as_text())
        sys.stdout.write(text if not text or text.endswith("\n") else text + "\n")
        return text
    content = query.ask(question)
    for drawn in draw(content) or [Text("nothing matches", style="dim")]:
        print_drawn(drawn)
    return "".join(f"{name}: \n" for name in content)


def _sum(query: Query, name: str, wanted: Filters, found: str, detail: bool) -> None:
    """Where a base name has found several Tabs of one Type, and is none itself, show them together under it."""
    of_base = [line for line in found.splitlines() if line.startswith(name + "{")]
    if len(of_base) < 2 or f"{name}: " in (line[: len(name) + 2] for line in found.splitlines()):
        return
    try:
        question = questions.superaggregate({**wanted, "name": name}, detail)
        if sys.stdout.isatty():
            print_drawn(show.tab(name, query.ask(question), f"{len(of_base)} Tabs together"))
        else:
            print(f"{name}: {query.ask(question.as_text()).rstrip()}")
    except BadRequest:
        pass  # they are of several Types, which have no sum


def _sums(query: Query, names: tuple[str, ...], wanted: Filters, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each base name that has found several Tabs of one Type, and is none itself, a row of all of them."""
    sums = []
    for name in names:
        of_base = [line for line in rows if line["name"].startswith(name + "{")]
        if len(of_base) > 1 and len({line["type"] for line in of_base}) == 1 and all(line["name"] != name for line in rows):
            whole: dict[str, Any] = query.ask(questions.superaggregate({**wanted, "name": name}))
            sums.append(sum_of(name, of_base, whole))
    return sums


MAX_LIKENED = 20_000  # names that one that is not there is compared with: a second


def _check_known(wanted: tuple[str, ...], found: str, accept: bool, names: Callable[[], list[str]]) -> None:
    lines = found.splitlines()
    missing = [name for name in wanted if not accept and not is_glob(name) and not any(_is_of(line, name) for line in lines)]
    if missing:
        near = get_close_matches(missing[0], names()[:MAX_LIKENED], n=3, cutoff=0.7)
        meant = f"did you mean {' or '.join(near)}?" if near else "taba names lists those that are there"
        raise click.ClickException(f"no Tab {missing[0]!r} that matches; {meant}")


def is_glob(name: str) -> bool:
    """Whether this stands for whatever looks like it, which may be nothing."""
    return any(wild in name.partition("{")[0] for wild in "*?")


def _is_of(line: str, name: str) -> bool:
    return line.startswith((name + ": ", name + "{"))


def _list(items: list[str], as_json: bool) -> None:
    if as_json:
        print_json(items)
    else:
        tty = sys.stdout.isatty()
        sys.stdout.writelines((show.plain(item) if tty else item) + "\n" for item in items)


def _status(query: Query) -> dict[str, Any] | QueryError:
    try:
        return query.status()
    except QueryError as error:
        return error


def _server_handlers(status: Mapping[str, Any]) -> dict[str, Any]:
    about = [problem for problem in status.get("problems", []) if "Handler" in problem]
    return {"handlers": status.get("handlers", {}), "types_missing": status.get("types_missing", []), "problems": about}


def _local_handlers() -> dict[str, Any]:
    try:
        from taba.handlers.lookup import find_handlers
        from taba.plugins import offer_plugins
    except ModuleNotFoundError as error:
        raise click.ClickException(f"Handlers need {error.name}; install it with: {install_hint('server')}") from None
    try:
        offer_plugins(".")
    except TabaError as failure:
        raise click.ClickException(str(failure)) from None
    lookup = find_handlers()
    found = {type: {"version": lookup.get(type).version, "origin": lookup.origin(type), "errors": 0} for type in lookup.types}  # type: ignore[union-attr]
    return {"handlers": found, "types_missing": [], "problems": list(lookup.problems)}


def _seconds(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "–"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _cell(column: str, letter: Mapping[str, Any]) -> Any:
    value = letter.get(column)
    if column == "time" and isinstance(value, (int, float)):
        try:
            return datetime.fromtimestamp(value).strftime("%Y-%m-%d %H:%M:%S")
        except (ValueError, OverflowError, OSError):
            return value
    if column == "value":
        value = letter.get("content") if value is None and "content" in letter else value
        return json.dumps(value, ensure_ascii=False, default=str)[:60]
    return value
