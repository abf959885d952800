"""The embedded engines themselves, without processes: recordings of people in, words out; texts in, speech out."""
import ctypes.util
import importlib.util
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from opusagent import ConfigError, EngineError
from opusagent._fastpath import ulaw_decode, ulaw_encode
from opusagent.engines.embedded import cepstra as front_end, flite, recogniser as embedded
from opusagent.engines.embedded.cepstra import BANDS, CEPSTRA, MODEL_BANDS, NARROWING, Cepstra, cosines
from opusagent.engines.embedded.narrowing import narrowed
from opusagent.engines.embedded.voices import Voices
from opusagent.recording import read_raw, read_wav, resample

RECORDINGS = Path("/usr/share/pocketsphinx/test/data")

recognises = pytest.mark.skipif(importlib.util.find_spec("pocketsphinx") is None,
                                reason="pocketsphinx is not installed: pip install 'opusagent[local]'")
people = pytest.mark.skipif(not RECORDINGS.is_dir(),
                            reason="no recordings of people: apt install pocketsphinx-testdata")


def flite_is_missing():
    try:
        ctypes.CDLL("libflite.so.1")
    except OSError:
        return True
    return False


speaks = pytest.mark.skipif(flite_is_missing(), reason="flite is not installed: apt install libflite1")


class Search(NamedTuple):
    id: int
    kind: str
    jsgf: str
    words: frozenset
    murmurs: tuple = ()
    interruptions: tuple = ()


def grammar(id, answer, **rules):
    lines = [f"<{name}> = {rule};" for name, rule in rules.items()]
    text = "\n".join(["#JSGF V1.0;", "grammar expected;", f"public <ANSWER> = {answer};", *lines])
    words = " ".join([answer, *rules.values()])
    return Search(id, "grammar", text, frozenset(w for w in words.translate(str.maketrans("|()[]", "     ")).split()
                                                     if not w.startswith("<")))


RANK = "ace | two | three | four | five | six | seven | eight | nine | ten | jack | queen | king"
DIGIT = "zero | oh | one | two | three | four | five | six | seven | eight | nine"
NUMBER = "one | two | three | four | five | six | seven | eight | nine | ten"
LEAD = "it's | it is | that's | my number is | the number is"
DIGITS, CARD, WAY, CARDS = range(4)
SEARCHES = (
    grammar(DIGITS, "[ <lead> ] ( <digit> <digit> <digit> <digit> <digit> | help | goodbye )", digit=DIGIT, lead=LEAD),
    grammar(CARD, "[ <lead> ] ( [ the ] <rank> of <suit> | goodbye )", rank=RANK, lead=LEAD,
            suit="clubs | diamonds | hearts | spades"),
    grammar(WAY, "go forward <number> ( meters | meter ) | go backward <number> ( meters | meter )", number=NUMBER),
    grammar(CARDS, "<card> | <card> <card> | <card> <card> <card>", card="<rank> of <suit>", rank=RANK,
            suit="clubs | diamonds | hearts | spades"),
)
FREE = Search(9, "free", "", frozenset())

SAID = [
    (DIGITS, "tidigits/dhd.2934z.raw", "two nine three four zero"),
    (CARD, "cards/001.wav", "ten of clubs"),
    (CARD, "cards/003.wav", "seven of clubs"),
    (WAY, "goforward.raw", "go forward ten meters"),
    (CARDS, "cards/005.wav", "eight of spades four of clubs seven of hearts"),
]


def recording(file, rate=8000, before_ms=400, after_ms=150):
    """As a telephone line brings it: 8 kHz mu-law, digital silence around it.  int16 at `rate`"""
    path = RECORDINGS / file
    pcm, its_rate = read_wav(path) if path.suffix == ".wav" else read_raw(path)
    pcm = resample(pcm, its_rate, 8000)
    coded = np.empty(len(pcm), np.uint8)
    ulaw_encode(pcm, coded)
    ulaw_decode(coded, pcm := np.empty(len(coded), np.int16))
    silence = np.zeros(8, np.int16)
    return resample(np.concatenate((np.tile(silence, before_ms), pcm, np.tile(silence, after_ms))), 8000, rate)


