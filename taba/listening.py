"""Listening: what it takes to be reached, from this host and from others, and what is read again on SIGHUP.

1. Nobody listens off loopback without tokens, nor without TLS or an explicit --insecure. On loopback all of it may be given too.
2. A unix socket is its owner's alone unless `mode=` says otherwise.
3. SIGHUP reads tokens and certificates again; what is wrong in them is a problem, and what was read before stays.
4. What a process begins with is none of the garbage collector's business.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from errno import EADDRINUSE
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from taba.bounds import MiB
from taba.descriptors import Descriptors, wait_for_room
from taba.directories import own_alone
from taba.errors import ConfigurationError
from taba.guard import Guard, TokenFile
from taba.installing import install_hint
from taba.options import Listen, Option, ServiceOptions, file_path, yes_or_no

COLLECT_SECONDS = 2.0  # between two looks whether it is quiet
QUIET_SECONDS = 0.5
NEVER = 1_000_000_000  # young collections before a full one: Python begins none by itself
# a cycle over many buckets makes some thousands of objects, which are gone by their counts of references, and several are under way: looked
# through each 700, as Python does, they were a tenth of the processor's time, each 10,000 still 7 %. So many take 3 ms, and what is left of
# three of these some 9
YOUNG_OBJECTS = 30_000
YOUNG_COLLECTIONS = 2
MOST_YOUNG_COLLECTIONS = 2  # after which what is left of them is left alone although it is not quiet: some 200,000 objects, 20 MB
MOST_GROWN_BYTES = 512 * MiB  # by which memory grew since all was looked through, which takes 0.1 s of a million objects
MOST_ENDED_BYTES = 128 * MiB  # … where so much may be of connections that are gone, the likeliest garbage
MOST_GROWN_SHARE = 4  # … and neither is more than this part of the memory that the process may have
ENDED_BYTES = 75 * 1024  # of one with TLS: 50 objects in cycles
FEW_BYTES = 160 * MiB  # of a process of which all is looked through in 50 ms …
LOOK_SECONDS = 600.0  # … as often as this
MAX_DESCRIPTORS = 8192  # a ring takes one, and so does a connection

LISTENING_OPTIONS = (
    Option("tokens", "", "File with the tokens that are taken, as `taba token new` makes them; needed off loopback.", file_path),
    Option("insecure", "", "Listen off loopback without TLS: for all to read on the way.", yes_or_no, is_flag=True),
    Option("tls-cert", "", "File with this side's certificate and its chain, as PEM: listen with TLS.", file_path),
    Option("tls-key", "", "File with the certificate's key.", file_path),
    Option("tls-ca", "", "File with the authorities whose client certificates are taken: ask each peer for one.", file_path),
)

log = Logger()


class Front(NamedTuple):
    """What strangers meet: the endpoint, who is let in, and TLS, which is a ListeningTls or None."""

    listen: Listen
    guard: Guard
    tls: Any = None

    def url(self, port: int) -> str:
        """How this endpoint is reached at `port`, by whoever can resolve this host's name."""
        host = self.listen.interface
        if host in ("0.0.0.0", "::"):
            host = socket.getfqdn()
        return f"http{'s' if self.tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def front_of(options: ServiceOptions, seconds: Callable[[], float]) -> Front:
    """The front that the LISTENING_OPTIONS and --listen describe. Raises ConfigurationError. `seconds` is a monotonic clock."""
    listen: Listen = options["listen"]
    tls = None
    if options["tls-cert"] is not None:
        tls = _listening_tls(options["tls-cert"], options["tls-key"] or options["tls-cert"], options["tls-ca"])
    for option in ("tls-key", "tls-ca"):
        if options[option] is not None and tls is None:
            raise ConfigurationError(f"--{option}", str(options[option]), "takes --tls-cert beside it")
    if not listen.is_local:
        if options["tokens"] is None:
            takes = "listens off loopback, which takes --tokens FILE (make one with: taba token new)"
            raise ConfigurationError("--listen", listen.text, takes)
        if tls is None and not options["insecure"]:
            takes = "listens off loopback, which takes --tls-cert FILE and --tls-key FILE, or --insecure"
            raise ConfigurationError("--listen", listen.text, takes)
    tokens = None if options["tokens"] is None else TokenFile(options["tokens"])
    return Front(listen, Guard(tokens, tls, listen, seconds), tls)


async def listen_at(front: Front, site: Any, reactor: Any, descriptors: Descriptors) -> Any:
    """The listening port, at which newcomers wait while there are no `descriptors`. Raises ConfigurationError where nobody can listen."""
    factory = site
    if front.tls is not None:
        from twisted.protocols.tls import TLSMemoryBIOFactory

        factory = TLSMemoryBIOFactory(front.tls, False, site, reactor)
    try:
        with own_alone():  # a socket of a file, too, has its mode only after it can be reached
            listening = serverFromString(reactor, front.listen.text).listen(factory)
        port = await listening
    except (CannotListenError, OSError, ValueError) as failure:
        reason = getattr(failure, "socketError", failure)
        is_taken = isinstance(failure, CannotListenError) and getattr(reason, "errno", EADDRINUSE) == EADDRINUSE
        # in Twisted's words a socket's missing directory is a link to this process's number
        why = reason if is_taken else getattr(reason, "strerror", None) or reason
        takes = f"takes an endpoint that is {'free' if is_taken else 'to be had here'}: {why}"
        raise ConfigurationError("--listen", front.listen.text, takes) from None
    wait_for_room(port, reactor, descriptors)
    return port


