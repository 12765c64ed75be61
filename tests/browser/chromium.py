"""A real Chromium without a window, driven for tests and pictures; what it needs and does not find leaves a test out."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.needs import needs_program

__all__ = ["DESKTOP", "PHONE", "Browser", "Keys", "share", "shared", "unshare"]
DESKTOP, PHONE = (1440, 900), (360, 740)  # of phones one of the narrowest
PATIENCE_SECONDS = float(os.environ.get("TABA_TEST_BROWSER_PATIENCE", 180))  # it only ends a hang
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--lang=en-GB",
)


class Browser:
    """One browser, with a profile of its own below `directory`. Hand `stop` to addCleanup."""

    def __init__(self, directory: Path):
        needs_program("chromium")
        needs_program("chromedriver")
        self.directory = directory
        options = Options()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={directory}", *(["--no-sandbox"] if os.getuid() == 0 else [])):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        environ = {**os.environ, "SE_OFFLINE": "true", "SE_AVOID_STATS": "true", "HOME": str(directory), "TZ": "UTC"}
        self.driver: Any = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"), env=environ))
        self.resize(DESKTOP)

    def stop(self) -> None:
        """End it."""
        self.driver.quit()

    def resize(self, size: tuple[int, int]) -> None:
        """Have a page of so many pixels."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Be told that the reader wants it `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def live_in(self, zone: str, language: str) -> None:
        """Be where clocks show the time of `zone` ("": of this machine), and somebody who wants `language`."""
        self.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": zone})
        agent = {"userAgent": self.run("return navigator.userAgent"), "acceptLanguage": language}
        self.driver.execute_cdp_cmd("Emulation.setUserAgentOverride", agent)

    def open(self, url: str) -> None:
        """Load a page anew, also where only what stands behind its # differs."""
        self.driver.get("about:blank")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script of the page returns."""
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that a reader can see, by CSS."""
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def text(self, selector: str) -> str:
        """The text of the first of them; "" where there is none."""
        return next(iter(self.texts(selector)), "")

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until it is so; what the page shows is said where it is never."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.driver.current_url}: {self.run('return document.body.innerText')[:2000]!r} {self.said()}")
            time.sleep(0.05)
        return found

    def until_text(self, selector: str, part: str) -> str:
        """Wait for an element that shows `part`; its text."""
        found: str = self.until(lambda: next((text for text in self.texts(selector) if part in text), None))
        return found

    def until_other(self, selector: str) -> None:
        """Wait until an element shows something else than now."""
        shown = self.text(selector)
        self.until(lambda: self.text(selector) not in ("", shown))

    def click(self, selector: str) -> None:
        """Click the first of what matches, once it is there."""
        self.until(lambda: self.run("const e = document.querySelector(arguments[0]); e?.click(); return Boolean(e)", selector))

    def press(self, *keys: str) -> None:
        """Keys, to whatever has the focus."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def type(self, selector: str, text: str) -> None:
        """Text into a field."""
        self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))
        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag from one share of an element's width to another."""
        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        width = element.rect["width"]
        mouse = webdriver.ActionChains(self.driver, duration=0)
        mouse.move_to_element_with_offset(element, int(width * (start - 0.5)), 0).click_and_hold()
        mouse.move_to_element_with_offset(element, int(width * (end - 0.5)), 0).release().perform()

    def said(self) -> list[str]:
        """What the page said to the console since the last look: each fault of a script or of the policy is there."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def picture(self, path: Path) -> None:
        """Keep what it looks like."""
        self.driver.save_screenshot(str(path))


shared: list[Browser] = []  # one for all tests of a module


def share() -> None:
    """A module's `setUpModule`: there is a browser in `shared`."""
    needs_program("chromium")
    needs_program("chromedriver")
    shared.append(Browser(Path(tempfile.mkdtemp()) / "profile"))


def unshare() -> None:
    """Its `tearDownModule`."""
    while shared:
        browser = shared.pop()
        browser.stop()
        shutil.rmtree(browser.directory.parent, ignore_errors=True)
