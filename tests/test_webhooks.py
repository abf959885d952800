"""What platforms ask by HTTP: signed requests on a real server, and the answers that connect their calls."""
import asyncio
import base64
import hashlib
import hmac
import http.client
import json
import os
import socket
import time
from types import SimpleNamespace
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

import pytest

from opusagent import ProtocolError
from opusagent.client.telephone import Line
from opusagent.config import Config
from opusagent.dialects import CALLERS
from opusagent.flow import Dialogue, Flow
from opusagent.metrics import Metrics
from opusagent.server.webhooks import BY_GET, ROUTES, answered_by, respond, route_of
from opusagent.server.worker import Server
from opusagent.transport import http11
from opusagent.transport.inquiry import Inquiry
from opusagent.trust import signing
from served import SCRIPTED, serving
from test_signatures_webhooks import signed

SECRET, PLACE = "new-secret-one", "https://calls.example.com"
SEED = b"telnyx signs with this, 32 bytes"
PUBLIC = base64.b64encode(signed(SEED, b"")[0]).decode()
FLOW = """
start = "hello"
machine = "message"
facts = { caller = "nobody", campaign = "none", answered_by = "", callee = "" }
[states.hello]
say = "Good morning. Who is it?"
on = [{ free = true, go = "bye" }]
[states.message]
say = "Please call us back."
end = true
[states.bye]
say = "Bye."
end = true
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """The flags of a server with this flow and these keys."""
    folder = tmp_path_factory.mktemp("webhooks")
    (folder / "flow.toml").write_text(FLOW)
    (folder / "opusagent.toml").write_text(
        f'public_url = "{PLACE}"\n' + "".join(f'[auth.{name}]\nsecrets = ["{SECRET}"]\n' for name in
                                             ("twilio", "plivo", "vonage", "jambonz"))
        + f'[auth.telnyx]\nsecrets = ["{SECRET}"]\npublic_keys = ["{PUBLIC}"]\n')
    return "--flow", str(folder / "flow.toml"), "--config", str(folder / "opusagent.toml")


@pytest.fixture(scope="module")
def server(configured):
    with serving(*SCRIPTED, *configured) as running:
        yield running


def request(server, method, target, body=b"", headers={}):
    """(status, headers, body)."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request(method, target, body or None, headers)
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return found


def encoded(form):
    return urlencode(form).encode(), {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}


def as_twilio(target, form, secret=SECRET):
    body, headers = encoded(form)
    message = PLACE + target + "".join(name + form[name] for name in sorted(form))
    made = base64.b64encode(hmac.digest(secret.encode(), message.encode(), "sha1")).decode()
    return "POST", target, body, headers | {"X-Twilio-Signature": made}


def as_plivo(target, form, secret=SECRET, nonce=None):
    body, headers = encoded(form)
    nonce = nonce or os.urandom(16).hex()
    message = f"{PLACE}{target}?" if "?" not in target else f"{PLACE}{target}."
    message += "".join(name + form[name] for name in sorted(form)) + "." + nonce
    made = base64.b64encode(hmac.digest(secret.encode(), message.encode(), "sha256")).decode()
    return "POST", target, body, headers | {"X-Plivo-Signature-V3": made, "X-Plivo-Signature-V3-Nonce": nonce}


def as_vonage(target, content, secret=SECRET, method="POST"):
    body = json.dumps(content).encode() if method == "POST" else b""
    hashed = {"payload_hash": hashlib.sha256(body).hexdigest()} if body else {}
    claims = {"iss": "Vonage", "iat": int(time.time()), "jti": os.urandom(8).hex(), **hashed}
    written = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
                       for part in ({"alg": "HS256"}, claims))
    made = base64.urlsafe_b64encode(hmac.digest(secret.encode(), written.encode(), "sha256")).rstrip(b"=").decode()
    return method, target, body, {"Content-Type": "application/json", "Authorization": f"Bearer {written}.{made}"}


