"""The console: the page as it is sent, and in a real Chromium whose microphone plays a recording of a person."""
import json
import os
import signal
import wave
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browser import Browser, missing
from conversation import Conversation
from served import SCRIPTED, serving
from talking import Line, scenario
from test_embedded import people, recognises, recording, speaks

from opusagent.dialects import pcm

BROWSER = pytest.mark.skipif(missing() is not None, reason=str(missing()))
FLOW = """
start = "ask"
[states.ask]
say = "What is it about?"
on = [{ phrases = ["a parcel"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""


@pytest.fixture(scope="module")
def server():
    with serving(*SCRIPTED) as served:
        yield served


def get(server, path, **fields):
    """(status, head, body) of a page."""
    try:
        with urlopen(Request(f"http://127.0.0.1:{server.port}{path}", headers=fields), timeout=10) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except HTTPError as error:
        return error.code, error.headers, error.read().decode()


@pytest.mark.parametrize("path,kind,text", [
    ("/", "text/html", '<option value="demo">demo</option>'),
    ("/console/console.js", "text/javascript", "getUserMedia"),
    ("/console/line.js", "text/javascript", "registerProcessor"),
    ("/console/style.css", "text/css", "prefers-color-scheme"),
    ("/console/icon.svg", "image/svg+xml", "<svg")])
def test_a_browser_is_given_the_page_and_may_ask_nobody_else(server, path, kind, text):
    status, head, body = get(server, path)
    assert status == 200 and head.get_content_type() == kind and text in body
    policy = dict(rule.split(" ", 1) for rule in head["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'" and policy["connect-src"] == "'self'"


@pytest.mark.parametrize("path", ["/console/", "/console/console.py", "/console/../console.py",
                                  "/console/%2e%2e/pages.py", "/console/a/line.js", "/console"])
def test_there_is_nothing_beside_it(server, path):
    assert get(server, path)[0] in (400, 404)


@pytest.mark.parametrize("path", ["/ws/twilio", "/ws/pcm/demo", "/ws/echo", "/v1/realtime"])
def test_a_call_whose_proxy_drops_the_upgrade_is_told_so(server, path):
    status, head, body = get(server, path)
    assert status == 426 and head["Sec-WebSocket-Version"] == "13" and "a proxy between us" in body
    assert get(server, "/ws/twillio")[0] == get(server, "/ws/")[0] == 404       # it would get nowhere with one, either


def test_no_name_that_may_be_made_to_lead_here_gets_it(server):
    """DNS rebinding: another site's name for this machine."""
    assert get(server, "/", Host="evil.example")[0] == 401
    assert get(server, "/", Origin="http://evil.example")[0] == 403


def test_what_happens_is_told_to_those_who_ask_for_it():
    told = []

    class Telling(Conversation):
        def __init__(self, flow):
            super().__init__(flow, dialect="pcm", query={"tell": "yes", "rate": "8000"}, begin=False)

        def receive(self, message):
            self.call.on_message(pcm.TEXT, memoryview(message))

        def frame(self, samples):
            self.call.on_message(pcm.BINARY, memoryview(samples.tobytes()))
            self.studio.hearing.run()

    @scenario
    async def conversation():
        line = Line(FLOW, Telling)
        await line.silence(2000)
        await line.listens()
        line.talk.studio.stt.words = "a parcel"
        await line.says("a parcel")
        told.extend(json.loads(message) for opcode, message in line.talk.connection.sent if opcode == pcm.TEXT)

    conversation()
    events = [event for event in told if event["event"] not in ("mark", "end")]
    assert [event["event"] for event in events if event["event"] != "hypothesis"] == [
        "replying", "receipt", "speech", "silence", "recognition", "replying", "receipt"]
    assert [event["text"] for event in events if "text" in event] == [
        "What is it about?", "a parcel", "a parcel", "Goodbye."]
    assert events[-1]["caller"] == "a parcel" and events[-1]["agent"] == "Goodbye." \
        and events[-1]["waits"]["endpointing"] > 0


def test_what_a_caller_wants_to_hear_is_no_fact():
    assert pcm.Pcm({"tell": "yes", "rate": "8000", "name": "Ada"}).open().facts == {"name": "Ada"}


def test_nobody_is_told_what_they_did_not_ask_for():
    talk = Conversation(FLOW, dialect="pcm", query={"rate": "8000"}, begin=False)
    talk.passes(3000)
    assert talk.agent_says == ["What is it about?"]
    assert {json.loads(message)["event"] for opcode, message in talk.connection.sent if opcode == pcm.TEXT} <= {"mark"}


# -- in a browser ------------------------------------------------------------------------------------------------------

