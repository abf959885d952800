"""What a platform shows when it calls: the other side of auth.py, for simulated callers.

The rule: what is made here is what the platform makes, by its own description; nothing is taken from the code that
checks it but the order in which a signature's text is put together.
"""
import base64
import hmac
from urllib.parse import SplitResult

import orjson

from .signatures import COVERED, audiohook_message

ORGANIZATION = "0a000000-0000-4000-8000-000000000001"       # of the simulated Genesys


def headers(platform: str, url: SplitResult, credentials: str, now: int, nonce: str) -> dict[str, str]:
    """The headers of an upgrade at `url` by a platform that knows `credentials`, SECRET or USER:SECRET.

    `now`: seconds since 1970.  `nonce`: random, at least 22 letters and digits.
    """
    user, _, secret = credentials.rpartition(":")
    return SHOW.get(platform, shown_as_it_is)(url, user, secret, now, nonce)


def target_of(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def shown_as_it_is(url: SplitResult, user: str, secret: str, now: int, nonce: str) -> dict[str, str]:
    if user:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()}
    return {"Authorization": f"Bearer {secret}"}


def twilio(url: SplitResult, user: str, secret: str, now: int, nonce: str) -> dict[str, str]:
    message = f"{url.scheme}://{url.netloc}{target_of(url)}".encode()
    return {"X-Twilio-Signature": base64.b64encode(hmac.digest(secret.encode(), message, "sha1")).decode()}


def telnyx(url: SplitResult, user: str, secret: str, now: int, nonce: str) -> dict[str, str]:
    return {"x-telnyx-streaming-auth-token": secret}


def plivo(url: SplitResult, user: str, secret: str, now: int, nonce: str) -> dict[str, str]:
    """For URLs without a query."""
    message = f"{url.scheme}://{url.netloc}{url.path}.{nonce}".encode()
    made = base64.b64encode(hmac.digest(secret.encode(), message, "sha256")).decode()
    return {"X-Plivo-Signature-V3": made, "X-Plivo-Signature-V3-Nonce": nonce}


def vonage(url: SplitResult, user: str, secret: str, now: int, nonce: str) -> dict[str, str]:
    def part(value: dict) -> str:
        return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()
    claims = {"iss": "Vonage", "api_key": user, "iat": now, "jti": nonce}
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    made = base64.urlsafe_b64encode(hmac.digest(secret.encode(), signed.encode(), "sha256")).rstrip(b"=")
    return {"Authorization": f"Bearer {signed}.{made.decode()}"}


def audiohook(url: SplitResult, user: str, secret: str, now: int, nonce: str) -> dict[str, str]:
    """`user` is the API key; `secret` the client secret, in base64."""
    fields = {"audiohook-organization-id": ORGANIZATION, "audiohook-session-id": nonce,
              "audiohook-correlation-id": nonce[::-1], "x-api-key": user}
    names = " ".join(f'"{name}"' for name in COVERED)
    signed = f'({names});keyid="{user}";nonce="{nonce}";alg="hmac-sha256";created={now};expires={now + 30}'
    message = audiohook_message(list(COVERED), signed, target_of(url), url.netloc, fields.get)
    made = base64.b64encode(hmac.digest(base64.b64decode(secret), message, "sha256")).decode()
    return {**fields, "signature-input": f"sig1={signed}", "signature": f"sig1=:{made}:"}


SHOW = {"twilio": twilio, "twilio-relay": twilio, "telnyx": telnyx, "plivo": plivo, "vonage": vonage,
        "audiohook": audiohook}