def as_telnyx(target, body, kind, seed=SEED):
    at = str(int(time.time()))
    made = base64.b64encode(signed(seed, at.encode() + b"|" + body)[1]).decode()
    return "POST", target, body, {"Content-Type": kind, "telnyx-timestamp": at, "telnyx-signature-ed25519": made}


def as_jambonz(target, content, secret=SECRET):
    body, at = json.dumps(content).encode(), int(time.time())
    made = hmac.digest(secret.encode(), f"{at}.".encode() + body, "sha256").hex()
    return "POST", target, body, {"Content-Type": "application/json", "Jambonz-Signature": f"t={at},v1={made}"}


CALL = {"CallSid": "CA1", "From": "+15550100", "To": "+15550199", "Direction": "inbound"}
WEBHOOKS = {
    "twilio": lambda **more: as_twilio("/twilio/voice/demo?campaign=a%26b", CALL, **more),
    "plivo": lambda **more: as_plivo("/plivo/answer/demo", CALL | {"CallUUID": "u"}, **more),
    "vonage": lambda **more: as_vonage("/vonage/answer/demo", {"from": "15550100", "to": "15550199", "uuid": "u"},
                                       **more),
    "telnyx": lambda secret="": as_telnyx("/telnyx/voice/demo", *encoded(CALL)[:1], encoded({})[1]["Content-Type"],
                                          secret.encode().ljust(32) if secret else SEED),
    "jambonz": lambda **more: as_jambonz("/jambonz/call/demo", {"from": "+15550100", "to": "+15550199", "call_sid": "c",
                                                               "direction": "inbound"}, **more),
}


def stream_of(name, body):
    """(the address that the platform is sent to, the facts it is to bring along) of an answer."""
    if name in ("vonage", "jambonz"):
        content = json.loads(body)
        found = content[0]["endpoint"][0] if name == "vonage" else content[1]
        return found.get("uri") or found["url"], found.get("headers") or found["metadata"]
    root = ElementTree.fromstring(body)
    if name == "plivo":
        return root[0].text, dict(pair.split("=") for pair in root[0].get("extraHeaders").split(";"))
    return root[0][0].get("url"), {each.get("name"): each.get("value") for each in root[0][0]}


@pytest.mark.parametrize("name", WEBHOOKS)
def test_a_call_that_comes_in_is_connected(server, name):
    status, headers, body = request(server, *WEBHOOKS[name]())
    assert status == 200, body
    url, facts = stream_of(name, body)
    assert url.startswith(f"wss://calls.example.com/ws/{name}/demo") and SECRET not in body.decode()
    assert facts["caller"].removeprefix("+") == "15550100" and facts["callee"].removeprefix("+") == "15550199"
    kind = "application/json" if name in ("vonage", "jambonz") else "application/xml"
    assert headers["Content-Type"].startswith(kind)
    if name == "twilio":
        assert facts["campaign"] == "a&b"


@pytest.mark.parametrize("name", WEBHOOKS)
def test_what_is_not_signed_is_not_answered(server, name):
    method, target, body, headers = WEBHOOKS[name]()
    bare = {"Content-Type": headers["Content-Type"]}
    tries = [WEBHOOKS[name](secret="another-secret"), (method, target, body, bare),
             (method, target, body.replace(b"5550100", b"5550666"), headers),
             ("POST", target.replace("/demo", "/nobody"), body, bare)]
    for wrong in tries:
        status, _, said = request(server, *wrong)
        assert status == 401 and said == b"This call does not show the credentials that its route asks for.\n"


@pytest.mark.parametrize("name", [name for name in WEBHOOKS if name != "twilio"])
def test_the_stream_that_follows_is_let_in_by_its_ticket_once(server, name):
    url, _ = stream_of(name, request(server, *WEBHOOKS[name]())[2])
    parts = urlsplit(url)
    local = server.ws(f"{parts.path}?{parts.query}")
    caller = CALLERS[name](urlsplit(server.ws(parts.path)))

    async def dial():
        try:
            line = await Line.dial(local, lambda *message: None, lambda *ending: None, caller.protocols)
        except ProtocolError as error:
            return error.code
        await line.hang_up()
        return 101
    assert asyncio.run(dial()) == 101
    assert asyncio.run(dial()) == 401


