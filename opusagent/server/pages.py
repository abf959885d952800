"""The pages of a worker: health, readiness, metrics, a call's record, the routes.

A page is a function from the server and the request head to (status, body, content type) and perhaps header fields;
PAGES is the table of them.  The rule: a page reads, it changes nothing.
"""
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import orjson

from .. import ProtocolError, __version__
from ..dialects import DIALECTS, dialect_of
from . import console
from .admission import state
from .manual import chapters

JSON = "application/json"
PLAIN = "text/plain; charset=utf-8"
CALLS = {*DIALECTS, "echo"}     # what /ws/... has
CONNECTED = ("who may call", "getting calls in", "getting calls out", *DIALECTS, "audiosocket")     # of the manual
HTML = "text/html; charset=utf-8"
LISTED = 20                     # calls in a list
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """One row of PAGES; `open` pages answer anybody, the others need loopback, an allowed origin or the token."""

    render: Callable
    open: bool = False


def token_matches(token: str, authorization: str) -> bool:
    """True if an Authorization header carries the token as a bearer; the time it takes says nothing about it."""
    scheme, _, given = authorization.partition(" ")
    return bool(token) and scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), given.strip().encode())


def missing(path: str) -> ProtocolError:
    """What is said of a path that has no page."""
    if dialect_of(path) in CALLS:
        return ProtocolError(426, "Calls come here by WebSocket, and this request asks for no upgrade: a proxy between "
                                  "us may have left that out.")
    return ProtocolError(404, "There is no such page here.")


def health(server, head) -> tuple[int, bytes, str]:
    alone = server.board is None
    status = "draining" if server.draining else "degraded" if server.broken else "healthy"
    workers = total(server)
    return 200, orjson.dumps({
        "status": status,
        **workers.health(),
        **state(workers),
        "uptime_seconds": round((server.clock() - (server.started if alone else server.board.past.started)) / 1e9, 3),
        "active_connections": len(server.connections) if alone else server.board.sum("connections"),
        "active_calls": active(server),
        "version": __version__,
    }), JSON


def livez(server, head) -> tuple[int, str, str]:
    return 200, "alive\n", PLAIN


def readyz(server, head) -> tuple[int, str, str]:
    if server.draining:
        return 404, "draining\n", PLAIN
    if server.broken or server.admission.full:
        return 503, (server.broken or "full") + "\n", PLAIN
    return 200, "ready\n", PLAIN


def metrics(server, head) -> tuple[int, str, str]:
    server.metrics.gauge("active_connections", len(server.connections))
    server.metrics.gauge("active_calls", len(server.calls))
    return 200, total(server).text(), PROMETHEUS


def total(server):
    """What all workers of this server have counted."""
    server.studio.measure(server.metrics)
    if server.board is None:
        return server.metrics
    server.show()
    server.seat.publish(server.metrics)
    return server.board.total()


def calls(server, head) -> tuple[int, bytes, str]:
    """The calls that are live, and the latest that have ended, in a line each."""
    if server.board is None:
        records = [*(call.record() for call in server.calls.values()), *reversed(server.records)][:LISTED]
    else:
        records = server.board.latest(LISTED)
    return 200, orjson.dumps({"active_calls": active(server), "calls": [line(record) for record in records]}), JSON


def active(server) -> int:
    """Calls that are live, of the whole service."""
    if server.board is None:
        return len(server.calls)
    server.show()
    return server.board.sum("calls")


def line(record: dict) -> dict:
    """What a list of calls says of one; `voice_to_voice_ms` is the median of its turns that were measured."""
    measured = [turn["voice_to_voice_ms"] for turn in record["turns"] if turn["measured"]]
    answered = [ms for ms in measured if ms is not None]
    told = ("id", "dialect", "state", "began_at", "done", "live")
    return {**{key: record[key] for key in told}, "turns": len(record["turns"]),
            "voice_to_voice_ms": round(median(answered), 1) if answered else None}


def call(server, head) -> tuple[int, bytes, str]:
    """GET /calls/<id>: where a call is and the receipts of its turns, live or ended lately."""
    name = head.path.removeprefix("/calls/")
    live = server.calls.get(name)
    if live is None and server.board is not None and (found := server.board.record(name)) is not None:
        return 200, found, JSON
    record = live.record() if live else next((r for r in reversed(server.records) if r["id"] == name), None)
    if record is None:
        raise ProtocolError(404, "There is no such call here, live or ended lately.")
    return 200, orjson.dumps(record), JSON


def docs(server, head) -> tuple[int, str, str]:
    rows = "".join(f"<tr><td><code>/ws/{name}[/&lt;agent&gt;]</code></td><td>{first_line(dialect)}"
                   f" <a href=#{name}>How to connect it</a></td></tr>"
                   for name, dialect in DIALECTS.items())
    manual = "".join(f"<h3 id={name.replace(' ', '-')}>{name}</h3>{chapters()[name]}" for name in CONNECTED)
    agents = ", ".join(f"<code>{name}</code>" for name in ("echo", *server.studio.flows) if name)
    pages = "".join(f"<tr><td><code>{path}</code></td><td>{first_line(page.render)}</td></tr>"
                    for path, page in PAGES.items())
    return 200, DOCS.format(version=__version__, dialects=rows, agents=agents, pages=pages,
                            manual=manual), HTML


def first_line(thing) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]


health.__doc__ = "How this server is, and its latency, as JSON."
livez.__doc__ = "200 while the loop turns."
readyz.__doc__ = "200 when calls are welcome, 404 while draining, 503 when full or broken."
metrics.__doc__ = "Prometheus text."
docs.__doc__ = "This page."

DOCS = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>OpusAgent {version}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:3rem auto;padding:0 1rem;color:#1c2733}}
table{{border-collapse:collapse;width:100%}}td{{border-top:1px solid #d8dee6;padding:.4rem .8rem .4rem 0;
vertical-align:top}}
code,pre{{background:#f0f3f6;padding:.1rem .3rem;border-radius:3px}}
pre{{padding:.6rem .8rem;overflow-x:auto}}h2{{margin-top:2.5rem}}</style>
<h1>OpusAgent {version}</h1>
<p>A voice-agent server. A call is a WebSocket; who connects speaks one of these dialects.</p>
<h2>Calls</h2><table>{dialects}
<tr><td><code>/v1/realtime?model=&lt;agent&gt;</code></td>
<td><code>openai-realtime</code>, where its clients look for it; <code>POST /v1/realtime/client_secrets</code> makes a
browser's key.</td></tr>
<tr><td><code>/ws/echo</code></td>
<td>Gives every message back unchanged; loopback only, unless diagnostics is set.</td></tr></table>
<p>Agents here: {agents}. Without one in the path, the flow that the server was started with answers.</p>
<p>WebSocket version 13. Compression (permessage-deflate) is declined: telephone audio does not shrink, and the
extension costs memory for every connection.</p>
<h2>Pages</h2><table>{pages}</table>
<h2>How to connect</h2>{manual}</html>
"""

PAGES: dict[str, Page] = {
    "/": Page(console.index),
    "/console/": Page(console.part),
    "/health": Page(health, open=True),
    "/livez": Page(livez, open=True),
    "/readyz": Page(readyz, open=True),
    "/metrics": Page(metrics),
    "/calls": Page(calls),
    "/calls/": Page(call),
    "/docs": Page(docs),
}
