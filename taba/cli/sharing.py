"""What all commands that ask a Server share: their options, and how answers are printed."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import click
from rich.console import Console, RenderableType

from taba.query import questions

FILE_WIDTH = 200  # columns where nobody knows how wide the reader is

SERVER = click.option(
    "--server",
    "-s",
    envvar="TABA_SERVER",
    default=questions.DEFAULT_SERVER,
    show_default=True,
    show_envvar=True,
    metavar="URL",
    help="Any one Server.",
)
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
