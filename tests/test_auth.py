"""Who is let in: every platform's credentials on the real server, everything near them refused, and what it costs."""
import asyncio
import base64
import os
import time
from functools import partial
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from opusagent import ProtocolError, credentials
from opusagent.client.telephone import Line
from opusagent.config import Config
from opusagent.credentials import PLATFORMS, Key
from opusagent.dialects import TABLE
from opusagent.metrics import Metrics
from opusagent.server.gate import Gate
from opusagent.server.worker import Server
from opusagent.transport.http11 import HeadParser
from opusagent.transport.inquiry import Inquiry
from opusagent.trust import auth, signing
from opusagent.trust.nonces import SharedNonces
from served import SCRIPTED, serving

SECRETS = {"audiohook": ("our-key:bmV3IHNlY3JldCBvZiAzMiBieXRlcw==", "our-key:b2xkIHNlY3JldCBvZiAzMiBieXRlcw=="),
           "asterisk": ("pbx:new-secret-one", "pbx:old-secret-two"),
           "vonage": ("a1b2:new-secret-one", "a1b2:old-secret-two")}
DEFAULT = ("new-secret-one", "old-secret-two")
NOW, HOST = 1_790_000_000, "calls.example.com"
SIGNED = ("twilio", "plivo", "vonage", "audiohook")         # platforms whose upgrades are signed


def secrets_of(platform):
    return SECRETS.get(platform, DEFAULT)


def key_of(platform, **more):
    pairs = [each.rpartition(":") for each in secrets_of(platform)]
    return Key(platform, tuple(secret for *_, secret in pairs), user=pairs[0][0], **more)


def shown(platform, headers, path=None, agent="", nonces=None, now=NOW, host=HOST):
    path = path or f"/ws/{platform}"
    fields = {name.lower(): value for name, value in headers.items()}
    return auth.Shown("GET", (f"wss://{host}{path}",), path, host, fields.get, {}, agent, now,
                      nonces or SimpleNamespace(take=lambda *nonce: True))


def made(platform, secret, path=None, nonce="n" * 32):
    return signing.headers(platform, urlsplit(f"wss://{HOST}{path or f'/ws/{platform}'}"), secret, NOW, nonce)


