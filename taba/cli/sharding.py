"""`taba shards`, `taba reshard`, `taba check`: which shard has what, and moving it while everything runs.

The last two speak to the store itself: its addresses come from a Server, which never tells passwords, or from --store.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from taba import versions
from taba.bounds import MAX_BUCKETS, MiB
from taba.cli import show
from taba.cli.sharing import AS_JSON, FORMATS, SERVER, TIMEOUT, Number, command_with, form, print_drawn, print_json, print_rows, query_of
from taba.clocks import make_monotonic
from taba.errors import StoreUnavailable, TabaError
from taba.installing import install_hint
from taba.plural import many
from taba.query import QueryError, questions

if TYPE_CHECKING:
    from taba.shard.moving.plan import Move
    from taba.shard.moving.reshard import Progress, Reshard
    from taba.shard.router import Router
    from taba.shard.servers.url import StoreURL

T = TypeVar("T")

CONNECT_SECONDS = 5.0  # for the store to be reached; a person waits
UNDO_SECONDS = 5.0  # after Ctrl-C, for what is under way to be undone; what is not by then, Servers undo
USES_SECONDS = 5.0  # over which uses of buckets are counted; a Server that starts in it counts with all it did
STORE = click.option(
    "--store",
    envvar="TABA_SERVER_STORE",
    metavar="URL",
    help="The store, with user and password where it has one.  [default: what the Server says]",
)


_command = command_with(SERVER, TIMEOUT, AS_JSON)


@click.command("shards", epilog="\b\nExamples:\n  taba shards\n  taba shards --json")
@SERVER
@FORMATS
@TIMEOUT
def shards(server: str, timeout: float, as_json: bool) -> None:
    """The shards of the store: buckets, keys, bytes of memory and operations per second of each."""
    answer = query_of(server, timeout=timeout).shards()
    if as_json:
        print_json(answer)
        return
    columns = ["name", "url", "buckets", "keys", "bytes", "ops"]
    if form() is not None:
        print_rows(columns, ([shard.get(column) for column in columns] for shard in answer))
        return
    if sys.stdout.isatty():
        print_drawn(
            show.table(
                ["shard", *columns[1:-1], "ops/s"], ([show.figure("", shard.get(column), column) for column in columns] for shard in answer)
            )
        )
    else:
        for shard in answer:
            print(
                show.plain(f"{shard['name']}: {shard['url']} ")
                + " ".join(f"{column}={_plain(shard.get(column))}" for column in columns[2:])
            )


@_command(
    "reshard",
    "  taba reshard --add redis://10.0.0.7:6379\n  taba reshard --drain s2 --rate 50\n  taba reshard --rebalance --by bytes --dry-run\n"
    "  taba reshard --abort",
)
@click.option("--add", multiple=True, metavar="URL", help="Make this server a shard and give it its part; repeatable.")
@click.option("--drain", metavar="SHARD", help="Move everything off this shard, then forget it.")
@click.option("--rebalance", is_flag=True, help="Even out the shards that are there.")
@click.option("--by", type=click.Choice(["buckets", "bytes", "ops"]), default="buckets", show_default=True, help="What is to be even.")
@click.option("--abort", is_flag=True, help="Undo moves that were left half-done; what has moved stays.")
@click.option("--dry-run", is_flag=True, help="Say what would move, and move nothing.")
@click.option("--rate", type=Number(0.01), metavar="MIB_PER_S", help="Copy no faster than this.")
@click.option("--without-replicas", is_flag=True, help="Move also where masters behind sentinels write what no replica has.")
@click.option("--yes", is_flag=True, help="Do not ask. Nothing is asked where standard input is no terminal.")
@STORE
def reshard(server: str, timeout: float, as_json: bool, store: str | None, **options: Any) -> None:
    """Move buckets between shards while events flow and questions are answered.

    A call that was stopped or killed is repeated: it goes on where it was. Several at once share the work.
    """
    chosen = [name for name in ("add", "drain", "rebalance", "abort") if options[name]]
    if len(chosen) != 1:
        raise click.UsageError("takes one of --add, --drain, --rebalance and --abort")
    if options["by"] != "buckets" and not options["rebalance"]:
        raise click.UsageError("--by goes with --rebalance")
    if options["abort"] and options["dry_run"]:
        raise click.UsageError("--abort and --dry-run exclude each other")
    url = _store(server, timeout, store)
    options["uses"] = _uses(server, timeout) if options["by"] == "ops" else None
    if options["dry_run"]:
        _show_plan(_on_store(url, lambda router, reactor: _plan(router, reactor, options)), as_json)
        return
    with _Bar() as bar:
        done = _on_store(url, lambda router, reactor: _carry_out(router, reactor, options, bar))
    if done is not None:
        _show_done(done, as_json)


@_command("check", "  taba check\n  taba check --repair")
@click.option("--repair", is_flag=True, help="Mend what can be mended; no content is removed.")
@STORE
@click.pass_context
def check(context: click.Context, server: str, timeout: float, as_json: bool, store: str | None, repair: bool) -> None:
    """Whether the maps and owner keys on all shards agree. Exit code 1 when they do not, unless --repair has mended it."""
    url = _store(server, timeout, store)

    async def look(router: Router, reactor: Any) -> tuple[list[Any], list[Any]]:
        from taba.shard.moving.check import check as check_store
        from taba.shard.moving.reshard import current_shards

        signs = router.atlas.standing
        wrong = await check_store(await current_shards(router.atlas), reactor, repair, signs)
        return wrong, await check_store(await current_shards(router.atlas), reactor, False, signs) if repair and wrong else wrong

    wrong, left = _on_store(url, look)
    if as_json:
        print_json([one.text for one in left])
    else:
        for line in _found_lines([one.text for one in wrong], [one.text for one in left]):
            print(line)
    if left:
        context.exit(1)


def _found_lines(wrong: Sequence[str], left: Sequence[str]) -> list[str]:
    """For people, what was wrong and whether it is mended, and what is left: that may be what has come to light since."""
    lines = [text if text in left else f"{text}: mended" for text in wrong] + [text for text in left if text not in wrong]
    return list(dict.fromkeys(lines)) or ["all maps and owner keys agree"]


@click.command("store", epilog="\b\nExamples:\n  taba store\n  taba store --accept\n  taba store --upgrade")
@SERVER
@TIMEOUT
@click.option("--accept", is_flag=True, help="The store behind the address follows the one that was served until now.")
@click.option("--upgrade", is_flag=True, help="Write it in the latest version that all Servers read; older ones are refused then.")
@click.option("--succeeds", multiple=True, metavar="ID", help="Also that one; repeatable. A Server that does not run names it as it ends.")
@click.option("--buckets", type=click.IntRange(1, MAX_BUCKETS), help="Of a store that is new; by default as many as the Server has.")
@STORE
def store(
    server: str, timeout: float, accept: bool, upgrade: bool, succeeds: tuple[str, ...], buckets: int | None, store: str | None
) -> None:
    """Which store is served; or, with --accept, that another one is meant from now on. Servers and Agents follow by themselves."""
    if upgrade:
        _upgrade(server, timeout, store)
        return
    try:
        from taba.options import state_directory
        from taba.pins import read_pins
        from taba.shard.servers.url import parse_store
    except ModuleNotFoundError as error:
        raise click.ClickException(f"this command needs {error.name}; install it with: {install_hint('server', 'cli')}") from None
    told = _told(server, timeout, store)
    if not accept:
        print(f"{told.get('pinned') or told.get('id') or 'not known'}: {told.get('url')}")
        return
    pinned = [told["pinned"]] if told.get("pinned") else [pin.store for pin in read_pins(state_directory(os.environ)).values()]
    ids = list(dict.fromkeys([*succeeds, *pinned]))
    if not ids:
        raise click.ClickException("nobody here knows which store was served until now; give its id: --succeeds ID")
    url = parse_store(store or told["url"], "--store")
    if url.is_embedded:
        raise click.ClickException("--store: takes the address of a store that runs; an embedded one is new where its directory is")

    async def succeed(router: Router, reactor: Any) -> str:
        from taba.shard.maps import succeed as write

        await write(list(router.atlas.by_name.values()), [one for one in ids if one != router.store_id])
        return router.store_id

    # what is made anew has as many as there were: Agents encode for that number
    wanted = buckets or told.get("buckets")
    print(f"store {_on_store(url, succeed, may_make=True, buckets=wanted)} follows {', '.join(ids)}")


def _upgrade(server: str, timeout: float, store: str | None) -> None:
    query = query_of(server, timeout=timeout)
    listed = query.ask(questions.servers())
    urls = [one["url"] for one in listed] or [server]
    if not all(one.get("complete", True) for one in listed):
        raise click.ClickException("the store is away from the Server: not all Servers are known")
    try:
        reads = [(one["url"], versions.read_told(one)) for one in listed] or [(server, versions.read_told(query.status()))]
    except ValueError as error:
        raise click.ClickException(f"what a Server reads is not known: {error}") from None

    async def raise_version(router: Router, reactor: Any) -> tuple[int, int]:
        from taba.shard.maps import newest_map
        from taba.shard.maps import raise_version as write
        from taba.shard.moving.reshard import current_shards

        pools = await current_shards(router.atlas)
        now = (await newest_map(list(pools.values()))).version
        try:
            wanted = versions.raised(versions.HERE, reads, now)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        try:
            await write(pools, wanted)  # also where the map says so already: whoever raised it may have been ended before the records did
        except StoreUnavailable as error:
            half = f"not all of the store says version {wanted} ({error}), and what says so already stays"
            raise click.ClickException(f"{half}: run this again, which finishes it") from None
        return now, wanted

    now, wanted = _on_store(_store(server, timeout, store), raise_version)
    print(f"written in version {wanted}, the latest that all {len(urls)} Servers read" + ("" if wanted > now else ": nothing to do"))
    left: list[str] = []
    for url in urls:
        try:
            query_of(url, timeout=timeout).shards()  # it looks at the map for that
        except QueryError as error:
            left.append(f"{url} ({error})")
    if left:
        raise click.ClickException(
            f"{len(left)} of {len(urls)} Servers did not hear of version {wanted}: {'; '.join(left)}. The store says it all the same."
            " Where such a Server still runs it writes as before until it looks at the store's map: restart it, or run this again where"
            " it can be asked"
        )


def _told(server: str, timeout: float, store: str | None) -> dict[str, Any]:
    """What the Server says of its store; nothing where it does not run and `store` is named."""
    try:
        found: dict[str, Any] = query_of(server, timeout=timeout).status()["store"]
        return found
    except QueryError:
        if store is None:
            raise
        return {}


COMMANDS = (shards, reshard, check, store)


# --- the store ---


def _store(server: str, timeout: float, store: str | None) -> StoreURL:
    try:
        from taba.shard.servers.url import StoreURL, parse_store
    except ModuleNotFoundError as error:
        raise click.ClickException(f"this command needs {error.name}; install it with: {install_hint('server', 'cli')}") from None
    try:
        if store is None:
            told = query_of(server, timeout=timeout).status()["store"]["url"]
            if told.startswith(("redis+", "rediss+")):  # sentinels, or a Cluster: its nodes are no shards
                return parse_store(told, "--store")
            urls = dict.fromkeys(shard["url"] for shard in query_of(server, timeout=timeout).shards())
            return StoreURL(tuple(parse_store(url, "--store").addresses[0] for url in urls))
        found = parse_store(store, "--store")
    except TabaError as error:
        raise click.ClickException(str(error)) from None
    if found.is_embedded:
        raise click.ClickException("--store: takes the address of a store that runs; without it the Server is asked")
    return found


def _uses(server: str, timeout: float) -> dict[int, float]:
    """How often all Servers together use each bucket, counted over some seconds."""

    def look() -> Counter[int]:
        found: Counter[int] = Counter()
        for one in query_of(server, timeout=timeout).ask(questions.servers()) or [{"url": server}]:
            for shard in query_of(one["url"], timeout=timeout).shards(detail=True):
                found.update({int(bucket): uses for bucket, uses in shard["uses"].items()})
        return found

    before = look()
    time.sleep(USES_SECONDS)
    after = look()
    return {bucket: float(after[bucket] - before[bucket]) for bucket in after}


def _on_store(
    url: StoreURL, work: Callable[[Router, Any], Coroutine[Any, Any, T]], may_make: bool = False, buckets: int | None = None
) -> T:
    """Run `work` with a Router that is connected to the store, in this process's reactor, which runs once."""
    try:
        from twisted.internet import reactor
        from twisted.internet.defer import CancelledError, Deferred, TimeoutError
        from twisted.python.failure import Failure

        from taba.shard.router import Router
    except ModuleNotFoundError as error:
        raise click.ClickException(f"this command needs {error.name}; install it with: {install_hint('server', 'cli')}") from None
    outcome: list[Any] = []
    running: Any = reactor
    make_monotonic(running)

    async def run() -> T:
        router = Router(url, buckets, reactor, may_make=may_make)
        try:
            connecting = Deferred.fromCoroutine(router.connect())
            connecting.addTimeout(CONNECT_SECONDS, running)
            try:
                await connecting
            except TimeoutError:
                raise click.ClickException(next(iter(router.problems), f"{url.text}: not reached")) from None
            return await work(router, reactor)
        finally:
            await router.close()

    def start() -> None:
        done: Deferred[Any] = Deferred.fromCoroutine(run())
        done.addBoth(outcome.append)

        def stop(_: Any) -> None:
            if running.running:
                running.stop()

        def interrupt() -> Any:
            if outcome:
                return None
            ended: Deferred[None] = Deferred()
            done.addBoth(lambda _: ended.callback(None))
            done.cancel()
            return ended

        running.addSystemEventTrigger("before", "shutdown", interrupt)
        done.addBoth(stop)

    running.callWhenRunning(start)
    running.run()
    [result] = outcome
    if isinstance(result, Failure):
        if result.check(CancelledError):
            raise click.Abort
        if result.check(TabaError):
            raise click.ClickException(str(result.value))
        result.raiseException()
    return result  # type: ignore[no-any-return]


