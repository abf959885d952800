"""The platforms' REST interfaces, against a server that takes their requests as they document them and no others."""
import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import pytest

from conversation import Conversation
from opusagent import ConfigError, EngineError, targets
from opusagent.calls.departure import Departures
from opusagent.carriers import TABLE, Errand, api_of, rest, rs256, webhook
from opusagent.carriers.dialling import errand
from opusagent.carriers.rest import httpx
from opusagent.config import Config
from opusagent.credentials import CARRIERS, Carrier, carriers
from opusagent.dialects import DIALECTS, TEXT
from opusagent.metrics import Metrics

DATA = Path(__file__).parent / "data"
SECRET, PLACE = "the-secret-of-the-account", "https://calls.example.com"
PEM = (DATA / "rsa.pem").read_text()
BASIC = "Basic " + base64.b64encode(f"AC1:{SECRET}".encode()).decode()
LISTENED = {"stream_url": "wss://calls.example.com/ws/telnyx/cards?hang_up=yes", "stream_track": "inbound_track",
            "stream_codec": "PCMU", "stream_bidirectional_mode": "rtp", "stream_bidirectional_codec": "PCMU",
            "stream_auth_token": "stream-token", "webhook_url": "https://calls.example.com/telnyx/event/cards",
            "answering_machine_detection": "detect"}

# (platform, what is asked) -> method, path, body as it must arrive; the answer's status and JSON
WANTED = {
    ("twilio", "dial"): ("POST", "/Accounts/AC1/Calls.json", {
        "To": "+4930123456", "From": "+15550100", "Url": PLACE + "/twilio/voice/cards", "Method": "POST",
        "MachineDetection": "Enable"}, 201, {"sid": "id-1", "status": "queued"}),
    ("twilio", "hang_up"): ("POST", "/Accounts/AC1/Calls/c%2F1.json", {"Status": "completed"}, 200, {"sid": "c/1"}),
    ("twilio", "transfer"): ("POST", "/Accounts/AC1/Calls/c%2F1.json", {
        "Twiml": "<Response><Dial>+4930123456</Dial></Response>"}, 200, {"sid": "c/1"}),
    ("telnyx", "dial"): ("POST", "/calls", LISTENED | {
        "connection_id": "app-1", "to": "+4930123456", "from": "+15550100"}, 200, {
            "data": {"call_control_id": "id-1"}}),
    ("telnyx", "hang_up"): ("POST", "/calls/c%2F1/actions/hangup", {}, 200, {"data": {"result": "ok"}}),
    ("telnyx", "transfer"): ("POST", "/calls/c%2F1/actions/transfer", {"to": "+4930123456"}, 200, {}),
    ("plivo", "dial"): ("POST", "/Account/AC1/Call/", {
        "from": "+15550100", "to": "+4930123456", "answer_url": PLACE + "/plivo/answer/cards", "answer_method": "POST",
        "machine_detection": "true"}, 201, {"request_uuid": "id-1", "message": "call fired"}),
    ("plivo", "hang_up"): ("DELETE", "/Account/AC1/Call/c%2F1/", None, 204, None),
    ("plivo", "transfer"): ("POST", "/Account/AC1/Call/c%2F1/", {
        "legs": "aleg", "aleg_url": PLACE + "/plivo/transfer/cards?target=%2B4930123456", "aleg_method": "POST"},
        202, {}),
    ("vonage", "dial"): ("POST", "/calls", {
        "to": [{"type": "phone", "number": "4930123456"}], "from": {"type": "phone", "number": "15550100"},
        "answer_url": [PLACE + "/vonage/answer/cards"], "answer_method": "POST",
        "event_url": [PLACE + "/vonage/event/cards"], "event_method": "POST", "machine_detection": "continue"}, 201,
        {"uuid": "id-1", "status": "started"}),
    ("vonage", "hang_up"): ("PUT", "/calls/c%2F1", {"action": "hangup"}, 204, None),
    ("vonage", "transfer"): ("PUT", "/calls/c%2F1", {"action": "transfer", "destination": {"type": "ncco", "ncco": [
        {"action": "connect", "from": "15550100", "endpoint": [{"type": "phone", "number": "4930123456"}]}]}}, 204,
        None),
    ("jambonz", "dial"): ("POST", "/Accounts/AC1/Calls", {
        "from": "+15550100", "to": {"type": "phone", "number": "+4930123456"},
        "call_hook": {"url": PLACE + "/jambonz/call/cards", "method": "POST"},
        "amd": {"actionHook": PLACE + "/jambonz/machine/cards"}}, 201, {"sid": "id-1"}),
    ("jambonz", "hang_up"): ("PUT", "/Accounts/AC1/Calls/c%2F1", {"call_status": "completed"}, 202, None),
    ("jambonz", "transfer"): ("PUT", "/Accounts/AC1/Calls/c%2F1", {"call_hook": {
        "url": PLACE + "/jambonz/transfer/cards?target=%2B4930123456", "method": "POST"}}, 202, None),
}


