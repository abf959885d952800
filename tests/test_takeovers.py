"""Workers that die one after the other, in the midst of calls: each goes on where the one before was killed.

First in every dialect at once, with real processes; then at every moment of a conversation, on a virtual clock, where
the platform's side is strict.
"""
import asyncio
import os
import signal
from collections import Counter
from types import SimpleNamespace

import numpy as np
import orjson
import pytest

from conversation import MS, SPEECH, Connection, Server
from dialled import Dialled
from opusagent import ConfigError
from opusagent.board import Board
from opusagent.client.localserver import fetch_json
from opusagent.client.people import person
from opusagent.client.telephone import Caller
from opusagent.client.texting import Texter
from opusagent.continuity import handover, takeover
from opusagent.dialects import BARE_CALLERS, BINARY, CALLERS, SPOKEN, TEXT_CALLERS
from opusagent.dialects.jambonz import IDLE_MESSAGES
from realtime_pace import ATTEMPTS, Watch
from served import SCRIPTED, free_port, serving
from several import FLOW, yes
from test_handover import STORY

FIRST, APART = 1.5, 2.1         # seconds before the first death, and between two: five within ten are replaced at once
SILENCE = np.zeros(160, np.int16)
WIRE = SimpleNamespace(fd=-1, keeper=None)      # of calls that have none, on a virtual clock
SEAT = Board(1).seats[1]
LIVES = {"jambonz": IDLE_MESSAGES}      # messages that a worker has to live for, to see that a reply is over


# -- with real processes -----------------------------------------------------------------------------------------------

def caller_of(name, server, port):
    """Who calls in this dialect, and says yes to both questions."""
    if name in TEXT_CALLERS:
        return Texter(server.ws(f"/ws/{name}"), name, ["yes", "yes"])
    url = server.ws("/v1/realtime?model=flow" if name == "openai-realtime" else f"/ws/{name}")
    caller = Caller(f"tcp://127.0.0.1:{port}" if name in BARE_CALLERS else url, name, [])
    caller.script.says += [yes(caller.rate)] * 2
    return caller


async def conversation(name, server, port):
    """The server's record of a call, once it is over."""
    caller = caller_of(name, server, port)
    async for _ in caller.converse():
        pass
    for _ in range(100):
        record = await fetch_json(server.ws(""), f"/calls/{getattr(caller, 'call_id', '') or caller.dialect.call_id}")
        if record is not None and not record["live"]:
            return record
        await asyncio.sleep(0.1)
    raise AssertionError("the call never ended")


async def under_fire(server, port):
    """All calls at once, and the worker that has them is killed, and the one that follows it ...: (records by dialect,
    how many died)."""
    async def strike():
        await asyncio.sleep(FIRST)
        while True:
            os.kill(server.worker, signal.SIGKILL)
            struck.append(1)
            await asyncio.sleep(APART)
    struck = []
    striking = asyncio.ensure_future(strike())
    records = await asyncio.gather(*(conversation(name, server, port) for name in SPOKEN), return_exceptions=True)
    striking.cancel()
    return dict(zip(SPOKEN, records)), len(struck)


@pytest.fixture(scope="module")
def survivors(tmp_path_factory):
    try:
        for rate in (8000, 16000, 24000):
            person(rate)
    except ConfigError as error:
        pytest.skip(str(error))
    place, port = tmp_path_factory.mktemp("fire"), free_port()
    (place / "flow.toml").write_text(FLOW)
    (place / "says.txt").write_text("yes\n")
    with serving(*SCRIPTED, "--flow", str(place / "flow.toml"), "--scripted-stt", str(place / "says.txt"),
                 "--audiosocket", str(port), "--admission-refuse-above", "1") as server:
        for _ in range(ATTEMPTS):
            with Watch() as watch:
                found, struck = asyncio.run(under_fire(server, port))
            if watch.kept_time or all(isinstance(each, dict) and each["done"] for each in found.values()):
                break
        return found, struck, server.written()


@pytest.mark.parametrize("name", SPOKEN)
def test_a_call_outlives_one_worker_after_the_other(survivors, name):
    found, struck, written = survivors
    if isinstance(found[name], BaseException):
        raise found[name]
    assert struck >= 4 and "Traceback" not in written
    assert (found[name]["done"], found[name]["state"], found[name]["outcome"]) == (True, "bye", "completed")


# -- at every moment, on a virtual clock -------------------------------------------------------------------------------