async def _plan(router: Router, reactor: Any, options: dict[str, Any]) -> list[Move]:
    from taba.shard.moving.reshard import Reshard

    return await _start(Reshard(router.atlas, reactor), options, True)


async def _carry_out(router: Router, reactor: Any, options: dict[str, Any], bar: _Bar) -> Reshard | None:
    from twisted.internet.defer import CancelledError, Deferred, TimeoutError

    from taba.shard.moving.reshard import Reshard

    if sys.stdin.isatty() and not options["yes"] and not options["abort"]:
        planned = await _plan(router, reactor, options)
        _show_plan(planned, False)
        if planned:
            _confirm()
    rate = options["rate"] * MiB if options["rate"] else None
    work = Reshard(router.atlas, reactor, rate, bar.start(), without_replicas=options["without_replicas"])
    try:
        if options["abort"]:
            await work.abort()
        else:
            await _start(work, options, False)
        return work
    except CancelledError:
        # Ctrl-C: no bucket is left sealed behind
        undoing = Deferred.fromCoroutine(work.give_up())
        undoing.addTimeout(UNDO_SECONDS, reactor)
        try:
            await undoing
        except (TimeoutError, TabaError) as error:
            click.echo(f"not all could be undone at once ({error or 'no time left'}): taba reshard --abort, or the Servers do it", err=True)
        raise
    finally:
        await work.close()


