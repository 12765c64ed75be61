"""The page's files: small, whole, from this Server alone, with a policy that lets nothing else in."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from taba.server.page import files
from tests.server.running import ServerCase, asynchronous
from tests.sources import ROOT

STATIC = ROOT / "taba" / "server" / "page" / "static"
MOST_BYTES = 120 * 1024  # of all files together, compressed as they travel
# what is vendored, as its makers published it
VENDORED = {"uPlot.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"}


class Files(SynchronousTestCase):
    def test_all_of_them_together_are_small(self) -> None:
        size = sum(len(gzip.compress(found.content, 3)) for found in files.read_files().values())
        self.assertLess(size, MOST_BYTES)

    def test_each_file_of_the_folder_is_served(self) -> None:
        self.assertEqual(set(files.read_files()), {path.name for path in STATIC.iterdir()})

    def test_what_is_vendored_is_what_its_makers_published_and_has_its_licence(self) -> None:
        for name, digest in VENDORED.items():
            self.assertEqual(hashlib.sha256((STATIC / name).read_bytes()).hexdigest(), digest, name)
        self.assertIn("Permission is hereby granted", (STATIC / "uPlot.LICENSE.txt").read_text())

    def test_no_file_asks_another_place_for_anything(self) -> None:
        for path in self.own():
            for url in re.findall(r"https?://[\w.-]+", path.read_text()):
                self.assertEqual(url, "http://www.w3.org", path.name)  # the name of SVG

    def test_no_script_or_style_stands_in_the_html_and_nothing_makes_markup_of_text(self) -> None:
        html = (STATIC / files.INDEX).read_text()
        self.assertEqual(re.findall(r"<script(?![^>]*\bsrc=)", html) + re.findall(r"<style|\sstyle=|\son\w+=", html), [])
        for path in self.own():
            found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", path.read_text())
            self.assertEqual(found, [], path.name)

    def test_all_modules_are_asked_for_at_once(self) -> None:
        reached, left = set[str](), ["main.js"]
        while left:
            name = left.pop()
            found = set(re.findall(r'from "\./([\w.]+)"', (STATIC / name).read_text())) - reached
            reached |= found
            left += found
        named = re.findall(r'rel="modulepreload" href="/page/([\w.]+)"', (STATIC / "index.html").read_text())
        self.assertEqual(named, sorted(reached))

    def test_each_module_imports_files_that_are_there(self) -> None:
        for path in self.own():
            for name in re.findall(r"""from "\./([\w.]+)"|import\("\./([\w.]+)"\)""", path.read_text()):
                self.assertTrue((STATIC / (name[0] or name[1])).exists(), f"{path.name}: {name}")

    def own(self) -> list[Path]:
        return [path for path in STATIC.iterdir() if path.suffix in (".js", ".html", ".css") and path.name not in VENDORED]


class Served(ServerCase):
    @asynchronous
    async def test_they_come_with_the_policy_compressed_and_once(self) -> None:
        server = await self.start()
        for path, kind in (("/", "text/html"), ("/page/main.js", "text/javascript"), ("/page/style.css", "text/css")):
            answered = await self.ask(server, path, headers={"Accept-Encoding": ["gzip"]})
            headers = {name: (answered.headers.getRawHeaders(name) or [""])[0] for name in (*files.HEADERS, "content-type", "etag")}
            self.assertEqual(answered.status, 200)
            self.assertEqual(headers["content-security-policy"], files.POLICY)
            self.assertTrue(headers["content-type"].startswith(kind))
            self.assertEqual(answered.headers.getRawHeaders("x-content-type-options"), ["nosniff"])
            self.assertEqual(headers["referrer-policy"], "no-referrer")
            again = await self.ask(server, path, headers={"If-None-Match": [headers["etag"]]})
            self.assertEqual((again.status, again.body), (304, b""))
        for word in ("unsafe-inline", "unsafe-eval", "*", "data:", "http:"):
            self.assertNotIn(word, files.POLICY)
        self.assertIn("frame-ancestors 'none'", files.POLICY)

    @asynchronous
    async def test_what_is_no_file_of_it_is_not_found(self) -> None:
        server = await self.start()
        for path in ("/page/", "/page/nothing.js", "/page/..%2fboards.py", "/page/%2e%2e", "/page/static/main.js"):
            self.assertEqual((await self.ask(server, path)).status, 404, path)
