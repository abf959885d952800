"""How platforms sign what they send us.  Computation only: no key is kept here, no request refused, no clock read.

    plivo_v3        X-Plivo-Signature-V3 of Plivo's HTTP callbacks (whether a stream's upgrade has it is not said)
    vonage_claims   the JWT with which Vonage signs its webhooks and, with authorization.type "vonage", the upgrade

The rule: secrets come as a sequence, so that one can follow another; a comparison takes the same time whether it fits
or not; signatures are compared as they are written, so that there is one way of writing each; what does not fit gets
no reason.
"""
import base64
import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import orjson

JWT_BYTES = 8192            # no token of Vonage's is a tenth of it
AGE_SECONDS = 300           # that a token without `exp` lives
SKEW_SECONDS = 5            # by which the two clocks may differ

Fields = Mapping[str, str | list[str]]


def fits(secrets: Sequence[str], message: bytes, signatures: Sequence[str], encode) -> bool:
    """True if one of `signatures` is the encoded HMAC-SHA256 of the message under a secret, of those not empty."""
    found = False
    for secret in secrets:
        made = encode(hmac.digest(secret.encode(), message, "sha256"))
        for signature in signatures:
            found |= hmac.compare_digest(made, signature.encode("utf-8", "replace")) and bool(secret)
    return found


# ---- Plivo -----------------------------------------------------------------------------------------------------------

def plivo_v3(secrets: Sequence[str], method: str, url: str, nonce: str, header: str,
             form: Fields | None = None) -> bool:
    """Whether X-Plivo-Signature-V3, one signature or several with commas, fits a request to `url` as Plivo spells it.

    `secrets`: auth tokens of the account.  `nonce`: X-Plivo-Signature-V3-Nonce.  `form`: the fields of a POST, or what
    came with a GET beside the URL's query.  As validate_v3_signature of Plivo's own package (plivo 4.63.0) has it.
    """
    message = f"{plivo_message(method, url, form or {})}.{nonce}".encode("utf-8", "replace")
    return fits(secrets, message, [each.strip() for each in header.split(",")], base64.b64encode)


def plivo_message(method: str, url: str, form: Fields) -> str:
    """What is signed, but for the nonce: the URL with its query in order; for a POST, the form's fields behind it."""
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    posted = in_order(form) if method.upper() == "POST" else []
    asked = "&".join(f"{name}={value}" for name, value in in_order(query if posted else {**form, **query}))
    between = "?" + asked if asked or posted else ""
    return (f"{parts.scheme}://{parts.netloc}{parts.path}{between}" + ("." if asked and posted else "")
            + "".join(name + value for name, value in posted))


def in_order(fields: Fields) -> list[tuple[str, str]]:
    return [(name, value) for name in sorted(fields)
            for value in (sorted(fields[name]) if isinstance(fields[name], list) else [fields[name]])]


# ---- Vonage ----------------------------------------------------------------------------------------------------------

def vonage_claims(secrets: Sequence[str], token: str, now: int, body: bytes | None = None) -> dict | None:
    """The claims of a JWT (RFC 7519) signed with HS256 under one of the secrets, or None.

    `now`: seconds since 1970.  A token lives until its `exp`; without one, AGE_SECONDS from its `iat`; with neither,
    not at all.  `body`: of the webhook, of which `payload_hash` must be the SHA-256; None where there is none, as with
    an upgrade.  Whoever refuses a replay keeps the `jti`.
    """
    signed, _, signature = token.rpartition(".")
    head, dot, content = signed.partition(".")
    if not dot or len(token) > JWT_BYTES or not token.isascii():
        return None
    if not fits(secrets, signed.encode(), [signature], lambda digest: base64.urlsafe_b64encode(digest).rstrip(b"=")):
        return None
    header, claims = json_object(head), json_object(content)
    if header.get("alg") != "HS256" or "crit" in header or not in_time(claims, now):
        return None
    if body is not None and not hmac.compare_digest(sha256(body).hexdigest().encode(), hash_of(claims)):
        return None
    return claims


def json_object(piece: str) -> dict:
    """A part of a token; {} of what is no JSON object."""
    try:
        value = orjson.loads(base64.b64decode(piece + "=" * (-len(piece) % 4), b"-_", validate=True))
    except ValueError:          # binascii.Error is one, orjson.JSONDecodeError another
        return {}
    return value if isinstance(value, dict) else {}


def hash_of(claims: dict) -> bytes:
    value = claims.get("payload_hash")
    return value.lower().encode("utf-8", "replace") if isinstance(value, str) else b""


def in_time(claims: dict, now: int) -> bool:
    begins, ends, issued = (claims.get(name) for name in ("nbf", "exp", "iat"))
    if any(type(moment) not in (int, float, type(None)) for moment in (begins, ends, issued)):
        return False
    if ends is None and issued is not None:
        ends = issued + AGE_SECONDS
    latest = max(moment for moment in (begins, issued, 0) if moment is not None)
    return ends is not None and latest - SKEW_SECONDS <= now < ends + SKEW_SECONDS
