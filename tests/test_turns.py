"""Turn taking, as conversations: what the caller does, what the agent does, and the events in the window they fall in.

One character is a window of 32 ms.  The caller: # speech, ! surely, + doubtful, . silence.  The owner, before a window:
S the agent starts, A it does and only answers may interrupt, R it recites, D it is done, c f i the words so far are
complete, free, incomplete, b n they are an interruption, are none.
"""
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent.flow import COMPLETE, FREE, INCOMPLETE, NO_MATCH, Waits
from opusagent.recording import read_wav
from opusagent.speech.audio import Vad, VadBatch, first_voiced, last_voiced
from opusagent.speech.turns import (BARGE_IN, CONDITIONS, DUCK, END_OF_TURN, LISTENING, NO_INPUT, PAUSE, RECITING,
                                    RAISE, REPLYING, RESTORE, RESUME, SPEAKING, TRANSITIONS, UTTERANCE_START, WEIGH,
                                    WEIGHING, Settings, TurnTaking, drawn)

RATE, WINDOW = 8000, 256
SCORES = {"!": 0.99, "#": 0.8, "+": 0.4, ".": 0.0}
LETTERS = {UTTERANCE_START: "U", PAUSE: "P", RESUME: "R", END_OF_TURN: "E", BARGE_IN: "B", DUCK: "D", RESTORE: "O",
           NO_INPUT: "N", WEIGH: "W", RAISE: "L"}
OWNER = {
    "S": lambda turns: turns.agent_starts(), "R": lambda turns: turns.agent_starts(interruptible=False),
    "A": lambda turns: turns.agent_starts(answers_only=True),
    "b": lambda turns: turns.weigh(True), "n": lambda turns: turns.weigh(False), "u": lambda turns: turns.weigh(None),
    "m": lambda turns: turns.weigh(False, murmured=True),
    "D": lambda turns: turns.agent_done(), " ": lambda turns: (),
    "c": lambda turns: turns.judge(COMPLETE), "f": lambda turns: turns.judge(FREE),
    "i": lambda turns: turns.judge(INCOMPLETE),
}
WAITS = Waits(complete=160, free=320, incomplete=640, no_input=1280)       # 5, 10, 20 and 40 windows
SETTINGS = Settings(start_ms=64, pause_ms=96, barge_in_ms=192, insist_ms=320)      # 2, 3, 6 and 10 windows


def converse(caller, owner="", waits=WAITS, settings=SETTINGS):
    """The events, each under its window; and the conversation's end."""
    turns = TurnTaking(RATE, waits, settings)
    line = ""
    for i, sound in enumerate(caller):
        events = OWNER[owner[i:i + 1] or " "](turns) + turns.push(SCORES[sound], WINDOW)
        assert len(events) <= 1, "a script that hides an event"
        line += LETTERS[events[0].kind] if events else " "
    return line.rstrip(), turns


def events(caller, owner="", **settings):
    return converse(caller, owner, **settings)[0]


# ---- endpointing ----

@pytest.mark.parametrize("caller, owner, expected", [
    ("..####...........",
     "      c          ",
     "   U    P E      "),
    ("..####...........",
     "          c      ",           # known late: the silence so far is long enough
     "   U    P E      "),
    ("..####................",
     "      f               ",
     "   U    P      E      "),
    ("..####................",
     "                      ",      # not judged: as free speech
     "   U    P      E      "),
    ("..####..........................",
     "         i                      ",
     "   U    P                E      "),
    ("..####..##........",            # shorter than a pause: one stretch
     "      c           ",
     "   U        P E   "),
    ("..##......#++.............",
     "     i        c           ",    # doubtful goes on as what it was
     "   U  P    R   P E        "),
    ("..####....####................",
     "         i          c         ",    # a pause, and the caller goes on
     "   U    P  R    P   E         "),
])
def test_the_words_decide_how_much_silence_ends_a_turn(caller, owner, expected):
    assert events(caller, owner) == expected.rstrip()


