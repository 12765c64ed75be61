"""A store that became another: never adopted, never made anew unasked; what a person says is followed without a restart."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from taba import versions
from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard import initialise, reading
from taba.shard import router as router_module
from taba.shard.buckets import MAP_KEY, STORE_KEY, StoreRecord, decode_map, decode_record, prefix_of, with_version
from taba.shard.maps import change_map, raise_version, succeed
from taba.shard.router import Router
from taba.shard.transaction import Writes
from taba.versions import HERE
from tests.shard.pieces import connect
from tests.stores import borrow
from tests.valkey import EphemeralValkey

BUCKETS = 4
READ: Any = ((STORE_KEY, decode_record), (MAP_KEY, decode_map))


def counted(bucket: int) -> Any:
    return lambda _: Writes([(b"INCR", prefix_of(bucket) + b"n")])


class IdentityTests(TestCase):
    timeout = 300

    def valkey(self, **options: Any) -> EphemeralValkey:
        valkey = borrow(self, **options)
        return valkey

    async def router(self, url: str, buckets: int | None = BUCKETS, **options: Any) -> Router:
        return await connect(self, url, buckets, **options)

    async def refuses(self, router: Router, says: str) -> None:
        self.patch(router_module, "TRANSACT_SECONDS", 0.5)
        self.patch(reading, "READ_SECONDS", 0.5)
        while True:  # half a second may be too little to look
            with self.assertRaises(StoreUnavailable):
                await router.transact(0, [], counted(0))
            with self.assertRaises(StoreUnavailable):
                await router.read(0, [(b"GET", prefix_of(0) + b"n")])
            if says in " ".join(router.problems):
                break
        self.assertFalse(router.is_ready)
        self.assertIn("taba store --accept", " ".join(router.problems))

    async def test_a_store_that_is_emptied_is_not_made_anew(self) -> None:
        valkey = self.valkey()
        router = await self.router(valkey.url)
        await router.transact(0, [], counted(0))
        valkey.call("FLUSHALL")
        await self.refuses(router, "is no store, or has lost what it held")
        self.assertEqual(valkey.call("DBSIZE"), 0)

    async def test_another_store_behind_the_address_is_not_adopted(self) -> None:
        one, other = self.valkey(), self.valkey()
        router = await self.router(one.url)
        await router.transact(0, [], counted(0))
        stranger = await self.router(other.url)
        content = {key: other.call("DUMP", key) for key in other.call("KEYS", "*")}
        one.call("FLUSHALL")
        for key, dump in content.items():
            one.call("RESTORE", key, "0", dump)
        one.call("CLIENT", "KILL", "TYPE", "normal")  # as when another server takes the address
        await self.refuses(router, f"is store {stranger.store_id}")
        self.assertEqual(one.call("GET", prefix_of(0) + b"n"), None)

    async def test_what_succeeds_the_pinned_store_is_followed_without_a_restart(self) -> None:
        valkey = self.valkey()
        router = await self.router(valkey.url)
        old = router.store_id
        valkey.call("FLUSHALL")
        await self.refuses(router, "until now this served " + old)
        new = await self.router(valkey.url)
        await self.refuses(router, "is store " + new.store_id)
        await succeed(list(new.atlas.by_name.values()), [old])
        self.patch(router_module, "TRANSACT_SECONDS", 60.0)
        await router.transact(0, [], counted(0))
        self.assertEqual(router.store_id, new.store_id)
        self.assertEqual(router.atlas.succeeded, {old})
        self.assertEqual([problem for problem in router.problems if "accept" in problem], [])

    async def test_a_pinned_router_does_not_begin_with_another_store_nor_with_none(self) -> None:
        valkey = self.valkey()
        with self.assertRaisesRegex(
            ConfigurationError, "is no store.*until now this served 91cc at redis://a:6379. If that is meant: taba store"
        ):
            await self.router(valkey.url, pinned="91cc", pinned_at="redis://a:6379")
        self.assertEqual(valkey.call("DBSIZE"), 0)
        made = await self.router(valkey.url)
        with self.assertRaisesRegex(ConfigurationError, f"is store {made.store_id}; until now this served 91cc"):
            await self.router(valkey.url, pinned="91cc")
        await succeed(list(made.atlas.by_name.values()), ["91cc"])
        self.assertEqual((await self.router(valkey.url, pinned="91cc")).store_id, made.store_id)

    async def test_who_only_looks_makes_no_store(self) -> None:
        valkey = self.valkey()
        with self.assertRaises(ConfigurationError):
            await self.router(valkey.url, may_make=False)
        self.assertEqual(valkey.call("DBSIZE"), 0)

    async def test_a_store_of_another_version_is_refused_in_one_line(self) -> None:
        valkey = self.valkey()
        await self.router(valkey.url)
        records = {key: valkey.call("GET", key) for key in (STORE_KEY, MAP_KEY)}
        [here] = HERE.stores
        for other, cure in ((1, "$"), (here + 1, ": a step back is not possible, take the newer one$")):
            for key, record in records.items():
                valkey.call("SET", key, record.replace(b'"v":%d' % here, b'"v":%d' % other))
            with self.assertRaisesRegex(
                ConfigurationError, f"there is a .* of version {other}, where this Taba reads version {here}{cure}"
            ):
                await self.router(valkey.url, None)

    async def test_whoever_could_write_a_later_version_writes_that_of_the_store_until_it_is_raised_and_then_who_cannot_is_refused(
        self,
    ) -> None:
        valkey = self.valkey()
        older = await self.router(valkey.url)
        [before] = HERE.stores
        self.patch(versions, "HERE", HERE._replace(stores=(before + 1, before)))
        newer = await self.router(valkey.url)
        await change_map(newer.atlas.by_name, lambda map: attrs.evolve(map, epoch=map.epoch + 1))
        await newer.transact(0, [], counted(0))
        self.assertEqual([decode(valkey.call("GET", key)).version for key, decode in READ], [before, before])
        await raise_version(newer.atlas.by_name, before + 1)
        await raise_version(newer.atlas.by_name, before + 1)  # again, and nothing is changed
        await raise_version(newer.atlas.by_name, before)  # never back
        epoch = decode_map(valkey.call("GET", MAP_KEY)).epoch
        self.assertEqual([decode(valkey.call("GET", key)).version for key, decode in READ], [before + 1, before + 1])
        await newer.transact(0, [], counted(0))
        await newer.atlas.learn(5.0)
        self.assertEqual((newer.describe()["version"], newer.atlas.map.epoch), (before + 1, epoch))
        self.patch(versions, "HERE", HERE)
        with self.assertRaisesRegex(ConfigurationError, "a step back is not possible, take the newer one"):
            await self.router(valkey.url)
        # one that runs already takes nothing more, and says why
        with self.assertRaisesRegex(StoreUnavailable, "a step back is not possible"):
            await older.atlas.learn(5.0)
        self.assertFalse(older.is_ready)
        self.assertTrue(any("a step back is not possible" in problem for problem in older.problems))

    async def test_a_store_that_is_made_by_who_writes_a_later_version_is_of_that_one(self) -> None:
        valkey = self.valkey()
        later = HERE.stores[0] + 1
        self.patch(versions, "HERE", HERE._replace(stores=(later, *HERE.stores)))
        self.patch(initialise, "StoreRecord", partial(StoreRecord, version=later))  # as it would have it from the start
        await self.router(valkey.url)
        self.assertEqual([decode(valkey.call("GET", key)).version for key, decode in READ], [later, later])

    async def test_a_raise_that_was_ended_between_map_and_record_is_finished_by_the_next(self) -> None:
        valkey = self.valkey()
        router = await self.router(valkey.url)
        later = HERE.stores[0] + 1
        self.patch(versions, "HERE", HERE._replace(stores=(later, *HERE.stores)))
        await change_map(router.atlas.by_name, lambda map: with_version(map, later))
        self.assertEqual([decode(valkey.call("GET", key)).version for key, decode in READ], [later - 1, later])
        await (await self.router(valkey.url)).transact(0, [], counted(0))  # either is read
        await raise_version(router.atlas.by_name, later)
        self.assertEqual([decode(valkey.call("GET", key)).version for key, decode in READ], [later, later])

    async def test_a_restart_and_an_older_backup_need_nothing(self) -> None:
        valkey = self.valkey()
        router = await self.router(valkey.url)
        await router.transact(0, [], counted(0))
        valkey.kill()
        await deferLater(reactor, 0.1)
        valkey.start()
        await router.transact(0, [], counted(0))
        self.assertEqual(await router.read(0, [(b"GET", prefix_of(0) + b"n")]), [b"2"])
