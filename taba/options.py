"""Options of the services: one definition each, from which parsing, `--help`, environment and messages follow.

1. An option on the command line stands over its environment variable, which stands over the default.
2. Wrong configuration ends the process with one line on standard error that names the option, the value and what it takes.
3. A definition's `parse` turns text into a value and raises ValueError with what the option takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from twisted.python import usage

from taba import names
from taba.bounds import KiB, MiB, size_of
from taba.errors import ConfigurationError

MAX_KEPT_HOSTS, MAX_KEPT_HOST = 256, 64  # hosts of which is remembered whether they are this one, and characters of one


class Option(NamedTuple):
    """One option of a service. `default` is text, parsed like any other; a repeatable one's environment variable is comma-separated."""

    name: str
    default: str
    help: str
    parse: Callable[[str], Any]
    repeatable: bool = False
    variable: str | None = None  # the environment variable, where it is not PREFIX_NAME
    is_flag: bool = False  # given without a value; in the environment 1 or 0


class Listen(NamedTuple):
    """Where a service listens: an endpoint's text as Twisted reads it, and what was in it."""

    text: str
    port: int | None  # None for a unix socket
    interface: str

    @property
    def is_local(self) -> bool:
        """Whether nobody off this host can connect."""
        return self.port is None or is_loopback(self.interface)


class ServiceOptions(usage.Options):
    """The base of a service's options: subclasses name `program`, `prefix` and `definitions`.

    After `parseOptions` every definition has its parsed value under its name.
    """

    program: ClassVar[str]
    prefix: ClassVar[str]
    definitions: ClassVar[tuple[Option, ...]] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for option in cls.definitions:
            setattr(cls, "opt_" + option.name.replace("-", "_"), _collector(cls, option))

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.environ = os.environ if environ is None else environ
        self.given: dict[str, list[str]] = {}

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse the command line. Exits with one line for what is wrong."""
        try:
            super().parseOptions(options)
        except (usage.UsageError, ConfigurationError) as error:
            line = " ".join(str(error).split())
            raise SystemExit(f"{self.program}: {line}") from None

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"{arguments[0]!r}: {self.program} takes options only (see --help)")

    def postOptions(self) -> None:
        parent = getattr(self, "parent", None)
        if parent is not None and parent.get("nodaemon") and parent.get("pidfile") == "twistd.pid":
            parent["pidfile"] = ""  # in the foreground nobody needs it, and a Server and an Agent may start in one directory
        for option in self.definitions:
            self[option.name] = self._value(option)

    def as_environment(self) -> dict[str, str]:
        """The variables that say to a process of the same program what was given on this command line."""
        by_name = {option.name: option for option in self.definitions}
        return {
            variable_of(self.prefix, by_name[name]): ",".join(texts if by_name[name].repeatable else texts[-1:])
            for name, texts in self.given.items()
        }

    def _value(self, option: Option) -> Any:
        source, texts = "--" + option.name, self.given.get(option.name)
        if texts is None:
            variable = variable_of(self.prefix, option)
            if self.environ.get(variable):
                source, texts = variable, [self.environ[variable]]
                if option.repeatable:
                    texts = [text.strip() for text in texts[0].split(",")]
            else:
                texts = [option.default] if option.default else []
        values = []
        for text in texts:
            try:
                values.append(option.parse(text))
            except ConfigurationError as error:  # of a parser that shows less than `text`, which may hold a password
                raise ConfigurationError(source, error.value, error.takes) from None
            except ValueError as error:
                # where the rule itself names the value, once is enough
                raise ConfigurationError(source, text, str(error).rpartition(f"{text!r}: ")[2]) from None
        return values if option.repeatable else values[-1] if values else None


def variable_of(prefix: str, option: Option) -> str:
    """The environment variable of an option."""
    return option.variable or prefix + option.name.upper().replace("-", "_")


def _collector(cls: type[ServiceOptions], option: Option) -> Callable[..., None]:
    def collect(self: ServiceOptions, text: str) -> None:
        self.given.setdefault(option.name, []).append(text)

    def note(self: ServiceOptions) -> None:
        self.given[option.name] = ["1"]

    default = f", default {option.default}" if option.default else ""
    chosen: Callable[..., None] = note if option.is_flag else collect
    chosen.__doc__ = f"{option.help} [{variable_of(cls.prefix, option)}{default}]"
    return chosen


def state_directory(environ: Mapping[str, str]) -> Path:
    """Where a service keeps what outlives it: $STATE_DIRECTORY (systemd), else $XDG_STATE_HOME/taba, else ~/.local/state/taba."""
    return _state_directory(environ)[1]


def checked_state_directory(environ: Mapping[str, str]) -> Path:
    """The state directory, which may have to be made yet. Raises ConfigurationError, naming the variable, where it cannot be one."""
    variable, path = _state_directory(environ)
    if not path.is_absolute():
        raise ConfigurationError(variable, environ.get(variable, ""), "takes an absolute path")
    there = path
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "not to be written to" if there.is_dir() else "no directory"
        raise ConfigurationError(variable, environ.get(variable, ""), f"takes a directory to write to; {there} is {why}")
    return path


def _state_directory(environ: Mapping[str, str]) -> tuple[str, Path]:
    if environ.get("STATE_DIRECTORY"):
        return "STATE_DIRECTORY", Path(environ["STATE_DIRECTORY"].split(":")[0])
    if environ.get("XDG_STATE_HOME"):
        return "XDG_STATE_HOME", Path(environ["XDG_STATE_HOME"], "taba")
    return "HOME", Path(environ.get("HOME") or os.path.expanduser("~"), ".local", "state", "taba")


def is_loopback(host: str) -> bool:
    """Whether `host`, a literal address or a host name, is this host alone."""
    return (_kept_loopback if len(host) <= MAX_KEPT_HOST else _is_loopback)(host)


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


_kept_loopback = lru_cache(MAX_KEPT_HOSTS)(_is_loopback)  # each request asks it twice


# --- parsers that several options share ---


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers in `least` … `most`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"takes a whole number from {least} to {most}")
        return int(text)

    return parse


def duration(least: int, most: int) -> Callable[[str], float]:
    """A parser of times: a whole number with s, m, h or d, in `least` … `most` seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

    def parse(text: str) -> float:
        digits, unit = text[:-1], text[-1:]
        if not digits.isascii() or not digits.isdigit() or unit not in units or not least <= int(digits) * units[unit] <= most:
            raise ValueError(f"takes a whole number with s, m, h or d, from {least}s to {most // units['d']}d; for example 30d")
        return float(int(digits) * units[unit])

    return parse