def test_what_was_judged_before_the_caller_went_on_counts_no_more():
    assert events("..####....####................",
                  "      c i                     ") == \
                  "   U    P  R    P      E"


def test_a_window_of_noise_is_no_speech_and_does_not_lengthen_a_silence():
    assert events("...#.....+++....#.....") == ""
    assert events("..####...#............",
                  "      c               ") == \
                  "   U    P E"
    assert events("..####....#...........",         # though a turn does not end in the midst of a sound
                  "      c               ") == \
                  "   U    P  E"


def test_a_detector_may_be_trusted_early():
    assert events("...++++.....", settings=Settings(on=0.3, start_ms=64, pause_ms=96)) == "    U    P"


def test_a_single_window_that_is_surely_speech_is_an_answer():
    assert events("...!.........",
                  "     c       ") == \
                  "   U  P E"


def test_an_answer_that_calls_for_no_silence_ends_the_turn_while_the_caller_speaks():
    eager = Waits(complete=0)
    assert events("..######........",
                  "      c         ", waits=eager) == \
                  "   U  E"


def test_speech_that_runs_on_past_the_end_of_its_turn_interrupts_only_when_it_is_long():
    eager, settings = Waits(complete=0), Settings(start_ms=64, barge_in_ms=192, run_on_ms=320)
    run_on, turns = converse("..############......",
                             "     c S            ", waits=eager, settings=settings)
    assert run_on == "   U E" and turns.state == SPEAKING
    run_on, turns = converse("..####################",
                             "     c S              ", waits=eager, settings=settings)
    assert run_on == "   U E          D   W" and turns.state == WEIGHING


def test_an_utterance_does_not_last_for_ever():
    line, turns = converse(100 * "#", settings=Settings(max_utterance_ms=960, run_on_ms=320))
    assert line[:30] == " U" + 27 * " " + "E" and turns.began > 0


# ---- silence ----

def test_a_silent_caller_is_noticed_once_and_again_after_the_agent_has_spoken():
    assert events(50 * "." + 60 * ".",
                  50 * " " + "S    D") == \
                  39 * " " + "N" + 54 * " " + "N"


def test_the_clock_of_a_silent_caller_starts_when_the_agent_is_done():
    line = events(30 * "." + 50 * ".",
                  "S" + 29 * " " + "D")
    assert line.index("N") == 30 + 39


# ---- barge-in ----

@pytest.mark.parametrize("caller, owner, expected", [
    ("....##############....",        # nothing is known of the words: it is long
     "S                     ",
     "     D   W   B      P "),
    ("....########..........",        # what has not been understood by the end was nothing
     "S                     ",
     "     D   W    O       "),
    ("....########..........",        # the words are an interruption
     "S         b           ",
     "     D   WB   P      E"),
    ("....##############....",        # the words are none, however long they are
     "S         n           ",
     "     D   W          O "),
    ("....##############....",        # ... and then they are one after all
     "S         n   b       ",
     "     D   W    B     P "),
    ("....##############....",        # a backchannel, and not only the beginning of one: the level is back at once
     "S         m           ",
     "     D   WL         O "),
    ("....##############....",        # ... which comes before an interruption
     "S         m   b       ",
     "     D   WL   B     P "),
    ("....##############....",        # ... or is taken back, and it is long
     "S         m   u       ",
     "     D   WL   B     P "),
    ("....##############....",        # only an answer interrupts
     "A         u           ",
     "     D   W          O "),
    ("....##############....",
     "A           b         ",
     "     D   W  B       P "),
    ("....###...........",            # too short: the agent goes on
     "S                 ",
     "     D   O        "),
    ("....###.......###.",
     "S                 ",
     "     D   O     D  "),
    ("....##.##.##......",            # hardly interrupted: speech all the same
     "S                 ",
     "     D     W  O   "),
    ("....###...........",            # the agent comes to its end in the midst: now it is an answer
     "S     D           ",
     "     DU  P      E "),
    ("....#.............",            # nothing
     "S     D           ",
     "                  "),
])
def test_a_sound_ducks_the_agent_and_what_is_said_stops_it(caller, owner, expected):
    assert events(caller, owner) == expected.rstrip()


