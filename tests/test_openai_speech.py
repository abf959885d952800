"""The voice and the recogniser of the engine `openai`, with the real package, against the local server."""
import asyncio
import math
import struct
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from llm_endpoint import KEY, Exchange, LocalEndpoint, answers, begins, does, fails, wav as read_wav

from opusagent import EngineError
from opusagent._fastpath import SEGMENT_SAMPLES, Arena
from opusagent.config import Config, OpenAI
from opusagent.engines.openai import tts as openai_tts
from opusagent.engines.openai.stt import Stt, wav
from opusagent.engines.openai.tts import Tts
from opusagent.speech.audio import first_voiced, last_voiced

TEXT = "Your order left today."


class Caller:
    """What an engine knows of a call."""

    def __init__(self, rate_in=8000, rate_out=8000):
        self.slot = Arena(1).slot(0)
        self.slot.take(rate_in, rate_out)
        self.epoch = self.utterance = 3
        self.search = 0
        self.terms: tuple[str, ...] = ()
        self.told: list[tuple] = []                 # what the engine said
        self.news = asyncio.Event()
        self.voice: Tts | None = None               # whose speech is played as it comes
        self.heard: list[np.ndarray] = []           # of that

    def _hear(self, *told):
        self.told.append(told)
        self.news.set()

    def on_speech(self, *told):
        self._hear("speech", *told)
        if self.voice is not None:
            self.play(*told[1:4])

    def play(self, k, start, written):
        read = max(start, self.slot.segment_read(k))
        self.heard.append(np.asarray(self.slot.segment(k))[np.arange(read, written) % SEGMENT_SAMPLES])
        self.slot.set_segment_read(k, written)
        self.voice.played(self, k)

    def on_speech_failed(self, *told):
        self._hear("failed", *told)

    def on_partial(self, *told):
        self._hear("partial", *told)

    def on_final(self, *told):
        self._hear("final", *told)

    def on_failure(self, *told):
        self._hear("failed", *told)

    async def until(self, done) -> None:
        while not done():
            self.news.clear()
            await self.news.wait()


@asynccontextmanager
async def engine(kind, *doings, searches=(), **settings):
    """An endpoint that will do these, and an engine of that kind that talks to it."""
    async with LocalEndpoint() as endpoint:
        endpoint.will(*doings)
        stage = kind(Config(openai=OpenAI(base_url=endpoint.url, api_key=KEY, **settings)))
        await (stage.open(None, searches) if kind is Stt else stage.open(None))
        try:
            yield endpoint, stage
        finally:
            await stage.close()


