"""Voices that are programs: Piper, and espeak-ng; how fast, how loud, in which language a flow has something said."""
import asyncio
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from test_openai_speech import Caller, engine, sound, speaks
from test_openai_speech import listen as heard

from opusagent import ConfigError, EngineError, flowcheck
from opusagent._fastpath import Resampler
from opusagent.config import Config, Piper, Sherpa
from opusagent.engines import piper, piper_process, rates, sherpa
from opusagent.engines.embedded.voices import Voices
from opusagent.engines.level import Level, levelled
from opusagent.engines.openai.tts import Tts
from opusagent.flow import Flow
from opusagent.flow.manner import Manner, manner_of
from opusagent.studio.studio import waits

TEXT = "Your order left today."
PROGRAM = Path(__file__).with_name("piper_program.py")
espeaks = pytest.mark.skipif(shutil.which("espeak-ng") is None,
                             reason="espeak-ng is not installed: apt install espeak-ng")


def loudness(pcm, rate):
    """dBFS of what is voiced."""
    level = Level()
    level.hears(pcm, rate)
    return 10 * np.log10(level.power / 32768 ** 2)


# -- manners -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("manner, name", [
    (Manner(), ""), (Manner("rms"), "rms"), (Manner("rms", 1.25), "rms|1.25|"),
    (Manner("", 1.0, "en-GB"), "|1|en-GB"), (Manner("espeak", 0.5, "de"), "espeak|0.5|de")])
def test_a_manner_has_one_name(manner, name):
    assert manner.name == name and manner_of(name) == manner


FLOW = """
start = "hello"
rate = 1.2
[states.hello]
say = "Hello."
on = [{ phrases = ["slow"], go = "slow" }, { phrases = ["german"], go = "german" }]
[states.slow]
say = "Slowly."
rate = 0.8
end = true
[states.german]
say = "Guten Tag."
voice = "espeak"
language = "de"
end = true
"""


def test_prompts_are_spoken_in_the_manner_of_their_state():
    flow = Flow.parse(FLOW, "flow.toml")
    assert flow.voices() == ("|1.2|", "|0.8|", "espeak|1.2|de")
    assert "Slowly." in flow.prompts("|0.8|") and "Slowly." not in flow.prompts("|1.2|")
    assert "Guten Tag." in flow.prompts("espeak|1.2|de")


def test_a_language_that_a_voice_does_not_read_is_a_mistake(tmp_path):
    path = tmp_path / "flow.toml"
    path.write_text(FLOW.replace('voice = "espeak"\n', ""))
    with pytest.raises(ConfigError, match='flow.toml:[0-9]+: the voice rms reads English and no de; espeak does'):
        flowcheck.load(str(path), waits(Config()), Config(stt="scripted"))
    path.write_text(FLOW.replace('"Slowly."', '"Slowly. \u4f60\u597d."'))
    with pytest.raises(ConfigError, match="flow.toml:8: the voice rms reads the letters of English only, and has no"):
        flowcheck.load(str(path), waits(Config()), Config(stt="scripted"))
    path.write_text(FLOW)
    assert flowcheck.load(str(path), waits(Config()), Config(stt="scripted"))


@pytest.mark.parametrize("manner, sentence", [
    ('voice = "bad"', 'flow.toml:4: the speech engine has no voice "bad"; it has rms, slt, awb, kal16, kal, espeak.'),
    ('language = "de"', "flow.toml:4: the voice rms reads English and no de; espeak does, where espeak-ng is "
                        "installed.")])
def test_what_is_wrong_with_the_manner_of_a_flow_is_one_mistake(tmp_path, manner, sentence):
    (tmp_path / "flow.toml").write_text(FLOW.replace("rate = 1.2", f"rate = 1.2\n{manner}"))
    with pytest.raises(ConfigError) as error:
        flowcheck.load(str(tmp_path / "flow.toml"), waits(Config()), Config(stt="scripted"))
    assert str(error.value) == f"{tmp_path}/{sentence}"


@espeaks
@pytest.mark.parametrize("language", ["qq", "deutsch"])
def test_a_language_that_espeak_does_not_read_is_a_mistake(tmp_path, language):
    path = tmp_path / "flow.toml"
    path.write_text(FLOW.replace('"de"', f'"{language}"'))
    with pytest.raises(ConfigError, match=f"flow.toml:[0-9]+: the voice espeak reads no '{language}'"):
        flowcheck.load(str(path), waits(Config()), Config(stt="scripted"))


