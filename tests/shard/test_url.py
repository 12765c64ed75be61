"""What --store takes, and what it answers to anything else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.errors import ConfigurationError
from taba.shard.servers.url import MAX_SHARDS, Address, StoreURL, parse_store


class StoreURLTests(SynchronousTestCase):
    def refused(self, text: str) -> str:
        with self.assertRaises(ConfigurationError) as caught:
            parse_store(text)
        message = str(caught.exception)
        self.assertTrue(message.startswith("--store: "), message)
        self.assertEqual(len(message.splitlines()), 1)
        return message

    def test_an_embedded_store_with_and_without_directory(self) -> None:
        self.assertEqual(parse_store("embedded:"), StoreURL(is_embedded=True))
        self.assertEqual(parse_store("embedded:/var/lib/taba"), StoreURL(is_embedded=True, directory="/var/lib/taba"))
        self.assertEqual(parse_store("embedded:/a b").text, "embedded:/a b")

    def test_one_server_several_servers_and_the_default_port(self) -> None:
        store = parse_store("redis://a.example:7000,b.example,[::1]:7002")
        self.assertEqual([(one.host, one.port) for one in store.addresses], [("a.example", 7000), ("b.example", 6379), ("::1", 7002)])
        self.assertEqual(store.text, "redis://a.example:7000,b.example:6379,[::1]:7002")

    def test_a_list_may_hold_ipv6_addresses_in_any_place_on_every_python(self) -> None:
        # Python 3.11.2, for one, refuses such a list where a bracket is not the first or last character of the whole
        for text in ("redis://a:7000,b,[::1]:7002", "redis://[::1]:7002,b:1,[fe80::1]", "redis+cluster://:p@[::2],a,[::1]:7"):
            store = parse_store(text)
            self.assertEqual(parse_store(store.text).text, store.text)
        self.assertEqual([one.host for one in parse_store("redis://b,[::1]:7002,[::2]").addresses], ["b", "::1", "::2"])
        for wrong in ("redis://[::1", "redis://a,[::1", "redis://a,::1]", "redis://[::1]x", "redis://[[::1]]", "redis://a[::1]"):
            self.refused(wrong)

    def test_nothing_is_stripped_or_joined_in_silence(self) -> None:
        for wrong in ("redis://one\n", "redis://o\tne", " redis://one", "redis://one\r\n,two", "redis://one/\n"):
            self.refused(wrong)

    def test_user_and_password_are_for_every_server_and_unquoted(self) -> None:
        store = parse_store("rediss://ta%40ba:p%2Fss@one,two")
        for address in store.addresses:
            self.assertEqual((address.username, address.password, address.tls), ("ta@ba", "p/ss", True))
        self.assertEqual(parse_store("redis://:secret@one").addresses[0].username, "")

    def test_no_password_is_ever_shown(self) -> None:
        store = parse_store("redis://taba:verysecret@one:1,two:2")
        for text in (store.text, repr(store), repr(store.addresses[0]), store.addresses[0].text):
            self.assertNotIn("verysecret", text)
        for wrong in ("redis://taba:verysecret@one:99999", "http://taba:verysecret@one", "redis://taba:very@verysecret@one/x"):
            self.assertNotIn("verysecret", self.refused(wrong))

    def test_unix_sockets_are_for_internal_use(self) -> None:
        store = parse_store("unix:/run/a.sock,unix:/run/b.sock")
        self.assertEqual(store.addresses, (Address(path="/run/a.sock"), Address(path="/run/b.sock")))
        self.assertEqual(parse_store(store.text), store)

    def test_sentinels_name_one_shard_for_each_master(self) -> None:
        store = parse_store("redis+sentinel://taba:secret@two:7,one/?shards=east,west&sentinels=:other")
        self.assertEqual(store.text, "redis+sentinel://one:26379,two:7/?shards=east,west")
        east, west = store.addresses
        self.assertEqual((east.text, east.master, west.master), ("redis+sentinel://one:26379,two:7/?shards=east", "east", "west"))
        self.assertEqual([(one.host, one.port) for one in east.via], [("one", 26379), ("two", 7)])
        self.assertEqual([(one.username, one.password) for one in east.via], [("", "other")] * 2)
        self.assertEqual((east.username, east.password, east.topology), ("taba", "secret", "sentinel"))
        same = parse_store(east.text).addresses[0].with_account_of(west)
        self.assertEqual(same, east)
        self.assertEqual(parse_store("redis+sentinel://:p@one/?shards=a").addresses[0].via[0].password, "p")

    def test_a_cluster_is_one_shard_of_many_nodes(self) -> None:
        store = parse_store("rediss+cluster://taba:secret@two:7,one")
        (address,) = store.addresses
        self.assertEqual((store.text, address.text), ("rediss+cluster://one:6379,two:7",) * 2)
        self.assertEqual((address.tls, address.username, address.password, address.topology), (True, "taba", "secret", "cluster"))
        self.assertEqual([one.tls for one in address.via], [True, True])

    def test_a_database_has_a_number_which_a_cluster_does_not_take(self) -> None:
        store = parse_store("redis://taba:secret@one,two:7/3")
        self.assertEqual([one.text for one in store.addresses], ["redis://one:6379/3", "redis://two:7/3"])
        self.assertEqual((store.text, {one.database for one in store.addresses}), ("redis://one:6379,two:7/3", {3}))
        self.assertEqual(parse_store(store.text).text, store.text)
        self.assertEqual(parse_store("redis://one/0"), parse_store("redis://one"))
        sentinels = parse_store("redis+sentinel://one,two/3?shards=east,west")
        self.assertEqual(sentinels.text, "redis+sentinel://one:26379,two:26379/3?shards=east,west")
        self.assertEqual(parse_store(sentinels.addresses[1].text).addresses, sentinels.addresses[1:])
        self.assertIn("a Cluster has database 0 alone, not 3", self.refused("redis+cluster://one/3"))
        self.assertEqual(parse_store("redis+cluster://one/0"), parse_store("redis+cluster://one"))

    def test_a_prefix_is_a_part_of_each_shards_address(self) -> None:
        for text, shards in (
            ("redis://one:1,two:2/3?prefix=shop", ["redis://one:1/3?prefix=shop", "redis://two:2/3?prefix=shop"]),
            ("redis+sentinel://one:1/?shards=a,b&prefix=shop", [f"redis+sentinel://one:1/?shards={name}&prefix=shop" for name in "ab"]),
            ("redis+cluster://one:1,two:2?prefix=shop", ["redis+cluster://one:1,two:2?prefix=shop"]),
        ):
            store = parse_store(text)
            self.assertEqual((store.text, [one.text for one in store.addresses]), (text, shards))
            self.assertEqual([parse_store(one).addresses for one in shards], [(one,) for one in store.addresses])
            self.assertEqual({one.prefix for address in store.addresses for one in address.via} | {"taba"}, {"taba"})
        self.assertEqual(parse_store("redis://one?prefix=taba"), parse_store("redis://one"))
        self.assertEqual(parse_store(f"redis://one?prefix={'p' * 64}").addresses[0].prefix, "p" * 64)
        for wrong in ("", "a b", "{a}", "a:b", "*", "p" * 65, "é"):
            self.assertIn("takes", self.refused(f"redis://one?prefix={wrong}"))

    def test_certificates_are_files_that_are_the_same_for_all_servers(self) -> None:
        for text in ("rediss://a,b/3", "rediss+sentinel://a,b/?shards=m", "rediss+cluster://a,b"):
            more = "&" if "?" in text else "?"
            store = parse_store(f"{text}{more}cert=/c.pem&key=/k%20.pem&cacert=/ca.pem")
            for address in store.addresses:
                for one in (address, *address.via):
                    self.assertEqual((one.certificate, one.key, one.authorities), ("/c.pem", "/k .pem", "/ca.pem"))
            self.assertEqual(store.text, parse_store(text).text)  # a shard is the same shard, wherever a host has its files
            self.assertEqual(parse_store(text).addresses[0].with_account_of(store.addresses[0]), store.addresses[0])
        self.assertEqual(parse_store("rediss://a?cacert=/ca.pem").addresses[0].authorities, "/ca.pem")
        for wrong in (
            "redis://a?cacert=/x",
            "rediss://a?cert=/x",
            "rediss://a?key=/x",
            "rediss://a?cacert=",
            "rediss://a?cert=/x&cert=/y&key=/z",
        ):
            self.assertIn("takes ?cert=FILE&key=FILE", self.refused(wrong))

    def test_what_sentinels_and_clusters_do_not_take(self) -> None:
        for wrong in (
            *("redis+sentinel://one", "redis+sentinel://one/?shards=", "redis+sentinel://one/?shards=a,a"),
            *("redis+sentinel://one/?shards=a b", "redis+sentinel://one/#shards=a"),
            *(
                "redis+sentinel://one/?shards=a&shards=b",
                "redis+sentinel://one/?shards=a&x=y",
                "redis+sentinel://one/?shards=a&sentinels=u",
            ),
            *("redis+sentinel://one,one/?shards=a", "redis+cluster://one,one", "redis+cluster://one/?shards=a"),
            *("redis+other://one", "redis+cluster://", "redis+sentinel:one/?shards=a"),
        ):
            self.assertIn("takes", self.refused(wrong))
        self.assertNotIn("verysecret", self.refused("redis+sentinel://one/?x=y&sentinels=u:verysecret"))

    def test_anything_else_is_one_line_that_says_what_it_takes(self) -> None:
        for wrong in (
            *("", "redis", "redis:", "redis:one", "redis://", "redis://one:", "redis://one:0", "redis://one:65536", "redis://one:x"),
            *(
                "redis://one,,two",
                "redis://one,",
                "redis://one/x",
                "redis://one/3/4",
                "redis://one?x=1",
                "redis://one#x",
                "redis://user@one",
            ),
            "redis://one two",
            *("memcached://one", "unix:relative", "unix:", "redis://[::1", "redis://[x]:1", "embedded", "embedded:\0"),
        ):
            self.assertIn("takes", self.refused(wrong))

    def test_each_server_once(self) -> None:
        self.assertIn("once", self.refused("redis://one:1,one:1"))
        self.assertIn("once", self.refused("redis://one:6379,ONE"))

    def test_as_many_servers_as_the_bound_and_no_more(self) -> None:
        self.assertEqual(len(parse_store("redis://" + ",".join(f"h{n}" for n in range(MAX_SHARDS))).addresses), MAX_SHARDS)
        self.assertIn(str(MAX_SHARDS), self.refused("redis://" + ",".join(f"h{n}" for n in range(MAX_SHARDS + 1))))

    @given(st.text(max_size=60))
    def test_any_text_is_a_store_or_a_configuration_error(self, text: str) -> None:
        for candidate in (text, f"redis://{text}"):
            try:
                store = parse_store(candidate)
            except ConfigurationError:
                continue
            self.assertEqual(parse_store(store.text).text, store.text)
