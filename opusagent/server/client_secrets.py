"""What a site's server, which knows an API key, asks /v1/realtime for: an ephemeral key, to be given to a browser.

What such a key is good for, ephemeral.py says; this reads the request and writes the answer, as OpenAI's API has them.
The rule: whoever may call /v1/realtime with the key's model may ask for it, but not with another ephemeral key.
"""
import secrets

import orjson

from ..dialects.realtime import settings
from ..dialects.realtime.names import beta_session
from ..dialects.realtime.settings import TRANSCRIPTION, Fault, word
from ..transport.http11 import posted_to
from ..trust import ephemeral

JSON = "application/json"
EXPIRY = {"anchor": word("created_at"), "seconds": settings.whole(ephemeral.SHORTEST, ephemeral.LONGEST)}
ROUTES = {      # path -> the type of the session, where the names are beta's; None where they are the released ones
    "/v1/realtime/client_secrets": None,
    "/v1/realtime/sessions": "realtime",
    "/v1/realtime/transcription_sessions": TRANSCRIPTION,
}


def takes_post(path: str) -> bool:
    return path in ROUTES


def check(server, head) -> None:
    """Raises ProtocolError(401) for a request that shows nothing at all: its body need not be read."""
    if server.gate.keyring.guards("realtime") and not (head.get("authorization") or head.query.get("token")):
        server.gate.refuse("realtime")


def respond(server, connection, head, body: bytes) -> tuple[int, bytes, str]:
    """(status, body, content type).  Raises ProtocolError(401, 403 or 405, sentence)."""
    if head.method != "POST":
        raise posted_to()
    older = ROUTES[head.path]
    request = read(body, older)
    model = "" if isinstance(request, Fault) else request[0].get("model") or ""
    agent = server.studio.agent_of(model)
    key = server.gate.admit_webhook(connection, head, "realtime", agent, {}, body)
    if key is None:                             # nothing had to be shown: it may be a page of anybody's
        server.gate.check_origin(connection, head)
    signers = [key] if key else server.gate.signers(agent)
    if not signers:
        server.gate.refuse("realtime")
    made = request if isinstance(request, Fault) else answer(signers[0], *request, server.gate.wall(), older)
    if isinstance(made, Fault):
        error = {"type": "invalid_request_error", "code": made.code, "message": made.message, "param": made.param}
        return 400, orjson.dumps({"error": error}), JSON
    return 200, orjson.dumps(made), JSON


def read(body: bytes, older: str | None) -> tuple[dict, int] | Fault:
    """(the session's settings that are asked for, the seconds that the key is to count)."""
    try:
        content = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        return Fault("invalid_json", "The body must be a JSON object.")
    if older is None:
        session, expiry = content.pop("session", None), content.pop("expires_after", None)
        if content:
            return Fault("unknown_parameter", f"There is no parameter {(name := next(iter(content))[:64])}.", name)
    else:
        secret, session = content.get("client_secret"), {"type": older} | content
        expiry = secret.get("expires_after", secret.get("expires_at")) if isinstance(secret, dict) else None
    session, expiry = {} if session is None else session, expiry or {}
    if fault := settings.check(expiry, EXPIRY, "expires_after") or settings.check(session, settings.SESSION, "session"):
        return fault
    return session, expiry.get("seconds") or ephemeral.USUAL


def answer(signer, asked: dict, seconds: int, now: float, older: str | None) -> dict | Fault:
    """The key and what it is good for."""
    session = settings.updated(settings.DEFAULTS, asked)
    if isinstance(session, Fault):
        return session
    model, until = asked.get("model") or "", int(now) + seconds
    carried = {name: value for name, value in asked.items() if name not in settings.KEPT or name == "type"}
    value = ephemeral.key_for((*signer.secrets, *signer.tokens)[0], until, model, carried)
    if len(value) > ephemeral.MOST_CHARACTERS:
        return Fault("session_too_large", f"With these settings the key has {len(value)} characters, and "
                     f"{ephemeral.MOST_CHARACTERS} is the most: shorten instructions or tools, or leave them to "
                     "session.update.", "session")
    told = settings.shown(session | {"id": f"sess_{secrets.token_hex(8)}", "model": model})
    if older is None:
        return {"value": value, "expires_at": until, "session": told}
    return beta_session(told) | {"client_secret": {"value": value, "expires_at": until}}
