"""A headless Chromium, spoken to over its debugging pipe; no driver, no port."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The browser's executable, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page. What it requested and what it complained about are kept.

    Attributes:
        requests: URLs, in order.
        complaints: console errors and warnings, uncaught exceptions.
    """

    def __init__(self, profile: Path) -> None:
        executable = find()
        assert executable is not None
        to_read, self._to = os.pipe()
        self._from, from_write = os.pipe()
        # the pipe is descriptors 3 and 4 of the browser
        command = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "-", executable]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        flags += [f"--user-data-dir={profile}", "--disable-background-networking", "--disable-dev-shm-usage"]
        self._process = subprocess.Popen(
            [*command, *flags, "about:blank"], pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        self._id, self._buffer, self._events = 0, b"", list[dict[str, Any]]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable", session=True)

    def call(self, method: str, *, session: bool = False, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": params}
        if session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            answer = self._receive(end - time.monotonic())
            if answer is None:
                break
            if answer.get("id") == self._id:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._events.append(answer)
        raise TimeoutError(f"The browser did not answer {method}.")

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            self._buffer += os.read(self._from, 1 << 20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self.call("Page.navigate", session=True, url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", session=True, expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for a condition."""
        end = time.monotonic() + 30
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    @property
    def requests(self) -> list[str]:
        self.evaluate("1")
        return [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]

    @property
    def complaints(self) -> list[Any]:
        self.evaluate("1")
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [e["params"] for e in self._events if e["method"] in kinds] + [
            e["params"]
            for e in self._events
            if e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] in ("error", "warning", "assert")
        ]

    def screenshot(self, path: Path) -> None:
        """A PNG of the page."""
        import base64

        picture = self.call("Page.captureScreenshot", session=True, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