def byte_count(least: int, most: int) -> Callable[[str], int]:
    """A parser of sizes: bytes, or a whole number with K, M or G, in `least` … `most` bytes."""

    def parse(text: str) -> int:
        size = size_of(text)
        if size is None or not least <= size <= most:
            example = shown_bytes(min(most, 16 * least))
            raise ValueError(f"takes bytes, or KiB, MiB or GiB, from {shown_bytes(least)} to {shown_bytes(most)}; for example {example}")
        return size

    return parse


def shown_bytes(count: int) -> str:
    """A number of bytes in the largest unit that says it whole: 1048576 as 1 MiB."""
    for size, unit in ((1024 * MiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if count >= size and not count % size:
            return f"{count // size} {unit}"
    return str(count)


def http_url(text: str) -> str:
    """A parser of a Server's base URL; without a slash at the end. `host:port` is one of http."""
    takes = "takes a URL such as http://127.0.0.1:8280"
    try:
        if names.HOST_AND_PORT.fullmatch(text):
            text = f"http://{text}"
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(takes) from None
    bare = not parts.query and not parts.fragment and parts.path in ("", "/") and parts.username is None
    if parts.scheme not in ("http", "https") or not parts.hostname or not bare or port == 0 or any(c.isspace() for c in text):
        raise ValueError(takes)
    return f"{parts.scheme}://{parts.netloc}"


def listen(text: str) -> Listen:
    """A parser of a Twisted server endpoint, `tcp:PORT[:interface=ADDRESS]`, `tcp6:…` or `unix:PATH`."""
    takes = "is no endpoint that this takes; for example tcp:8300:interface=127.0.0.1 or unix:/run/taba.sock"
    scheme, *fields = text.replace("\\:", "\0").split(":")
    fields = [field.replace("\0", ":") for field in fields]
    named = dict(field.split("=", 1) for field in fields if "=" in field)
    plain = [field for field in fields if "=" not in field]
    if scheme in ("tcp", "tcp6") and re.search(r"interface=[^:\\]*:.*:", text):
        raise ValueError(r"has an IPv6 address whose colons are not escaped; for example tcp6:8300:interface=\:\:1")
    place = "address" if scheme == "unix" else "port"
    if len(plain) + (place in named) > 1 or not set(named) <= {place, "backlog", "mode" if scheme == "unix" else "interface"}:
        raise ValueError(takes)
    if not re.fullmatch("[0-9]{1,5}", named.get("backlog", "50")):
        raise ValueError(takes)
    first = plain[0] if plain else named.get(place, "")
    if scheme == "unix":
        if not first.startswith("/") or "\0" in text or not re.fullmatch("0?[0-7]{3}", named.get("mode", "600")):
            raise ValueError(takes)
        return Listen(text if "mode" in named else f"{text}:mode=600", None, "")
    if scheme not in ("tcp", "tcp6") or not first.isascii() or not first.isdigit() or int(first) > 65_535:
        raise ValueError(takes)
    interface = named.get("interface", "::" if scheme == "tcp6" else "0.0.0.0")
    try:
        ip_address(interface)
    except ValueError:
        if interface != "localhost":
            raise ValueError(takes) from None
    return Listen(text, int(first), interface)


def file_path(text: str) -> Path:
    """A parser of a file's path; whoever opens it says what is wrong with it."""
    if not text or "\0" in text:
        raise ValueError("takes a file")
    return Path(text).expanduser().absolute()


def yes_or_no(text: str) -> bool:
    """A parser of what a flag's environment variable may say."""
    if text not in ("0", "1"):
        raise ValueError("takes 1 or 0")
    return text == "1"
