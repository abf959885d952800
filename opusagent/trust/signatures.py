"""How platforms sign what they send us.  Computation only: no key is kept here, no request refused, no clock read.

    twilio_signature  X-Twilio-Signature, of a stream's upgrade and of webhooks
    plivo_v3        X-Plivo-Signature-V3 of Plivo's HTTP callbacks (whether a stream's upgrade has it is not said)
    vonage_claims   the JWT with which Vonage signs its webhooks and, with authorization.type "vonage", the upgrade
    audiohook_key   the HTTP message signature on an upgrade by Genesys AudioHook; Nonces refuse its replay
    telnyx_webhook  Ed25519 over the time and the body of Telnyx's webhooks
    jambonz_webhook Jambonz-Signature of a webhook of jambonz's
    same_tenant     whether what a call says of its tenant is what its key stands for

The rule: secrets come as a sequence, so that one can follow another; a comparison takes the same time whether it fits
or not; signatures are compared as they are written, so that there is one way of writing each; what does not fit gets
no reason.
"""
import base64
import binascii
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b, sha256
from urllib.parse import parse_qs, urlsplit

import orjson

from . import ed25519

JWT_BYTES = 8192            # no token of Vonage's is a tenth of it
AGE_SECONDS = 300           # that a token without `exp` lives
SKEW_SECONDS = 5            # by which the two clocks may differ

Fields = Mapping[str, str | list[str]]


def fits(secrets: Sequence[str], message: bytes, signatures: Sequence[str], encode, digest: str = "sha256") -> bool:
    """True if one of `signatures` is the encoded HMAC of the message under a secret, of those not empty."""
    found = False
    for secret in secrets:
        made = encode(hmac.digest(secret.encode(), message, digest))
        for signature in signatures:
            found |= hmac.compare_digest(made, signature.encode("utf-8", "replace")) and bool(secret)
    return found


# ---- Twilio ----------------------------------------------------------------------------------------------------------

def twilio_signature(secrets: Sequence[str], urls: Sequence[str], header: str, form: Fields | None = None) -> bool:
    """Whether X-Twilio-Signature fits a request to one of `urls`, the spellings under which Twilio may know ours.

    `secrets`: auth tokens.  `form`: the fields of a POST; {} for an upgrade.  A port that the scheme implies may be
    signed or not (twilio-python takes both), so both are tried.
    """
    found = False
    pairs = {name: sorted({*value} if isinstance(value, list) else {value}) for name, value in (form or {}).items()}
    tail = "".join(name + value for name in sorted(pairs) for value in pairs[name])
    for url in {spelled for url in urls for spelled in with_ports(url)}:
        found |= fits(secrets, (url + tail).encode("utf-8", "replace"), [header], base64.b64encode, "sha1")
    return found


