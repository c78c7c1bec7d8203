"""A real Chromium, without a window, driven over the DevTools protocol through a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PROGRAMS: Final = ("chromium-headless-shell", "chromium")
_PATIENCE: Final = 60.0


class Browser:
    """One page at a time; ``requests`` are the URLs that it asked for, ``complaints`` what its console was told."""

    def __init__(self, program: str, folder: str) -> None:
        to_child, commands = os.pipe()
        answers, from_child = os.pipe()

        def pipes() -> None:  # --remote-debugging-pipe: commands come on descriptor 3, answers go to 4
            read, write = os.dup(to_child), os.dup(from_child)
            os.dup2(read, 3)
            os.dup2(write, 4)

        # The protection drops the 201st change of an anchor within ten seconds.
        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-ipc-flooding-protection", f"--user-data-dir={folder}", "--remote-debugging-pipe",
             "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pipes, close_fds=False,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        self._commands, self._answers, self._rest, self._number = commands, answers, b"", 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._session: str | None = None
        self._loaded = False
        target = next(one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def end(self) -> None:
        for descriptor in (self._commands, self._answers):
            os.close(descriptor)
        self.process.kill()
        self.process.wait()

    # --- the protocol ---

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._answers, 1 << 16)
            if not data:
                raise EOFError("the browser has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _hear(self, message: dict[str, Any]) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"console.{told['type']}: {told['args']}")
        elif method == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def _call(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._commands, left) :]
        while True:
            answer = self._read()
            if answer.get("id") != self._number:
                self._hear(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                found: dict[str, Any] = answer["result"]
                return found

    # --- what a test does ---

    def open(self, path: Path, width: int = 1400, dark: bool = False, script: bool = True, anchor: str = "") -> None:
        """Load a file, with nothing kept of the page before."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setScriptExecutionDisabled", value=not script)
        self.requests, self.complaints, self._loaded = [], [], False
        # Another query each time: the same address with another anchor would not be loaded again.
        self._call("Page.navigate", url=f"{path.resolve().as_uri()}?{self._number}{anchor}")
        while not self._loaded:
            self._hear(self._read())

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]["exception"].get("description")))
        return answer["result"].get("value")

    def key(self, name: str) -> None:
        """One press of a key, as from a keyboard."""
        text = {"text": name} if len(name) == 1 else {"text": "\r"} if name == "Enter" else {}
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
        virtual = {"windowsVirtualKeyCode": codes[name]} if name in codes else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=name, **text, **virtual)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=name, **virtual)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.js(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot as PNG."""
        values: dict[str, Any] = {}
        if whole:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            values = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png", **values)["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Raises `RuntimeError` where there is none: a test that cannot run fails."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise RuntimeError("no Chromium: ./run_qemu.sh test installs chromium-headless-shell")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = Browser(program, folder)
        try:
            yield started
        finally:
            started.end()
