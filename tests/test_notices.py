"""The webhook that tells of a call's end, against a local server that misbehaves in every way that servers do."""
import asyncio
import hmac
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress

import orjson
import pytest
from lines import WebSocketLine
from served import SCRIPTED, serving

from opusagent import ConfigError
from opusagent.config import Config, Webhook
from opusagent.server import notices
from opusagent.server.notices import SIGNATURE, Notices, signed

SECRET = "a secret of 16 characters"
WINDOW_SECONDS = 300            # how old a signature may be


def verified(secret: str, signature: str, body: bytes, now: float) -> bool:
    """What a receiver has to check: that the signature is ours, and not older (or newer) than WINDOW_SECONDS."""
    parts = dict(part.partition("=")[::2] for part in signature.split(","))
    stamp = parts.get("t", "")
    if not (stamp.isascii() and stamp.isdigit()) or abs(now - int(stamp)) > WINDOW_SECONDS:
        return False
    return hmac.compare_digest(signed(secret, body, int(stamp)).encode(), signature.encode("utf-8", "replace"))
RECORD = {"id": "CA1", "outcome": "completed", "turns": [{"caller": "yes"}], "facts": {"card": "ace"}, "usage": {}}


class Receiver:
    """What each request is answered with comes from `answers`, then 200; an answer is bytes, or seconds of silence, or
    a function of the connection."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []                          # (head, body, seconds since 1970)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.sock.getsockname()[1]}/calls?of=us"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):
            while True:
                connection, _ = self.sock.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with connection, suppress(OSError):
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    if not (piece := connection.recv(65536)):
                        return
                    data += piece
                head, _, data = data.partition(b"\r\n\r\n")
                length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
                while len(data) < length:
                    data += connection.recv(65536)
                body, data = data[:length], data[length:]
                answer = self.answers.pop(0) if self.answers else status(200)
                self.requests.append((head.decode(), body, time.time()))
                if callable(answer):
                    answer(connection)
                elif isinstance(answer, bytes):
                    connection.sendall(answer)
                else:
                    return time.sleep(answer)

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def status(code, *fields):
    return "\r\n".join([f"HTTP/1.1 {code} So", "Content-Length: 0", *fields, "", ""]).encode()


def silent(connection):
    connection.settimeout(20)
    connection.recv(1)                              # until the other side has had enough


def drip(connection):
    for _ in range(200):
        connection.sendall(b"H")
        time.sleep(0.05)


@contextmanager
def receiving(*answers):
    receiver = Receiver(*answers)
    try:
        yield receiver
    finally:
        receiver.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(notices, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(notices, "STOP_SECONDS", 0.3)


def posted(url, *records, until=lambda counts: counts["delivered"], seconds=30, timeout_seconds=20.0, **settings):
    """What was counted, once `until` that is true.  Nobody who answers takes `timeout_seconds`, on any machine."""
    async def post():
        counts = Counter()
        told = Notices(Webhook(url, SECRET, timeout_seconds=timeout_seconds, **settings),
                       lambda name, by=1, outcome="": counts.update({outcome: by}))
        for record in records or (RECORD,):
            told.ended(record)
        async with asyncio.timeout(seconds):
            while not until(counts):
                await asyncio.sleep(0.01)
        await told.close()
        await asyncio.sleep(0)
        return counts
    return asyncio.run(post())


def test_a_call_s_end_is_posted_and_signed():
    with receiving() as receiver:
        counts = posted(receiver.url)
    head, body, now = receiver.requests[0]
    assert head.startswith("POST /calls?of=us HTTP/1.1\r\n") and counts == {"delivered": 1}
    told = orjson.loads(body)
    assert told["event"] == "call.ended" and told["call"] == RECORD
    assert f"OpusAgent-Delivery: {told['id']}" in head and "OpusAgent-Attempt: 1" in head
    signature = re.search(rf"{SIGNATURE}: (\S+)", head)[1]
    assert verified(SECRET, signature, body, now)


def test_a_signature_holds_for_its_body_its_secret_and_five_minutes():
    signature = signed(SECRET, b"{}", 1_000_000)
    assert signature == "t=1000000,v1=" + signature[-64:] and verified(SECRET, signature, b"{}", 1_000_299.9)
    assert not verified(SECRET, signature, b"{}", 1_000_301) and not verified(SECRET, signature, b"{}", 999_699)
    assert not verified(SECRET, signature, b"[]", 1_000_000) and not verified("another", signature, b"{}", 1_000_000)
    for forged in ("", "t=", "v1=", "t=1000000", "t=1000000,v1=" + "0" * 64,
                   signature.replace("t=1000000", "t=1000001"), "t=²,v1=é"):
        assert not verified(SECRET, forged, b"{}", 1_000_000)


@pytest.mark.parametrize("fault", [
    status(500), status(503, "Retry-After: 0"), status(404), status(302, "Location: http://127.0.0.1:1/elsewhere"),
    b"no HTTP at all\r\n\r\n", b""],
    ids=["500", "503", "404", "redirect", "nonsense", "closed"])
def test_a_server_that_fails_is_told_again_under_the_same_id(fault):
    def broken(connection):
        connection.sendall(fault)
        connection.shutdown(socket.SHUT_RDWR)
    with receiving(broken, broken) as receiver:
        counts = posted(receiver.url)
    assert counts["delivered"] == 1 and counts["failed"] == 2
    assert len({body for _, body, _ in receiver.requests}) == 1
    assert [re.search(r"Attempt: (\d+)", head)[1] for head, _, _ in receiver.requests] == ["1", "2", "3"]


@pytest.mark.parametrize("answer", [silent, drip])
def test_one_that_does_not_answer_in_time_is_said_to_be_that(answer, caplog):
    with receiving(answer) as receiver:
        counts = posted(receiver.url, timeout_seconds=0.3, attempts=1, until=lambda counts: counts["given up"])
    assert counts["given up"] == 1 and not counts["delivered"]
    assert any(record.getMessage().endswith("never took it: it did not answer in time") for record in caplog.records)


def test_the_waits_grow_and_retry_after_is_obeyed():
    with receiving(status(500), status(500), status(500), status(429, "Retry-After: 1")) as receiver:
        posted(receiver.url)
    at = [now for _, _, now in receiver.requests]
    waits = [after - before for before, after in zip(at, at[1:])]
    assert waits[2] > 0.04 and waits[3] >= 1.0


def test_after_so_many_attempts_it_is_given_up_and_others_are_not():
    with receiving(*[status(500)] * 3) as receiver:
        counts = posted(receiver.url, RECORD, {**RECORD, "id": "CA2"}, attempts=2,
                        until=lambda counts: counts["delivered"] + counts["given up"] == 2)
    assert counts["given up"] == 1 and counts["delivered"] == 1


def test_one_that_fails_does_not_hold_up_the_rest():
    with receiving(status(500)) as receiver:
        posted(receiver.url, RECORD, *({**RECORD, "id": f"CA{i}"} for i in range(20)),
               until=lambda counts: counts["delivered"] == 21)
    assert receiver.requests[1][1] != receiver.requests[0][1]


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(notices, "MOST", 3)
    with receiving(*[0.2] * 9) as receiver:
        counts = posted(receiver.url, *[RECORD] * 5, until=lambda counts: counts["dropped"])
    assert counts["dropped"] >= 2


def test_what_was_said_can_be_left_out():
    with receiving() as receiver:
        posted(receiver.url, transcript=False)
    assert set(orjson.loads(receiver.requests[0][1])["call"]) == {"id", "outcome", "usage"}


def test_nobody_at_all_costs_a_stop_no_longer_than_it_may(tmp_path):
    began = time.monotonic()
    counts = posted("http://127.0.0.1:9/", until=lambda counts: counts["failed"])
    assert counts["dropped"] == 1 and time.monotonic() - began < 8
    counts = posted("http://127.0.0.1:9/", until=lambda counts: counts["failed"], directory=str(tmp_path))
    assert not counts["dropped"] and len(list(tmp_path.iterdir())) == 1


def test_what_a_stop_has_left_is_delivered_after_the_next_start_once(tmp_path):
    posted("http://127.0.0.1:9/", RECORD, {**RECORD, "id": "CA2"}, until=lambda counts: counts["failed"],
           directory=str(tmp_path))
    (tmp_path / "half.notices").write_bytes(b"no notice\n[1]\n")
    with receiving() as receiver:
        posted(receiver.url, {**RECORD, "id": "CA3"}, until=lambda counts: counts["delivered"] == 3,
               directory=str(tmp_path))
    assert sorted(orjson.loads(body)["call"]["id"] for _, body, _ in receiver.requests) == ["CA1", "CA2", "CA3"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings, sentence", [
    ({"OPUSAGENT_WEBHOOK_URL": "http://a.example/x"}, "webhook.secret is missing"),
    ({"OPUSAGENT_WEBHOOK_URL": "ftp://a.example/", "OPUSAGENT_WEBHOOK_SECRET": SECRET}, "https://HOST"),
    ({"OPUSAGENT_WEBHOOK_URL": "https://user:pw@a.example/", "OPUSAGENT_WEBHOOK_SECRET": SECRET}, "https://HOST"),
])
def test_a_webhook_that_cannot_be_meant_is_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Config.load({}, settings)


def test_a_directory_of_no_use_is_said_at_the_start(tmp_path):
    (tmp_path / "file").touch()

    async def begin():
        Notices(Webhook("http://127.0.0.1:9/", SECRET, directory=str(tmp_path / "file")), print)
    with pytest.raises(ConfigError, match="cannot be kept"):
        asyncio.run(begin())


def test_the_server_tells_of_its_calls_and_keeps_what_a_stop_leaves(tmp_path):
    """Real processes: one call is told of at once; another, with nobody there to be told, by the next server."""
    with receiving() as receiver:
        environment = {"OPUSAGENT_WEBHOOK_SECRET": SECRET, "OPUSAGENT_WEBHOOK_DIRECTORY": str(tmp_path / "kept")}
        flags = (*SCRIPTED, "--webhook-timeout-seconds", "0.5", "--webhook-url")
        with serving(*flags, receiver.url, environment=environment) as server:
            call(server, "told")
            until(lambda: receiver.requests)
            text = urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics").read().decode()
            assert 'opusagent_webhook_total{outcome="delivered"} 1' in text
            assert SECRET not in server.written()
        head, body, now = receiver.requests[0]
        assert verified(SECRET, re.search(rf"{SIGNATURE}: (\S+)", head)[1], body, now)
        assert orjson.loads(body)["call"]["id"] == "told" and orjson.loads(body)["call"]["outcome"] == "hung up"
        with serving(*flags, "http://127.0.0.1:9/", environment=environment) as server:
            call(server, "late")
            until(lambda: "webhook_total" in urllib.request.urlopen(
                f"http://{server.host}:{server.port}/metrics").read().decode())
            os.kill(server.process.pid, signal.SIGTERM)
            assert server.process.wait(20) == 0
        assert len(list((tmp_path / "kept").iterdir())) == 1
        with serving(*flags, receiver.url, environment=environment):
            until(lambda: len(receiver.requests) == 2)
        assert orjson.loads(receiver.requests[1][1])["call"]["id"] == "late"


def call(server, name):
    line = WebSocketLine(server.host, server.port, f"/ws/pcm?call_id={name}")
    assert line.status == 101
    line.send((1000).to_bytes(2, "big"), 8)
    line.until_closed(5)
    line.close()


def until(true, seconds=15):
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.05)