def sound(ms: int, rate: int = 24000, lead_ms: int = 0, trail_ms: int = 0) -> np.ndarray:
    """A voice, nearly: 300 Hz between two silences, as int16."""
    tone = 8000 * np.sin(np.arange(ms * rate // 1000) * 2 * np.pi * 300 / rate)
    return np.concatenate((np.zeros(lead_ms * rate // 1000), tone, np.zeros(trail_ms * rate // 1000))).astype("<i2")


# -- the voice ---------------------------------------------------------------------------------------------------------

def speaks(*pieces: bytes, content_type="audio/pcm", then=Exchange.end):
    return begins(*pieces, content_type=content_type, then=then)


async def listen(tts, call, text=TEXT, voice="") -> tuple[np.ndarray, tuple]:
    """Have it spoken; what was heard of it, and the last thing that was told."""
    call.voice = tts
    tts.speak(call, call.epoch, 0, text, voice)
    await call.until(lambda: call.told and (call.told[-1][0] == "failed" or call.told[-1][-1]))
    return np.concatenate(call.heard) if call.heard else np.zeros(0, np.int16), call.told[-1]


def spoken(run, *doings, rate=8000, text=TEXT, **settings):
    """What comes of a segment, and the last thing that was told."""
    async def scenario():
        async with engine(Tts, *doings, **settings) as (_, tts):
            return await listen(tts, Caller(rate_out=rate), text=text)
    return run(scenario())


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_a_segment_comes_at_the_rate_of_the_call_and_without_its_silence(run, rate):
    pcm, told = spoken(run, speaks(sound(800, lead_ms=300, trail_ms=250).tobytes()), rate=rate)
    assert told == ("speech", 3, 0, 0, len(pcm), True)
    assert first_voiced(pcm, rate) <= 0.02 * rate and last_voiced(pcm, rate) >= len(pcm) - 0.04 * rate
    assert abs(len(pcm) / rate - 0.84) < 0.03
    assert np.abs(np.diff(pcm.astype(int))).max() < 4000 and abs(int(pcm[0])) < 300 and abs(int(pcm[-1])) < 300


def test_what_is_asked_for(run):
    async def scenario():
        async with engine(Tts, *[speaks(sound(800).tobytes())] * 2, tts_model="tiny", voice="echo") as (endpoint, tts):
            await listen(tts, Caller())
            await listen(tts, Caller(), voice="anna")
            return [each.body for each in endpoint.seen]
    first, second = run(scenario())
    assert first == {"model": "tiny", "input": TEXT, "voice": "echo", "response_format": "pcm"}
    assert second["voice"] == "anna"


def test_pieces_cut_anywhere_are_the_same_sound(run):
    data = sound(600).tobytes()
    whole, _ = spoken(run, speaks(data))
    cut, _ = spoken(run, speaks(*(data[i:i + 37] for i in range(0, len(data), 37))))
    odd, _ = spoken(run, speaks(data[:1], data[1:2], data[2:5], data[5:] + b"\x7f"))
    assert len(whole) == len(cut) == len(odd) and (whole == cut).all() and (whole == odd).all()


def test_it_is_heard_while_the_rest_still_comes(run):
    data = sound(1000).tobytes()

    async def scenario():
        async with engine(Tts) as (endpoint, tts):
            async def rest(exchange):
                await endpoint.go.wait()
                await exchange.chunk(data[1920:])
                await exchange.end()
            endpoint.will(speaks(data[:1920], then=rest))           # 40 ms
            call = Caller()
            tts.speak(call, call.epoch, 1, TEXT, "")
            await call.until(lambda: call.told)
            first = call.told[0]
            endpoint.go.set()
            await call.until(lambda: call.told[-1][-1] is True)
            return first, call.told[-1]
    (kind, epoch, k, start, written, done), last = run(scenario())
    assert (kind, epoch, k, start, done) == ("speech", 3, 1, 0, False) and 160 <= written <= 320
    assert last[4] >= 7900


def test_segments_are_spoken_side_by_side(run):
    async def scenario():
        async with engine(Tts) as (endpoint, tts):
            async def last_first(exchange):
                while len(endpoint.seen) < 4:
                    await asyncio.sleep(0)
                await exchange.chunk(sound(700).tobytes())
                await exchange.end()
            endpoint.will(*[speaks(then=last_first)] * 4)
            call = Caller()
            for k in range(4):
                tts.speak(call, call.epoch, k, TEXT, "")
            await call.until(lambda: sum(each[-1] is True for each in call.told) == 4)
            return {each[2] for each in call.told}
    assert run(scenario()) == {0, 1, 2, 3}


def test_a_segment_begins_where_the_one_before_it_ended(run):
    async def scenario():
        async with engine(Tts, *[speaks(sound(700).tobytes())] * 2) as (_, tts):
            call = Caller()
            tts.speak(call, call.epoch, 0, TEXT, "")
            await call.until(lambda: call.told and call.told[-1][-1])
            first = call.told[-1]
            call.told.clear()                                       # and nobody has played it: it was interrupted
            tts.speak(call, call.epoch, 0, TEXT, "")
            read = call.slot.segment_read(0)
            await call.until(lambda: call.told and call.told[-1][-1])
            return first, call.told[-1], read
    first, second, read = run(scenario())
    assert second[3] == first[4] == read


def test_a_full_buffer_holds_the_voice_back(run, monkeypatch):
    monkeypatch.setattr(openai_tts, "LONGEST_SECONDS", 60)
    data = sound(40_000, rate=24000).tobytes()                      # 40 s: 16.4 s fit at 8 kHz

    async def scenario():
        async with engine(Tts, speaks(*(data[i:i + 48000] for i in range(0, len(data), 48000)))) as (endpoint, tts):
            call = Caller()
            tts.speak(call, call.epoch, 2, TEXT * 10, "")
            full = 0
            while not (call.told and call.told[-1][-1] is True):
                written = call.slot.segment_written(2)
                assert written - call.slot.segment_read(2) <= SEGMENT_SAMPLES
                if written - call.slot.segment_read(2) == SEGMENT_SAMPLES:
                    full += 1
                    call.voice = tts
                    call.play(2, 0, written)
                    call.voice = None
                await asyncio.sleep(0.005)
            call.voice = tts
            call.play(2, 0, call.told[-1][4])
            return np.concatenate(call.heard), full
    pcm, full = run(scenario())
    assert full == 2 and abs(len(pcm) - 320_000) < 500 and np.abs(np.diff(pcm.astype(int))).max() < 4000


def test_cancel_stops_the_stream_and_nothing_more_is_told(run):
    async def scenario():
        endless = speaks(sound(500).tobytes(), then=Exchange.until_gone)
        async with engine(Tts, *[endless] * 2) as (endpoint, tts):
            call = Caller()
            tts.speak(call, call.epoch, 0, TEXT, "")
            tts.speak(call, call.epoch, 1, TEXT, "")
            await call.until(lambda: {each[2] for each in call.told} == {0, 1})
            tts.cancel(call)
            told = len(call.told)
            for exchange in endpoint.seen:
                await exchange.gone.wait()
            return told, len(call.told), tts.speaking
    told, after, speaking = run(scenario())
    assert told == after and not speaking


def test_a_slot_that_was_given_to_another_call_is_not_written_to(run):
    async def scenario():
        async with engine(Tts) as (endpoint, tts):
            endpoint.will(speaks(sound(300).tobytes(), then=endpoint.on_word(
                lambda exchange: exchange.chunk(sound(9000).tobytes()))))
            call = Caller()
            tts.speak(call, call.epoch, 0, TEXT, "")
            await call.until(lambda: call.told)
            call.slot.free()
            call.slot.take(8000, 8000)
            endpoint.go.set()
            await call.until(lambda: call.told[-1][0] == "failed")
            return call.slot.segment_written(0)
    assert run(scenario()) == 0


def test_a_wav_file_says_its_rate(run):
    tone = sound(800, rate=16000)
    pcm, told = spoken(run, speaks(wav(tone.tobytes(), 16000), content_type="audio/wav"))
    assert told[0] == "speech" and abs(len(pcm) - 6400) < 200
    file = wav(tone.tobytes(), 16000)
    pieces = *(file[i:i + 1] for i in range(60)), file[60:]
    cut, _ = spoken(run, speaks(*pieces, content_type="application/octet-stream"))
    assert len(cut) == len(pcm) and (cut == pcm).all()


def test_a_type_says_its_rate(run):
    pcm, _ = spoken(run, speaks(sound(800, rate=8000).tobytes(), content_type="audio/pcm; rate=8000"))
    assert abs(len(pcm) - 6400) < 200


def stereo(rate: int) -> bytes:
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 1036, b"WAVE", b"fmt ", 16, 1, 2, rate, rate * 4, 4, 16, b"data",
                       1000) + bytes(1000)


FLOATS = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 4036, b"WAVE", b"fmt ", 16, 3, 1, 24000, 96000, 4, 32, b"data",
                     4000) + struct.pack("<f", math.nan) * 1000
HUGE = struct.pack("<4sI4s4sI", b"RIFF", 9000, b"WAVE", b"LIST", 8000) + bytes(8000)

SOUND_FAULTS = {
    "no audio": (speaks(), "sent no audio."),
    "one byte": (speaks(b"\x01"), "sent no audio."),
    "silence": (speaks(bytes(48000)), "sent silence."),
    "noise that nobody hears": (speaks(np.random.default_rng(1).integers(-60, 60, 48000, "<i2").tobytes()),
                                "sent silence."),
    "too short for its text": (speaks(sound(300).tobytes()), "sent 0.3 s of audio for 22 characters."),
    "ten minutes of it": (speaks(*[sound(10_000).tobytes()] * 60), "did not end a segment within 7 s of speech."),
    "a rate that nobody uses": (speaks(sound(800).tobytes(), content_type="audio/pcm; rate=5000"),
                                "sends audio at 5000 Hz, which is not supported."),
    "a WAV file at another rate": (speaks(wav(sound(800).tobytes(), 5000), content_type="audio/wav"),
                                   "sends audio at 5000 Hz, which is not supported."),
    "a WAV file in stereo": (speaks(stereo(24000), content_type="audio/wav"),
                             "sends a WAV file that is not 16-bit mono PCM."),
    "a WAV file of floats that are no numbers": (speaks(FLOATS, content_type="audio/wav"),
                                                 "sends a WAV file that is not 16-bit mono PCM."),
    "a WAV file of nothing": (speaks(HUGE, content_type="audio/wav"), "sends a WAV file without samples."),
    "MP3": (speaks(b"\xff\xfb\x90\x00" * 100, content_type="audio/mpeg"), "answered with audio/mpeg instead."),
    "a page with status 200": (answers(200, "text/html", "<html>"), "answered with text/html instead."),
    "JSON with status 200": (answers(200, "application/json", "{}"), "answered with application/json instead."),
    "a voice that it has not": (fails(400, "no_voice"), "answered with status 400 (no_voice), asked for voice alloy of "
                                "gpt-4o-mini-tts."),
    "too many requests": (fails(429, "rate_limit_exceeded"), "answered with status 429 (rate_limit_exceeded)."),
}


@pytest.mark.parametrize("fault", SOUND_FAULTS)
def test_what_cannot_be_speech_becomes_a_sentence(run, fault):
    doing, sentence = SOUND_FAULTS[fault]
    pcm, told = spoken(run, doing)
    assert told == ("failed", 3, 0, "The voice's endpoint " + sentence)
    assert len(pcm) <= 31 * 8000


@pytest.mark.parametrize("step, sentence", [(Exchange.reset, "failed: connection reset by peer."),
                                            (Exchange.close, "failed: it closed the connection in mid-answer.")])
def test_speech_that_breaks_off_is_heard_so_far(run, step, sentence):
    async def scenario():
        async with engine(Tts) as (endpoint, tts):
            endpoint.will(speaks(sound(500).tobytes() + b"\x01", then=endpoint.on_word(step)))
            call = Caller()
            tts.speak(call, call.epoch, 0, TEXT, "")
            await call.until(lambda: call.told)
            endpoint.go.set()
            await call.until(lambda: call.told[-1][0] == "failed")
            return call.told
    told = run(scenario())
    assert told[-1] == ("failed", 3, 0, "The voice's endpoint " + sentence)
    assert 3900 <= told[-2][4] <= 4000 and told[-2][5] is False


@pytest.mark.parametrize("doing", [does(Exchange.until_gone), speaks(then=Exchange.until_gone),
                                   speaks(sound(500).tobytes(), then=Exchange.until_gone)])
def test_a_voice_that_falls_silent_is_given_up(run, monkeypatch, doing):
    monkeypatch.setattr(openai_tts, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(openai_tts, "GAP_SECONDS", 0.1)

    async def scenario():
        async with engine(Tts, doing) as (endpoint, tts):
            told = (await listen(tts, Caller()))[1]
            await endpoint.seen[0].gone.wait()
            return told
    assert run(scenario()) == ("failed", 3, 0, "The voice's endpoint let us wait for too long.")


def test_prompts_are_rendered_side_by_side_and_asked_for_again_when_that_fails(run):
    texts = [f"This is prompt {i}." for i in range(9)]

    async def scenario():
        once, good = fails(500), speaks(sound(900, lead_ms=200).tobytes())
        async with engine(Tts, once, good, once, *[good] * 8) as (endpoint, tts):
            found = {text: pcm async for text, pcm in tts.render(texts, "", 16000)}
            return found, len(endpoint.seen)
    found, asked = run(scenario())
    assert sorted(found) == texts and asked == 11
    assert all(abs(len(pcm) - 14400) < 800 for pcm in found.values())


def test_a_prompt_that_cannot_be_rendered_stops_the_start(run):
    async def scenario():
        async with engine(Tts, *[fails(404, "model_not_found")] * 50) as (endpoint, tts):
            with pytest.raises(EngineError) as failed:
                async for _ in tts.render([TEXT] * 6, "rms", 16000):
                    pass
            return str(failed.value), len(endpoint.seen)
    sentence, asked = run(scenario())
    assert sentence.endswith("status 404 (model_not_found), asked for voice rms of gpt-4o-mini-tts.") and asked <= 18


# -- the recogniser ----------------------------------------------------------------------------------------------------

SEARCHES = (SimpleNamespace(words=frozenset()),)


def hears(text, *deltas, content_type="text/event-stream"):
    """A transcription, streamed where there are deltas."""
    if content_type == "application/json":
        return lambda exchange: exchange.whole(200, content_type, b'{"text": "%s", "usage": null}' % text.encode())
    events = [{"type": "transcript.text.delta", "delta": delta} for delta in deltas]
    return begins(*events, {"type": "transcript.text.done", "text": text}, then=Exchange.end)


def say(call, ms, silent=False):
    """The caller's audio comes in, 20 ms at a time."""
    pcm = sound(ms, rate=call.slot.rate_in)
    for i in range(0, len(pcm), call.slot.rate_in // 50):
        call.slot.write(pcm[i:i + call.slot.rate_in // 50] * (0 if silent else 1))


async def final(call):
    await call.until(lambda: call.told and call.told[-1][0] in ("final", "failed"))
    return call.told[-1]


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_an_utterance_is_recognised_at_its_end(run, rate, content_type):
    async def scenario():
        async with engine(Stt, hears("Ten of clubs.", content_type=content_type), searches=SEARCHES) as (endpoint, stt):
            call = Caller(rate_in=rate)
            say(call, 500, silent=True)
            stt.listen(call, rate // 4)
            say(call, 700)
            stt.audio(call)
            stt.finish(call, call.slot.written)
            assert call.told == []
            told = await final(call)
            return told, endpoint.seen[0].body, stt.heard
    told, body, heard = run(scenario())
    assert told == ("final", 3, "Ten of clubs.", 1.0) and not heard
    assert read_wav(body["file"]) == (rate, round(0.95 * rate)) and body["model"] == "gpt-4o-mini-transcribe"
    assert body["stream"] == "true" and "prompt" not in body


def test_the_words_of_the_state_go_with_it(run):
    async def scenario():
        async with engine(Stt, hears("Ten of clubs."), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            call.terms = ("ten of clubs", "seven of clubs", "ace of spades" * 60, "stop")
            stt.listen(call, 0)
            say(call, 700)
            stt.finish(call, call.slot.written)
            await final(call)
            return endpoint.seen[0].body["prompt"]
    assert run(scenario()) == "ten of clubs, seven of clubs"


def test_a_model_that_takes_no_prompt_is_asked_without(run):
    async def scenario():
        async with engine(Stt, hears("Ten of clubs."), searches=SEARCHES) as (endpoint, stt):
            endpoint.refuses = {"prompt"}
            call = Caller()
            call.terms = ("ten of clubs", "seven of clubs", "ace of spades" * 60, "stop")
            stt.listen(call, 0)
            say(call, 700)
            stt.finish(call, call.slot.written)
            return await final(call), len(endpoint.seen), sorted(endpoint.seen[1].body)
    assert run(scenario()) == (("final", 3, "Ten of clubs.", 1.0), 2, ["file", "model", "stream"])


def test_what_was_asked_in_the_pause_is_the_answer_if_nothing_followed(run):
    async def scenario():
        async with engine(Stt, hears("Ten of clubs.", "Ten", " of clubs."), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 700)
            say(call, 100, silent=True)
            stt.ask(call)
            await call.until(lambda: call.told and call.told[-1][2] == "Ten of clubs.")
            say(call, 300, silent=True)
            stt.finish(call, call.slot.written)
            return await final(call), call.told, len(endpoint.seen), stt.saved
    told, all_told, asked, saved = run(scenario())
    assert told == ("final", 3, "Ten of clubs.", 1.0) and asked == saved == 1
    assert all_told[0][0] == "partial" and all_told[0][2].startswith("Ten")


def test_an_utterance_that_ends_while_it_is_asked_about_needs_no_other_request(run):
    async def scenario():
        async with engine(Stt, searches=SEARCHES) as (endpoint, stt):
            endpoint.will(does(endpoint.on_word(hears("Ten of clubs."))))
            call = Caller()
            stt.listen(call, 0)
            say(call, 700)
            stt.ask(call)
            say(call, 300, silent=True)
            stt.finish(call, call.slot.written)
            endpoint.go.set()
            return await final(call), len(endpoint.seen), len(call.told)
    assert run(scenario()) == (("final", 3, "Ten of clubs.", 1.0), 1, 1)


def test_who_goes_on_after_a_pause_is_heard_to_the_end(run):
    async def scenario():
        async with engine(Stt, hears("Ten of"), hears("Ten of clubs."), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 500)
            stt.ask(call)
            await call.until(lambda: call.told)
            say(call, 400, silent=True)
            say(call, 500)
            stt.finish(call, call.slot.written)
            return await final(call), [read_wav(each.body["file"])[1] for each in endpoint.seen]
    assert run(scenario()) == (("final", 3, "Ten of clubs.", 1.0), [4000, 11200])


def test_a_pause_after_a_pause_ends_the_first_request(run):
    async def scenario():
        async with engine(Stt, does(Exchange.until_gone), hears("Ten of clubs."), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 500)
            stt.ask(call)
            while not endpoint.seen:
                await asyncio.sleep(0)
            say(call, 500)
            stt.ask(call)
            await endpoint.seen[0].gone.wait()
            stt.finish(call, call.slot.written)
            return await final(call)
    assert run(scenario()) == ("final", 3, "Ten of clubs.", 1.0)


def test_a_request_in_a_pause_may_fail_and_nobody_is_told(run):
    async def scenario():
        async with engine(Stt, fails(500), hears("Ten of clubs."), searches=SEARCHES) as (_, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 700)
            stt.ask(call)
            while not stt.endpoints.best.failures:
                await asyncio.sleep(0.01)
            stt.finish(call, call.slot.written)
            return await final(call), call.told
    told, all_told = run(scenario())
    assert told == ("final", 3, "Ten of clubs.", 1.0) and len(all_told) == 1


def test_an_answer_may_end_the_turn_while_it_is_still_being_told(run):
    """A partial result completes the answer: the call finishes the utterance from within on_partial."""
    async def scenario():
        async with engine(Stt, hears("Yes.", "Yes", "."), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            ended = []

            def on_partial(utterance, text):
                if not ended:
                    ended.append(text)
                    stt.finish(call, call.slot.written)
            call.on_partial = on_partial
            stt.listen(call, 0)
            say(call, 700)
            stt.ask(call)
            return await final(call), len(endpoint.seen)
    assert run(scenario()) == (("final", 3, "Yes.", 1.0), 1)


def test_cancel_ends_the_request_and_nothing_is_told(run):
    async def scenario():
        async with engine(Stt, does(Exchange.until_gone), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 700)
            stt.finish(call, call.slot.written)
            while not endpoint.seen:
                await asyncio.sleep(0)
            stt.cancel(call)
            stt.forget(call)
            stt.finish(call, call.slot.written)                     # too late
            await endpoint.seen[0].gone.wait()
            return call.told
    assert run(scenario()) == []


def test_a_monologue_is_longer_than_a_slot(run):
    async def scenario():
        async with engine(Stt, hears("And so on."), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            stt.listen(call, 0)
            for _ in range(30):                                     # 30 s: a slot keeps ten
                say(call, 1000)
                stt.audio(call)
            stt.finish(call, call.slot.written)
            return await final(call), read_wav(endpoint.seen[0].body["file"])
    assert run(scenario()) == (("final", 3, "And so on.", 1.0), (8000, 240_000))


def test_of_an_endless_utterance_the_end_is_recognised(run):
    async def scenario():
        async with engine(Stt, hears("And so on."), searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            stt.listen(call, 0)
            for _ in range(600):                                    # ten minutes
                say(call, 1000)
                stt.audio(call)
            stt.finish(call, call.slot.written)
            return await final(call), read_wav(endpoint.seen[0].body["file"])
    assert run(scenario()) == (("final", 3, "And so on.", 1.0), (8000, 480_000))


def test_what_is_too_short_to_say_anything_is_not_asked_about(run):
    async def scenario():
        async with engine(Stt, searches=SEARCHES) as (endpoint, stt):
            call = Caller()
            say(call, 60)
            told = []
            for position in (call.slot.written, 0):                 # nothing at all, and 60 ms
                stt.listen(call, position)
                stt.finish(call, call.slot.written)
                told.append(await final(call))
                call.told.clear()
            return told, endpoint.seen
    assert run(scenario()) == ([("final", 3, "", 1.0)] * 2, [])


TEXT_FAULTS = {
    "a page with status 200": (answers(200, "text/html", "<html>"), "answered with text/html instead."),
    "no text in it": (answers(200, "application/json", "{\"words\": []}"), "sent what is no transcription."),
    "a number for a text": (answers(200, "application/json", "{\"text\": 7}"), "sent what is no transcription."),
    "a list": (answers(200, "application/json", "[]"), "sent what is no transcription."),
    "half of it": (answers(200, "application/json", "{\"text\": \"Te"), "sent what is no transcription."),
    "an endless one": (answers(200, "application/json", b" " * 2_000_000), "sent an answer without an end."),
    "no end": (begins({"type": "transcript.text.delta", "delta": "Ten"}, then=Exchange.end),
               "ended its answer in the middle."),
    "an error in the stream": (begins({"type": "error", "error": {"message": KEY}}, then=Exchange.end),
                               "broke its answer off with an error."),
    "a delta that is none": (begins({"type": "transcript.text.delta"}, then=Exchange.end),
                             "sent what is no transcription."),
    "too many requests": (fails(429, "rate_limit_exceeded"), "answered with status 429 (rate_limit_exceeded)."),
    "no such model": (fails(404, "model_not_found"), "answered with status 404 (model_not_found), asked for "
                      "gpt-4o-mini-transcribe."),
    "a connection that ends": (begins(then=Exchange.close), "failed: it closed the connection in mid-answer."),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_what_is_no_transcription_becomes_a_sentence(run, fault):
    doing, sentence = TEXT_FAULTS[fault]

    async def scenario():
        async with engine(Stt, doing, hears("Ten of clubs."), searches=SEARCHES) as (_, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 700)
            stt.finish(call, call.slot.written)
            first = await final(call)
            call.told.clear()
            stt.listen(call, 0)
            stt.finish(call, call.slot.written)
            return first, await final(call)
    first, second = run(scenario())
    assert first == ("failed", 3, "The recogniser's endpoint " + sentence)
    assert second == ("final", 3, "Ten of clubs.", 1.0)
