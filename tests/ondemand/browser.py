"""A real browser without a window, driven over Chromium's own debugging protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    "The path of a Chromium on this machine, if there is one."
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    "One page of a browser with a profile of its own; a context manager."

    def __init__(self, profile: Path):
        from websocket import create_connection

        self.process = subprocess.Popen(
            [
                find_browser(),
                "--headless=new",
                "--no-sandbox",  # tests run as root in containers
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-port=0",
                "--window-size=1280,2400",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.numbers = itertools.count(1)
        port_file = Path(profile) / "DevToolsActivePort"
        wait(lambda: port_file.is_file() and port_file.read_text().count("\n"), 30)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as reply:
            page = next(p for p in json.load(reply) if p["type"] == "page")
        address = page["webSocketDebuggerUrl"]
        self.socket = create_connection(address, timeout=60, suppress_origin=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=20)

    def call(self, method: str, **params):
        "Ask the browser for something; its answer."
        number = next(self.numbers)
        self.socket.send(json.dumps(dict(id=number, method=method, params=params)))
        while (reply := json.loads(self.socket.recv())).get("id") != number:
            pass
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def js(self, expression: str):
        "The value of an expression in the page."
        reply = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def open(self, address: str):
        self.call("Page.navigate", url=address)

    def click(self, selector: str, nth: int = 0):
        "Press the mouse button near the upper left corner of the nth such element."
        found = f"document.querySelectorAll({json.dumps(selector)})[{nth}]"
        x, y = self.js(
            f"(e => {{e.scrollIntoView({{block: 'nearest'}});"
            f"const b = e.getBoundingClientRect(); return [b.x + 12, b.y + 8]}})({found})"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="none" if kind == "mouseMoved" else "left",
                clickCount=1,
            )

    def shift_enter(self):
        "The keys that run a cell."
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                modifiers=8,
                key="Enter",
                code="Enter",
                windowsVirtualKeyCode=13,
            )

    def screenshot(self, path: Path):
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(picture))


def wait(condition, seconds: float):
    "Wait until a condition holds; TimeoutError when it does not in that time."
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)
    return found