def test_before_the_agent_can_be_heard_only_long_speech_takes_the_floor_back():
    said = "..####............"
    assert events(said[:11] + "###......",
                  "      c") == "   U    P E"
    assert events(said[:11] + "#########.",
                  "      c") == "   U    P E     B"


def test_what_is_said_into_a_recital_is_answered_after_it():
    line, turns = converse("....####................",
                           "R      c            D   ")
    assert line == "     U    P         E"
    assert turns.state == REPLYING


def test_a_recital_is_not_interrupted_and_its_listener_may_go_on():
    line, turns = converse("....####" + 12 * "#" + "....",
                           "R               D")
    assert line == "     U" + 16 * " " + "P" and turns.state != SPEAKING


def test_keys_are_answered_while_the_caller_speaks():
    line, turns = converse("..####....",
                           "     S    ")
    assert line == "   U" and turns.state == SPEAKING


# ---- positions ----

def test_positions_are_those_of_the_sound():
    turns = TurnTaking(RATE, WAITS, SETTINGS)
    found = []
    for sound, quiet in [(".", 256), ("#", 0), ("#", 0), ("#", 64), ("#", 256)] + 4 * [(".", 256)]:
        found += turns.push(SCORES[sound], WINDOW, quiet)
    found += turns.judge(COMPLETE)
    assert [(event.kind, event.position) for event in found] == [
        (UTTERANCE_START, 256), (PAUSE, 4 * 256 - 64), (END_OF_TURN, 4 * 256 - 64)]


def test_a_detector_that_says_speech_is_believed_in_the_end():
    """However silent the sound: speech ended at most lag_ms before the last window that was scored as speech."""
    turns = TurnTaking(RATE, WAITS, SETTINGS)
    for _ in range(2):
        turns.push(0.9, WINDOW)
    for _ in range(20):
        assert turns.push(0.9, WINDOW, quiet=WINDOW) == ()
    assert turns.position - turns.ended == SETTINGS.lag_ms * RATE // 1000
    assert [event.kind for event in turns.push(0.0, WINDOW, quiet=WINDOW)] == [PAUSE]


def test_positions_of_an_interruption():
    turns = TurnTaking(RATE, WAITS, SETTINGS)
    turns.agent_starts()
    found = [event for sound in "....##########" for event in turns.push(SCORES[sound], WINDOW)]
    assert [(event.kind, event.position) for event in found] == [
        (DUCK, 4 * WINDOW), (WEIGH, 4 * WINDOW), (BARGE_IN, 4 * WINDOW)]


def test_a_silent_caller_should_have_spoken_by():
    turns = TurnTaking(RATE, WAITS, SETTINGS)
    found = [event for _ in range(50) for event in turns.push(0.0, WINDOW)]
    assert [(event.kind, event.position) for event in found] == [(NO_INPUT, 1280 * 8)]


# ---- the table ----

def test_the_table_is_whole():
    reached = {LISTENING}
    for rows in TRANSITIONS.values():
        for condition, (state, event) in rows.items():
            assert condition in CONDITIONS and state in TRANSITIONS and (event is None or event in LETTERS)
            reached.add(state)
    assert reached == set(TRANSITIONS)
    used = {condition for rows in TRANSITIONS.values() for condition in rows}
    assert used == set(CONDITIONS)


def test_the_table_prints():
    text = drawn()
    assert "HEARING     SHORT_SILENCE    -> PAUSED      PAUSE" in text.splitlines()
    assert text.count("->") == sum(map(len, TRANSITIONS.values()))


