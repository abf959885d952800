"""Transcription over Realtime sessions, against the local endpoint, which is strict and misbehaves on command."""
import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
from llm_endpoint import KEY, LocalEndpoint
from realtime_endpoint import RealtimeSession, realtime
from test_openai_speech import Caller, final, hears, say

from opusagent.config import Config, OpenAI
from opusagent.engines.openai.stt import Stt
from opusagent.engines.remote import session, spare
from opusagent.metrics import Metrics

USAGE = {"type": "duration", "seconds": 1}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(spare, "PAUSES", (0.0, 0.01))


@asynccontextmanager
async def recogniser(part, *doings):
    """An endpoint whose sessions play `part`, and which will do these otherwise; its sessions, and who asks it."""
    sessions: list[RealtimeSession] = []
    async with LocalEndpoint() as endpoint:
        endpoint.will(*doings)
        endpoint.realtime = realtime(part, sessions) if part else None
        stt = Stt(Config(openai=OpenAI(base_url=endpoint.url, api_key=KEY)))
        await stt.open(None, ())
        try:
            yield endpoint, sessions, stt
        finally:
            await stt.close()


def transcribes(*texts, deltas=True):
    """A session that gives each passage the next of these texts."""
    async def part(session: RealtimeSession) -> None:
        for i, text in enumerate(texts):
            await session.until("input_audio_buffer.commit")
            item = {"item_id": f"item_{i}"}
            await session.send("input_audio_buffer.committed", **item, previous_item_id=None)
            if deltas:
                for word in text.split(" ")[:1]:
                    await passage(session, "delta", **item, delta=word)
            await passage(session, "completed", **item, transcript=text, usage=USAGE)
    return part


async def passage(session, what, **fields):
    await session.send(f"conversation.item.input_audio_transcription.{what}", content_index=0, **fields)