@BROWSER
@people
@recognises
@speaks
def test_a_person_talks_to_the_agent_from_the_page(tmp_path):
    rate = 48000
    voice = recording("tidigits/dhd.2934z.raw", rate)
    with wave.open(str(tmp_path / "microphone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.concatenate((np.zeros(9 * rate, np.int16), voice, np.zeros(60 * rate, np.int16))).tobytes())
    with serving("--workers", "1") as served:
        browser = Browser(tmp_path / "microphone.wav")
        try:
            talk(browser, served)
        finally:
            browser.close()


def talk(browser, served):
    turns = "document.getElementById('turns').innerText"
    browser.open(f"http://127.0.0.1:{served.port}/")
    browser.until("document.getElementById('status').textContent === 'healthy'")
    browser.run("document.getElementById('call').click()")
    browser.until(f"{turns}.includes('Welcome to Silver Wheel')")
    browser.until(f"{turns}.includes('two nine three four zero')")
    browser.until("document.querySelectorAll('.receipt .endpointing').length > 0")          # the answer's receipt
    assert "Thank you. There is one parcel for member two nine three four zero." in browser.run(turns)
    assert int(browser.run("document.getElementById('gap').textContent").split()[0]) < 5000     # ms; it has measured
    browser.until("document.querySelectorAll('#histogram rect[height]:not([height=\"0\"])').length > 0")
    browser.run("[...document.querySelectorAll('#keys button')].find((key) => key.textContent === '5').click()")
    browser.run("document.getElementById('call').click()")
    browser.until("document.getElementById('call').textContent === 'Call'")
    name = browser.until("document.querySelector('#calls button')?.textContent")
    browser.until("document.querySelector('#calls .live') === null")                        # it is over
    record = json.loads(get(served, f"/calls/{name}")[2])
    assert not record["live"] and record["turns"][1]["caller"] == "two nine three four zero"
    browser.run("document.querySelector('#calls button').click()")                          # as a call of somebody else
    browser.until(f"document.getElementById('whose').textContent === 'pcm call {name}' "
                  f"&& {turns}.includes('Thank you')")
    listed = json.loads(get(served, "/calls")[2])["calls"]
    assert [entry["id"] for entry in listed] == [name] and listed[0]["voice_to_voice_ms"] > 0
    assert not browser.failed and not browser.said


@pytest.fixture
def page(tmp_path):
    """(browser, server): the page, with a microphone that hears nothing, and its sockets under `sockets`."""
    with wave.open(str(tmp_path / "microphone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes(bytes(2 * 48000))
    with serving(*SCRIPTED) as served:
        browser = Browser(tmp_path / "microphone.wav")
        try:
            browser.open(f"http://127.0.0.1:{served.port}/")
            browser.until("document.getElementById('status').textContent === 'healthy'")
            browser.run("window.sockets = []; window.press = () => document.getElementById('call').click();"
                        "window.WebSocket = class extends WebSocket { constructor(url) {"
                        "super(url); sockets.push(this); window.atOnce?.(); } }; 0")
            yield browser, served
        finally:
            browser.close()


def is_called(browser):
    browser.until("document.getElementById('call').textContent === 'Hang up'")


def is_over(browser):
    browser.until("document.getElementById('call').textContent === 'Call'")


@BROWSER
def test_the_keyboards_focus_stays_where_it_was(page):
    browser, _ = page
    browser.run("document.getElementById('call').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    is_called(browser)
    assert browser.run("document.activeElement.id") == "call"
    browser.until("document.querySelector('#calls .live') !== null")
    browser.run("document.querySelector('#calls button').focus(); press()")
    browser.until("document.querySelector('#calls .live') === null && document.querySelector('#calls button') !== null")
    assert browser.run("document.activeElement === document.querySelector('#calls button')")


@BROWSER
def test_a_microphone_that_is_refused_is_told_and_another_try_is_free(page):
    browser, _ = page
    browser.run("window.asked = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
                "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); };"
                "press()")
    browser.until("document.getElementById('trouble').textContent.startsWith('The microphone is not allowed')")
    browser.run("navigator.mediaDevices.getUserMedia = asked; press()")
    is_called(browser)
    assert browser.run("document.getElementById('trouble').textContent") == "" and browser.run("sockets.length") == 1


@BROWSER
def test_a_call_that_is_given_up_while_it_is_made_is_not_made(page):
    browser, _ = page
    browser.run("window.atOnce = () => setTimeout(press); press()")
    browser.until("sockets.length === 1 && sockets[0].readyState === WebSocket.CLOSED")
    assert browser.run("document.getElementById('call').textContent") == "Call"
    browser.run("window.atOnce = null; press()")
    is_called(browser)
    assert browser.run("sockets.length") == 2


@BROWSER
def test_the_end_of_a_call_is_not_that_of_the_next_one(page):
    browser, _ = page
    browser.run("press()")
    is_called(browser)
    browser.run("press()")
    is_over(browser)
    browser.run("press()")
    is_called(browser)
    browser.run("sockets[0].onclose({ code: 1006, reason: '' })")           # the server was slow to say so
    assert browser.run("document.getElementById('call').textContent") == "Hang up"


@BROWSER
def test_a_server_that_dies_is_told_and_so_is_one_that_is_not_there(page):
    browser, served = page
    browser.run("press()")
    is_called(browser)
    for process in served.family():
        os.kill(process, signal.SIGKILL)
    browser.until("document.getElementById('trouble').textContent === 'The call ended (1006).'")
    is_over(browser)
    browser.until("document.getElementById('status').textContent === 'out of reach'")
    browser.run("press()")
    browser.until("document.getElementById('trouble').textContent.startsWith('The server did not take the call')")
    is_over(browser)
