"""What all commands that ask a Server share: their options, and how answers are printed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType

from taba.query import Query, questions

FILE_WIDTH = 200  # columns where nobody knows how wide the reader is

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


def query_of(url: str, *, timeout: float, role: str = "Server") -> Query:
    """Asks the Server or Agent there, with what this command was told to show."""
    return Query(url, timeout=timeout, role=role, **click.get_current_context().meta.get(_SHOWN, {}))


TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0.01, 3600),
    default=questions.DEFAULT_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")


def print_json(content: Any) -> None:
    """One JSON document: indented for people."""
    print(json.dumps(content, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def print_drawn(drawn: RenderableType) -> None:
    """What rich has drawn: with colours on a terminal, as plain lines elsewhere."""
    if sys.stdout.isatty():
        Console(highlight=False).print(drawn)
        return
    out = io.StringIO()
    Console(file=out, highlight=False, width=FILE_WIDTH).print(drawn)
    for line in out.getvalue().splitlines():
        print(line.rstrip())
