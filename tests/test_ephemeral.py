"""Ephemeral keys of /v1/realtime: who may ask for one, what it is good for, and that nothing near it opens anything."""
import asyncio
import http.client
import json
import time

import orjson
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

import browser
from opusagent import ProtocolError
from opusagent.client.telephone import Line
from opusagent.credentials import Key
from opusagent.dialects import OpenAIRealtime
from opusagent.dialects.realtime.settings import SESSION as SESSION_SHAPE
from opusagent.dialects.realtime.settings import Fault
from opusagent.server import client_secrets
from opusagent.trust.ephemeral import key_for, opened, shown
from served import SCRIPTED, serving

NEW, OLD, CARDS = "new-secret-one", "old-secret-two", "secret-of-cards"
NOW = 1_790_000_000
SESSION = {"type": "realtime", "instructions": "Speak of cards."}
OFFERED = "openai-insecure-api-key."
GOLDEN = ("ek_eNqLNjS3NIAAHaXkxKKUYiWdaqWSyoJUJSulotTEnJLM3FQlHaXMvOKSotLkksz8vGKgTHBBamK2Qn6aAliLnlJtLAAxLxeJ"
          ".dB0o-00K6XT_q9E3ZOYg0F4Jxcr4zKVDFf84cYtb6tY")


# ---- the key itself --------------------------------------------------------------------------------------------------

def test_a_key_says_what_it_is_good_for():
    key = Key("realtime", (NEW, OLD))
    found = opened(key_for(NEW, NOW, "cards", SESSION), [key], NOW)
    assert (found.key, found.model, found.session) == (key, "cards", SESSION)


def test_a_key_counts_while_its_secret_does_and_no_longer_than_its_time():
    value = key_for(OLD, NOW, "", {})
    for keys, now, fits in (([Key("realtime", (NEW, OLD))], NOW, True), ([Key("realtime", (NEW,))], NOW, False),
                            ([Key("realtime", (NEW,)), Key("realtime", tokens=(OLD,))], NOW, True), ([], NOW, False),
                            ([Key("realtime", (OLD,))], NOW + 0.5, False)):
        assert (opened(value, keys, now) is not None) is fits, (keys, now)


