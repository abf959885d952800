"""What the address of a request names: the dialect of a call, and what its dialect is to see of its query.

It decides nothing; whether such a call may come in is gate.py's.
"""
import secrets
from collections.abc import Mapping

import orjson

from ..trust.ephemeral import Opened

BETA = "openai-beta.realtime-v1"        # a subprotocol


def without_ticket(path: str) -> tuple[str, str]:
    """A route, and the ticket at its end, "" without one: where a platform allows no query, it ends with /ticket/..."""
    route, _, ticket = path.partition("/ticket/")
    return route, ticket


def without_secrets(query: Mapping[str, str]) -> dict[str, str]:
    """A query as a dialect may see it."""
    return {name: value for name, value in query.items() if name not in ("token", "ticket")}


def realtime_query(head, query: dict[str, str], opened: Opened | None) -> dict[str, str]:
    """The query as the dialect takes it: with a name for the call, whether beta's names are wanted, and what an
    ephemeral key has brought along."""
    beta = "realtime=v1" in (head.get("openai-beta") or "") or BETA in head.tokens("sec-websocket-protocol")
    found = {"call_id": secrets.token_hex(8), **query, **({"beta": "1"} if beta else {})}
    found.pop("session", None)                  # whoever calls may say so when the call has begun
    if opened is not None:
        found = {"model": opened.model} | found | {"session": orjson.dumps(opened.session).decode()}
    return found