# -- rates -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rate_in", [22050, 11025, 44100])
@pytest.mark.parametrize("rate_out", [8000, 16000, 48000])
def test_any_rate_becomes_one_of_a_line(rate_in, rate_out):
    times = np.arange(rate_in // 2) / rate_in
    pcm = np.rint(10000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
    whole = rates.AnyResampler(rate_in, rate_out)
    out = np.concatenate((whole.push(pcm), whole.flush()))
    cut = rates.AnyResampler(rate_in, rate_out)
    pieces = [cut.push(pcm[at:at + 333]) for at in range(0, len(pcm), 333)]
    assert np.array_equal(np.concatenate((*pieces, cut.flush())), out)
    assert len(out) == -(-len(pcm) * rate_out // rate_in)
    right = 10000 * np.sin(2 * np.pi * 440 * np.arange(len(out)) / rate_out)
    assert np.abs(out - right)[200:-200].max() < 8


def test_the_rates_of_lines_are_the_compiled_one_s():
    assert isinstance(rates.resampler(24000, 8000), Resampler)
    with pytest.raises(ValueError, match="7 Hz is no rate of speech"):
        rates.resampler(7, 8000)


# -- how loud ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("peak", [1000, 3000, 20000])
def test_what_is_rendered_is_as_loud_as_any_other(peak):
    rng = np.random.default_rng(1)
    pcm = (rng.uniform(-peak, peak, 16000) * np.repeat(rng.uniform(0.5, 1, 20), 800)).astype(np.int16)
    assert abs(loudness(levelled(pcm, 16000), 16000) + 20) < 1.5
    assert np.abs(levelled(pcm, 16000)).max() <= 32767


def test_a_voice_of_an_endpoint_is_levelled_by_what_it_has_said(run):
    async def scenario(scale):
        data = [(sound(900).astype(float) * scale).astype("<i2").tobytes()] * 3
        async with engine(Tts, *[speaks(each) for each in data]) as (_, tts):
            call, told = Caller(), []
            for _ in data:
                call.heard.clear(), call.told.clear()
                told.append(loudness((await heard(tts, call))[0], 8000))
            return told
    soft, loud = run(scenario(0.1)), run(scenario(2.0))
    assert abs(soft[-1] - loud[-1]) < 3 and abs(loud[-1] + 20) < 2 and abs(soft[-1] + 20) < 2
    assert soft[0] < -25                                        # it was not known yet


def test_how_fast_and_in_which_language_an_endpoint_is_asked_for(run):
    async def scenario():
        async with engine(Tts, *[speaks(sound(800).tobytes())] * 2) as (endpoint, tts):
            await heard(tts, Caller(), voice="nova|1.5|en-GB")
            await heard(tts, Caller(), voice="nova")
            return [each.body for each in endpoint.seen]
    first, second = run(scenario())
    assert (first["voice"], first["speed"], first["instructions"]) == ("nova", 1.5, "Speak en-GB.")
    assert not {"speed", "instructions"} & second.keys()


# -- espeak-ng ---------------------------------------------------------------------------------------------------------

def said(voices, name, rate=8000, text=TEXT):
    pieces = []
    assert voices.speak(name, text, rate, lambda pcm: pieces.append(pcm) or True)
    return np.concatenate(pieces)


@pytest.fixture(scope="module")
def voices():
    return Voices("espeak")


@espeaks
@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_espeak_speaks_at_the_rate_of_the_line(voices, rate):
    pcm = said(voices, "", rate)
    assert 0.8 < len(pcm) / rate < 3 and abs(loudness(pcm, rate) + 20) < 2.5
    assert np.array_equal(pcm, said(voices, "", rate))


@espeaks
def test_espeak_speaks_faster_and_other_languages(voices):
    assert len(said(voices, "espeak|1.5|")) < 0.8 * len(said(voices, "espeak"))
    german = said(voices, "espeak|1|de", text="Ihre Bestellung ist unterwegs.")
    assert not np.array_equal(german, said(voices, "espeak", text="Ihre Bestellung ist unterwegs."))


@espeaks
@pytest.mark.parametrize("language, sentence", [("xx", "does not speak 'xx'"), ("--help", "'--help' is no language")])
def test_what_espeak_does_not_speak_is_a_sentence(voices, language, sentence):
    with pytest.raises(EngineError, match=sentence):
        voices.speak(f"espeak|1|{language}", TEXT, 8000, lambda pcm: True)


def test_espeak_that_is_not_installed_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="apt install espeak-ng"):
        Voices("espeak")


# -- Piper -------------------------------------------------------------------------------------------------------------

@pytest.fixture
def voice(tmp_path):
    """A voice file, and the program that speaks it."""
    program = tmp_path / "piper"
    program.write_text(f"#!{sys.executable}\n{PROGRAM.read_text()}")
    program.chmod(0o755)
    for name, rate in (("anna", 22050), ("bob", 16000)):
        (tmp_path / f"{name}.onnx").write_bytes(b"onnx")
        (tmp_path / f"{name}.onnx.json").write_text(json.dumps({"audio": {"sample_rate": rate}}))
    return tmp_path


def pipers(voice, told, **settings):
    async def scenario():
        config = Config(piper=Piper(command=str(voice / "piper"), voice=str(voice / "anna.onnx"), **settings))
        tts = piper.Tts(config)
        await tts.open(None)
        try:
            return await told(tts)
        finally:
            await tts.close()
    return scenario


def test_what_lies_in_its_files_makes_a_voice_the_one_that_it_is(voice):
    """Not their names, sizes or times: nothing else of a voice that replaced another need be different."""
    def identity(name=""):
        settings = Piper(command=str(voice / "piper"), voice=str(voice / "anna.onnx"))
        return piper.Tts(Config(piper=settings)).identity(name)

    def replace(name, data):
        then = os.stat(voice / name)
        (voice / name).write_bytes(data)
        os.utime(voice / name, ns=(then.st_atime_ns, then.st_mtime_ns))
        return identity()

    def swapped(data):
        return data.replace(b"22050", b"16000")

    anna, bob, fast = identity(), identity("bob"), identity("anna|1.25|")
    assert anna == fast == identity() and anna != bob
    assert replace("anna.onnx", b"ONNX") != anna and identity("bob") == bob
    assert replace("anna.onnx", b"onnx") == anna
    described = (voice / "anna.onnx.json").read_bytes()
    assert replace("anna.onnx.json", swapped(described)) != anna
    assert replace("anna.onnx.json", described) == anna
    assert identity("nobody") == identity("../anna") == "piper"         # nothing is spoken in these


async def all_are_there(tts):
    """The processes that are started ahead: two may speak at once, and there is a spare one."""
    while len(tts.idle[tts.own]) < 3:
        await asyncio.sleep(0.01)


def test_piper_speaks_one_text_after_another_with_the_same_processes(run, voice):
    async def told(tts):
        await all_are_there(tts)
        spoken = [await heard(tts, Caller(rate_out=8000), text=text) for text in (TEXT, "Yes.", "...", TEXT)]
        return [len(pcm) for pcm, _ in spoken], [last[0] for _, last in spoken], tts.started
    lengths, kinds, started = run(pipers(voice, told)())
    assert kinds == ["speech"] * 4 and started == 3
    assert all(abs(count - len(text) * 480) < 400 for count, text in zip(lengths, (TEXT, "Yes.", "", TEXT)))
    assert abs(lengths[0] - lengths[3]) <= 80                   # nothing of one is in the next; 10 ms is an edge


def test_a_voice_that_is_slow_by_itself_stays_so(run, voice):
    (voice / "anna.onnx.json").write_text('{"audio": {"sample_rate": 22050}, "inference": {"length_scale": 1.5}}')

    async def told(tts):
        return len((await heard(tts, Caller(rate_out=8000), text=TEXT))[0])
    assert abs(run(pipers(voice, told)()) - 1.5 * len(TEXT) * 480) < 600


def test_piper_speaks_with_the_voice_and_the_speed_of_the_flow(run, voice):
    async def told(tts):
        plain, _ = await heard(tts, Caller(rate_out=8000), text=TEXT)
        fast, _ = await heard(tts, Caller(rate_out=8000), text=TEXT, voice="bob|1.5|")
        files = {each.file for idle in tts.idle.values() for each in idle}
        rendered = [pcm async for _, pcm in tts.render([TEXT], "bob", 16000)]
        return len(plain), len(fast), files, loudness(rendered[0], 16000)
    plain, fast, files, level = run(pipers(voice, told)())
    assert abs(plain - 1.5 * fast) < 800 and {Path(file).name for file in files} == {"anna.onnx", "bob.onnx"}
    assert abs(level + 20) < 1.5


def test_nobody_waits_for_a_voice_to_load_in_which_something_was_spoken(run, voice):
    """As prompts are, before the first call: two then speak in it at once, and one of its processes may die."""
    async def settled(tts, count):
        while len(tts.idle[tts.own]) < 3 or len(tts.idle[bob(tts)]) < count:
            await asyncio.sleep(0.01)
        return tts.started

    def bob(tts):
        return tts.file_of("bob"), 1.5

    async def told(tts):
        await heard(tts, Caller(rate_out=8000), text="Yes.", voice="bob|1.5|")
        found = [await settled(tts, 1)]
        call, other = Caller(rate_out=8000), Caller(rate_out=8000)
        tts.speak(call, call.epoch, 0, "Please hang, I said so.", "bob|1.5|")
        while not tts.busy:
            await asyncio.sleep(0.001)
        found.append(await settled(tts, 1))
        await heard(tts, other, text="Yes.", voice="bob|1.5|")
        found.append(tts.started)
        tts.cancel(call)
        (tts.idle[bob(tts)][-1]).process.kill()
        await asyncio.sleep(0.05)
        return *found, await settled(tts, 1)
    first, second, third, last = run(pipers(voice, told)())
    assert (first, second, third) == (4, 5, 5) and last > 5


def test_a_voice_that_is_gone_is_not_loaded_again_and_again(run, voice, caplog):
    async def told(tts):
        await heard(tts, Caller(rate_out=8000), text="Yes.", voice="bob||")
        await all_are_there(tts)
        (voice / "bob.onnx.json").unlink()
        tts.described.clear()
        tts.idle[tts.file_of("bob"), 1.0][-1].process.kill()
        while (tts.file_of("bob"), 1.0) in tts.idle:
            await asyncio.sleep(0.01)
        return (await heard(tts, Caller(rate_out=8000), text="Yes.", voice="bob||"))[1]
    last = run(pipers(voice, told)())
    assert last[0] == "failed" and "cannot be read" in last[-1] and caplog.text.count("cannot be read") == 1


def test_piper_that_has_died_is_replaced_and_nobody_waits_for_it(run, voice):
    async def told(tts):
        await all_are_there(tts)
        tts.idle[tts.own][-1].process.kill()
        pcm, last = await heard(tts, Caller(rate_out=8000), text=TEXT)
        await all_are_there(tts)
        return len(pcm), last, tts.started, tts.lost
    count, last, started, lost = run(pipers(voice, told)())
    assert last[0] == "speech" and abs(count - len(TEXT) * 480) < 400 and (started, lost) == (4, 1)


@pytest.mark.parametrize("text", ["Please die later, I said so.", "Please hang, I said so."])
def test_where_piper_breaks_off_another_one_goes_on_with_the_next_word(run, voice, text, caplog):
    async def told(tts):
        await all_are_there(tts)
        return await heard(tts, Caller(rate_out=8000), text=text), tts.resumed
    (pcm, last), resumed = run(pipers(voice, told)())
    assert last[0] == "speech" and resumed == 1 and "Another one is asked." in caplog.text
    assert abs(len(pcm) - len(text) * 480) < 6 * 480            # as much as a word


def test_piper_that_computes_for_long_before_a_long_sentence_is_only_slow(run, voice, caplog):
    async def told(tts):
        return await heard(tts, Caller(rate_out=8000), text="Please ponder, I said so."), tts.resumed, tts.lost
    (pcm, last), resumed, lost = run(pipers(voice, told)())
    assert last[0] == "speech" and (resumed, lost) == (0, 0) and "Another one" not in caplog.text
    assert abs(len(pcm) - len("Please ponder, I said so.") * 480) < 400


def test_piper_that_computes_for_ever_is_replaced(run, voice, monkeypatch):
    monkeypatch.setattr(piper_process, "WORK_SECONDS", 0.1)
    monkeypatch.setattr(piper_process, "WORK_CHARACTER", 0.01)

    async def told(tts):
        broken = await heard(tts, Caller(rate_out=8000), text="Please loop.")
        return broken, await heard(tts, Caller(rate_out=8000), text=TEXT), tts.lost
    (_, last), (_, after), lost = run(pipers(voice, told)())
    assert last[0] == "failed" and "in which it computed for" in last[-1] and after[0] == "speech" and lost == 2


@pytest.mark.parametrize("text", ["Please die at once.", "Please die later. Yes, please die later. And so on, please."])
def test_a_text_that_two_processes_die_over_is_a_sentence_and_the_next_text_is_spoken(run, voice, text):
    async def told(tts):
        broken = await heard(tts, Caller(rate_out=8000), text=text)
        return broken, await heard(tts, Caller(rate_out=8000), text=TEXT)
    (pcm, last), (_, after) = run(pipers(voice, told)())
    assert last[0] == "failed" and "Piper ended in the middle of a text." in last[-1] and after[0] == "speech"
    assert not len(pcm) or abs(int(pcm[-1])) < 300              # it ends at nothing


@pytest.mark.parametrize("text, lost", [("One, two. " * 20, 0), ("Please hang, I said.", 1)])
def test_piper_that_nobody_listens_to_any_more_is_used_again_if_it_ends(run, voice, text, lost):
    async def told(tts):
        await all_are_there(tts)
        call = Caller(rate_out=8000)
        tts.speak(call, call.epoch, 0, text, "")
        await call.until(lambda: call.slot.segment_written(0))
        tts.cancel(call)
        pcm, last = await heard(tts, Caller(rate_out=8000), text=TEXT)
        await all_are_there(tts)
        return last[0], len(pcm), tts.speaking, tts.lost
    kind, count, speaking, found = run(pipers(voice, told)())
    assert kind == "speech" and abs(count - len(TEXT) * 480) < 400 and not speaking and found == lost


@pytest.mark.parametrize("change, sentence", [
    (lambda at: Piper(), "set piper.voice to"), (lambda at: Piper(command="no-piper", voice=str(at / "anna.onnx")),
                                                 "there is no program 'no-piper'"),
    (lambda at: Piper(command=str(at / "piper"), voice=str(at / "eve.onnx")),
     "eve.onnx.json: the description of the voice"),
    (lambda at: Piper(command=str(at / "piper"), voice=str(at / "odd.onnx")), "does not say audio.sample_rate"),
    (lambda at: Piper(command=str(at / "piper"), voice=str(at / "fast.onnx")), "length_scale is no number from")])
def test_what_piper_lacks_is_a_sentence(voice, change, sentence):
    (voice / "odd.onnx.json").write_text("[]")
    (voice / "fast.onnx.json").write_text('{"audio": {"sample_rate": 22050}, "inference": {"length_scale": 0}}')
    with pytest.raises(ConfigError, match=sentence):
        piper.Tts(Config(piper=change(voice)))


# -- sherpa ------------------------------------------------------------------------------------------------------------

has_sherpa = pytest.mark.skipif(importlib.util.find_spec("sherpa_onnx") is None,
                                reason="sherpa-onnx is not installed: pip install 'opusagent[sherpa]'")


def test_without_sherpa_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'opusagent\[sherpa\]'"):
        sherpa.Stt(Config(sherpa=Sherpa(model="/tmp")))


@pytest.mark.parametrize("names, sentence", [
    (None, "there is no directory"), ((), "has no tokens.txt"), (("tokens.txt",), r"has no encoder\*.onnx"),
    (("tokens.txt", "encoder-1.onnx", "decoder.onnx"), r"has no joiner\*.onnx")])
def test_a_directory_that_is_no_model_is_a_sentence(tmp_path, monkeypatch, names, sentence):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    model = tmp_path / "model"
    if names is not None:
        model.mkdir()
        for name in names:
            (model / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=sentence):
        sherpa.Stt(Config(sherpa=Sherpa(model=str(model))))
    with pytest.raises(ConfigError, match="set sherpa.model"):
        sherpa.Stt(Config())


@pytest.mark.parametrize("closed", ["", "encoder.onnx"])
def test_a_model_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch, closed):
    for name in ("tokens.txt", "encoder.onnx", "decoder.onnx", "joiner.onnx"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / closed)
    with pytest.raises(ConfigError, match=f"{tmp_path / closed} cannot be read"):
        sherpa.files(str(tmp_path))


def test_of_two_sizes_the_smaller_one_is_loaded(tmp_path):
    for name in ("tokens.txt", "encoder-a.onnx", "encoder-a.int8.onnx", "decoder-a.onnx", "joiner-a.int8.onnx"):
        (tmp_path / name).write_bytes(b"")
    assert sherpa.files(str(tmp_path))["encoder"].endswith("encoder-a.int8.onnx")


@has_sherpa
def test_the_package_takes_what_it_is_given():
    import inspect

    from sherpa_onnx import OnlineRecognizer
    inspect.signature(OnlineRecognizer.from_transducer).bind(
        tokens="", encoder="", decoder="", joiner="", num_threads=1, sample_rate=sherpa.RATE, feature_dim=80,
        decoding_method="greedy_search", enable_endpoint_detection=False, provider="cpu")
    for name in ("create_stream", "is_ready", "decode_stream", "get_result"):
        assert callable(getattr(OnlineRecognizer, name))