STEPS = st.tuples(st.sampled_from([0.0, 0.4, 0.6, 0.9]), st.integers(0, 4).map(lambda n: n * 64),
                  st.sampled_from("          SRDcfi"))


@given(st.lists(STEPS, max_size=150), st.sampled_from([0, 96, 160, 400]))
def test_any_conversation_keeps_the_rules(steps, complete):
    waits = Waits(complete=complete, free=320, incomplete=640, no_input=1280)
    first, second = TurnTaking(RATE, waits, SETTINGS), TurnTaking(RATE, waits, SETTINGS)
    hearing = False
    for score, quiet, call in steps:
        found = OWNER[call](first)
        hearing = hearing and first.state not in (SPEAKING, RECITING)       # keys were answered instead
        found += first.push(score, WINDOW, quiet)
        assert found == OWNER[call](second) + second.push(score, WINDOW, quiet)
        for event in found:
            assert 0 <= event.position <= first.position
            if event.kind in (UTTERANCE_START, BARGE_IN):
                assert not hearing
                hearing = True
            if event.kind in (PAUSE, RESUME, END_OF_TURN):
                assert hearing
            if event.kind == END_OF_TURN:
                hearing = False
                assert not first.reciting
        assert first.state in TRANSITIONS and first.ended <= first.position


@given(st.lists(STEPS, max_size=150), st.sampled_from([0, 96, 160, 400]), st.sampled_from([0.2, 0.5, 0.7]))
def test_silence_that_means_nothing_need_not_be_told(steps, complete, on):
    waits = Waits(complete=complete, free=320, incomplete=640, no_input=1280)
    told, calm = TurnTaking(RATE, waits, SETTINGS), TurnTaking(RATE, waits, SETTINGS)
    for turns in (told, calm):
        turns.hear_from(on)
    for score, quiet, call in steps:
        assert OWNER[call](told) == OWNER[call](calm)
        found = told.push(score, WINDOW, quiet)
        assert found == (() if calm.calm.covers(score, WINDOW) else calm.push(score, WINDOW, quiet))
        assert (told.state, told.position, told.silence) == (calm.state, calm.position, calm.silence)


def test_a_silent_line_is_told_of_only_when_it_means_something():
    turns = TurnTaking(RATE, Waits(complete=160, free=320, incomplete=640, no_input=1280), SETTINGS)
    turns.push(0.0, WINDOW)
    untold = sum(turns.calm.covers(0.0, WINDOW) for _ in range(50))
    assert untold == 38 and turns.state == LISTENING                # of the 40 windows of no_input
    assert [event.kind for event in turns.push(0.0, WINDOW)] == [NO_INPUT]
    assert all(turns.calm.covers(0.3, WINDOW) for _ in range(10_000))       # the agent is to speak, and nobody else
    assert not turns.calm.covers(0.4, WINDOW)


# ---- recordings of people, at 8 kHz mu-law ----

RECORDINGS = Path(__file__).parents[2] / "shared" / "audio" / "8k"
HALTING = ("jfk", "vosk_test")          # they pause for longer than a second

recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recordings are not in {RECORDINGS}")
silero = pytest.mark.skipif(VadBatch().model_name != "silero", reason="the extra `local` is not installed")


def quiet(ms):
    """A quiet line: a bit of noise."""
    return np.random.default_rng(ms).integers(-1, 2, ms * 8).astype(np.int16)


def windows(pcm, batch, step=160):
    """(score, quiet) of every window, and when it was known: audio comes in steps of 20 ms."""
    found, now = [], 0
    vad = Vad(RATE, batch, lambda score, position, samples, silent: found.append((score, silent, now)))
    for now in range(step, len(pcm) + step, step):
        vad.push(pcm[now - step:now])
        batch.run()
    return found


