"""Engines: what recognises, answers and speaks.  A file or a package each, chosen by name from TABLE.

What several of them need is in `processes` (engines that run in processes of their own), in `remote` (endpoints that
are asked over the network), and beside this file: how `speech` goes out, in `segments`, at the listener's `level` and
`rates`; `spoken` pieces of a model that speaks itself; a `piper_process`; and the `turn` model, which goes by
`prosody`.

A stage of an engine is a class made from the configuration; it lives in the worker and never blocks its loop.
    all     async open(...), async close(), measure(metrics); may have fault(): a sentence while it cannot serve, else
            ""; may have join(stt), before open(): what it shares with the recogniser; `counts`: it tells usage.current
            itself what it was asked for
    stt     open(arena, searches): the searches of all flows, by number; a search has the words that are expected
            listen(call, position)      an utterance begins there in the slot: call.utterance, for call.search, which
                                    is likely to be one of call.terms
            audio(call)                 more of it lies in the slot
            ask(call)                   its best text so far is wanted now
            finish(call, position)      it ends there
            cancel(call), forget(call)  nobody wants it any more; the call is over
            back: call.on_partial(utterance, text), call.on_final(utterance, text, confidence),
            call.on_failure(utterance, sentence)
    tts     open(arena)
            identity(voice)             all but voice, text and rate that the speech of this voice depends on
            speak(call, epoch, k, text, voice)  into segment buffer k of call.slot
            resume(call, epoch, k, text, voice, start)  another process has written the buffer from counter `start` on
                                        (None: nothing yet), and died: what is missing
            played(call, k)             some of that buffer was played: there is room again
            cancel(call)                nothing of the call's speech is wanted any more
            render(texts, voice, rate)  asynchronously yields (text, pcm) of texts that are spoken ahead, in any order,
                                        or (text, pcm, ends) with the samples after which each word ends
            back: call.on_speech(epoch, k, start, written, done), call.on_speech_failed(epoch, k, sentence), and from a
            voice that knows its words call.on_word_ends(epoch, k, ends), before it has spoken them
            a voice is a flow.manner's name: it may say a rate and a language, too
    llm     open()
            reply(messages, tools=(), choice="auto")    asynchronously yields pieces of text, and last a
                                        flow.FunctionCall where the model calls one of the tools (in OpenAI's form),
                                        as it must where the choice is "required"; EngineError
            may have of(call): the model as one call has it, with reply() as above and forget(); its pieces may be
                                        spoken.Spoken, too, each before the text that it says
The rule: what a stage says carries the number of the utterance or the epoch it was asked for, and whoever hears it
drops what is late.
"""
from importlib import import_module

from .. import ConfigError
from ..config import Config

# name -> stage -> the class, as MODULE:CLASS of this package; imported when it is chosen
TABLE: dict[str, dict[str, str]] = {
    "embedded": {"stt": "embedded.stages:Stt", "tts": "embedded.stages:Tts"},
    "openai": {"stt": "openai.stt:Stt", "llm": "openai.llm:Llm", "tts": "openai.tts:Tts"},
    "realtime": {"stt": "realtime.stages:Stt", "llm": "realtime.stages:Llm", "tts": "realtime.stages:Tts"},
    "piper": {"tts": "piper:Tts"},
    "sherpa": {"stt": "sherpa:Stt"},
    "scripted": {"stt": "scripted:Stt", "llm": "scripted:Llm", "tts": "scripted:Tts"},
}


def make(stage: str, config: Config):
    """The stage ("stt", "llm" or "tts") that the configuration names.  ConfigError where there is no such engine."""
    name = getattr(config, stage)
    place = TABLE.get(name, {}).get(stage)
    if place is None:
        names = ", ".join(engine for engine, stages in TABLE.items() if stage in stages)
        raise ConfigError(f"{config.origin(stage)}: there is no {stage} engine {name!r}; there are {names}.")
    module, _, kind = place.partition(":")
    return getattr(import_module("." + module, __name__), kind)(config)