class Keeping(takeover.Keeper):
    """What is to be kept when a callback is over waits until the test says that it is."""

    def __init__(self):
        super().__init__(SEAT, lambda message, descriptors: None)
        self.soon = False

    def look_soon(self, call):
        self.soon = True

    def callback_is_over(self, call, now):
        if self.soon and call.slot is not None:
            self.keep((call,), now)
        self.soon = False


class Struck(Dialled):
    """Its worker keeps it as one does, and `dies()` leaves what was kept, and no more."""

    def __init__(self, dialect, flow=FLOW):
        self.deaths = 0
        super().__init__(flow, dialect)
        self.server.keeper = Keeping()

    @property
    def over(self):
        return self.call.slot is None or self.connection.closed is not None

    def frame(self, pcm):
        super().frame(pcm)
        self.server.keeper.callback_is_over(self.call, self.server.now)

    def passes(self, ms):
        for _ in range(ms // 5):
            self.server.now += 5 * MS
            if not self.over and self.call.due <= self.server.now:
                self.call.tick(self.server.now)
                self.server.keeper.keep((self.call,) if self.call.slot is not None else (), self.server.now)
            self.exchange()

    def dies(self):
        old, sent = self.call, self.connection.sent
        slot, state, now = old.slot, orjson.loads(old.slot.kept), self.server.now
        old.slot = old.mouth.slot = old.ear.slot = None
        self.deaths += 1
        self.server, self.connection = Server(self.studio), Connection()
        self.server.now, self.server.keeper, self.connection.sent = now, Keeping(), sent
        self.call = handover.resume(self.server, self.connection, slot, state)
        handover.go_on(self.call, state, now)
        self.server.keeper.callback_is_over(self.call, now)


def converse(dialect, every=0, when="after a tick"):
    """The conversation to its end, in which the worker dies at each so many frames."""
    call, frames = Struck(dialect), 0
    for ms, pcm, words in ((2500, SILENCE, ""), (600, SPEECH, "yes"), (3000, SILENCE, "yes"), (600, SPEECH, "yes"),
                           (9000, SILENCE, "yes")):
        call.studio.stt.words = words
        for _ in range(ms // 20):
            if call.over:
                break
            call.frame(pcm)
            frames += 1
            strikes = every and frames % every == 0 and call.call.slot.kept
            if strikes and when == "before a tick":
                call.dies()
            call.passes(20)
            if strikes and when == "after a tick" and not call.over:
                call.dies()
    return call


class Killed(BaseException):
    """The worker's end."""


def words(call):
    """Samples that went out and are not silent, of a dialect with plain ones."""
    sound = b"".join(message for opcode, message in call.sent if opcode == BINARY)
    return np.count_nonzero(np.frombuffer(sound, "<i2"))


@pytest.mark.parametrize("frames", range(1, 5))
@pytest.mark.parametrize("dialect", ["pcm", "vonage", "asterisk"])
def test_of_frames_that_are_due_at_once_those_go_out_that_the_dead_worker_had_left(monkeypatch, dialect, frames):
    """It was late, and dies between two of them."""
    monkeypatch.setattr(takeover, "wire_of", lambda call: WIRE)
    call, whole = Struck(dialect, STORY), Struck(dialect, STORY)
    for each in (call, whole):
        for _ in range(8):
            each.frame(SILENCE)
            each.passes(20)
    before, send = len(call.sent), call.connection.send

    def next_one(opcode, message):
        if len(call.sent) == before + frames:
            raise Killed
        return send(opcode, message)
    call.connection.send, call.server.now = next_one, call.server.now + 100 * MS
    with pytest.raises(Killed):
        call.call.tick(call.server.now)
    call.dies()
    for each in (call, whole):
        for _ in range(80):
            each.frame(SILENCE)
            each.passes(20)
    assert words(call) == words(whole)


def told(call):
    """What its platform and its history know of it: the conversation, how it ended, messages by their kind."""
    return call.agent_says, call.call.done, call.connection.closed, Counter(call.heard)


@pytest.mark.parametrize("when", ["after a tick", "before a tick"])
@pytest.mark.parametrize("dialect, every", [(dialect, every) for dialect in sorted(set(CALLERS) - {"openai-realtime"})
                                            for every in (1, 7, 20) if every > LIVES.get(dialect, 0)])
def test_whenever_workers_die_the_platform_hears_each_message_once(monkeypatch, dialect, every, when):
    """Frames of 20 ms: with 1 nobody lives for longer than one of them."""
    monkeypatch.setattr(takeover, "wire_of", lambda call: WIRE)
    struck = converse(dialect, every, when)
    assert struck.deaths > 300 // every and not struck.connection.faults
    assert told(struck) == told(converse(dialect))
