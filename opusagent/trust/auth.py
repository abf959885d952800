"""Whether a request shows what its platform's routes ask for.  Computation only: the time and the nonces are handed in.

    TABLE           platform -> the ways in which its upgrades are authenticated; any one of them will do
    WEBHOOKS        the same for its webhooks
    Keyring         the keys that count for a platform and an agent; `admits` is the only question
    ticket()        what a webhook of ours gives a stream that follows from it, where its platform signs no upgrade

The rule: every key and every way is tried, whether one has fitted or not, and nothing is said of what did not fit.
"""
import base64
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from ..credentials import Key
from . import signatures

TICKET_SECONDS = 60         # from the answer to a webhook to the stream's upgrade
OFFERED = "openai-insecure-api-key."    # before a key that is offered as a subprotocol
NONCE_SECONDS = 3600        # that a nonce without a time beside it is remembered


@dataclass(frozen=True, slots=True)
class Shown:
    """A request, as far as it says who sends it."""

    method: str
    urls: tuple[str, ...]               # the spellings under which the platform may know the request's URL
    target: str                         # path and query as sent
    authority: str                      # host and port as the platform was told them
    field: Callable[[str], str | None]  # a header by its lower-case name
    query: Mapping[str, str]
    agent: str                          # that is called
    now: float                          # seconds since 1970
    nonces: object                      # take(key, nonce, now, until) -> True the first time
    form: Mapping[str, list[str]] = field(default_factory=dict)     # of a POST
    body: bytes | None = None           # None: an upgrade


# ---- what is shown as it is ------------------------------------------------------------------------------------------

def same(given: str, secret: str) -> bool:
    """Compares digests, so that lengths say nothing either."""
    return hmac.compare_digest(sha256(given.encode("utf-8", "replace")).digest(), sha256(secret.encode()).digest())


def given_by(shown: Shown) -> list[tuple[str | None, str]]:
    """(user or None, secret) pairs that stand in the head."""
    scheme, _, rest = (shown.field("authorization") or "").strip().partition(" ")
    alone = shown.query.get("token"), shown.field("x-telnyx-streaming-auth-token")
    pairs: list[tuple[str | None, str]] = [(None, value) for value in alone if value]
    if scheme.lower() == "bearer" and rest.strip():
        pairs.append((None, rest.strip()))
    elif scheme.lower() == "basic":
        try:
            user, _, secret = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
        except ValueError:
            return pairs
        pairs.append((user, secret))
    elif scheme and not rest:           # AudioCodes' HTTP mode sends the bare token
        pairs.append((None, scheme))
    return pairs


def shows(shown: Shown, key: Key, secrets: Sequence[str]) -> bool:
    found = False
    for user, given in given_by(shown):
        named = user is None or same(user, key.user)
        for secret in secrets:
            found |= same(given, secret) and named and bool(secret)
    return found


def token(shown: Shown, key: Key) -> bool:
    return shows(shown, key, key.tokens)


def secret(shown: Shown, key: Key) -> bool:
    return shows(shown, key, key.secrets)


def offered_keys(field: Callable[[str], str | None]) -> list[str]:
    """The keys among the subprotocols, where a browser puts them: it can send no header of its own."""
    offers = (field("sec-websocket-protocol") or "").split(",")
    return [offer.strip().removeprefix(OFFERED) for offer in offers if offer.strip().startswith(OFFERED)]


def api_key(shown: Shown, key: Key) -> bool:
    found = False
    for given in offered_keys(shown.field):
        for kept in (*key.secrets, *key.tokens):
            found |= same(given, kept)
    return found


# ---- what is signed --------------------------------------------------------------------------------------------------

def twilio(shown: Shown, key: Key) -> bool:
    return signatures.twilio_signature(key.secrets, shown.urls, shown.field("x-twilio-signature") or "", shown.form)


def twilio_stream(shown: Shown, key: Key) -> bool:
    """A signature covers nothing but the address: whoever has seen it can use it again, unless the address is new."""
    return twilio(shown, key) and (not key.once or ticketed(shown, key))


def plivo(shown: Shown, key: Key) -> bool:
    nonce, header = shown.field("x-plivo-signature-v3-nonce") or "", shown.field("x-plivo-signature-v3") or ""
    found = False
    for url in shown.urls:
        found |= signatures.plivo_v3(key.secrets, shown.method, url, nonce, header, shown.form)
    return found and bool(nonce) and once(shown, "plivo", nonce, shown.now + NONCE_SECONDS)