class Platform(BaseHTTPRequestHandler):
    """Notes what arrives, and answers with the next of `answers`: (status, headers, JSON), "drop", or "stall"."""

    protocol_version = "HTTP/1.1"

    def take(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.headers.get("Content-Type", "")
        content = json.loads(body) if kind == "application/json" else dict(
            parse_qsl(body.decode(), strict_parsing=True)) if body else None
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization", ""), kind, content))
        answer = self.server.answers.pop(0) if self.server.answers else (200, {}, {})
        if answer == "drop":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if answer == "stall":
            return time.sleep(1.5)
        status, headers, value = answer
        said = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(said)), "Content-Type": "application/json"}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = do_PUT = do_DELETE = take

    def log_message(self, *arguments):
        """Nothing on stderr."""


@contextlib.contextmanager
def platform():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Platform)
    server.seen, server.answers = [], []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.api = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def account(name, api, **more):
    return Carrier(name, name, "AC1" if name != "telnyx" else "app-1", PEM if name == "vonage" else SECRET, "+15550100",
                   api=api, **more)


def asked(name, what, its_account):
    table = TABLE[name]
    if what == "dial":
        return table.dial(its_account, Errand("+4930123456", PLACE, "cards", token="stream-token"))
    if what == "hang_up":
        return table.hang_up(its_account, "c/1")
    return table.transfer(its_account, "c/1", "+4930123456", partial(webhook, PLACE, "cards"))


