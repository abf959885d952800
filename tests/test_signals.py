"""What a flow says without words: recordings that are played, and keys that are pressed, as calls and their platforms
see them."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

from conversation import Conversation, spoken
from dialled import Dialled
from opusagent import ConfigError, cli
from opusagent._fastpath import RATES
from opusagent.dialects import TABLE
from opusagent.flow import Flow
from opusagent.flow.authoring import Flow as Written
from opusagent.flow.drawing import draw
from opusagent.flow.signals import groups
from opusagent.recording import write_wav
from opusagent.speech import tones
from opusagent.studio import clips
from opusagent.studio.prompts import Prompt, Prompts, Store
from test_handover import moved
from test_relay import Relayed
from test_relay_journal import Kept as KeptRelay
from test_replay import Kept, replayed

FLOW = """
start = "hello"
facts = { pin = "" }
[sounds]
chime = "chime.wav"
[states.hello]
play = "chime"
say = "One two three."
on = [{ digits = 4, fact = "pin", go = "menu" }, { phrases = ["no"], go = "bye" }]
[states.menu]
send_digits = "1ww{pin}#"
go = "bye"
[states.bye]
say = "Goodbye now."
end = true
"""
CHIME_MS = 400


def chime(rate):
    count = CHIME_MS * rate // 1000
    return (6000 * np.sin(np.arange(count) * 2 * np.pi * 800 / rate)).astype(np.int16)


class WithChime:
    """Conversations whose prompts have the recording, under its file."""

    def journal(self):
        def prompt(voice, text, rate):
            if voice == "chime.wav":
                return Prompt(chime(rate), rate, ends=(1, 1))
            assert not text.startswith("♫"), "nobody speaks a recording"
            return Prompt(spoken(text, rate), rate) if self.studio.ahead else None
        self.studio.prompt = prompt
        return super().journal()


class Talk(WithChime, Conversation):
    pass


class Called(WithChime, Dialled):
    """Over a platform; `pressed` are the keys that it was asked to press."""

    def __init__(self, *of):
        self.pressed, self.sound = [], []
        super().__init__(*of)

    def exchange(self):
        outbox = self.caller.outbox
        while self.read < len(self.sent) or outbox:
            while self.read < len(self.sent):
                event = self.caller.receive(self.sent[self.read][0], memoryview(self.sent[self.read][1]))
                self.read += 1
                if type(event).__name__ == "Pressed":
                    self.pressed.append(event.digits)
                elif type(event).__name__ == "Audio":
                    self.sound.append(np.array(event.pcm))
            if outbox:
                self.send(outbox.pop(0))


class KeptTalk(WithChime, Kept):
    pass


def dialled_digits(pcm, rate):
    """The keys in a sound, as a receiver finds them: the two strongest of the eight frequencies in each 20 ms."""
    found, size = "", rate // 50
    for at in range(0, len(pcm) - size, size):
        frame, time = pcm[at:at + size].astype(float), np.arange(size) / rate
        power = {f: abs(np.exp(-2j * np.pi * f * time) @ frame) / size for f in tones.ROWS + tones.COLUMNS}
        low, high = max(tones.ROWS, key=power.get), max(tones.COLUMNS, key=power.get)
        loud = np.abs(frame).mean() > 1000
        key = tones.PAD[tones.ROWS.index(low)][tones.COLUMNS.index(high)] if loud else " "
        found += key if not found or found[-1] != key else ""
    return "".join(found.split())


# ---- recordings ------------------------------------------------------------------------------------------------------

def test_a_recording_is_heard_before_the_words_and_told_of():
    call = Talk(FLOW)
    call.listens()
    assert call.agent_says == ["♫ chime One two three."] and call.call.dialogue.history[0].agent == call.agent_says[0]


@pytest.mark.parametrize("ms, words", [(60, 0), (700, 2)])
def test_a_recording_is_interrupted_as_words_are(ms, words):
    call = Talk(FLOW.replace("One two three.", "One two three four five six seven eight nine ten eleven twelve."))
    call.silence(ms)
    call.speech(600, "no")
    call.silence(1500)
    assert call.receipts[0]["stopped_by"] == "barge-in"
    mark, name, *heard = call.agent_says[0].split()
    assert (mark, name) == ("♫", "chime") and words <= len(heard) <= words * 5


def test_a_state_that_nobody_may_interrupt_plays_to_its_end():
    call = Talk(FLOW.replace('play = "chime"', 'play = "chime"\ninterruptible = false'))
    call.speech(600, "no")
    call.silence(3000)
    assert call.agent_says[0] == "♫ chime One two three." and call.state == "bye"


def test_a_recording_that_is_gone_is_left_out_and_the_words_follow():
    call = Talk(FLOW)
    call.call.lost(1000, "")
    gone = Conversation(FLOW, begin=False)
    gone.studio.prompt = lambda voice, text, rate: None if text.startswith("♫") else Prompt(spoken(text, rate), rate)
    gone.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1"}}')
    gone.silence(2000)
    assert "One two three." in gone.agent_says[0] and not gone.studio.tts.asked


def test_no_words_of_a_fact_or_a_model_can_play_or_press():
    flow = FLOW.replace('say = "One two three."', 'say = "One {pin} three."').replace('pin = ""', 'pin = "♫ chime"')
    assert Flow.parse(flow, "flow.toml").states["hello"].say.fill({"pin": "⌨ 1 2. ♫ chime."})[0] == \
        "One 1 2 chime three."
    assert groups("one") == [] and groups("⌨ 1 w w 2 #") == [("1", 2), ("2#", 0)] and groups("⌨ w 1") == [
        ("", 1), ("1", 0)]


def test_a_conversation_with_both_is_replayed(tmp_path):
    call = KeptTalk(FLOW)
    call.listens()
    call.says("one two three four")
    call.silence(6000)
    again = replayed(call.tape(tmp_path))
    assert again.call.ledger.receipts == call.receipts and call.state == "bye"
    assert call.agent_says[1] == "⌨ 1 w w 1 2 3 4 # Goodbye now."


def test_a_recording_goes_on_in_another_worker():
    call = Talk(FLOW)
    call.silence(200)
    prompt = call.studio.prompt
    moved(call)
    call.studio.prompt = prompt
    call.listens()
    assert call.agent_says[-1].startswith("♫ chime")


@pytest.mark.parametrize("at", [40, 260, 700, 1200, 1700])
def test_keys_are_sounded_once_whatever_worker_the_call_is_in(at):
    whole, call = Talk(FLOW), Talk(FLOW)
    for talk in (whole, call):
        talk.listens()
        talk.speech(600, "one two three four")
    prompt = call.studio.prompt
    whole.silence(400)
    call.silence(400)
    call.silence(at)
    moved(call)
    call.studio.prompt = prompt
    for talk in (whole, call):
        talk.silence(6000)
    assert call.state == "bye" and call.count("media") == whole.count("media")


# ---- keys ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_keys_sound_as_a_receiver_wants_them(rate):
    sound = tones.tones("159*0#", rate)
    assert dialled_digits(sound, rate) == "159*0#" and np.abs(sound).max() < 20000
    assert len(sound) == 6 * rate * (tones.TONE_MS + tones.GAP_MS) // 1000
    assert len(tones.tones("", rate)) == 0


@pytest.mark.parametrize("dialect, query", [("telnyx", ""), ("vonage", "rate=24000"), ("pcm", "rate=48000"),
                                            ("asterisk", ""), ("audiohook", "")])
def test_where_the_platform_presses_none_they_are_heard(dialect, query):
    call = Called(FLOW, dialect, query)
    call.silence(3000)
    del call.sound[:]
    call.speech(600, "one two three four")
    call.silence(5000)
    assert call.pressed == [] and call.state == "bye"
    assert dialled_digits(np.concatenate(call.sound), call.caller.rate)[:6] == "11234#"


@pytest.mark.parametrize("dialect", ["plivo", "audiocodes"])
def test_where_it_does_they_are_not(dialect):
    call = Called(FLOW, dialect)
    call.silence(3000)
    del call.sound[:]
    call.speech(600, "one two three four")
    call.silence(5000)
    assert call.pressed == ["1", "1234#"] and call.state == "bye"
    heard = np.concatenate(call.sound)
    assert np.abs(heard[:call.caller.rate]).max() == 0, "as long as the keys take nothing is said"
    assert call.receipts[1]["waits"]["playout"] == pytest.approx(6 * (tones.TONE_MS + tones.GAP_MS) + 1000, abs=25)


def test_nobody_talks_over_keys_unless_the_flow_says_so():
    call = Called(FLOW, "plivo")
    call.silence(3000)
    call.speech(600, "one two three four")
    call.silence(300)
    call.speech(600, "wait no")
    call.silence(5000)
    assert call.pressed == ["1", "1234#"] and call.receipts[-1]["stopped_by"] == ""
    flow = Flow.parse(FLOW.replace('send_digits', 'interrupt = "always"\nsend_digits'), "flow.toml")
    assert flow.states["menu"].interruptible and not Flow.parse(FLOW, "flow.toml").states["menu"].interruptible


def test_twenty_keys_are_what_audiocodes_takes_at_once():
    message = json.loads(TABLE["audiocodes"].send_digits("1" * 45))
    assert [len(each["activityParams"]["dtmfDigits"]) for each in message["activities"]] == [20, 20, 5]


# ---- Twilio ConversationRelay ----------------------------------------------------------------------------------------

RELAYED = FLOW.replace('"chime.wav"', '{ url = "https://cdn.example.com/chime.mp3" }')


def test_twilio_plays_and_presses_itself(tmp_path):
    call = KeptRelay(RELAYED)
    call.passes(6000)
    call.says("1234")
    call.passes(9000)
    kinds = [(message["type"], message.get("source") or message.get("digits") or message.get("token"))
             for message in call.messages[:-1]]
    assert kinds == [("play", "https://cdn.example.com/chime.mp3"), ("text", "One two three."),
                     ("sendDigits", "1ww1234#"), ("text", "Goodbye now.")]
    assert [message["last"] for message in call.messages if message["type"] == "text"] == [True, True]
    assert [turn["agent"] for turn in call.receipts] == ["♫ chime One two three.", "⌨ 1 w w 1 2 3 4 # Goodbye now."]
    call.is_replayed(tmp_path)


def test_a_file_cannot_be_played_over_text():
    call = Relayed(FLOW)
    assert [message["type"] for message in call.messages] == ["text"] and call.tokens == ["One two three."]


# ---- what is read and kept -------------------------------------------------------------------------------------------

def tone(rate, seconds=1.0, hz=440):
    return (8000 * np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * hz / rate)).astype(np.int16)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000])
def test_a_recording_of_any_rate_is_the_same_sound(rate, tmp_path):
    file = str(tmp_path / "tone.wav")
    write_wav(file, rate, tone(rate))
    pcm, found = clips.read(file)
    for wanted in RATES:
        again = clips.resampled(pcm, found, wanted)
        assert abs(len(again) - wanted) <= 1
        inner = slice(wanted // 10, -wanted // 10)
        assert np.abs(again[inner].astype(int) - tone(wanted)[:len(again)][inner]).max() < 60


def test_what_is_played_is_kept_like_a_prompt(tmp_path):
    file = str(tmp_path / "chime.wav")
    write_wav(file, 44100, tone(44100))
    recording = SimpleNamespace(file=file, name="chime", text="♫ chime")
    (tmp_path / "kept").mkdir()

    def prompts():
        return Prompts(SimpleNamespace(identity=lambda voice: "x"), Store(tmp_path / "kept", 1 << 24))
    first = prompts()
    assert not first.plays(recording)
    first.play(recording)
    found = first.get(file, "♫ chime", 8000)
    assert first.plays(recording) and len(found.pcm) == 8000 and list(found.ends) == [found.lead + 1] * 2
    assert [len(first.get(file, "♫ chime", rate).pcm) for rate in RATES] == list(RATES)
    assert len(list((tmp_path / "kept").glob("*.prompt"))) == len(RATES)
    second = prompts()
    second.play(recording)
    assert (second.get(file, "♫ chime", 8000).pcm == found.pcm).all() and second.store.used
    write_wav(file, 44100, tone(44100, 0.5))                # another recording under the same name
    third = prompts()
    third.play(recording)
    assert len(third.get(file, "♫ chime", 8000).pcm) == 4000


@pytest.mark.parametrize("old, new, sentence", [
    ('play = "chime"', 'play = "chimes"', ':7: "chimes" is no sound of this flow (did you mean `chime`?)'),
    ('play = "chime"', 'play = "chime.mp3"', ":7: `states.hello.play` must be a WAV file (.wav), not"),
    ('"chime.wav"', '"chime.ogg"', ":5: `sounds.chime` must be a WAV file"),
    ('"chime.wav"', '{}', ':5: the sound "chime" needs a `file`, or a `url`.'),
    ('"chime.wav"', '{ url = "chime.wav" }', ":5: `sounds.chime.url` must begin with http"),
    ('play = "chime"\n', '', ':5: the sound "chime" is never played'),
    ('"1ww{pin}#"', '"1,2"', ':11: `states.menu.send_digits` has ",", which is no key'),
    ('"1ww{pin}#"', '"ww"', ":11: `states.menu.send_digits` has no key in it."),
    ('"1ww{pin}#"', '"' + "1" * 65 + '"', "has 65 keys; 64 are the most"),
    ('"1ww{pin}#"', '12', "must be text, not a whole number"),
    ('"1ww{pin}#"', '"{pim}"', ":11: the slot {pim} names a fact that nothing sets (did you mean `pin`?)"),
])
def test_what_is_wrong_is_said_with_its_line(old, new, sentence):
    assert old in FLOW
    with pytest.raises(ConfigError) as refused:
        Flow.parse(FLOW.replace(old, new), "flow.toml")
    assert sentence in str(refused.value) and str(refused.value).count("flow.toml:") == 1


@pytest.mark.parametrize("content, sentence", [
    (None, "cannot be read: No such file"), (b"RIFF", "is not a WAV file"), (b"", "is not a WAV file")])
def test_flow_check_reads_what_is_to_be_played(content, sentence, tmp_path, capsys):
    (tmp_path / "flow.toml").write_text(FLOW)
    if content is not None:
        (tmp_path / "chime.wav").write_bytes(content)
    assert cli.main(["flow", "check", str(tmp_path / "flow.toml")]) == 2
    said = capsys.readouterr().err
    assert "flow.toml:5: what `play` names cannot be played:" in said and sentence in said
    write_wav(tmp_path / "chime.wav", 8000, tone(8000))
    assert cli.main(["flow", "check", str(tmp_path / "flow.toml")]) == 0


def test_a_recording_of_an_hour_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "LONGEST_SECONDS", 1)
    write_wav(tmp_path / "long.wav", 8000, tone(8000, 1.5))
    with pytest.raises(ConfigError, match="long.wav is 2 s long; 1 s are the most"):
        clips.read(str(tmp_path / "long.wav"))


def test_the_picture_shows_both():
    picture = draw(Flow.parse(FLOW, "flow.toml"))
    assert "♫ chime One two three." in picture and "⌨ 1ww{pin}#" in picture


def test_both_can_be_written_in_python():
    flow = Written(start="dial", sounds={"chime": "chime.wav"})
    flow.state("dial", play="chime", send_digits="1w2", say="Hello.", end=True)
    found = flow.compile()
    assert found.states["dial"].opening({}) == ("♫ chime", "⌨ 1 w 2", "Hello.")
    assert found.sounds["♫ chime"].file.endswith("/tests/chime.wav")
