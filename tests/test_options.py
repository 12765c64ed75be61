from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba import options
from taba.errors import ConfigurationError
from taba.names import check_agent
from taba.options import Option, ServiceOptions
from taba.shard import parse_store


class Sample(ServiceOptions):
    program = "taba-sample"
    prefix = "TABA_SAMPLE_"
    definitions = (
        Option("listen", "tcp:8300:interface=127.0.0.1", "Where to listen.", options.listen),
        Option("server", "http://127.0.0.1:8280", "A Server.", options.http_url, repeatable=True),
        Option("spool-bytes", "1GiB", "How large the spool may grow.", options.byte_count(1024, 2**40)),
        Option("bold", "", "Whether.", options.yes_or_no, is_flag=True),
        Option("file", "", "Which.", options.file_path),
        Option("name", "default", "Whose.", str, variable="TABA_NAME"),
        Option("agent", "", "Which.", check_agent),
        Option("store", "", "Where.", parse_store),
    )


def parse(*arguments: str, **environ: str) -> Sample:
    sample = Sample(environ)
    sample.parseOptions(list(arguments))
    return sample


class Handing(SynchronousTestCase):
    def test_what_was_given_reaches_another_process_by_its_environment(self) -> None:
        given = (
            "--listen",
            "tcp:1:interface=127.0.0.1",
            "--server",
            "http://a:1",
            "--server",
            "http://b:2",
            "--name",
            "x",
            "--spool-bytes",
            "4096",
        )
        here = parse(*given, TABA_SAMPLE_AGENT="web")
        there = parse(**{**here.environ, **here.as_environment()})
        self.assertEqual({**there}, {**here})
        self.assertEqual(there["server"], ["http://a:1", "http://b:2"])
        # what was given twice counts as it does here, and over what the environment said
        again = parse("--name", "x", "--name", "y", TABA_NAME="z")
        self.assertEqual(parse(**{**again.environ, **again.as_environment()})["name"], "y")


class Options(SynchronousTestCase):
    def test_an_option_stands_over_the_environment_and_that_over_the_default(self) -> None:
        self.assertEqual(parse()["spool-bytes"], 2**30)
        self.assertEqual(parse(TABA_SAMPLE_SPOOL_BYTES="5MiB")["spool-bytes"], 5 * 2**20)
        self.assertEqual(parse("--spool-bytes", "4096", TABA_SAMPLE_SPOOL_BYTES="5MiB")["spool-bytes"], 4096)
        self.assertEqual(parse(TABA_NAME="x")["name"], "x")

    def test_what_is_remembered_of_hosts_is_bounded(self) -> None:
        for _ in range(2):
            for host, expected in (("localhost", True), ("127.0.0.9", True), ("::1", True), ("10.0.0.1", False), ("", False)):
                self.assertIs(options.is_loopback(host), expected)
        before = options._kept_loopback.cache_info().misses
        kept, beyond = ("x" * size for size in (options.MAX_KEPT_HOST, options.MAX_KEPT_HOST + 1))
        self.assertFalse(options.is_loopback(kept) or options.is_loopback(beyond))
        self.assertEqual(options._kept_loopback.cache_info().misses, before + 1)
        for number in range(options.MAX_KEPT_HOSTS + 1):
            options.is_loopback(f"host-{number}")
        self.assertEqual(options._kept_loopback.cache_info().currsize, options.MAX_KEPT_HOSTS)

    def test_a_list_is_repeated_or_comma_separated(self) -> None:
        self.assertEqual(parse("--server", "http://a:1/", "--server=https://b")["server"], ["http://a:1", "https://b"])
        self.assertEqual(parse(TABA_SAMPLE_SERVER="http://a:1, http://b:2")["server"], ["http://a:1", "http://b:2"])

    def test_a_flag_takes_no_value_and_its_variable_one_or_zero(self) -> None:
        self.assertFalse(parse()["bold"])
        self.assertTrue(parse("--bold")["bold"] and parse(TABA_SAMPLE_BOLD="1")["bold"])
        self.assertFalse(parse(TABA_SAMPLE_BOLD="0")["bold"])
        self.assert_line(["TABA_SAMPLE_BOLD: 'yes': takes 1 or 0"], TABA_SAMPLE_BOLD="yes")
        self.assert_line(["--bold"], "--bold=1")

    def test_a_file_is_a_path_from_here_or_from_home(self) -> None:
        self.assertEqual(parse("--file", "x")["file"], Path.cwd() / "x")
        self.assertEqual(parse("--file", "~/x")["file"], Path.home() / "x")
        self.assert_line(["--file", "takes a file"], "--file", "a\0b")

    def assert_line(self, names: list[str], *arguments: str, **environ: str) -> None:
        exit = self.assertRaises(SystemExit, parse, *arguments, **environ)
        line = str(exit.code)
        self.assertEqual(line.count("\n"), 0)
        for name in ["taba-sample", *names]:
            self.assertIn(name, line)

    def test_wrong_configuration_exits_with_one_line_that_names_option_value_and_what_it_takes(self) -> None:
        self.assert_line(["--listen", "tcp:port", "tcp:8300"], "--listen", "tcp:port")
        self.assert_line(["--server", "ftp://x", "http"], "--server", "ftp://x")
        self.assert_line(["--spool-bytes", "'x'", "takes"], "--spool-bytes", "x")
        self.assert_line(["TABA_SAMPLE_SPOOL_BYTES", "'1'", "takes"], TABA_SAMPLE_SPOOL_BYTES="1")
        self.assert_line(["--agent: 'a b': takes 1 to 64"], "--agent", "a b")
        self.assert_line(["TABA_SAMPLE_STORE: 'redis://…@h:x': takes"], TABA_SAMPLE_STORE="redis://u:secret@h:x")
        self.assert_line(["--store: 'x': takes"], "--store", "x")
        self.assert_line(["from 1 KiB to 1024 GiB; for example 16 KiB"], "--spool-bytes", "1")
        self.assert_line(["interface=\\:\\:1"], "--listen", "tcp6:8300:interface=::1")
        self.assert_line(["bogus"], "--bogus")
        self.assert_line(["stray"], "stray")
        self.assert_line(["--server"], "--server")

    def test_help_shows_default_and_environment(self) -> None:
        shown = " ".join(str(Sample({})).split())
        self.assertIn("TABA_SAMPLE_LISTEN", shown)
        self.assertIn("TABA_NAME", shown)

    def test_the_state_directory_is_systemds_then_xdgs_then_the_users(self) -> None:
        where = options.state_directory
        self.assertEqual(where({"STATE_DIRECTORY": "/var/lib/taba", "XDG_STATE_HOME": "/x"}), Path("/var/lib/taba"))
        self.assertEqual(where({"XDG_STATE_HOME": "/x", "HOME": "/h"}), Path("/x/taba"))
        self.assertEqual(where({"HOME": "/h"}), Path("/h/.local/state/taba"))

    def test_a_state_directory_that_can_be_none_names_its_variable(self) -> None:
        here = Path(self.mktemp()).absolute()
        here.mkdir(parents=True)
        (here / "file").touch()
        self.assertEqual(options.checked_state_directory({"STATE_DIRECTORY": str(here / "new" / "one")}), here / "new" / "one")
        self.assertFalse((here / "new").exists())
        for variable, value, reason in [
            ("STATE_DIRECTORY", "relative", "absolute"),
            ("STATE_DIRECTORY", f"{here}/file", "no directory"),
            ("XDG_STATE_HOME", f"{here}/file/x", "no directory"),
            ("HOME", "relative", "absolute"),
        ]:
            error = self.assertRaises(ConfigurationError, options.checked_state_directory, {variable: value})
            self.assertRegex(str(error), f"^{variable}: '{value}': takes .*{reason}")