def test_vonage_and_plivo_ask_by_get_too(server):
    method, target, _, headers = as_vonage("/vonage/answer?from=1555&to=1666&uuid=u", {}, method="GET")
    status, _, body = request(server, method, target, b"", headers)
    assert status == 200 and stream_of("vonage", body)[1] == {"uuid": "u", "caller": "1555", "callee": "1666"}
    status, headers, _ = request(server, "GET", "/twilio/voice")
    assert status == 405 and set(BY_GET) <= set(ROUTES)


@pytest.mark.parametrize("said, who", [("human", "human"), ("machine_end_beep", "machine"), ("fax", "fax"), ("", ""),
                                       ("amd_machine_detected", "machine"), ("not_sure", "unknown"),
                                       ("true", "machine"), ("unknown", "unknown"), ("completed", ""), ("ringing", ""),
                                       ("amd_decision_timeout", "unknown"), ("amd_machine_stopped_speaking", "")])
def test_who_has_answered_in_everybodys_words(said, who):
    """... among whatever else a platform tells in the same place: that the call rings, or is over."""
    assert answered_by(said) == who


@pytest.mark.parametrize("platform, hook, own", [
    ("twilio", lambda agent: as_twilio(f"/twilio/voice{agent}?relay=1", CALL), "/twilio/handoff/cards"),
    ("vonage", lambda agent: as_vonage(f"/vonage/event{agent}", {"uuid": "u", "status": "completed"}), ""),
    ("jambonz", lambda agent: as_jambonz(f"/jambonz/transfer{agent}?target=%2B4930123456", {"call_sid": "c"}),
     "+4930123456")])
def test_whoever_may_call_one_agent_only_is_asked_and_asks_with_its_keys(platform, hook, own):
    """A key that is bound to an agent counts for that agent's other webhooks, too, and for nobody else's."""
    worker = Server(Config(auth={platform: {"secrets": [SECRET], "agent": "cards"}}, targets=("+4930*",),
                           public_url=PLACE), SimpleNamespace(flows={"cards": None}), Metrics())

    def said(request):
        method, target, body, headers = request
        lines = [f"{method} {target} HTTP/1.1", "Host: calls.example.com", f"Content-Length: {len(body)}",
                 *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        head = http11.HeadParser(lambda path: True).feed("\r\n".join(lines).encode())
        return respond(worker, SimpleNamespace(peer=("192.0.2.1", 1), inquiry=Inquiry(None)), head, body)
    try:
        status, answer, _ = said(hook("/cards"))
        assert status == 200 and own in (answer if isinstance(answer, str) else answer.decode())
        with pytest.raises(ProtocolError) as refused:
            said(hook(""))
        assert refused.value.code == 401
    finally:
        worker.epoll.close()


def test_a_machine_that_answers_is_told_to_the_stream(server):
    form = CALL | {"Direction": "outbound-api", "AnsweredBy": "machine_start"}
    assert stream_of("twilio", request(server, *as_twilio("/twilio/voice", form))[2])[1]["answered_by"] == "machine"


async def told_of(server, count):
    """The records of so many calls, each told on its own connection, once all are there, that a machine answered."""
    url = server.ws("/ws/twilio")
    heads = signing.headers("twilio", urlsplit("wss://calls.example.com/ws/twilio"), SECRET, 0, "")
    calls = []
    for _ in range(count):
        caller, ended = CALLERS["twilio"](urlsplit(url)), asyncio.Event()
        calls.append((caller.call_id, ended))
        line = await Line.dial(url, lambda *message: None, lambda *ending, over=ended: over.set(), (), heads)
        for message in caller.open():
            line.send(*message)
    await asyncio.sleep(0.2)
    for call_id, _ in calls:
        form = {"CallSid": call_id, "AnsweredBy": "machine_start"}
        assert (await asyncio.to_thread(request, server, *as_twilio("/twilio/machine", form)))[0] == 200
    for _, ended in calls:
        await asyncio.wait_for(ended.wait(), 10)
    return [json.loads((await asyncio.to_thread(request, server, "GET", f"/calls/{call_id}"))[2])
            for call_id, _ in calls]


def strange(server):
    """How often news came of a call that nobody has."""
    page = request(server, "GET", "/metrics")[2].decode()
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("opusagent_strange_news_total"))


