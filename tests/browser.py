"""A real Chromium without a window, driven over its DevTools protocol; its microphone plays a file."""
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 30                   # seconds


def missing() -> str | None:
    """Why there is no browser here, or None."""
    return None if any(map(shutil.which, NAMES)) else "there is no Chromium; apt install chromium"


class Browser:
    """One tab.  `said` is what its console was told, `failed` what went wrong in it."""

    def __init__(self, microphone: Path, size=(1280, 860)):
        self.profile = tempfile.TemporaryDirectory(prefix="opusagent-browser-", ignore_cleanup_errors=True)
        program = next(filter(None, map(shutil.which, NAMES)))
        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--mute-audio",
             f"--use-file-for-fake-audio-capture={microphone}%noloop", "--autoplay-policy=no-user-gesture-required",
             f"--user-data-dir={self.profile.name}", f"--window-size={size[0]},{size[1]}", "--remote-debugging-port=0",
             "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.said, self.failed = [], []
        self.numbers = itertools.count(1)
        self.socket = connect(self._tab(), max_size=1 << 26)
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def _tab(self) -> str:
        port = Path(self.profile.name, "DevToolsActivePort")
        until = time.monotonic() + PATIENCE
        while not (port.exists() and port.read_text().strip()):
            assert self.process.poll() is None and time.monotonic() < until, "Chromium does not start"
            time.sleep(0.05)
        while True:
            tabs = json.load(urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list", timeout=PATIENCE))
            pages = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            if pages:
                return pages[0]
            assert time.monotonic() < until
            time.sleep(0.05)

    def ask(self, method: str, **params):
        """The result of a command; events that come before it are noted."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict) -> None:
        match message:
            case {"method": "Runtime.consoleAPICalled", "params": {"args": words}}:
                self.said.append(" ".join(str(word.get("value", word.get("description"))) for word in words))
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.failed.append(details.get("exception", {}).get("description", details["text"]))
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error", **entry}}}:
                self.failed.append(f"{entry['text']} {entry.get('url', '')}")

    def open(self, url: str) -> None:
        failed = self.ask("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str):
        """The value of an expression."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True,
                          userGesture=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str, patience: float = PATIENCE):
        """Waits until an expression is true; its value."""
        end = time.monotonic() + patience
        while not (value := self.run(script)):
            assert time.monotonic() < end, \
                f"{script} stays {value!r}; {self.failed} {self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        self.profile.cleanup()
