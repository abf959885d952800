"""Ephemeral keys of /v1/realtime: what a site gives a browser in place of its API key, for some minutes.

    ek_CONTENT.MAC      the content (until when it counts, the model, the session's settings), compressed, and its MAC
                        under a secret of [auth.realtime]

Computation only: the time and the secrets are handed in.  Whoever knows the secret knows what a key is good for, so
every worker and every node does, and nobody keeps it.  The rules: nothing of a key is read before its MAC fits; every
secret is tried, whether one has fitted or not.
"""
import base64
import hmac
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson

from ..credentials import Key
from ..transport.http11 import MAX_LINE
from .auth import offered_keys, same

SHORTEST, USUAL, LONGEST = 10, 600, 7200        # seconds that a key counts
MOST_CHARACTERS = MAX_LINE - 256                # of a key: it stands in a line of a head, beside other subprotocols
WRITTEN = re.compile(r"ek_([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Opened:
    """What a key is good for."""

    key: Key                    # of the configuration: the account whose secret has signed it
    model: str                  # as whoever asked for it named it
    session: dict               # the session's settings, as a checked update


def key_for(signing: str, until: int, model: str, session: dict) -> str:
    """A key that counts to `until`, seconds since 1970."""
    content = _text(zlib.compress(orjson.dumps([until, model, session]), 9))
    return f"ek_{content}.{_mac(signing, content)}"


def shown(field: Callable[[str], str | None]) -> str:
    """The key that an upgrade shows, as a bearer or, from a browser, as a subprotocol; "" where there is none."""
    scheme, _, bearer = (field("authorization") or "").strip().partition(" ")
    given = [*([bearer.strip()] if scheme.lower() == "bearer" else []), *offered_keys(field)]
    return next((value for value in given if WRITTEN.fullmatch(value)), "")


def opened(value: str, keys: Iterable[Key], now: float) -> Opened | None:
    """What a key that was shown is good for; None where none of `keys` has signed it, or its time is over."""
    content, mac = WRITTEN.fullmatch(value).groups()
    found = None
    for key in keys:
        for signing in (*key.secrets, *key.tokens):
            if same(mac, _mac(signing, content)):
                found = found or key
    if found is None:
        return None
    until, model, session = orjson.loads(zlib.decompress(base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))))
    return Opened(found, model, session) if now <= until else None


def _mac(signing: str, content: str) -> str:
    return _text(hmac.digest(signing.encode(), f"opusagent ephemeral key\n{content}".encode(), "sha256"))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
