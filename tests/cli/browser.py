"""A real Chromium, spoken to through its debugging pipe."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.features import require

_SECONDS = 60.0


class Between(Exception):
    """The page that was asked is gone, and the next one is on its way."""


class Browser:
    """One window of one browser; its profile lies below `folder`."""

    def __init__(self, folder: Path, *options: str) -> None:
        program = shutil.which("chromium")
        require("chromium", program is not None, "there is no program chromium")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        self._ids, self._rest, self._session = itertools.count(1), b"", ""

        def pass_on() -> None:  # the browser reads descriptor 3 and writes 4
            first, second = os.dup(to_read), os.dup(to_write)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self._process = subprocess.Popen(
            [
                str(program), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                f"--user-data-dir={folder / 'chromium'}", "--remote-debugging-pipe", "--window-size=1280,900",
                *options, "about:blank",
            ],
            preexec_fn=pass_on, pass_fds=(3, 4, to_read, to_write), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        pages = [one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def go(self, address: str) -> None:
        """Open an address, and wait until its page is complete."""
        self._call("Page.navigate", url=address)
        self.until("document.readyState == 'complete' && location.href != 'about:blank'")

    def say(self, script: str) -> Any:  # noqa: ANN401  (what the script returns)
        """What an expression is in the page. Between two pages there is nothing to ask: the question is asked again."""
        until = time.monotonic() + _SECONDS
        while True:
            try:
                found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
            except Between:
                found = {"exceptionDetails": "of null"}
            if "exceptionDetails" not in found:
                return found["result"].get("value")
            assert "of null" in str(found) and time.monotonic() < until, found
            time.sleep(0.05)

    def until(self, script: str) -> None:
        """Wait until an expression is true; pages may change meanwhile."""
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            with suppress(Between):
                found = self._call("Runtime.evaluate", expression=f"!!({script})", returnByValue=True)
                if found.get("result", {}).get("value") is True:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{script} did not become true: {self.text()}")

    def text(self) -> str:
        """What a person can read."""
        return str(self.say("document.body.innerText"))

    def press(self, text: str) -> None:
        """Click the link or button that reads so, and wait for the next page."""
        found = f"[...document.querySelectorAll('a,button')].find(one => one.innerText.trim() == {json.dumps(text)})"
        assert self.say(f"!!{found}"), f"there is no {text!r} in {self.text()}"
        self.say("window.before = true")
        with suppress(Between):  # a second click would be one too many
            self._call("Runtime.evaluate", expression=f"{found}.click()")
        self.until("!window.before && document.readyState == 'complete'")

    def type(self, name: str, text: str) -> None:
        """Fill in a field."""
        self.say(f"document.querySelector('[name={name}]').value = {json.dumps(text)}")

    def scripts(self, *, run: bool) -> None:
        """Whether pages may run scripts, from the next one on."""
        self._call("Emulation.setScriptExecutionDisabled", value=not run)

    def look(self, *, dark: bool, width: int, height: int, kind: str = "png") -> bytes:
        """A screenshot: png, jpeg or webp."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=features)
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return base64.b64decode(self._call("Page.captureScreenshot", format=kind)["data"])

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._ids)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "navigated" in str(answer.get("error", "")):
                    raise Between
                assert "error" not in answer, answer
                result = answer["result"]
                assert isinstance(result, dict)
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            waiting = select.poll()
            waiting.register(self._read, select.POLLIN)
            assert waiting.poll(_SECONDS * 1000), "the browser says nothing"
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser is gone"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found