def test_every_dialect_has_a_way_to_say_who_calls():
    assert {dialect.platform or name for name, dialect in TABLE.items()} <= set(PLATFORMS) == set(auth.TABLE)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_two_secrets_are_live_at_once_and_no_third(platform):
    ring = auth.Keyring([key_of(platform)])
    for secret in secrets_of(platform):
        assert ring.admits(platform, shown(platform, made(platform, secret))) is not None
    wrong = secrets_of(platform)[0].rpartition(":")[0] + ":" + base64.b64encode(b"neither of the two").decode()
    assert ring.admits(platform, shown(platform, made(platform, wrong.removeprefix(":")))) is None
    assert ring.admits(platform, shown(platform, {})) is None


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_bit_of_what_is_shown_may_differ(platform):
    """The headers that carry the secret or its work, bit by bit; scheme words may be spelled in either case."""
    ring, headers = auth.Keyring([key_of(platform)]), made(platform, secrets_of(platform)[0])
    for name, value in headers.items():
        raw = value.encode()
        begin = raw.find(b" ") + 1 if name == "Authorization" else 0
        for i in range(8 * begin, 8 * len(raw)):
            changed = bytearray(raw)
            changed[i // 8] ^= 1 << i % 8
            altered = headers | {name: changed.decode("latin-1")}
            assert ring.admits(platform, shown(platform, altered)) is None, (name, i)


@pytest.mark.parametrize("platform", ["plivo", "vonage", "audiohook"])
def test_a_replay_is_refused_in_every_worker(platform):
    ring, nonces = auth.Keyring([key_of(platform)]), SharedNonces(64)
    headers = made(platform, secrets_of(platform)[0])
    if (child := os.fork()) == 0:                   # another worker takes it first
        os._exit(ring.admits(platform, shown(platform, headers, nonces=nonces)) is None)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ring.admits(platform, shown(platform, headers, nonces=nonces)) is None
    assert ring.admits(platform, shown(platform, made(platform, secrets_of(platform)[0], nonce="m" * 32),
                                       nonces=nonces)) is not None


@pytest.mark.parametrize("platform", SIGNED)
def test_a_signature_is_of_one_address(platform):
    ring, headers = auth.Keyring([key_of(platform)]), made(platform, secrets_of(platform)[0])
    if platform == "vonage":                        # signs no address; once is all it is good for
        return
    assert ring.admits(platform, shown(platform, headers, path=f"/ws/{platform}/cards")) is None
    assert ring.admits(platform, shown(platform, headers, host="other.example.com")) is None


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_secret_that_is_bound_to_an_agent_opens_no_other(platform):
    """The agent's own secrets are the only ones for it, and are for it only."""
    new, old = secrets_of(platform)
    bound = Key(platform, (new.rpartition(":")[2],), user=new.rpartition(":")[0], agent="cards")
    ring = auth.Keyring([bound, Key(platform, (old.rpartition(":")[2],), user=bound.user)])
    for secret, agent, fits in ((new, "cards", True), (new, "", False), (new, "demo", False), (old, "cards", False),
                                (old, "demo", True), (old, "", True)):
        path = f"/ws/{platform}" + (f"/{agent}" if agent else "")
        found = ring.admits(platform, shown(platform, made(platform, secret, path), path, agent))
        assert (found is not None) is fits, (secret, agent)


def test_a_call_is_of_the_account_that_its_secret_is_of():
    Gate.check_tenant("", "AC1"), Gate.check_tenant("AC1", "ac1")
    for claimed in ("", "AC2", "AC11"):
        with pytest.raises(ProtocolError) as refused:
            Gate.check_tenant("AC1", claimed)
        assert refused.value.code == 1008 and "AC" not in refused.value.reason


def test_a_genesys_organisation_cannot_use_anothers_key():
    headers = made("audiohook", SECRETS["audiohook"][0])
    for tenant, fits in ((signing.ORGANIZATION, True), ("0a000000-0000-4000-8000-000000000002", False)):
        ring = auth.Keyring([key_of("audiohook", tenant=tenant)])
        assert (ring.admits("audiohook", shown("audiohook", headers)) is not None) is fits


def test_vonages_user_and_tenant_are_the_claims():
    headers = made("vonage", "a1b2:new-secret-one")
    for more, fits in (({}, True), ({"tenant": "app"}, False)):
        ring = auth.Keyring([key_of("vonage", **more)])
        assert (ring.admits("vonage", shown("vonage", headers)) is not None) is fits
    assert auth.Keyring([Key("vonage", DEFAULT, user="other")]).admits("vonage", shown("vonage", headers)) is None


def test_tickets_are_for_one_agent_a_minute_and_one_use():
    key, nonces = key_of("plivo"), SharedNonces(64)
    ring, paper = auth.Keyring([key]), auth.ticket(key, "cards", NOW, "abc")

    def admitted(paper, agent="cards", now=NOW, nonces=None):
        request = auth.Shown("GET", (), "", "", {}.get, {"ticket": paper}, agent, now,
                             nonces or SimpleNamespace(take=lambda *nonce: True))
        return ring.admits("plivo", request) is not None
    assert admitted(paper) and admitted(paper, now=NOW + auth.TICKET_SECONDS)
    assert not admitted(paper, "demo") and not admitted(paper, now=NOW + auth.TICKET_SECONDS + 1)
    assert admitted(paper, nonces=nonces) and not admitted(paper, nonces=nonces)
    raw = paper.encode()
    for i in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[i // 8] ^= 1 << i % 8
        assert not admitted(changed.decode("latin-1"))


def test_nonces_are_forgotten_only_when_they_cannot_be_used_again():
    nonces = SharedNonces(1)
    assert nonces.take("k", "n", 1, 5) and not nonces.take("k", "n", 5, 9) and nonces.take("k", "n", 5.1, 9)
    taken = [nonces.take("k", str(i), 6, 9) for i in range(40)]
    assert taken == [True] * 31 + [False] * 9          # no room: refused, not forgotten
    assert nonces.take("a", "bc", 10, 11) and nonces.take("ab", "c", 10, 11)


# ---- the gate --------------------------------------------------------------------------------------------------------

def head_of(target="/ws/twilio", headers={}, host=HOST):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return HeadParser().feed(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())


def gate(peer="127.0.0.1", **settings):
    found = Gate(Config(**settings))
    found.wall = lambda: NOW
    return found, SimpleNamespace(peer=(peer, 1), inquiry=Inquiry(None))


def admitted(gate_and_peer, *arguments, **more):
    guard, peer = gate_and_peer
    try:
        guard.admit(peer, head_of(*arguments, **more), "twilio")
    except ProtocolError as error:
        assert error.code == 401 and error.reason.endswith(".")
        return False
    return True


TWILIO = {"auth": {"twilio": {"secrets": ["new-secret-one"]}}}


@pytest.mark.parametrize("peer, settings, headers, fits", [
    ("127.0.0.1", {}, {}, True),
    ("192.0.2.1", {}, {}, False),
    ("192.0.2.1", {"insecure": True}, {}, True),
    ("127.0.0.1", {}, {"X-Forwarded-For": "198.51.100.7"}, False),              # through a proxy on this machine
    ("127.0.0.1", {}, {"X-Forwarded-For": "127.0.0.1"}, False),                 # which we were not told of
    ("127.0.0.1", {"proxies": ("127.0.0.0/8",)}, {"X-Forwarded-For": "198.51.100.7"}, False),
    ("10.0.0.2", {"proxies": ("10.0.0.0/8", "192.0.2.3")}, {"X-Forwarded-For": "127.0.0.1, 192.0.2.3"}, True),
    ("10.0.0.2", {"proxies": ("10.0.0.0/8",)}, {"X-Forwarded-For": "127.0.0.1, 198.51.100.7"}, False),
    ("127.0.0.1", TWILIO, {}, False),                                           # keys count on this machine, too
    ("127.0.0.1", TWILIO | {"insecure": True}, {}, False),
    ("192.0.2.1", {"admin_token": "a token of 16 characters"},
     {"Authorization": "Bearer a token of 16 characters"}, True),
])
def test_who_is_let_in_without_the_platforms_credentials(peer, settings, headers, fits):
    assert admitted(gate(peer, **settings), headers=headers) is fits


@pytest.mark.parametrize("settings, host, headers, signed, fits", [
    ({}, HOST, {}, f"wss://{HOST}/ws/twilio", True),
    ({}, HOST, {}, f"wss://{HOST}:443/ws/twilio", True),
    ({}, f"{HOST}:443", {}, f"wss://{HOST}/ws/twilio", True),
    ({}, HOST, {}, "wss://other.example.com/ws/twilio", False),
    ({}, "other.example.com", {"X-Forwarded-Host": HOST}, f"wss://{HOST}/ws/twilio", False),    # a proxy? whose?
    ({"proxies": ("192.0.2.0/24",)}, "inside:8000", {"X-Forwarded-Host": HOST, "X-Forwarded-Proto": "https"},
     f"wss://{HOST}/ws/twilio", True),
    ({"public_url": f"https://{HOST}/voice/"}, "inside:8000", {}, f"wss://{HOST}/voice/ws/twilio", True),
    ({"public_url": f"https://{HOST}"}, "other.example.com", {}, "wss://other.example.com/ws/twilio", False),
])
def test_a_signature_is_over_the_address_that_the_world_knows(settings, host, headers, signed, fits):
    parts = urlsplit(signed)
    signature = signing.headers("twilio", parts, "new-secret-one", NOW, "")
    assert admitted(gate("192.0.2.1", **TWILIO, **settings), headers=headers | signature, host=host) is fits


def test_refusals_are_counted_and_told_once_a_second(caplog):
    guard, peer = gate(**TWILIO)
    counted = []
    guard._count = lambda name, **labels: counted.append((name, labels))
    for _ in range(50):
        with pytest.raises(ProtocolError):
            guard.admit(peer, head_of(headers={"X-Twilio-Signature": "bmV3LXNlY3JldC1vbmU="}), "twilio")
    assert counted == [("refused_credentials", {"platform": "twilio"})] * 50
    assert len(caplog.records) == 1 and "bmV3" not in caplog.text and "new-secret" not in caplog.text


def test_the_time_of_a_refusal_says_nothing_of_the_secret():
    """Shape, not speed: whatever is wrong, the same comparisons are made."""
    seen = []
    compare, auth.hmac.compare_digest = auth.hmac.compare_digest, lambda a, b: seen.append(len(a)) or compare(a, b)
    try:
        for given in ("n", "new-secret-ono", "new-secret-one", "x" * 500):
            seen.append("|")
            auth.secret(shown("pcm", {"Authorization": f"Bearer {given}"}), key_of("pcm"))
    finally:
        auth.hmac.compare_digest = compare
    assert len({part for part in "".join(map(str, seen)).split("|") if part}) == 1


# ---- the server ------------------------------------------------------------------------------------------------------

def test_a_stranger_costs_nothing():
    """Nothing of the studio is touched, no dialect is made, before the credentials fit."""
    keys = {name: {"secrets": [*DEFAULT]} for name in ("twilio", "pcm", "telnyx")}
    server = Server(Config(auth=keys), None, Metrics())
    peer = SimpleNamespace(peer=("192.0.2.1", 1), tenant="", inquiry=Inquiry(None))
    for path in ("/ws/twilio", "/ws/twilio/nobody", "/ws/pcm?rate=nonsense", "/ws/telnyx?token=wrong"):
        with pytest.raises(ProtocolError) as refused:
            server.routes.session(peer, head_of(path))
        assert refused.value.code == 401
    server.epoll.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose every route asks for credentials; some secrets come from files, some from the environment."""
    folder = tmp_path_factory.mktemp("credentials")
    (folder / "asterisk").write_text("new-secret-one\n\nold-secret-two\n")
    (folder / "hook").write_text("bmV3IHNlY3JldCBvZiAzMiBieXRlcw==\n")
    rows = "".join(f'[auth.{name}]\nsecrets = ["new-secret-one", "env:OLD_SECRET"]\n' for name in PLATFORMS
                   if name not in ("asterisk", "audiohook", "vonage"))
    rows += '[auth.asterisk]\nuser = "pbx"\nsecrets = "file:asterisk"\n'
    rows += '[[auth.audiohook]]\nuser = "our-key"\nsecrets = ["file:hook"]\n'
    rows += f'tenant = "{signing.ORGANIZATION}"\n[[auth.audiohook]]\nuser = "our-key"\nagent = "demo"\n'
    rows += 'secrets = ["b2xkIHNlY3JldCBvZiAzMiBieXRlcw=="]\ntenant = "another"\n'
    (folder / "opusagent.toml").write_text(rows)
    environment = {"OLD_SECRET": "old-secret-two", "CREDENTIALS_DIRECTORY": str(folder),
                   "OPUSAGENT_AUTH_VONAGE_SECRETS": "new-secret-one,file:asterisk",
                   "OPUSAGENT_AUTH_VONAGE_USER": "a1b2"}
    with serving(*SCRIPTED, "--config", str(folder / "opusagent.toml"), environment=environment) as running:
        yield running


async def status(url, headers):
    """101, or the status and the sentence of the refusal."""
    protocols = ("media",) if "/asterisk" in url else ("audio.jambonz.org",) if "/jambonz" in url else ()
    try:
        line = await Line.dial(url, lambda *message: None, lambda *ending: None, protocols, headers)
    except ProtocolError as error:
        return error.code, error.reason
    await line.hang_up()
    return 101, ""


@pytest.mark.parametrize("name", TABLE)
def test_a_call_needs_its_platforms_credentials(server, name):
    platform = TABLE[name].platform or name
    url = server.ws(f"/ws/{name}")

    async def tries():
        secret = secrets_of(platform)[0]
        show = partial(signing.headers, platform, urlsplit(url), now=int(time.time()), nonce=os.urandom(16).hex())
        assert (await status(url, {}))[0] == 401
        assert (await status(url, show(secret[:-4] + "AAA=")))[0] == 401
        return await status(url, show(secret))
    assert asyncio.run(tries()) == (101, "")


def test_no_secret_is_told(server):
    said = server.written()
    assert not any(secret.rpartition(":")[2] in said for pair in (*SECRETS.values(), DEFAULT) for secret in pair)
    assert said.count("was refused") >= 1 and "Traceback" not in said


# ---- the configuration -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("table, sentence", [
    ({"twillio": {"secrets": ["new-secret-one"]}}, "no platform 'twillio'"),
    ({"twilio": {}}, 'needs secrets = ["..."]'),
    ({"twilio": "new-secret-one"}, "must be a table, [auth.twilio]."),
    ({"twilio": {"secret": "new-secret-one"}}, "has no 'secret'; it has secrets"),
    ({"twilio": {"secrets": ["short"]}}, "fewer than 8 characters"),
    ({"twilio": {"secrets": [12345678]}}, "must be a list of texts"),
    ({"audiohook": {"secrets": ["bmV3IHNlY3JldA=="]}}, "needs the API key as user"),
    ({"audiohook": {"secrets": ["no base64!"], "user": "k"}}, "in base64"),
    ({"telnyx": {"secrets": ["new-secret-one"], "public_keys": ["?"]}}, "as Telnyx shows them"),
])
def test_what_cannot_be_meant_is_refused(table, sentence):
    with pytest.raises(credentials.ConfigError) as refused:
        credentials.keys(table, "opusagent.toml:3")
    said = str(refused.value)
    assert sentence in said and said.startswith("opusagent.toml:3: ") and "new-secret" not in said


def test_a_secret_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for text, sentence in (("env:NOBODY_SET_THIS", "is not set"), (f"file:{tmp_path}/none", "No such file"),
                           (f"file:{tmp_path}/empty", "holds no secret")):
        with pytest.raises(credentials.ConfigError, match=sentence):
            Config.load({}, {"OPUSAGENT_AUTH_PCM_SECRETS": text})


def test_a_configuration_with_keys_may_listen_beyond_loopback_and_shows_none(tmp_path):
    config = Config.load({"host": "0.0.0.0"}, {"OPUSAGENT_AUTH_TWILIO_SECRETS": "new-secret-one,old-secret-two"})
    assert [key.secrets for key in config.keys] == [DEFAULT]
    for text in (repr(config), config.toml(), repr(config.keys)):
        assert "new-secret" not in text and "old-secret" not in text
    assert "auth is set for twilio, and not shown  (OPUSAGENT_AUTH_TWILIO_SECRETS)" in config.toml()
    (tmp_path / "token").write_text("a token of 16 characters\n")
    config = Config.load({}, {"OPUSAGENT_ADMIN_TOKEN": f"file:{tmp_path}/token"})
    assert config.admin_token == "a token of 16 characters"