async def _start(work: Reshard, options: dict[str, Any], is_dry: bool) -> list[Move]:
    from taba.shard.servers.url import parse_store

    if options["add"]:
        return await work.add([address for url in options["add"] for address in parse_store(url, "--add").addresses], is_dry)
    if options["drain"]:
        return await work.drain(options["drain"], is_dry)
    if options["by"] == "bytes":
        return await work.rebalance(await work.sizes(), is_dry)
    return await work.rebalance(options["uses"], is_dry)


def _confirm() -> None:
    # the reactor has its own handler for Ctrl-C, which waits until we are back
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        click.confirm("Move them?", abort=True, err=True)
    finally:
        signal.signal(signal.SIGINT, before)


# --- what is shown ---


class _Bar:
    """A bar on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def start(self) -> Callable[[Progress], None] | None:
        """Show it; what to call with each step of the way."""
        console = Console(stderr=True)
        if not console.is_terminal:
            return None
        columns = (TextColumn("buckets"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[copied]}"), TimeRemainingColumn())
        bar = self._bar = Bar(*columns, console=console)
        bar.start()
        task = bar.add_task("buckets", total=None, copied="")

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total or None, copied=f"{progress.bytes / MiB:,.1f} MiB")

        return report

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _show_plan(moves: Sequence[Move], as_json: bool) -> None:
    if as_json:
        print_json([move._asdict() for move in moves])
        return
    for (source, target), count in sorted(Counter((move.source, move.target) for move in moves).items()):
        print(f"{many(count, 'bucket moves', 'buckets move')} from {source} to {target}")
    if not moves:
        print("nothing is to be moved")


def _show_done(work: Reshard, as_json: bool) -> None:
    counts = Counter(moved.how for moved in work.moved)
    copied = sum(moved.bytes for moved in work.moved)
    if as_json:
        print_json({**{how: counts[how] for how in ("moved", "finished", "undone")}, "bytes": copied})
        return
    words = [f"{counts[how]} {how}" for how in ("moved", "finished", "undone") if counts[how]]
    print(f"buckets: {', '.join(words)}; {copied / MiB:,.1f} MiB copied" if words else "nothing was to be moved")


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)