def vonage(shown: Shown, key: Key) -> bool:
    """Its signed JWT, once; a `user` is the API key that it must name."""
    scheme, _, written = (shown.field("authorization") or "").partition(" ")
    claims = signatures.vonage_claims(key.secrets, written.strip(), int(shown.now), shown.body or None)
    if claims is None or scheme.lower() != "bearer":
        return False
    named = not key.user or same(str(claims.get("api_key")), key.user)
    account = not key.tenant or same(str(claims.get("application_id")), key.tenant)
    until = claims["exp"] if claims.get("exp") is not None else claims["iat"] + signatures.AGE_SECONDS
    return named and account and once(shown, "vonage", str(claims.get("jti", written)),
                                      until + signatures.SKEW_SECONDS)


def audiohook(shown: Shown, key: Key) -> bool:
    """The organisation that signs is the one that the key is of; what `open` says of it is compared when it comes."""
    found = signatures.audiohook_key({key.user: key.secrets}, shown.target, shown.authority, shown.field, shown.now,
                                     shown.nonces)
    organization = shown.field("audiohook-organization-id") or ""
    return found is not None and (not key.tenant or signatures.same_tenant(key.tenant, organization))


def telnyx_webhook(shown: Shown, key: Key) -> bool:
    header, at = shown.field("telnyx-signature-ed25519") or "", shown.field("telnyx-timestamp") or ""
    return signatures.telnyx_webhook(key.public_keys, at, header, shown.body or b"", shown.now)


def jambonz_webhook(shown: Shown, key: Key) -> bool:
    return signatures.jambonz_webhook(key.secrets, shown.field("jambonz-signature") or "", shown.body or b"", shown.now)


def once(shown: Shown, kind: str, nonce: str, until: float) -> bool:
    return shown.nonces.take(kind, nonce, shown.now, until)


# ---- tickets ---------------------------------------------------------------------------------------------------------

def ticket(key: Key, agent: str, now: float, nonce: str) -> str:
    """A ticket to an agent for TICKET_SECONDS, once; `nonce` is random, of letters and digits."""
    until = f"{int(now) + TICKET_SECONDS}"
    signing = (*key.secrets, *key.tokens)[0]
    return f"{until}.{nonce}.{ticket_mac(signing, key.platform, agent, until, nonce)}"


def ticket_mac(signing: str, platform: str, agent: str, until: str, nonce: str) -> str:
    message = f"opusagent ticket\n{platform}\n{agent}\n{until}\n{nonce}".encode("utf-8", "replace")
    return hmac.digest(signing.encode(), message, "sha256").hex()


def ticketed(shown: Shown, key: Key) -> bool:
    until, _, rest = (shown.query.get("ticket") or "").partition(".")
    nonce, _, mac = rest.partition(".")
    found = False
    for signing in (*key.secrets, *key.tokens):
        found |= same(mac, ticket_mac(signing, key.platform, shown.agent, until, nonce))
    if not found or not until.isdecimal() or not shown.now <= int(until) <= shown.now + TICKET_SECONDS + 1:
        return False
    return once(shown, "ticket", nonce, float(until))


# ---- the tables ------------------------------------------------------------------------------------------------------

TABLE: dict[str, tuple[Callable[[Shown, Key], bool], ...]] = {
    "pcm": (token, secret),
    "realtime": (token, secret, api_key),
    "twilio": (twilio_stream, token),
    "telnyx": (token, secret, ticketed),
    "plivo": (plivo, token, ticketed),
    "vonage": (vonage, token, ticketed),
    "asterisk": (token, secret),
    "jambonz": (token, secret, ticketed),
    "freeswitch": (token, secret),
    "audiocodes": (token, secret),
    "audiohook": (audiohook, token),
}
WEBHOOKS = {
    "twilio": (twilio,),
    "telnyx": (telnyx_webhook,),
    "plivo": (plivo,),
    "vonage": (vonage,),
    "jambonz": (jambonz_webhook, secret, token),
    "realtime": (token, secret),        # whoever asks for an ephemeral key; one of those makes no other
}


class Keyring:
    """The keys of the configuration."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[Key]):
        self._keys: dict[str, list[Key]] = {}
        for key in keys:
            self._keys.setdefault(key.platform, []).append(key)

    def of(self, platform: str, agent: str) -> list[Key]:
        """The keys bound to the agent; where there are none, those bound to no agent."""
        keys = self._keys.get(platform, [])
        return [key for key in keys if key.agent and key.agent == agent] or [key for key in keys if not key.agent]

    def every(self, platform: str) -> list[Key]:
        """Whatever agents they are bound to."""
        return self._keys.get(platform, [])

    def guards(self, platform: str) -> bool:
        """True where calls of a platform must show something, whatever their agent."""
        return platform in self._keys

    def admits(self, platform: str, shown: Shown, ways: Mapping = TABLE) -> Key | None:
        """The key that the request fits, None where it fits none."""
        found = None
        for key in self.of(platform, shown.agent):
            for way in ways.get(platform, ()):
                if way(shown, key):
                    found = found or key
        return found