def send(server, name, request, seconds=5.0, **more):
    async def sending():
        sender = rest.Rest(httpx.AsyncClient(timeout=seconds, trust_env=False))
        try:
            return await sender.send(account(name, server.api, **more), request)
        finally:
            await sender.close()
    return asyncio.run(sending())


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(rest, "PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize("name, what", WANTED)
def test_a_request_is_as_the_platform_documents_it(name, what):
    method, path, body, status, said = WANTED[name, what]
    with platform() as server:
        server.answers.append((status, {}, said))
        answer = send(server, name, asked(name, what, account(name, server.api)))
    (its_method, its_path, shown, kind, content), = server.seen
    assert (its_method, its_path) == (method, path)
    if name == "telnyx" and what != "dial":
        assert len(content.pop("command_id")) == 32
    assert content == body
    its_kind = "application/x-www-form-urlencoded" if name == "twilio" else "application/json"
    assert kind == ("" if body is None else its_kind)
    if name in ("twilio", "plivo"):
        assert shown == BASIC
    elif name == "vonage":
        check_token(shown.removeprefix("Bearer "))
    else:
        assert shown == f"Bearer {SECRET}"
    if what == "dial":
        assert TABLE[name].placed(answer) == "id-1"
    assert SECRET not in its_path


def check_token(token):
    written, _, signature = token.rpartition(".")
    claims = json.loads(base64.urlsafe_b64decode(written.partition(".")[2] + "=="))
    assert claims["application_id"] == "AC1" and claims["exp"] == claims["iat"] + 60 and len(claims["jti"]) == 32
    n, e, *_ = rs256.numbers(PEM)
    opened = pow(int.from_bytes(base64.urlsafe_b64decode(signature + "=="), "big"), e, n).to_bytes(256, "big")
    assert opened.startswith(b"\0\1\xff\xff") and opened.endswith(b"\0" + rs256.SHA256_INFO
                                                                  + hashlib.sha256(written.encode()).digest())


def test_a_private_key_in_either_form_and_nothing_else():
    assert rs256.numbers(PEM) == rs256.numbers((DATA / "rsa_pkcs1.pem").read_text())
    for wrong in ("", "secret", PEM[:400], PEM.replace("MII", "MIA", 1), (DATA / "localhost.pem").read_text()[-300:]):
        with pytest.raises(ConfigError, match="PEM, without a password"):
            rs256.signature(b"", wrong)


# ---- what goes wrong -------------------------------------------------------------------------------------------------

LATER = (503, {}, {"code": 20503, "message": f"try later {SECRET}"})


@pytest.mark.parametrize("what, answers, tries, sentence", [
    ("hang_up", [LATER, "drop", (200, {}, {})], 3, ""),
    ("hang_up", [LATER] * 3, 3, "The carrier twilio answered with status 503 (20503)."),
    ("hang_up", [(429, {"Retry-After": "0"}, None), (200, {}, {})], 2, ""),
    ("hang_up", [(404, {}, {"code": 20404})], 1, ""),                               # over already
    ("hang_up", [(401, {}, {"code": 20003, "message": "Authenticate"})], 1,
     "The carrier twilio answered with status 401 (20003), so look at the account and the secret of "
     "[carriers.twilio]."),
    ("hang_up", [(302, {"Location": "http://127.0.0.1:1/"}, None)], 1, "The carrier twilio answered with status 302."),
    ("dial", [LATER], 1, "The carrier twilio answered with status 503 (20503)."),      # it may have been placed
    ("dial", ["drop"], 1, "The carrier twilio broke off."),
    ("dial", ["stall"], 1, "The carrier twilio did not answer in time."),
    ("transfer", [LATER], 1, "The carrier twilio answered with status 503 (20503)."),
    ("dial", [(400, {}, {"code": "<script>", "message": "x"})], 1, "The carrier twilio answered with status 400."),
])
def test_only_what_can_do_no_harm_is_sent_again(what, answers, tries, sentence, caplog):
    caplog.set_level(logging.DEBUG, "opusagent")
    with platform() as server:
        server.answers += answers
        request = asked("twilio", what, account("twilio", server.api))
        if sentence:
            with pytest.raises(EngineError) as failed:
                send(server, "twilio", request, 0.5)
            assert str(failed.value) == sentence and SECRET not in sentence and "+49" not in sentence
        else:
            send(server, "twilio", request, 0.5)
    assert len(server.seen) == tries
    assert SECRET not in caplog.text and "+4930" not in caplog.text


def test_a_platform_that_nobody_reaches_is_a_sentence_and_is_tried_again():
    with platform() as server:
        pass                                        # it has gone
    with pytest.raises(EngineError, match="The carrier twilio cannot be reached."):
        send(server, "twilio", asked("twilio", "dial", account("twilio", server.api)))


def test_accounts_show_nothing_of_themselves():
    held = account("twilio", "")
    assert SECRET not in repr(held) and api_of(held) == "https://api.twilio.com/2010-04-01"
    assert api_of(account("twilio", "https://api.dublin.ie1.twilio.com/2010-04-01/")).endswith(".com/2010-04-01")
    config = Config(carriers={"main": {"platform": "twilio", "account": "AC1", "secret": SECRET}})
    assert SECRET not in config.toml() and SECRET not in repr(config) and "set for main" in config.toml()
    assert set(TABLE) == set(CARRIERS)


@pytest.mark.parametrize("row, sentence", [
    ({"account": "AC1"}, "needs secret."), ({"secret": SECRET}, "needs account."),
    ({"platform": "asterisk", "account": "a", "secret": SECRET}, "needs platform = one of twilio"),
    ({"account": "a", "secret": SECRET, "token": "x"}, "has no 'token'; it has platform"),
    ({"account": "a", "secret": SECRET, "api": "ftp://x"}, "must begin with https://"),
    ({"account": "a", "secret": SECRET, "hang_up": "yes"}, "hang_up must be true or false"),
])
def test_an_account_that_cannot_be_used_is_refused(row, sentence):
    with pytest.raises(ConfigError) as refused:
        carriers({"twilio": row}, "opusagent.toml:1")
    assert sentence in str(refused.value) and SECRET not in str(refused.value)


# ---- whom ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("written, spelled", [
    ("+49 30 123456", "+4930123456"), ("0049 (30) 123-456", "+4930123456"), ("tel:+4930123456", "+4930123456"),
    ("sip:Reception@PBX.example", "sip:Reception@pbx.example"), ("030 123456", ""), ("112", ""), ("+0123456789", ""),
    ("+49301234567890123", ""), ("+4930123456;ext=1", ""), ("sip:a b@c", ""), ("sip:a@b?Route=x", ""), ("", ""),
    ("+٤٩٣٠١٢٣٤٥٦", ""), ("+4930123456\n", "+4930123456"), ("sip:<b>@c", ""),
])
def test_targets_have_one_spelling(written, spelled):
    assert targets.spelled(written) == spelled


