"""`taba status`, `taba latency`, `taba handlers`: how Servers and Agents do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.text import Text

from taba.cli import show
from taba.cli.sharing import AS_JSON, FORMATS, SERVER, TIMEOUT, form, print_drawn, print_json, print_rows, query_of
from taba.cli.units import SECONDS, scaled
from taba.errors import TabaError
from taba.installing import install_hint
from taba.query import Query, QueryError, questions


@click.command("latency", epilog="\b\nExamples:\n  taba latency\n  taba latency --seconds 10")
@SERVER
@AS_JSON
@TIMEOUT
@click.option("--seconds", type=click.IntRange(5, 60), help="Of the last so many, instead of the last minute.")
def latency(server: str, timeout: float, as_json: bool, seconds: int | None) -> None:
    """Seconds from record to visible, of the last minute: p50, p95, p99."""
    answer = query_of(server, timeout=timeout).latency(seconds=seconds)
    if as_json:
        print_json(answer)
    else:
        print("  ".join(f"{key} {_seconds(value)}" for key, value in answer.items()))


@click.command("status", epilog="\b\nExamples:\n  taba status\n  taba status --json\n  taba status --agent-url localhost:8379")
@SERVER
@AS_JSON
@TIMEOUT
@click.option(
    "--agent-url",
    envvar="TABA_AGENT_URL",
    show_envvar=True,
    metavar="URL",
    help=f"The Agent of this host.  [default: {questions.DEFAULT_AGENT}]",
)
@click.pass_context
def status(context: click.Context, server: str, timeout: float, as_json: bool, agent_url: str | None) -> None:
    """How the Server does, and this host's Agent; and what is wrong at the other Servers.

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
        if not isinstance(of_server, QueryError):
            _print_others(query_of(server, timeout=timeout), of_server)
    for error in errors:
        print(f"taba status: {show.plain(error)}", file=sys.stderr)
    if errors:
        context.exit(1)


@click.command("handlers", epilog="\b\nExamples:\n  taba handlers\n  taba handlers --json | jq .types_missing\n  taba handlers --local")
@SERVER
@FORMATS
@TIMEOUT
@click.option("--local", is_flag=True, help="What is installed here, without asking a Server.")
def handlers(server: str, timeout: float, as_json: bool, local: bool) -> None:
    """The Types that a Server knows: version, where each comes from; and what failed to load, and why."""
    content = _local_handlers() if local else _server_handlers(query_of(server, timeout=timeout).status())
    if as_json:
        print_json(content)
        return
    rows = [[type, of["version"], of["origin"], of["errors"]] for type, of in content["handlers"].items()]
    if form() is not None:
        print_rows(["type", "version", "origin", "errors"], rows)
        return
    if sys.stdout.isatty():
        print_drawn(show.table(["Type", "version", "from", "errors"], rows))
    else:
        for type, version, origin, errors in rows:
            print(show.plain(f"{type}: version {version}, from {origin}") + (f", {errors} errors" if errors else ""))
    for type in content["types_missing"]:
        print(f"missing: {show.plain(type)}: Tabs of this Type are there, and no Handler")
    for problem in content["problems"]:
        print(f"problem: {show.plain(problem)}")


COMMANDS = (latency, status, handlers)


def _status(query: Query) -> dict[str, Any] | QueryError:
    try:
        return query.status()
    except QueryError as error:
        return error


def _print_others(query: Query, of_server: Mapping[str, Any]) -> None:
    """What is wrong at the other Servers. An older one says nothing of them; one that does not know its `url` is none of the list."""
    if "url" not in of_server:
        return
    try:
        servers = query.ask(questions.servers(detail=True))
    except QueryError as error:
        print_drawn(Text(f"what is wrong at other Servers is not known: {show.plain(error)}", style="yellow"))
        return
    others = [one for one in servers if one.get("url") != of_server["url"]]
    if others:
        print_drawn(show.others(others))


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
    return scaled(value, SECONDS)
