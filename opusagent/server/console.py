"""The console: a page to talk to the agent from, with the transcript, the receipts and the latency of all calls.

The files are in console/: what a browser is given, as it stands there.  The rule: the page asks nobody but this server
for anything, and the head of the answer has the browser see to that.
"""
from functools import cache
from html import escape
from pathlib import Path

from .. import ProtocolError

FILES = Path(__file__).parent / "console"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
# frame-ancestors: no page of anybody's shows this one in a frame and has the microphone button pressed there.
HEADERS = (("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
           ("Permissions-Policy", "microphone=(self), camera=(), geolocation=()"), ("Referrer-Policy", "no-referrer"))


@cache
def file(name: str) -> str:
    """The text of one of the files.  ProtocolError(404) if there is none of that name."""
    path = FILES / name
    if "/" in name or path.suffix not in TYPES or not path.is_file():
        raise ProtocolError(404, "There is no such page here.")
    return path.read_text("utf-8")


def index(server, head) -> tuple[int, str, str, tuple]:
    """The console: talk to the agent from the browser's microphone."""
    names = ["", *(name for name in server.studio.flows if name), "echo"]
    agents = "".join(f'<option value="{escape(name)}">{escape(name or "the one that answers calls")}</option>'
                     for name in names)
    return 200, file("index.html").replace("<!--agents-->", agents), TYPES[".html"], HEADERS


def part(server, head) -> tuple[int, str, str, tuple]:
    """What the console is made of."""
    name = head.path.removeprefix("/console/")
    return 200, file(name), TYPES[Path(name).suffix], HEADERS
