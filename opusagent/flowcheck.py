"""`opusagent flow check` and `opusagent flow draw`: a flow's mistakes as sentences, and the flow as a picture.

What the flow package finds needs nothing but the flow; here the engines' knowledge comes in: which words the embedded
recogniser knows and what they sound like, which voices the embedded engine has.  The rule: what `serve` would
refuse, `check` refuses with the same sentence.
"""
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from . import ConfigError, targets
from .config import Config
from .engines.embedded import espeak, voices
from .engines.embedded.flite import VOICES, ascii_text
from .engines.embedded.recogniser import model_path
from .flow import Flow
from .flow.check import unfit
from .flow.drawing import draw
from .flow.sounds import alike, close
from .flow.states import refuse
from .studio import clips, tools


def load(path: str, waits, config: Config) -> Flow:
    """The flow in a file, checked against the engines it is to run with.  Raises ConfigError, a line for each fault."""
    flow = tools.load(path, waits)
    clips.check(flow)
    if config.tts == "embedded":
        flow.check_voices(voices.NAMES)
        refuse(flow.file, unread(flow, config.embedded.voice))
    if config.stt == "embedded" and (spoken := pronunciations(flow)) is not None:
        flow.check_words(spoken)
        refuse(flow.file, alike(flow.states.values(), lambda word: spoken.get(word, ())))
    return flow


def unread(flow, voice: str) -> Iterator[tuple[int, str]]:
    """(line, sentence) of the states in a language that their voice does not read, and texts in such letters."""
    for state in flow.states.values():
        name = state.voice or voice
        for text, _ in state.texts():
            if name in VOICES and any(map(silent, text.ahead({}))):
                yield text.line, f"the voice {name} reads the letters of English only, and has no sound for this text."
        if name in VOICES and state.language and not state.language.lower().startswith("en"):
            yield state.language_line, (f"the voice {name} reads English and no {state.language}; espeak does, where "
                                        "espeak-ng is installed.")
        if name == "espeak" and state.language and not espeak.reads(state.language.lower()):
            yield state.language_line, (f"the voice espeak reads no {state.language[:20]!r}; `espeak-ng --voices` "
                                        "lists what it reads.")


def silent(segment: str) -> bool:
    """Whether flite says nothing of it."""
    return re.search(rb"[A-Za-z0-9]", ascii_text(segment)) is None


def pronunciations(flow) -> dict[str, tuple[tuple[str, ...], ...]] | None:
    """Word of the flow's grammars -> the ways it sounds, as the embedded recogniser knows; None if it is not there."""
    wanted = set().union(*(search.words for search in flow.searches), ("yes",))
    try:
        path = model_path() / "cmudict-en-us.dict"
    except ConfigError:
        return None
    found = defaultdict(tuple)
    with open(path, encoding="utf-8") as everything:
        for line in everything:
            word, _, sounds = line.partition(" ")
            word = word.partition("(")[0]           # a second way to say it is spelled "word(2)"
            if word in wanted:
                found[word] += (tuple(sounds.split()),)
    return dict(found)


def remarks(flow, config: Config) -> list[str]:
    """What is no fault, and worth a look."""
    spoken = pronunciations(flow) if config.stt == "embedded" else None
    sometimes = (fault for fault, _ in unfit(flow))
    found = {*unallowed(flow, config), *sometimes, *(close(flow, lambda word: spoken.get(word, ())) if spoken else ())}
    return [f"{getattr(line, 'file', flow.file)}:{line}: {sentence}" for line, sentence in sorted(found)]


def unallowed(flow, config: Config) -> Iterator[tuple[int, str]]:
    """(line, sentence) of the states that put a call through to whom nobody may be put through to."""
    for state in flow.states.values():
        target = targets.spelled(state.transfer)
        if state.transfer and not target:
            yield state.line, (f"state \"{state.name}\" can put nobody through to \"{state.transfer}\": a number such "
                               "as +4930123456, or a SIP address, is needed.")
        elif state.transfer and not targets.allowed(target, config.targets):
            yield state.line, f"state \"{state.name}\" can put nobody through until {target} is on `targets`."


def check_command(args, config: Config, waits) -> int:
    flow = load(args.file, waits, config)
    for remark in remarks(flow, config):
        print(f"{remark} (a remark)")
    ends = sum(state.end for state in flow.states.values())
    print(f"{args.file}: no mistakes; {len(flow.states)} states ({ends} of them end the call), "
          f"{len(flow.tools)} tools, {len(flow.prompts())} texts to render ahead.")
    return 0


def draw_command(args, config: Config, waits) -> int:
    picture = draw(tools.load(args.file, waits))
    if args.out:
        try:
            Path(args.out).write_text(picture, "utf-8")
        except OSError as error:
            raise ConfigError(f"{args.out}: the picture cannot be written: {error.strerror}.") from None
        print(args.out)
    else:
        sys.stdout.write(picture)
    return 0


COMMANDS = {"check": check_command, "draw": draw_command}