def answer(pcm, batch, waits=Waits(complete=150, incomplete=700)):
    """The events of a recording whose words are complete at its last pause: (kind, position, when it was known)."""
    heard = windows(np.concatenate((quiet(1000), pcm, quiet(2500))), batch)

    def taken(last):
        turns, found = TurnTaking(RATE, waits), []
        for score, silent, now in heard:
            for event in turns.push(score, WINDOW, silent):
                found.append((event.kind, event.position, now))
                if event.kind == PAUSE:
                    judgement = COMPLETE if event.position >= last else INCOMPLETE
                    found += [(each.kind, each.position, now) for each in turns.judge(judgement)]
        return found
    assert any(kind == PAUSE for kind, _, _ in taken(0)), "nothing was heard"
    pauses = [position for kind, position, _ in taken(1 << 60) if kind == PAUSE]
    return taken(pauses[-1])


@recordings
@silero
def test_people_are_answered_after_a_sixth_of_a_second_and_not_cut_short():
    delays, onsets, batch = [], [], VadBatch()
    for path in sorted(RECORDINGS.glob("*.wav")):
        pcm, _ = read_wav(path)
        found = answer(pcm, batch)
        kinds = [kind for kind, _, _ in found]
        if path.name.startswith(HALTING):
            continue
        assert kinds[0] == UTTERANCE_START and kinds.count(END_OF_TURN) == 1 and kinds[-1] == END_OF_TURN, path.name
        delays.append((found[-1][2] - RATE - last_voiced(pcm, RATE)) / 8)
        onsets.append((found[0][1] - RATE - first_voiced(pcm, RATE)) / 8)
    assert len(delays) > 40
    assert 150 <= np.median(delays) <= 180 and np.percentile(delays, 90) <= 210
    assert np.median(onsets) <= 32 and max(onsets) <= 400           # the pre-roll


@recordings
@silero
def test_a_hesitating_caller_is_heard_out():
    """Five digits with pauses of up to 900 ms: an unfinished answer waits for them, a finished one does not."""
    batch, rng = VadBatch(), np.random.default_rng(1)
    waits = Waits(complete=150, incomplete=1200)
    for speaker in ("george", "jackson", "lucas", "nicolas"):
        parts = [quiet(500)]
        for digit in rng.integers(0, 10, 5):
            pcm, _ = read_wav(RECORDINGS / f"fsdd_{digit}_{speaker}.ulaw.wav")
            parts += [pcm[first_voiced(pcm, RATE):last_voiced(pcm, RATE)], quiet(int(rng.integers(100, 900)))]
        found = answer(np.concatenate(parts[:-1]), batch, waits)
        ends = [position for kind, position, _ in found if kind == END_OF_TURN]
        end = RATE + sum(map(len, parts[:-1]))
        assert len(ends) == 1 and abs(ends[0] - end) < 0.1 * RATE


@recordings
@silero
def test_turns_do_not_depend_on_how_the_audio_was_cut():
    pcm, _ = read_wav(RECORDINGS / "dhd_2934z.ulaw.wav")
    pcm, batch, rng = np.concatenate((quiet(300), pcm, quiet(2000))), VadBatch(), np.random.default_rng(2)
    outcomes = []
    for cut in (lambda: 160, lambda: 1, lambda: 5000, lambda: int(rng.integers(1, 700))):
        turns, found, at = TurnTaking(RATE, WAITS), [], 0
        vad = Vad(RATE, batch, lambda score, position, samples, silent:
                  found.extend((event, position) for event in turns.push(score, samples, silent)))
        while at < len(pcm):
            n = cut()
            vad.push(pcm[at:at + n])
            batch.run()
            at += n
        outcomes.append(found)
    assert outcomes[0] and all(outcome == outcomes[0] for outcome in outcomes)


def test_no_match_waits_as_free_speech_does():
    turns = TurnTaking(RATE, WAITS, SETTINGS)
    turns.judge(NO_MATCH)
    free = turns.wait
    turns.judge(FREE)
    assert turns.wait == free