def test_no_bit_of_a_key_may_differ():
    value, keys = key_for(NEW, NOW, "cards", SESSION), [Key("realtime", (NEW, OLD))]
    raw = value.encode()
    for i in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[i // 8] ^= 1 << i % 8
        given = shown({"authorization": f"Bearer {changed.decode('latin-1')}"}.get)
        assert not given or opened(given, keys, NOW) is None, i


def test_a_key_outlives_the_version_that_made_it():
    """Nodes beside one another, and an upgrade of one, agree on what it is."""
    assert opened(GOLDEN, [Key("realtime", (NEW,))], NOW).session == SESSION


@pytest.mark.parametrize("fields, found", [
    ({"authorization": "Bearer KEY"}, True), ({"authorization": "bearer  KEY "}, True),
    ({"authorization": "Basic KEY"}, False), ({"authorization": "Bearer ek_short"}, False),
    ({"sec-websocket-protocol": f"realtime, {OFFERED}KEY, openai-agents-sdk.0.1"}, True),
    ({"sec-websocket-protocol": "realtime, KEY"}, False), ({}, False)])
def test_a_key_is_a_bearer_or_a_subprotocol(fields, found):
    value = key_for(NEW, NOW, "", {})
    assert shown({name: text.replace("KEY", value) for name, text in fields.items()}.get) == (value if found else "")


# ---- the server ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Two workers; the agents may be called with two secrets, `demo` with another."""
    folder = tmp_path_factory.mktemp("ephemeral")
    (folder / "opusagent.toml").write_text(
        f'[[auth.realtime]]\nsecrets = ["{NEW}", "{OLD}"]\n[[auth.realtime]]\nsecrets = "{CARDS}"\nagent = "demo"\n')
    with serving(*SCRIPTED[2:], "--workers", "2", "--config", str(folder / "opusagent.toml"),
                 environment={"OPUSAGENT_ADMIN_TOKEN": "the-token-of-the-admin"}) as running:
        yield running


def post(server, content=b"{}", secret=NEW, path="/v1/realtime/client_secrets", **headers):
    """(status, the answer)."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    shows = {"Authorization": f"Bearer {secret}"} if secret else {}
    connection.request("POST", path, body, {"Content-Type": "application/json", **shows, **headers})
    response = connection.getresponse()
    said = response.read()
    connection.close()
    return response.status, json.loads(said) if said[:1] == b"{" else said.decode()


def session(server, value, route="/v1/realtime", as_bearer=False, origin=""):
    """The session that a key opens, or the status of the refusal."""
    async def tries():
        heard = asyncio.get_running_loop().create_future()
        headers = {"Authorization": f"Bearer {value}"} if as_bearer else {}
        headers |= {"Origin": origin} if origin else {}
        protocols = ("realtime",) if as_bearer else ("realtime", OFFERED + value)
        try:
            line = await Line.dial(server.ws(route), lambda opcode, payload, now: heard.done() or heard.set_result(
                bytes(payload)), lambda *ending: None, protocols, headers)
        except ProtocolError as error:
            return error.code
        said = await asyncio.wait_for(heard, 10)
        line.abort()
        return orjson.loads(said)["session"]
    return asyncio.run(tries())


def test_a_page_of_any_origin_calls_with_its_key_again_and_again_in_every_worker(server):
    before = int(time.time())
    status, made = post(server, {"session": SESSION | {"audio": {"output": {"voice": "marin"}}}})
    assert status == 200 and set(made) == {"value", "expires_at", "session"}
    assert before + 600 <= made["expires_at"] <= time.time() + 600
    assert made["session"]["object"] == "realtime.session" and made["session"]["instructions"] == "Speak of cards."
    for i in range(6):
        opened = session(server, made["value"], as_bearer=i % 2 == 0, origin="" if i % 2 == 0 else "https://a.example")
        assert (opened["instructions"], opened["audio"]["output"]["voice"]) == ("Speak of cards.", "marin")


def test_a_key_is_of_one_agent(server):
    status, made = post(server, {"session": {"type": "realtime", "model": "gpt-realtime"}}, OLD)
    assert status == 200 and session(server, made["value"], "/v1/realtime?model=gpt-realtime-2")["model"] == \
        "gpt-realtime-2"
    assert session(server, made["value"])["model"] == "gpt-realtime"
    for route in ("/v1/realtime?model=demo", "/ws/openai-realtime/demo", "/v1/realtime?model=echo"):
        assert session(server, made["value"], route) == 401, route
    assert post(server, {"session": {"type": "realtime", "model": "demo"}})[0] == 401      # another secret's
    status, made = post(server, {"session": {"type": "realtime", "model": "demo"}}, CARDS)
    assert session(server, made["value"])["model"] == "demo"
    assert session(server, made["value"], "/v1/realtime?model=gpt-realtime") == 401


def test_a_key_makes_no_key_and_nobody_asks_without_one(server):
    value = post(server)[1]["value"]
    for secret in (value, "wrong-secret", ""):
        assert post(server, secret=secret)[0] == 401, secret
    assert post(server, path="/v1/realtime/client_secrets/demo")[0] == 405
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", "/v1/realtime/client_secrets", headers={"Authorization": f"Bearer {NEW}"})
    assert connection.getresponse().status == 405
    connection.close()


def test_a_key_that_is_over_opens_nothing(server):
    now = int(time.time())
    for value, fits in ((key_for(NEW, now + 60, "", {}), True), (key_for(NEW, now - 1, "", {}), False),
                        (key_for("some-other-secret", now + 60, "", {}), False),
                        (key_for(NEW, now + 60, "demo", {}), False)):
        assert (session(server, value) != 401) is fits


def test_the_admin_token_asks_as_well(server):
    status, made = post(server, secret="the-token-of-the-admin")
    assert status == 200 and session(server, made["value"])["type"] == "realtime"


@pytest.mark.parametrize("content, code, param", [
    (b"", None, None), ({"expires_after": {"anchor": "created_at", "seconds": 7200}}, None, None),
    ({"expires_after": {"seconds": 7201}}, "invalid_value", "expires_after.seconds"),
    ({"expires_after": {"seconds": 9}}, "invalid_value", "expires_after.seconds"),
    ({"expires_after": {"seconds": "60"}}, "invalid_value", "expires_after.seconds"),
    ({"expires_after": {"anchor": "now"}}, "invalid_value", "expires_after.anchor"),
    ({"expires_after": 60}, "invalid_type", "expires_after"), ({"session": "x"}, "invalid_type", "session"),
    ({"session": {"type": "realtime", "temprature": 1}}, "unknown_parameter", "session.temprature"),
    ({"session": {"tool_choice": {"type": "function", "name": "none"}}}, "invalid_value", "session.tool_choice.name"),
    ({"session": {"tools": [{"type": "mcp", "server_label": "a"}]}}, "unsupported_value", "session.tools[0].type"),
    ({"sesion": {}}, "unknown_parameter", "sesion"), (b"[]", "invalid_json", None), (b"{", "invalid_json", None),
    ({"session": {"instructions": "".join(map(chr, range(0x4e00, 0x4e00 + 5000)))}}, "session_too_large", "session")])
def test_what_cannot_be_meant_is_told_as_openai_tells_it(server, content, code, param):
    status, made = post(server, content)
    if code is None:
        return assert_key(made, status)
    assert status == 400 and made["error"]["type"] == "invalid_request_error"
    assert (made["error"]["code"], made["error"]["param"]) == (code, param)


def assert_key(made, status):
    assert status == 200 and made["value"].startswith("ek_")


def test_instructions_of_a_few_pages_fit(server):
    words = " ".join(f"Rule {i}: when the caller names card {i * 7919 % 997}, ask for card {i * 104729 % 991}."
                     for i in range(250))
    status, made = post(server, {"session": {"type": "realtime", "instructions": words}})
    assert len(words) > 12_000 and status == 200
    assert session(server, made["value"])["instructions"] == words


def test_beta_asks_elsewhere_by_its_own_names(server):
    status, made = post(server, {"instructions": "Speak.", "voice": "ash", "input_audio_format": "g711_ulaw"},
                        path="/v1/realtime/sessions")
    assert status == 200 and made["voice"] == "ash" and made["input_audio_format"] == "g711_ulaw"
    opened = session(server, made["client_secret"]["value"])
    assert opened["audio"]["input"]["format"] == {"type": "audio/pcmu"} and opened["instructions"] == "Speak."
    status, made = post(server, {"client_secret": {"expires_at": {"seconds": 10}}},
                        path="/v1/realtime/transcription_sessions")
    assert status == 200 and made["client_secret"]["expires_at"] <= time.time() + 10
    assert session(server, made["client_secret"]["value"])["type"] == "transcription"


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_a_page_in_a_browser_calls_with_it(server, tmp_path):
    made = post(server, {"session": SESSION})[1]
    page = browser.Browser(tmp_path / "no-microphone.wav")
    try:
        said = page.run(f"""new Promise(done => {{
            const line = new WebSocket({server.ws("/v1/realtime")!r}, ["realtime", {OFFERED + made["value"]!r}]);
            line.onmessage = message => done(message.data);
            line.onclose = end => done(`{{"type": "closed"}}`);
        }})""")
    finally:
        page.close()
    assert json.loads(said)["session"]["instructions"] == "Speak of cards."


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-5, 9000) | st.sampled_from(
    ["", "auto", "none", "server_vad", "audio/pcmu", "pcm16", "transcription", "text", "x", "function"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "input", "output", "format", "turn_detection", "name", "voice", "model", "seconds", "id"]), inner,
        max_size=3), max_leaves=6)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*SESSION_SHAPE]), VALUES, max_size=4), VALUES,
       st.sampled_from([None, "realtime", "transcription"]))
@example({"turn_detection": {"type": None}}, None, None)
def test_whatever_is_asked_for_is_a_key_that_opens_a_session_or_a_sentence(session, expiry, older):
    content = {"session": session, "expires_after": expiry} if older is None else session
    request = client_secrets.read(orjson.dumps(content), older)
    made = request if isinstance(request, Fault) else client_secrets.answer(
        Key("realtime", (NEW,)), *request, NOW, older)
    if isinstance(made, Fault):
        return event("a sentence")
    event("a key")
    found = opened((made if older is None else made["client_secret"])["value"], [Key("realtime", (NEW,))], NOW)
    begun = OpenAIRealtime({"session": json.dumps(found.session), "model": found.model})
    begun.open()
    assert begun.session["type"] in ("realtime", "transcription") and begun.outbox


def test_without_any_keys_this_machine_asks_and_no_page_of_anybodys():
    with serving(*SCRIPTED) as server:
        status, made = post(server, {"session": SESSION}, secret="")
        assert status == 200 and session(server, made["value"], origin="https://a.example")["instructions"]
        assert post(server, secret="", Origin="https://a.example")[0] == 403
        assert post(server, secret="", Origin="http://a.example", Host="a.example")[0] == 403       # rebound to us
        assert session(server, key_for(NEW, int(time.time()) + 60, "", {})) == 401