def on_hangup(reactor: Any, reload: Callable[[], list[str]]) -> None:
    """Have SIGHUP call `reload`, in the reactor, and log what it finds wrong. To be called in the main thread."""

    def read_again() -> None:
        problems = reload()
        for problem in problems:
            log.error("{problem}", problem=problem)
        if not problems:
            log.info("SIGHUP: tokens and certificates are read again")

    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(read_again))


def raise_descriptor_limit() -> int:
    """Have this process open as many files and connections as it may, MAX_DESCRIPTORS at the most; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def _listening_tls(certificate: Path, key: Path, authorities: Path | None) -> Any:
    try:
        from taba.tls import ListeningTls, TlsFiles
    except ImportError as error:
        raise ConfigurationError("--tls-cert", str(certificate), f"takes {error.name}: {install_hint('server')}") from None
    return ListeningTls(TlsFiles(certificate, key, authorities))


def resident_bytes() -> int:
    """Memory that this process has of its host now."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read(200).split()[1]) * resource.getpagesize()


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may have: its host's, or less where a control group (a container, a service; of version 1, 2 or both) or
    one around it says so. `root` is where /proc and what it names lie."""
    least = os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return least
    for group in groups:
        number, _, rest = group.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "memory" not in controllers.split(","):
            continue
        kind, limit = ("cgroup2", "memory.max") if number == "0" else ("cgroup", "memory.limit_in_bytes")
        for mount in mounts:
            where, _, what = mount.partition(" - ")
            around, kinds = where.split(" "), what.split(" ")
            if len(around) < 5 or len(kinds) < 3:
                continue
            top, point, found, options = around[3], around[4], kinds[0], kinds[-1]
            if found != kind or (kind == "cgroup" and "memory" not in options.split(",")):
                continue
            # a container's own group is the top of what is mounted there; where it is not told by that name, the top is what it has
            below = PurePosixPath(path)
            parts = below.relative_to(top).parts if below.is_relative_to(top) and ".." not in below.parts else ()
            for depth in range(len(parts) + 1):
                with suppress(OSError, ValueError):  # none of its own, or "max"
                    least = min(least, int(root.joinpath(point[1:], *parts[:depth], limit).read_text()))
    return least


def freeze_when_running(reactor: Any, quiet_seconds: Callable[[], float] | None = None, ended: Callable[[], int] = lambda: 0) -> None:
    """Have the garbage collector leave alone what lives for as long as the process does: modules, classes, Handlers.

    Its full collections, which many small lists and dictionaries cause, would look through all of it each time, for tens of milliseconds.
    With `quiet_seconds`, for how long nothing has taken long, Python begins none by itself, and what else has come to live long is left
    alone likewise, when that is QUIET_SECONDS, or after MOST_YOUNG_COLLECTIONS: else what a large request is made of would be looked
    through while it is there, and what is kept for the next, for hundreds of milliseconds. Then what was left alone and is garbage now goes
    only where all is looked through, however long that takes: once memory has grown by MOST_GROWN_BYTES, or by MOST_ENDED_BYTES which as
    many connections may have had as are gone, by `ended` since ever; by less where there is little (MOST_GROWN_SHARE). A process that is
    small enough has that done after LOOK_SECONDS, too.

    Where the collector is incremental (3.14), it begins no full collections, the third threshold is always 0, and the second says how
    slowly what is old is looked through: it stays Python's own, of which 2 would be five times as much at a time. What comes to live long
    there is looked through in small increments, and left alone when it is quiet.
    """
    is_incremental = gc.get_threshold()[2] == 0
    known_bytes = known_ended = 0  # of when all was looked through
    since = 0.0
    most_grown = min(MOST_GROWN_BYTES, memory_bytes() // MOST_GROWN_SHARE)
    most_ended = min(MOST_ENDED_BYTES, most_grown)

    def freeze() -> None:
        nonlocal known_bytes, known_ended, since
        gc.collect()
        gc.freeze()
        with suppress(OSError):  # no descriptor is to be had just now: what was known before stands
            known_bytes = resident_bytes()
        known_ended, since = ended(), reactor.seconds()

    def must_look(is_quiet: bool) -> bool:
        try:
            has = resident_bytes()
        except OSError:
            return False  # no descriptor is to be had just now: looked at again in a moment
        grown = has - known_bytes
        if not is_quiet:
            return grown > 2 * most_grown  # nobody waits for a quiet moment until there is no memory
        of_ended = min(grown, ENDED_BYTES * (ended() - known_ended))
        is_old = has <= FEW_BYTES and reactor.seconds() - since >= LOOK_SECONDS
        return is_old or grown > most_grown or of_ended > most_ended

    def begin() -> None:
        freeze()
        if quiet_seconds is not None:
            if is_incremental:
                gc.set_threshold(YOUNG_OBJECTS, gc.get_threshold()[1])
            else:
                gc.set_threshold(YOUNG_OBJECTS, YOUNG_COLLECTIONS, NEVER)
            reactor.callLater(COLLECT_SECONDS, collect)

    def collect() -> None:
        is_quiet = quiet_seconds is None or quiet_seconds() >= QUIET_SECONDS
        if is_quiet or (not is_incremental and gc.get_count()[2] >= MOST_YOUNG_COLLECTIONS):
            gc.collect(1)  # what is young: cycles of connections and failures mostly go here
            gc.freeze()
        if must_look(is_quiet):
            gc.unfreeze()
            freeze()
        reactor.callLater(COLLECT_SECONDS, collect)

    reactor.callWhenRunning(begin)