def test_who_has_answered_is_told_while_the_call_is_on(server):
    """A flow that has a state for machines goes there, whatever it was saying."""
    record, = asyncio.run(told_of(server, 1))
    assert record["state"] == "message" and record["done"] and record["facts"]["answered_by"] == "machine"


def test_it_reaches_the_worker_that_has_the_call(configured):
    """Of several workers any may be told: that all calls are with those who are, by chance, is 1 in 1024."""
    with serving(*SCRIPTED[2:], "--workers", "2", *configured) as server:
        records = asyncio.run(told_of(server, 10))
        assert [(record["state"], record["done"]) for record in records] == [("message", True)] * 10
        form = {"CallSid": "CA-nobody", "AnsweredBy": "machine_start"}
        assert request(server, *as_twilio("/twilio/machine", form))[0] == 200
        deadline = time.monotonic() + 10
        while (count := strange(server)) < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert count == 1, "counted once, by whichever worker was asked last"


def test_a_flow_says_what_to_do_with_a_machine():
    flow = Flow.parse(FLOW, "flow.toml")
    assert Dialogue(flow).begin().next == "hello"
    assert Dialogue(flow, {"answered_by": "machine"}).begin().next == "message"
    dialogue = Dialogue(flow)
    assert dialogue.answered("human") is None and dialogue.facts["answered_by"] == "human"
    reply = dialogue.answered("machine")
    assert reply.next == "message" and reply.end and "Please call us back." in flow.prompts()
    dialogue.commit(reply)
    assert dialogue.answered("machine") is None
    with pytest.raises(Exception, match="`machine` names \"mesage\", which is no state .did you mean"):
        Flow.parse(FLOW.replace('machine = "message"', 'machine = "mesage"'), "flow.toml")


# ---- bodies ----------------------------------------------------------------------------------------------------------

def test_a_telnyx_event_of_somebody_elses_call_changes_nothing(server):
    content = {"data": {"event_type": "call.machine.detection.ended",
                        "payload": {"call_control_id": "v3:none", "result": "machine"}}}
    assert request(server, *as_telnyx("/telnyx/event", json.dumps(content).encode(), "application/json"))[0] == 200