@pytest.mark.parametrize("target, patterns, fits", [
    ("+4930123456", (), False), ("+4930123456", ("+4930123456",), True), ("+4930123456", ("+4930*",), True),
    ("+4930123456", ("+493012345",), False), ("+8821234567", ("+49*", "+1*"), False), ("", ("+*",), False),
    ("sip:a@pbx.example", ("sip:a@pbx.example",), True), ("sip:b@pbx.example", ("sip:*@pbx.example",), True),
    ("sip:b@evil.example", ("sip:*@pbx.example",), False),
    ("sip:b@pbx.example.evil.org", ("sip:*@pbx.example",), False),
    ("+4930123456", ("sip:*@pbx.example",), False), ("sips:b@pbx.example", ("sip:*@pbx.example",), False),
])
def test_nobody_is_called_who_is_not_on_the_list(target, patterns, fits):
    assert targets.allowed(target, patterns) is fits


# ---- opusagent dial --------------------------------------------------------------------------------------------------

def ready(**more):
    return Config(**{"carriers": {"twilio": {"account": "AC1", "secret": SECRET, "sender": "+15550100"}},
                     "targets": ("+4930*",), "public_url": PLACE} | more)


@pytest.mark.parametrize("more, number, via, sentence", [
    ({}, "+4930123456", "main", "There is no carrier 'main'"), ({}, "112", "twilio", "is no number"),
    ({}, "+4940123456", "twilio", "does not allow"), ({"targets": ()}, "+4930123456", "twilio", "does not allow"),
    ({"public_url": ""}, "+4930123456", "twilio", "set public_url"),
    ({"carriers": {"twilio": {"account": "AC1", "secret": SECRET}}}, "+4930123456", "twilio", "needs sender"),
])
def test_a_call_that_may_not_be_placed_is_not(more, number, via, sentence):
    with pytest.raises(ConfigError, match=sentence):
        errand(ready(**more), number, via, "", True)


def test_the_command_places_a_call_and_says_its_id(tmp_path):
    with platform() as server:
        server.answers.append((201, {}, {"sid": "CA7"}))
        (tmp_path / "token").write_text(SECRET + "\n")
        (tmp_path / "opusagent.toml").write_text(
            f'public_url = "{PLACE}"\ntargets = ["+4930*"]\n[carriers.main]\nplatform = "twilio"\naccount = "AC1"\n'
            f'secret = "file:{tmp_path}/token"\nsender = "+15550100"\napi = "{server.api}"\n')

        def dial(number):
            return subprocess.run([sys.executable, "-P", "-m", "opusagent.cli", "dial", number, "--via", "main",
                                   "--config", str(tmp_path / "opusagent.toml"), "--agent", "cards"],
                                  capture_output=True, text=True, timeout=60)
        done = dial("+49 30 123456")
        assert (done.returncode, done.stdout, done.stderr) == (0, "call CA7\n", "")
        assert server.seen[0][4] == WANTED["twilio", "dial"][2]
        server.answers.append((401, {}, {"code": 20003}))
        refused = dial("+49 30 123456")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == ("opusagent: The carrier main answered with status 401 (20003), so look at the "
                                  "account and the secret of [carriers.main].\n")
        server.answers.append((200, {}, {}))                # somebody else's page
        nameless = dial("+49 30 123456")
        assert (nameless.returncode, nameless.stdout) == (1, "")
        assert nameless.stderr == ("opusagent: The carrier main named no call in its answer: is its api the right "
                                   "address?\n")
        assert dial("+49 40 123456").returncode == 2 and len(server.seen) == 3


# ---- from a call -----------------------------------------------------------------------------------------------------

def leaving(name, query={}, tenant="", **settings):
    """(departures, a call, what it sent, what it was told)."""
    sent, told = [], []
    call = SimpleNamespace(id="c/1", agent="cards", connection=SimpleNamespace(tenant=tenant),
                           dialect=DIALECTS[name](query),
                           mouth=SimpleNamespace(out=SimpleNamespace(text=sent.append)),
                           not_handed_over=lambda: told.append("not"))
    departures = Departures(Config(public_url=PLACE, targets=("+4930*",), **settings), Metrics())
    departures.soon = lambda what: what()
    return departures, call, sent, told