def hear(utterance, pcm, rate=8000):
    """All of it in pieces of 20 ms: (text, confidence), and what it looked like on the way."""
    looks = []
    for i in range(0, len(pcm), rate // 50):
        utterance.feed(pcm[i:i + rate // 50])
        while utterance.step():
            pass
        if utterance.due:
            looks.append(utterance.partial())
    return utterance.finish(), looks


@pytest.fixture(scope="module")
def recogniser():
    return embedded.Recogniser(SEARCHES)


# ---- cepstra ---------------------------------------------------------------------------------------------------------

def voice(rate=8000, seconds=2.0, seed=1):
    """Something as restless as speech, most of it low: noise that comes and goes."""
    count = int(rate * seconds)
    noise = np.convolve(np.random.default_rng(seed).standard_normal(count), np.hanning(rate // 1000), "same")
    swell = 1 + np.sin(np.arange(count) * (2 * np.pi * 3 / rate))
    return (noise * swell * 1000).astype(np.int16)


def cepstra(pcm, rate=8000, piece=160, level=0.0):
    stream = Cepstra(rate, level)
    parts = [stream.push(pcm[i:i + piece]) for i in range(0, len(pcm), piece)]
    return np.concatenate([*parts, stream.flush()])


@pytest.mark.parametrize("piece", [1, 7, 80, 205, 160, 1000, 100_000])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_same_samples_give_the_same_cepstra_however_they_are_cut(rate, piece):
    pcm = voice(rate)
    whole = cepstra(pcm, rate, len(pcm))
    assert whole.shape == ((len(pcm) - int(rate * 0.025625)) // (rate // 100) + 1, CEPSTRA)
    np.testing.assert_allclose(cepstra(pcm, rate, piece), whole, atol=1e-3)


def test_a_caller_who_speaks_softly_gives_the_same_cepstra():
    loud, soft = voice(), (voice() / 2).astype(np.int16)
    np.testing.assert_allclose(cepstra(loud), cepstra(soft), atol=0.5)


def test_digital_silence_is_a_quiet_room():
    silence = cepstra(np.zeros(8000, np.int16))
    assert np.isfinite(silence).all()
    assert np.ptp(silence, axis=0).max() == 0
    assert silence[0, 0] < cepstra(voice())[:, 0].min()         # the first number of a frame is its loudness


def test_telephone_audio_brought_to_16_khz_sounds_the_same():
    narrow = voice()
    wide = resample(narrow, 8000, 16000)
    difference = cepstra(wide, 16000)[50:190] - cepstra(narrow)[50:190]
    assert np.abs(difference).mean() < 1.5


def test_what_a_line_adds_to_every_sound_is_taken_off(monkeypatch):
    """The same voice through a line that is duller: a first-order low pass.  Silence before it, as calls bring it."""
    clear = np.concatenate((np.zeros(3200, np.int16), voice()))
    dull = np.convolve(clear, [0.5, 0.5])[:len(clear)].astype(np.int16)
    apart = np.abs(cepstra(dull) - cepstra(clear))[80:, 1:].mean()
    monkeypatch.setattr(Cepstra, "_centre", lambda self, *frames: 0)
    assert apart < 0.7 * np.abs(cepstra(dull) - cepstra(clear))[80:, 1:].mean()


def test_where_a_line_is_silent_nothing_is_taken_off(monkeypatch):
    clean = np.concatenate((np.zeros(4000, np.int16), voice()))
    found = cepstra(clean)
    monkeypatch.setattr(front_end, "_hiss", lambda bands: np.zeros(BANDS, np.float32))
    assert (cepstra(clean) == found).all()


def test_what_lies_above_the_telephones_band_changes_nothing():
    """16 kHz with a hiss from 4.5 kHz on, as loud as the voice."""
    wide = resample(voice(), 8000, 16000)
    noise = np.fft.rfft(np.random.default_rng(2).standard_normal(len(wide)) * 1000)
    noise[:len(wide) * 4500 // 16000] = 0
    hissing = (wide + np.fft.irfft(noise, len(wide))).astype(np.int16)
    assert np.abs(cepstra(hissing, 16000) - cepstra(wide, 16000)).mean() < 0.5


def test_too_little_for_a_frame_is_nothing():
    stream = Cepstra(8000)
    assert len(stream.push(np.ones(100, np.int16))) == len(stream.flush()) == 0


# ---- the model -------------------------------------------------------------------------------------------------------

def test_what_the_model_says_of_13_cepstra_holds_for_ours():
    """Bands that 13 cepstra describe, all of them; the lower ones of them, described by ours."""
    described = np.random.default_rng(3).normal(0, 10, 13)
    (wide, lifts), (narrow, ours) = cosines(MODEL_BANDS, 13), cosines(BANDS, CEPSTRA)
    energies = wide @ (described / lifts)
    np.testing.assert_allclose(described @ NARROWING, energies[:BANDS] @ narrow * ours)


@recognises
def test_a_narrowed_model_is_a_file_as_pocketsphinx_reads_it(tmp_path):
    means, variances = narrowed(embedded.model_path() / "en-us")
    (tmp_path / "means").write_bytes(means)
    (tmp_path / "variances").write_bytes(variances)
    head, data = means[:64].partition(b"endhdr\n")[::2]
    assert head == b"s3\nversion 1.0\n" and data[:8] == bytes.fromhex("44332211 2a000000")
    assert len(means) == len(variances) == len(head) + 7 + 4 * 8 + 4 * 42 * 3 * 128 * CEPSTRA
    assert np.isfinite(np.frombuffer(means[-1000:], "<f4")).all()
    assert (np.frombuffer(variances[-1000:], "<f4") > 0).all()


@people
@pytest.mark.parametrize("model", [RECORDINGS / "an4_ci_cont", RECORDINGS / "nothing"])
def test_another_model_is_one_sentence(model):
    with pytest.raises(EngineError, match="pocketsphinx's model cannot be read: .*means"):
        narrowed(model)


# ---- words -----------------------------------------------------------------------------------------------------------

@recognises
def test_a_dictionary_has_only_the_words_of_the_flow():
    lines = embedded.dictionary(["two", "zero"]).splitlines()
    assert {line.split()[0].partition("(")[0] for line in lines} == {"two", "zero"}


@recognises
def test_words_that_nobody_can_say_are_named():
    with pytest.raises(ConfigError, match="'frobnicate', 'xyzzy'"):
        embedded.dictionary(["two", "xyzzy", "frobnicate"])


def test_a_missing_recogniser_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as failed:
        embedded.Recogniser(SEARCHES)
    assert str(failed.value) == "The embedded recogniser needs pocketsphinx: pip install 'opusagent[local]'."


@recognises
def test_a_word_that_any_vowel_sounds_like_is_rare_in_a_choice_only():
    jsgf = "<d> = zero | nine | oh;\n<a> = ( oh | one ) | oh please | [ oh ] two;"
    assert embedded.weighed(jsgf) == \
        "<d> = zero | nine | /1e-21/ oh;\n<a> = ( /1e-21/ oh | one ) | oh please | [ oh ] two;"


@recognises
def test_a_word_is_known_by_what_the_telephone_leaves_of_it():
    lines = embedded.dictionary(["six"]).splitlines()
    assert {tuple(line.split()[1:]) for line in lines} == {
        ("S", "IH", "K", "S"), ("S", "IH", "K"), ("IH", "K", "S"), ("S", "IY", "K", "S")}
    assert len({line.split()[0] for line in lines}) == 4


# ---- recognising -----------------------------------------------------------------------------------------------------

@recognises
@people
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("search,file,text", SAID, ids=[file for _, file, _ in SAID])
def test_what_people_say_over_the_telephone_is_recognised(recogniser, search, file, text, rate):
    (found, confidence), looks = hear(recogniser.start(search, rate), recording(file, rate), rate)
    assert found == text
    assert 0.5 < confidence <= 1
    assert looks[-1] == text


@recognises
@people
def test_above_a_hiss_that_is_taken_off_little_is_heard_as_something_else(recogniser, monkeypatch):
    """20 dB below the loudest 10 ms and more, before the voice as well."""
    def heard_as_others():
        count = 0
        for search, file, text in SAID:
            pcm = recording(file).astype(float)
            loud = np.sqrt(np.mean(pcm[:len(pcm) // 80 * 80].reshape(-1, 80) ** 2, 1).max())
            for seed, db in itertools.product((1, 2), (20, 25, 30)):
                noise = np.random.default_rng(seed).normal(0, loud / 10 ** (db / 20), len(pcm))
                hissing = np.clip(pcm + noise, -32768, 32767).astype(np.int16)
                count += hear(recogniser.start(search, 8000), hissing)[0][0] not in (text, "")
        return count
    found = heard_as_others()
    monkeypatch.setattr(front_end, "_hiss", lambda bands: np.zeros(BANDS, np.float32))
    assert found < 0.8 * heard_as_others()


@recognises
@people
@pytest.mark.parametrize("gain", [1.4, 0.5, 0.25])
def test_loudness_does_not_matter(recogniser, gain):
    for search, file, text in (SAID[0], SAID[2], SAID[3]):
        pcm = np.clip(recording(file) * gain, -32768, 32767).astype(np.int16)
        assert hear(recogniser.start(search, 8000), pcm)[0][0] == text


@recognises
@people
def test_a_call_keeps_what_was_learned_of_its_caller(recogniser):
    level = 0.0
    for search, file, text in SAID:
        utterance = recogniser.start(search, 8000, level)
        assert hear(utterance, recording(file))[0][0] == text
        level = utterance.level


@recognises
@people
def test_a_decoder_remembers_nothing_of_its_last_caller(recogniser):
    search, file, _ = SAID[0]
    pcm = recording(file)
    utterance = recogniser.start(search, 8000)
    first = hear(utterance, pcm)
    decoder = utterance.decoder
    shout = np.clip(voice() * 8, -32768, 32767).astype(np.int16)
    hear(recogniser.start(CARD, 8000), shout)
    again = recogniser.start(search, 8000)
    assert again.decoder is decoder
    assert hear(again, pcm) == first


@recognises
@people
@pytest.mark.parametrize("search", [DIGITS, CARD, WAY, CARDS], ids=["digits", "card", "way", "cards"])
def test_what_no_grammar_expects_is_no_match(recogniser, search):
    book = "librivox/sense_and_sensibility_01_austen_64kb-08{}.wav"
    for file in (book.format(70), book.format(80), book.format(90), "something.raw"):
        (text, confidence), _ = hear(recogniser.start(search, 8000), recording(file))
        assert text == "" and confidence < 0.5, file


@recognises
@people
def test_an_answer_to_another_question_is_no_match(recogniser):
    for search, file, _ in SAID:
        for other in {DIGITS, CARD, WAY} - {search, CARD if search == CARDS else search}:
            assert hear(recogniser.start(other, 8000), recording(file))[0][0] == "", (file, other)


@recognises
def test_silence_is_no_words(recogniser):
    assert hear(recogniser.start(CARD, 8000), np.zeros(16000, np.int16))[0] == ("", 0.0)
    assert recogniser.start(CARD, 8000).finish() == ("", 0.0)


@recognises
@people
def test_a_word_can_be_asked_for_before_the_caller_is_known(recogniser):
    pcm = recording("cards/001.wav", before_ms=0)[:4800]
    utterance = recogniser.start(CARD, 8000)
    utterance.feed(pcm)
    assert not utterance.step() and utterance.partial() == ""
    utterance.hurry()
    while utterance.step():
        pass
    assert "ten" in utterance.partial().split()
    utterance.abandon()


@recognises
def test_a_decoder_serves_one_utterance_and_comes_back():
    recogniser = embedded.Recogniser(SEARCHES[:1])
    utterances = [recogniser.start(DIGITS, 8000) for _ in range(embedded.AHEAD["grammar"])]
    assert recogniser.start(DIGITS, 8000) is None
    assert recogniser.short() == "grammar"
    utterances[0].feed(voice())
    utterances[0].abandon()
    assert recogniser.start(DIGITS, 8000) is not None
    recogniser.make(recogniser.short())
    assert recogniser.start(DIGITS, 8000) is not None


@recognises
def test_while_nobody_speaks_more_decoders_are_made_ahead(monkeypatch):
    monkeypatch.setattr(embedded, "AHEAD", {"grammar": 1, "free": 1})
    monkeypatch.setattr(embedded, "CALM", {"grammar": 2, "free": 1})
    monkeypatch.setattr(embedded, "MOST", {"grammar": 3, "free": 2})
    recogniser, made = embedded.Recogniser([*SEARCHES[:1], FREE]), []
    while kind := recogniser.short():
        recogniser.make(kind)
        made.append(kind)
    assert made == ["grammar"]
    utterances = [recogniser.start(FREE.id, 8000)]
    assert recogniser.short() == "free"             # the next one of these would have to wait
    recogniser.make("free")
    utterances.append(recogniser.start(FREE.id, 8000))
    assert all(utterances) and recogniser.start(FREE.id, 8000) is None
    assert recogniser.short() == ""                 # there are as many as there may be
    utterances[0].abandon()
    assert recogniser.start(FREE.id, 8000) is not None


@recognises
def test_a_search_that_was_never_announced_is_one_sentence(recogniser):
    with pytest.raises(EngineError, match="search 77"):
        recogniser.start(77, 8000)


@recognises
@people
def test_free_speech_has_a_language_model():
    recogniser = embedded.Recogniser([FREE])
    (text, _), _ = hear(recogniser.start(FREE.id, 8000), recording("something.raw"))
    assert text.endswith("and do something")        # it is poor at that: a third of the words is wrong


# ---- speaking --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def voices():
    return Voices("rms")


def spoken(voices, name, text, rate=16000):
    pieces = []

    def write(pcm):
        pieces.append(pcm)
        return True

    assert voices.speak(name, text, rate, write)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)


def windows_dbfs(pcm, rate):
    windows = pcm[:len(pcm) // (rate // 100) * (rate // 100)].reshape(-1, rate // 100).astype(float)
    return 10 * np.log10((windows ** 2).mean(1) / 32768 ** 2 + 1e-12)


SENTENCE = "Thank you. Your balance is forty two dollars."


@speaks
@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
@pytest.mark.parametrize("name", flite.VOICES)
def test_speech_begins_and_ends_with_speech(voices, name, rate):
    pcm = spoken(voices, name, SENTENCE, rate)
    voiced = np.flatnonzero(windows_dbfs(pcm, rate) > -45)
    assert pcm.dtype == np.int16
    assert voiced[0] <= 8 and len(pcm) // (rate // 100) - voiced[-1] <= 20      # of 10 ms; soft sounds begin and end it
    assert np.abs(pcm[:8]).max() < 65 and np.abs(pcm[-8:]).max() < 65           # -54 dBFS: no click at a join
    assert 2.5 < len(pcm) / rate < 4


@speaks
@pytest.mark.parametrize("name", flite.VOICES)
def test_voices_are_equally_loud(voices, name):
    pcm = spoken(voices, name, SENTENCE)
    loud = windows_dbfs(pcm, 16000)
    level = 10 * np.log10(np.mean(10 ** (loud[loud > loud.max() - 26] / 10)))
    assert abs(level + 20) < 2
    assert np.abs(pcm).max() < 32767


@speaks
def test_the_same_text_is_the_same_samples(voices):
    assert np.array_equal(spoken(voices, "rms", SENTENCE), spoken(voices, "rms", SENTENCE))


@speaks
def test_a_voice_stops_when_nobody_wants_more(voices):
    pieces = []
    assert not voices.speak("rms", SENTENCE, 8000, pieces.append)       # append returns None
    assert len(pieces) == 1


@speaks
def test_what_goes_wrong_in_the_midst_of_speech_comes_out(voices):
    def write(pcm):
        raise EngineError("the slot is gone")

    with pytest.raises(EngineError, match="the slot is gone"):
        voices.speak("rms", SENTENCE, 8000, write)
    assert len(spoken(voices, "rms", "Hello."))


@speaks
@pytest.mark.parametrize("text", ["", "...", " \n", "–"])
def test_nothing_to_say_is_no_samples(voices, text):
    assert len(spoken(voices, "rms", text)) == 0


@speaks
def test_accents_and_typographic_quotes_are_read_as_letters(voices):
    plain = spoken(voices, "rms", "Rene can't hear you")
    assert np.array_equal(spoken(voices, "rms", "René can’t hear you"), plain)


@speaks
def test_an_unknown_voice_is_one_sentence(voices):
    with pytest.raises(EngineError, match="no embedded voice 'bob'; there are rms, slt, awb, kal16, kal"):
        voices.speak("bob", "Hello.", 8000, lambda pcm: True)


def test_a_missing_library_is_one_sentence(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ConfigError, match="apt install libflite1"):
        Voices("rms")