async def speak(stt, call, ms, silent=False):
    """20 ms at a time, as it comes."""
    for _ in range(ms // 20):
        say(call, 20, silent)
        stt.audio(call)
        await asyncio.sleep(0)


async def spoken(stt):
    """A caller who has said something, and is done."""
    call = Caller()
    stt.listen(call, 0)
    await speak(stt, call, 700)
    stt.finish(call, call.slot.written)
    return call


def used(sessions):
    """The sessions over which somebody spoke."""
    return [session for session in sessions if session.audio]


@pytest.mark.parametrize("rate, wire", [(8000, 8000), (16000, 24000)])
def test_what_is_said_is_heard_while_it_is_said(run, rate, wire):
    async def scenario():
        async with recogniser(transcribes("Ten of clubs.")) as (endpoint, sessions, stt):
            call = Caller(rate_in=rate)
            say(call, 500, silent=True)
            stt.listen(call, rate // 4)
            await speak(stt, call, 700)
            while not used(sessions):
                await asyncio.sleep(0.01)
            before = used(sessions)[0].heard
            stt.finish(call, call.slot.written)
            told = await final(call)
            return told, before, used(sessions), len(endpoint.seen)
    told, before, (session,), asked = run(scenario())
    assert told == ("final", 3, "Ten of clubs.", 1.0) and not asked
    assert session.query == "intent=transcription" and session.rate == wire
    assert 0.5 * wire < before <= session.heard and abs(session.heard - 0.95 * wire) < 0.01 * wire
    heard = np.concatenate(session.audio).astype(int)
    assert np.abs(heard[:wire // 8]).max() < 200 and 7000 < np.abs(heard[wire // 2:]).max() < 9500
    assert session.session["audio"]["input"]["turn_detection"] is None and session.session["type"] == "transcription"


def test_the_phrases_of_the_state_are_its_prompt(run):
    async def scenario():
        async with recogniser(transcribes("Ten of clubs.", "Yes.")) as (_, sessions, stt):
            call = Caller()
            prompts = []
            for terms in (("ten of clubs", "seven of clubs"), ()):
                call.terms = terms
                call.told.clear()
                stt.listen(call, call.slot.written)
                await speak(stt, call, 400)
                stt.finish(call, call.slot.written)
                await final(call)
                session = used(sessions)[-1]
                prompts.append(session.updates[-1]["audio"]["input"]["transcription"])
            return prompts
    first, second = run(scenario())
    assert first == {"model": "gpt-4o-mini-transcribe", "prompt": "ten of clubs, seven of clubs"}
    assert "prompt" not in second


def test_a_pause_is_the_end_of_a_passage_and_the_text_is_that_of_all(run):
    async def scenario():
        async with recogniser(transcribes("two nine", "three four zero")) as (_, sessions, stt):
            call = Caller()
            stt.listen(call, 0)
            await speak(stt, call, 500)
            stt.ask(call)
            await call.until(lambda: call.told and call.told[-1][2] == "two nine")
            await speak(stt, call, 300, silent=True)
            await speak(stt, call, 500)
            stt.finish(call, call.slot.written)
            return await final(call), call.told, used(sessions)[0].heard
    told, all_told, heard = run(scenario())
    assert told == ("final", 3, "two nine three four zero", 1.0) and heard == 8 * 1300
    assert all_told[0] == ("partial", 3, "two")


def test_what_was_asked_in_the_pause_is_the_answer_if_nothing_followed(run):
    async def scenario():
        async with recogniser(transcribes("Yes.")) as (_, sessions, stt):
            call = Caller()
            stt.listen(call, 0)
            await speak(stt, call, 500)
            await speak(stt, call, 100, silent=True)
            stt.ask(call)
            await call.until(lambda: call.told and call.told[-1][2] == "Yes.")
            await speak(stt, call, 200, silent=True)
            stt.finish(call, call.slot.written)
            told = len(call.told)
            kind, *_ = await final(call)
            return kind, told, [event["type"] for event in used(sessions)[0].seen].count("input_audio_buffer.commit")
    assert run(scenario()) == ("final", 1 + 1, 1)


def test_a_session_is_used_again_and_a_late_text_is_nobody_s(run):
    async def part(session):
        await session.until("input_audio_buffer.commit")
        await session.send("input_audio_buffer.committed", item_id="a", previous_item_id=None)
        await session.until("input_audio_buffer.commit")
        await passage(session, "completed", item_id="a", transcript="Too late.", usage=USAGE)
        await session.send("input_audio_buffer.committed", item_id="b", previous_item_id="a")
        await passage(session, "completed", item_id="b", transcript="Yes.", usage=USAGE)

    async def scenario():
        async with recogniser(part) as (_, sessions, stt):
            call = Caller()
            stt.listen(call, 0)
            await speak(stt, call, 400)
            stt.ask(call)
            stt.cancel(call)
            call.utterance += 1
            stt.listen(call, call.slot.written)
            await speak(stt, call, 400)
            stt.finish(call, call.slot.written)
            return await final(call), len(used(sessions))
    assert run(scenario()) == (("final", 4, "Yes.", 1.0), 1)


async def says_nothing(session):
    await asyncio.Event().wait()


async def goes_away(session):
    while not session.audio:
        await asyncio.sleep(0.01)
    session.exchange.reset()


async def falls_deaf(session):
    while not session.audio:
        await asyncio.sleep(0.01)
    session.deaf = True


def after_commit(kind, **fields):
    async def part(session):
        await session.until("input_audio_buffer.commit")
        await session.send("input_audio_buffer.committed", item_id="a", previous_item_id=None)
        await session.send(kind, **fields)
    return part


TROUBLE = {
    "a reset": goes_away, "half open": falls_deaf,
    "an error": after_commit("error", error={"type": "server_error", "code": "overloaded", "message": "secret"}),
    "a passage that fails": after_commit("conversation.item.input_audio_transcription.failed", item_id="a",
                                         content_index=0, error={"code": "x", "message": "secret"}),
    "what is no text": after_commit("conversation.item.input_audio_transcription.completed", item_id="a",
                                    content_index=0, transcript=7),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_what_a_dead_session_was_sent_is_sent_again_to_another(run, caplog, monkeypatch, trouble):
    monkeypatch.setattr(spare, "PROGRESS_SECONDS", 0.3)
    monkeypatch.setattr(spare, "TICK_SECONDS", 0.15)
    parts = []

    async def part(session):
        await session.until("session.update")               # the first one over which somebody speaks is in trouble
        while not session.audio and not any(event["type"] == "input_audio_buffer.commit" for event in session.seen):
            await asyncio.sleep(0.005)
        parts.append(session)
        await (TROUBLE[trouble] if len(parts) == 1 else transcribes("Ten of clubs."))(session)

    async def scenario():
        async with recogniser(part) as (endpoint, sessions, stt):
            while len(stt.lines.idle) < 2:
                await asyncio.sleep(0.01)
            call = Caller()
            stt.listen(call, 0)
            for _ in range(10):
                await speak(stt, call, 60)
                await asyncio.sleep(0.06)
            stt.finish(call, call.slot.written)
            told = await final(call)
            metrics = Metrics()
            stt.measure(metrics)
            return told, [session.heard for session in parts], len(endpoint.seen), metrics.gauges
    told, heard, asked, gauges = run(scenario())
    assert told == ("final", 3, "Ten of clubs.", 1.0) and not asked
    assert heard[1] == 8 * 600                              # all of it, from the first sample on
    lines = [record.getMessage() for record in caplog.records if record.name == "opusagent"]
    assert len(lines) == 1 and lines[0].endswith("What was said is sent again.") and "secret" not in lines[0]
    assert gauges["transcription_sessions_suspected", ()] == (trouble == "half open")


def test_without_another_session_the_whole_utterance_is_sent(run):
    async def scenario():
        async with recogniser(goes_away, hears("Ten of clubs.")) as (endpoint, sessions, stt):
            stt.lines.idle[1:] = []
            stt.lines._tasks[0].cancel()
            call = Caller()
            stt.listen(call, 0)
            await speak(stt, call, 400)
            await asyncio.sleep(0.05)
            await speak(stt, call, 300)
            stt.finish(call, call.slot.written)
            return await final(call), len(endpoint.seen)
    assert run(scenario()) == (("final", 3, "Ten of clubs.", 1.0), 1)


def test_a_session_that_takes_too_long_is_not_waited_for_and_nobody_else_meets_it(run):
    """It answers pings, and never says a word."""
    async def scenario():
        async with recogniser(says_nothing, hears("Ten of clubs.")) as (endpoint, sessions, stt):
            call = await spoken(stt)
            told = await final(call)
            await used(sessions)[0].exchange.gone.wait()
            return told, len(endpoint.seen), len(stt.lines.busy), stt.lines.suspected
    assert run(scenario()) == (("final", 3, "Ten of clubs.", 1.0), 1, 0, 1)


@pytest.mark.parametrize("part", [None, lambda session: session.exchange.close()])
def test_an_endpoint_without_sessions_is_sent_utterances(run, part):
    async def closing(session):
        part(session)

    async def scenario():
        async with recogniser(closing if part else None, hears("Ten of clubs.")) as (endpoint, _, stt):
            call = await spoken(stt)
            return await final(call)
    assert run(scenario()) == ("final", 3, "Ten of clubs.", 1.0)


def ends_with(monkeypatch, breath):
    """Every session is over with what it begins with, in one write: the 101, or the word that it is as we want it."""
    answer, open_ = RealtimeSession.send, RealtimeSession.open

    async def together(one, doing):
        write, held = one.exchange.writer.write, []
        one.exchange.writer.write = held.append
        await doing
        for _ in range(2):
            await answer(one, "error", error={"type": "server_error", "code": "overloaded", "message": "secret"})
        one.exchange.writer.write = write
        write(b"".join(held))

    async def send(one, kind, **fields):
        doing = answer(one, kind, **fields)
        await (together(one, doing) if kind == breath else doing)

    monkeypatch.setattr(RealtimeSession, "send", send)
    if breath == "101":
        monkeypatch.setattr(RealtimeSession, "open", lambda one: together(one, open_(one)))


@pytest.mark.parametrize("breath", ["101", "session.updated"])
def test_a_session_that_is_over_as_soon_as_it_is_there_is_none(run, monkeypatch, caplog, breath):
    caplog.set_level("INFO")
    ends_with(monkeypatch, breath)

    async def scenario():
        async with recogniser(says_nothing, hears("Ten of clubs.")) as (_, sessions, stt):
            call = await spoken(stt)
            return await final(call), used(sessions)
    assert run(scenario()) == (("final", 3, "Ten of clubs.", 1.0), [])
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []
    assert "answered with an error (overloaded). Utterances are sent to be transcribed instead" in caplog.text


def test_who_has_taken_nothing_for_long_is_given_to_nobody(run, monkeypatch):
    async def scenario():
        async with recogniser(says_nothing) as (_, sessions, stt):
            while len(stt.lines.idle) < spare.SPARE:
                await asyncio.sleep(0.01)
            lines, room = stt.lines, session.UNSENT
            line = lines.lend(None, 8000, "")
            monkeypatch.setattr(session, "UNSENT", -1)          # what waits to be sent is too much at once
            lines.give_back(line)
            nobody = lines.lend(None, 8000, "")
            monkeypatch.setattr(session, "UNSENT", room)
            return nobody, lines.idle, lines.busy, lines.lines
    assert run(scenario()) == (None, [], {}, {})


def test_nothing_is_said_twice_and_silence_is_nothing(run):
    async def scenario():
        async with recogniser(transcribes()) as (_, sessions, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 60)
            stt.finish(call, call.slot.written)
            return await final(call), [session.heard for session in used(sessions)]
    assert run(scenario())[0] == ("final", 3, "", 1.0)


def test_sessions_are_kept_open_and_those_that_end_are_opened_again(run):
    async def scenario():
        async with recogniser(says_nothing) as (_, sessions, stt):
            for _ in range(3):
                while len(stt.lines.idle) < spare.SPARE:
                    await asyncio.sleep(0.01)
                for session in sessions[-spare.SPARE:]:
                    session.exchange.reset()
                await asyncio.sleep(0.05)
            return len(sessions)
    assert run(scenario()) >= 3 * spare.SPARE