def with_ports(url: str) -> tuple[str, ...]:
    """A URL without its scheme's port, and with it; as it is, if it names another."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    implied = ":443" if scheme in ("https", "wss") else ":80"
    bare = authority.removesuffix(implied)
    if bare == authority and authority.rpartition(":")[2].isdecimal():
        return (url,)
    return f"{scheme}://{bare}{slash}{path}", f"{scheme}://{bare}{implied}{slash}{path}"


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


# ---- Genesys AudioHook -----------------------------------------------------------------------------------------------
# An early draft of HTTP message signatures, not RFC 9421: the target is "@request-target", path and query as they are.

COVERED = ("@request-target", "@authority", "audiohook-organization-id", "audiohook-session-id",
           "audiohook-correlation-id", "x-api-key")             # what a signature must be made over
AUDIOHOOK_SECONDS = 10          # that a signature lives from its `created`
AUDIOHOOK_SKEW_SECONDS = 3      # by which `created` may be ahead of our clock
NONCE_CHARACTERS = 22           # at least: 128 bits in base64
SIGNATURE_INPUT = re.compile(r'([a-z*][a-z0-9_.*-]*)=(\(((?:"[!#-~]*"(?: (?="))?)*)\)'     # label=("name" "name")
                             r'((?:;[a-z]+=(?:"[ !#-[\]-~]*"|\d{1,15}))*))')               # ;name="text";name=number
PARAMETER = re.compile(r';([a-z]+)=(?:"([^"]*)"|(\d+))')
UNKNOWN = "A" * 43 + "="        # the secret of keys that nobody has: they cost what the others cost


class Nonces:
    """The nonces of accepted signatures, each for as long as it could be used again.

    No more than `most` are kept.  When all of them could still be used, nothing more is accepted: that needs `most`
    valid signatures within seconds.
    """

    __slots__ = ("_until", "_most")

    def __init__(self, most: int = 100_000):
        self._until: dict[bytes, float] = {}        # digest of the nonce -> when it is forgotten, in about that order
        self._most = most

    def __len__(self) -> int:
        return len(self._until)

    def take(self, key: str, nonce: str, now: float, until: float) -> bool:
        """True the first time that a key uses a nonce."""
        while self._until and next(iter(self._until.values())) < now:
            del self._until[next(iter(self._until))]
        digest = blake2b(nonce.encode("utf-8", "replace"), digest_size=16, key=sha256(key.encode()).digest()).digest()
        if digest in self._until or len(self._until) >= self._most:
            return False
        self._until[digest] = until
        return True


def audiohook_key(secrets: Mapping[str, Sequence[str]], target: str, authority: str,
                  field: Callable[[str], str | None], now: float, nonces: Nonces) -> str | None:
    """The API key of an upgrade that is signed with one of its secrets, now and for the first time; or None.

    `secrets`: of each API key, its client secrets in base64, as Genesys has them.  `target`: path and query as sent;
    `authority`: host and port as Genesys was told them, which behind a proxy need not be those of the Host header.
    `field`: a header's value by its lower-case name.  `now`: seconds since 1970.
    """
    found = SIGNATURE_INPUT.fullmatch(field("signature-input") or "")
    key = (field("x-api-key") or "").strip()
    if found is None:
        return None
    label, signed, names, written = found.groups()
    parameters = {name: text or number for name, text, number in PARAMETER.findall(written)}
    message = audiohook_message(re.findall(r'"([^"]*)"', names), signed, target, authority, field)
    if message is None or parameters.get("keyid") != key or not audiohook_in_time(parameters, now):
        return None
    own = [secret for secret in map(decoded, secrets.get(key, ())) if secret]
    fitting = False
    for secret in own or (decoded(UNKNOWN),):
        made = base64.b64encode(hmac.digest(secret, message, "sha256"))
        given = (field("signature") or "").strip().encode("utf-8", "replace")
        fitting |= hmac.compare_digest(f"{label}=:".encode() + made + b":", given)
    if not fitting or not own:
        return None
    until = int(parameters["created"]) + AUDIOHOOK_SECONDS
    return key if nonces.take(key, parameters["nonce"], now, until) else None


def audiohook_message(names: list[str], signed: str, target: str, authority: str, field) -> bytes | None:
    """What is signed; None unless all that must be covered is, everything once."""
    if len(set(names)) != len(names) or not set(COVERED) <= set(names):
        return None
    host, _, port = authority.lower().rpartition(":")
    derived = {"@request-target": target, "@authority": host if port in ("443", "80") else authority.lower()}
    lines = []
    for name in names:
        value = derived.get(name) if name.startswith("@") else field(name)
        if value is None:
            return None
        lines.append(f'"{name}": {value.strip()}')
    return "\n".join([*lines, f'"@signature-params": {signed}']).encode("utf-8", "replace")


def audiohook_in_time(parameters: dict[str, str], now: float) -> bool:
    """Whether it is a signature of the one kind there is, fresh, and with a nonce worth the name."""
    if parameters.get("alg", "hmac-sha256") != "hmac-sha256" or len(parameters.get("nonce", "")) < NONCE_CHARACTERS:
        return False
    created, expires = parameters.get("created", ""), parameters.get("expires", "9" * 15)
    return created.isdecimal() and expires.isdecimal() and now <= int(expires) \
        and int(created) - AUDIOHOOK_SKEW_SECONDS <= now <= int(created) + AUDIOHOOK_SECONDS


def decoded(secret: str) -> bytes:
    """A secret's bytes; b"" for what is no base64, which signs nothing."""
    try:
        return binascii.a2b_base64(secret, strict_mode=True)
    except ValueError:
        return b""


# ---- webhooks that are signed with their time ------------------------------------------------------------------------

def telnyx_webhook(public_keys: Sequence[str], timestamp: str, header: str, body: bytes, now: float) -> bool:
    """Whether a webhook was signed by one of Telnyx's `public_keys` (base64), and lately; `body` as it came."""
    if not fresh(timestamp, now):
        return False
    message, signature = timestamp.encode() + b"|" + body, decoded(header)
    return any([ed25519.verify(decoded(key), message, signature) for key in public_keys])


def jambonz_webhook(secrets: Sequence[str], header: str, body: bytes, now: float) -> bool:
    """Whether Jambonz-Signature, t=SECONDS,v1=HEX, fits: HMAC-SHA256 over the time, a point and the body."""
    parts = [piece.strip().partition("=")[::2] for piece in header.split(",")]
    timestamp = next((value for name, value in parts if name == "t"), "")
    message = timestamp.encode("utf-8", "replace") + b"." + body
    return fits(secrets, message, [value for name, value in parts if name == "v1"],
                binascii.b2a_hex) and fresh(timestamp, now)


def fresh(timestamp: str, now: float) -> bool:
    """Whether a time, seconds since 1970, is less than AGE_SECONDS away."""
    return timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 15 \
        and abs(now - int(timestamp)) <= AGE_SECONDS


# ---- tenants ---------------------------------------------------------------------------------------------------------

def same_tenant(expected: str, *claimed: str) -> bool:
    """True if a tenant is known and every claim, of a header or of a call's first message, names that one."""
    same = bool(expected) and bool(claimed)
    for claim in claimed:
        same &= hmac.compare_digest(*(name.lower().encode("utf-8", "replace") for name in (expected, claim)))
    return same