@pytest.mark.parametrize("lines, status", [
    ("Content-Length: 40000\r\n", 413), ("Content-Length: 99999999999999999999\r\n", 413), ("", 411),
    ("Content-Length: +5\r\n", 400), ("Content-Length: 0x5\r\n", 400), ("Content-Length: 5, 5\r\n", 400),
    ("Content-Length: 5\r\nContent-Length: 5\r\n", 400), ("Transfer-Encoding: chunked\r\n", 400),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
])
def test_a_body_says_how_long_it_is(lines, status):
    parser = http11.HeadParser(lambda path: path == "/twilio/voice")
    with pytest.raises(ProtocolError) as refused:
        parser.feed(f"POST /twilio/voice HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())
    assert refused.value.code == status


def test_posts_are_for_webhooks_only():
    for path, fits in (("/twilio/voice", True), ("/twilio/voice/cards", True), ("/twilio/voice/a/b", False),
                       ("/", False), ("/twilio", False), ("/ws/twilio", False), ("/twilio/voice/", True)):
        assert (route_of(path) is not None) is fits, path
    with pytest.raises(ProtocolError) as refused:
        http11.HeadParser(lambda path: False).feed(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi")
    assert refused.value.code == 405


def exchange(server, *pieces):
    with socket.create_connection((server.host, server.port), timeout=10) as peer:
        for piece in pieces:
            peer.sendall(piece)
            time.sleep(0.05)
        said = b""
        while piece := peer.recv(65536):
            said += piece
    return said


def test_a_body_may_come_in_any_pieces(server):
    method, target, body, headers = WEBHOOKS["jambonz"]()
    head = f"{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    assert exchange(server, head.encode(), body[:1], body[1:20], body[20:]).startswith(b"HTTP/1.1 200 ")
    assert exchange(server, head.encode() + body).startswith(b"HTTP/1.1 200 ")
    assert exchange(server, head.encode() + body + b"GET / HTTP/1.1\r\n").startswith(b"HTTP/1.1 400 ")
    expecting = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n").encode()
    assert exchange(server, expecting, body).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


def test_a_body_that_does_not_come_is_waited_for_as_long_as_a_head(server):
    method, target, body, headers = WEBHOOKS["jambonz"]()
    head = f"{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\nJambonz-Signature: x\r\n\r\n"
    assert exchange(server, head.encode() + body[:10]).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("kind, body", [("application/json", b"[1]"), ("application/json", b"{"),
                                        ("text/plain", b"a=b"),
                                        ("application/x-www-form-urlencoded", b"a"), ("", b"a=b"),
                                        ("application/x-www-form-urlencoded", b"a=%ff")])
def test_a_body_is_a_form_or_an_object(server, kind, body):
    status, _, said = request(server, "POST", "/twilio/voice", body, {"Content-Type": kind, "X-Twilio-Signature": "x"})
    assert status == 400 and said == b"The body is no form and no JSON object.\n"


# ---- Twilio's streams, once ------------------------------------------------------------------------------------------

def upgrade(server, target, secret=SECRET):
    """The status of an upgrade as Twilio asks for it."""
    heads = signing.headers("twilio", urlsplit(f"wss://calls.example.com{target}"), secret, 0, "")
    with socket.create_connection((server.host, server.port), timeout=10) as line:
        line.sendall("\r\n".join([f"GET {target} HTTP/1.1", "Host: calls.example.com", "Connection: Upgrade",
                                  "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                                  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                                  *(f"{name}: {value}" for name, value in heads.items()), "", ""]).encode())
        return int(line.recv(200).split()[1])


@pytest.mark.parametrize("agent", ["", "/demo"])
def test_a_stream_of_twilios_is_opened_once_where_that_is_asked_for(tmp_path, agent):
    (tmp_path / "opusagent.toml").write_text(f'public_url = "{PLACE}"\n[auth.twilio]\nsecrets = ["{SECRET}"]\n'
                                             "once = true\n")
    with serving(*SCRIPTED, "--config", str(tmp_path / "opusagent.toml")) as server:
        def address(query=""):
            body = request(server, *as_twilio(f"/twilio/voice{agent}{query}", CALL))[2]
            stream = ElementTree.fromstring(body)[0][0]
            return stream.get("url").removeprefix("wss://calls.example.com")
        first, second = address(), address()
        assert first.startswith(f"/ws/twilio{agent}/ticket/") and first != second
        assert upgrade(server, first, "another-secret") == 401
        assert [upgrade(server, first) for _ in range(2)] == [101, 401]
        assert upgrade(server, f"/ws/twilio{agent}") == 401
        elsewhere = second.replace(f"twilio{agent}/", "twilio/" if agent else "twilio/demo/")
        assert upgrade(server, elsewhere) == 401, "a ticket is for its agent"
        assert upgrade(server, second[:-1] + ("0" if second[-1] != "0" else "1")) == 401
        assert upgrade(server, second) == 101
        assert upgrade(server, address("?relay=1")) == 101


def test_a_stream_without_a_ticket_is_as_good_as_ever_where_nothing_is_asked_for(server):
    assert [upgrade(server, "/ws/twilio") for _ in range(2)] == [101, 101]