def test_a_platform_with_a_message_for_it_is_sent_that():
    for name, wanted in (("audiocodes", b"tel:+4930123456"), ("audiohook", b'"transfer":"+4930123456"'),
                         ("pcm", b'"event":"transfer"'), ("freeswitch", b'"type":"transfer"')):
        departures, call, sent, told = leaving(name)
        departures.hand_over(call, "+49 30 123456")
        assert wanted in sent[0] and told == []
        departures.hand_over(call, "+49 40 123456")
        departures.hand_over(call, "")
        assert len(sent) == 1 and told == ["not", "not"]


@pytest.mark.parametrize("answer, told", [((200, {}, {}), []), ((400, {}, {"code": 21220}), ["not"])])
def test_another_is_asked_by_its_interface(answer, told, caplog):
    async def hand_over(server):
        rows = {"other": {"platform": "twilio", "account": "AC0", "secret": SECRET, "api": server.api},
                "main": {"platform": "twilio", "account": "AC1", "secret": SECRET, "api": server.api}}
        departures, call, _, heard = leaving("twilio", tenant="AC1", carriers=rows)
        departures.rest = rest.Rest(httpx.AsyncClient(trust_env=False))
        departures.hand_over(call, "+4930123456")
        departures.hang_up(call)                    # neither account wants that
        while departures._tasks:
            await asyncio.sleep(0.01)
        await departures.close()
        return heard
    with platform() as server:
        server.answers.append(answer)
        assert asyncio.run(hand_over(server)) == told
    assert [row[:2] for row in server.seen] == [("POST", "/Accounts/AC1/Calls/c%2F1.json")]
    assert SECRET not in caplog.text and "+4930" not in caplog.text


def test_a_platform_without_either_is_not_asked(caplog):
    departures, call, sent, told = leaving("asterisk")
    departures.hand_over(call, "+4930123456")
    assert sent == [] and told == ["not"]
    assert "needs an account under [carriers]" in caplog.text


@pytest.mark.parametrize("wanted, query", [(True, {}), (False, {"hang_up": "yes"})])
def test_a_call_is_ended_by_its_account_where_that_or_its_stream_wants_it(wanted, query):

    async def hang_up(server):
        rows = {"telnyx": {"account": "app-1", "secret": SECRET, "api": server.api, "hang_up": wanted}}
        departures, call, *_ = leaving("telnyx", query, carriers=rows)
        departures.rest = rest.Rest(httpx.AsyncClient(trust_env=False))
        departures.hang_up(call)
        while departures._tasks:
            await asyncio.sleep(0.01)
        await departures.close()
    with platform() as server:
        server.answers.append((422, {}, {"errors": [{"code": "90018"}]}))
        asyncio.run(hang_up(server))
    assert server.seen[0][:2] == ("POST", "/calls/c%2F1/actions/hangup")


FLOW = """
start = "desk"
[transfers]
desk = "TARGET"
[states.desk]
say = "I put you through."
transfer = "desk"
failure = { say = ["Sorry, nobody is there."] }
"""


@pytest.mark.parametrize("target, goes", [("+49 30 123456", True), ("+49 40 123456", False)])
def test_a_caller_who_is_put_through_hears_why_or_why_not(target, goes, caplog):
    """Pcm has a message for it.  Whom the list does not allow, nobody is put through to: the conversation goes on."""
    talk = Conversation(FLOW.replace("TARGET", target), "pcm", begin=False)
    talk.server.departures.config = Config(targets=("+4930*",))
    talk.passes(4000)
    sent = [json.loads(message) for opcode, message in talk.connection.sent if opcode == TEXT]
    transfers = [message for message in sent if message["event"] == "transfer"]
    assert transfers == ([{"event": "transfer", "target": "+4930123456"}] if goes else [])
    if goes:
        assert talk.call.done and talk.connection.closed is None
        talk.passes(16_000)                         # whoever leads the call elsewhere has not closed: we do
        assert talk.connection.closed[0] == 1000
    else:
        assert talk.agent_says == ["I put you through.", "Sorry, nobody is there."]