class Parsers(SynchronousTestCase):
    def refuses(self, parse: Any, *texts: str) -> None:
        for text in texts:
            self.assertRaises(ValueError, parse, text)

    def test_endpoints(self) -> None:
        self.assertEqual(options.listen("tcp:8280:interface=127.0.0.1").port, 8280)
        self.assertEqual(options.listen("tcp:port=8280:interface=127.0.0.1").port, 8280)
        self.assertTrue(options.listen(r"tcp6:8280:interface=\:\:1").is_local)
        self.assertFalse(options.listen("tcp:8280").is_local)
        self.assertTrue(options.listen("unix:/run/taba.sock").is_local)
        self.assertEqual(options.listen("unix:/run/taba.sock").text, "unix:/run/taba.sock:mode=600")
        self.assertEqual(options.listen("unix:/run/taba.sock:mode=660").text, "unix:/run/taba.sock:mode=660")
        self.refuses(
            options.listen,
            "",
            "tcp",
            "tcp:",
            "tcp:x",
            "tcp:70000",
            "udp:80",
            "tcp:1:2",
            "tcp:1:interface=here",
            "tcp:1:x=y",
            "unix:relative",
            "tcp:1:port=2",
            "tcp:1:mode=600",
            "tcp:1:backlog=x",
            "unix:/run/taba.sock:interface=127.0.0.1",
            "unix:/run/taba.sock:mode=",
            "unix:/run/taba.sock:mode=9",
            "unix:/run/taba.sock:mode=999",
        )

    def test_urls(self) -> None:
        self.assertEqual(options.http_url("http://[::1]:8280/"), "http://[::1]:8280")
        for written in ("localhost:8280", "10.0.0.7:8280/", "[::1]:80"):
            self.assertEqual(options.http_url(written), "http://" + written.rstrip("/"))
        self.refuses(
            options.http_url,
            "",
            "x",
            "http://",
            "http://a:x",
            "http://a:0",
            "http://a/b",
            "http://a?b",
            "http://u:p@a",
            "http://a b",
            "redis://a",
        )

    def test_numbers_and_sizes(self) -> None:
        parse = options.whole_number(1, 5)
        self.assertEqual([parse("1"), parse("5")], [1, 5])
        self.refuses(parse, "0", "6", "-1", "1.0", "", "x", "²")
        size = options.byte_count(1024, 2**30)
        self.assertEqual([size("1024"), size("1 KiB"), size("1GiB"), size("1k"), size("64M")], [1024, 1024, 2**30, 1024, 2**26])
        self.refuses(size, "1023", "2GiB", "1KB", "KiB", "", "-5KiB", "1.5MiB")


class InTwistd(SynchronousTestCase):
    def test_in_the_foreground_no_pid_file_is_written_unless_asked_for(self) -> None:
        for given, expected in [
            ({"nodaemon": 1, "pidfile": "twistd.pid"}, ""),
            ({"nodaemon": 1, "pidfile": "own"}, "own"),
            ({"nodaemon": 0, "pidfile": "twistd.pid"}, "twistd.pid"),
        ]:
            sample: Any = Sample({})
            sample.parent = dict(given)
            sample.parseOptions([])
            self.assertEqual(sample.parent["pidfile"], expected)
