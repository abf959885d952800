"""What a session of the Realtime protocol may be told: the shapes of session and response settings, and their merging.

SESSION and REQUEST are the tables of what may stand where; check() holds a value against one of them.  A name with
"!" is required; null stands for nothing given, where it does not clear something.  Beta's flat names are read into the
same settings, and written back by names.py.
The rule: settings that are refused change nothing, and what is refused is named by its path.
"""
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import orjson

PCM, PCMU, PCMA = "audio/pcm", "audio/pcmu", "audio/pcma"
TRANSCRIPTION = "transcription"                 # the type of a session that answers nothing
PCM_RATES = (24000, 8000, 16000, 48000)         # Hz; the API itself has the first only
LONGEST_TEXT = 100_000                          # characters of instructions, or of an item
LARGEST = 262_144                               # bytes of JSON of a session's tools
LONGEST_NAME = 512                              # characters of an event_id that is given back


class Fault(NamedTuple):
    """What an `error` event says."""

    code: str
    message: str
    param: str | None = None


def event_id(message: dict) -> str:
    """The client's name for an event; "" if it has none."""
    name = message.get("event_id")
    return name if isinstance(name, str) and len(name) <= LONGEST_NAME else ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A leaf of a shape; null is always taken."""

    what: str                                   # for the sentence: "must be ..."
    accepts: Callable[[object], bool]


@dataclass(frozen=True, slots=True)
class Each:
    """A list of those."""

    shape: object
    most: int


@dataclass(frozen=True, slots=True)
class Either:
    """A string of a Kind, or else an object."""

    text: Kind
    fields: object


def number(low: float, high: float) -> Kind:
    return Kind(f"a number from {low:g} to {high:g}", lambda v: type(v) in (int, float) and low <= v <= high)


def whole(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def word(*known: str) -> Kind:
    return Kind("one of " + ", ".join(map(repr, known)), lambda v: isinstance(v, str) and v in known)


def small(value) -> bool:
    try:
        return len(orjson.dumps(value)) <= LARGEST
    except orjson.JSONEncodeError:
        return False


TEXT = Kind(f"a text of at most {LONGEST_TEXT} characters", lambda v: isinstance(v, str) and len(v) <= LONGEST_TEXT)
NAME = Kind("a name of 1 to 128 characters", lambda v: isinstance(v, str) and 0 < len(v) <= 128)
FLAG = Kind("true or false", lambda v: type(v) is bool)
ANYTHING = Kind(f"at most {LARGEST} bytes of JSON", small)
TOKENS = Kind('a whole number from 1 to 4096, or "inf"', lambda v: v == "inf" or type(v) is int and 1 <= v <= 4096)
METADATA = Kind("an object of at most 16 texts, names of 64 characters and values of 512",
                lambda v: isinstance(v, dict) and len(v) <= 16 and all(
                    len(name) <= 64 and isinstance(text, str) and len(text) <= 512 for name, text in v.items()))
MODALITIES = Kind("['audio'] or ['text']", lambda v: v in (["audio"], ["text"]))
BETA_MODALITIES = Kind("['text'] or ['text', 'audio']",
                       lambda v: v in (["text"], ["audio"], ["text", "audio"], ["audio", "text"]))

FORMAT = {"type!": word(PCM, PCMU, PCMA), "rate": Kind(f"one of {', '.join(map(str, PCM_RATES))}",
                                                       lambda v: type(v) is int and v in PCM_RATES)}
TRANSCRIBER = {"model": NAME, "language": NAME, "prompt": TEXT, "delay": NAME,
               "keywords": Each(NAME, 1000), "languages": Each(NAME, 100)}
NOISE_REDUCTION = {"type": word("near_field", "far_field"), "strength": number(0, 1)}
TURN_DETECTION = {
    "type": word("server_vad", "semantic_vad"), "threshold": number(0, 1),
    "prefix_padding_ms": whole(0, 10_000), "silence_duration_ms": whole(0, 30_000),
    "idle_timeout_ms": whole(1000, 600_000), "eagerness": word("low", "medium", "high", "auto"),
    "create_response": FLAG, "interrupt_response": FLAG}
VOICE = Either(NAME, {"id!": NAME})
TOOLS = Each({"type!": word("function", "mcp"), "name": NAME, "description": TEXT, "parameters": ANYTHING,
              "strict": FLAG, "server_label": NAME, "server_url": TEXT, "connector_id": NAME,
              "authorization": TEXT, "headers": ANYTHING, "allowed_tools": ANYTHING,
              "require_approval": ANYTHING, "server_description": TEXT, "defer_loading": FLAG}, 128)
TOOL_CHOICE = Either(word("auto", "none", "required"), {"type!": word("function"), "name!": NAME})
LOGPROBS = "item.input_audio_transcription.logprobs"
TRACING = Either(word("auto"), {"workflow_name": NAME, "group_id": NAME, "metadata": ANYTHING})
TRUNCATION = Either(word("auto", "disabled"), {"type!": word("retention_ratio"), "retention_ratio!": number(0, 1),
                                               "token_limits": {"post_instructions": whole(0, 1_000_000_000)}})
PROMPT = {"id!": NAME, "version": NAME, "variables": ANYTHING}
SHARED = {"instructions": TEXT, "tools": TOOLS, "tool_choice": TOOL_CHOICE, "prompt": PROMPT,
          "reasoning": ANYTHING, "parallel_tool_calls": FLAG, "output_modalities": MODALITIES}
BETA_AUDIO = word("pcm16", "g711_ulaw", "g711_alaw")

SESSION = SHARED | {
    "type": word("realtime", TRANSCRIPTION), "object": NAME, "id": NAME, "model": NAME,
    "expires_at": ANYTHING, "max_output_tokens": TOKENS, "tracing": TRACING, "truncation": TRUNCATION,
    "include": Each(word(LOGPROBS), 16),
    "audio": {"input": {"format": FORMAT, "transcription": TRANSCRIBER, "noise_reduction": NOISE_REDUCTION,
                        "turn_detection": TURN_DETECTION},
              "output": {"format": FORMAT, "voice": VOICE, "speed": number(0.25, 1.5)}},
    # beta's flat names
    "modalities": BETA_MODALITIES, "voice": VOICE, "speed": number(0.25, 1.5), "temperature": number(0, 2),
    "input_audio_format": BETA_AUDIO, "output_audio_format": BETA_AUDIO, "input_audio_transcription": TRANSCRIBER,
    "input_audio_noise_reduction": NOISE_REDUCTION, "turn_detection": TURN_DETECTION,
    "max_response_output_tokens": TOKENS, "client_secret": ANYTHING,
}
REQUEST = SHARED | {
    "conversation": word("auto", "none"), "input": Each(ANYTHING, 256), "metadata": METADATA,
    "max_output_tokens": TOKENS, "audio": {"output": {"format": FORMAT, "voice": VOICE}},
    "modalities": BETA_MODALITIES, "voice": VOICE, "output_audio_format": BETA_AUDIO,
    "temperature": number(0, 2), "max_response_output_tokens": TOKENS,
}
TYPES = {PCM: {"type": PCM, "rate": 24000}, PCMU: {"type": PCMU}, PCMA: {"type": PCMA}}
BETA_FORMATS = {"pcm16": TYPES[PCM], "g711_ulaw": TYPES[PCMU], "g711_alaw": TYPES[PCMA]}
DETECTORS = {
    "server_vad": {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500,
                   "create_response": True, "interrupt_response": True, "idle_timeout_ms": None},
    "semantic_vad": {"type": "semantic_vad", "eagerness": "auto", "create_response": True, "interrupt_response": True},
}
DEFAULTS = {
    "type": "realtime", "object": "realtime.session", "output_modalities": ["audio"], "instructions": "", "tools": [],
    "tool_choice": "auto", "max_output_tokens": "inf", "tracing": None, "prompt": None, "truncation": "auto",
    "include": None,
    "audio": {"input": {"format": TYPES[PCM], "transcription": None, "noise_reduction": None,
                        "turn_detection": DETECTORS["server_vad"]},
              "output": {"format": TYPES[PCM], "voice": "alloy", "speed": 1.0}},
}
FLAT = {        # beta's name -> where it is kept
    "voice": ("audio", "output", "voice"), "speed": ("audio", "output", "speed"),
    "input_audio_format": ("audio", "input", "format"), "output_audio_format": ("audio", "output", "format"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": ("audio", "input", "turn_detection"), "modalities": ("output_modalities",),
    "max_response_output_tokens": ("max_output_tokens",),
}
CLEARED = ("turn_detection", "transcription", "noise_reduction", "input_audio_transcription", "prompt", "tracing",
           "input_audio_noise_reduction", "include", "metadata")                # by null
KEPT = ("type", "object", "id", "model", "expires_at", "client_secret", "temperature")      # never changed by a client


def check(value, shape, path: str) -> Fault | None:
    """What is wrong with a value, if anything is."""
    if isinstance(shape, Either):
        return check(value, shape.text if isinstance(value, str) else shape.fields, path)
    if isinstance(shape, Each):
        if not isinstance(value, list) or len(value) > shape.most or not small(value):
            return Fault("invalid_value", f"{path} must be a list of at most {shape.most}, {LARGEST} bytes in all.",
                         path)
        return next((fault for i, one in enumerate(value) if (fault := check(one, shape.shape, f"{path}[{i}]"))), None)
    if isinstance(shape, Kind):
        return None if shape.accepts(value) else Fault("invalid_value", f"{path} must be {shape.what}.", path)
    return _check_object(value, shape, path)


def _check_object(value, shape: dict, path: str) -> Fault | None:
    if not isinstance(value, dict):
        return Fault("invalid_type", f"{path} must be an object.", path)
    for name in shape:
        if name.endswith("!") and value.get(name[:-1]) is None:
            return Fault("missing_required_parameter", f"{path}.{name[:-1]} is missing.", f"{path}.{name[:-1]}")
    for name, inner in value.items():
        known = shape.get(name, shape.get(name + "!"))
        if known is None:
            return Fault("unknown_parameter", f"There is no parameter {path}.{name[:64]}.", f"{path}.{name[:64]}")
        if inner is not None and (fault := check(inner, known, f"{path}.{name}")):
            return fault
    return None


def check_tools(tools: list, path: str) -> Fault | None:
    """A function has a name; servers of tools (MCP) are not asked here."""
    for i, tool in enumerate(tools):
        if tool["type"] != "function":
            return Fault("unsupported_value", "Only tools of type function are known here.", f"{path}[{i}].type")
        if "name" not in tool:
            return Fault("missing_required_parameter", f"{path}[{i}].name is missing.", f"{path}[{i}].name")
    return None


def check_choice(settings: dict, path: str) -> Fault | None:
    """A function that must be called is one of those there are."""
    choice = settings["tool_choice"]
    if isinstance(choice, dict) and all(choice["name"] != tool["name"] for tool in settings["tools"]):
        return Fault("invalid_value", "There is no tool of this name.", f"{path}.tool_choice.name")
    return None


def updated(session: dict, update) -> dict | Fault:
    """The session after a client's update, or what is wrong with that."""
    fault = check(update, SESSION, "session") or check_tools(update.get("tools") or [], "session.tools")
    if fault:
        return fault
    found = merged(session, update) | {"type": update.get("type") or session["type"]}
    return check_choice(found, "session") or found


def merged(settings: dict, update: dict) -> dict:
    """The settings after a checked update; beta's flat names find their places.  Both stay as they are."""
    found = deepcopy(settings)
    for name, value in update.items():
        if value is None and name not in CLEARED:
            continue
        if name in FLAT:
            *way, last = FLAT[name]
            place = found
            for step in way:
                place = place.setdefault(step, {})
            place[last] = _placed(last, value, place.get(last))
        elif name == "audio":
            audio = found.setdefault("audio", {})
            for side, fields in value.items():
                place = audio.setdefault(side, {})
                for last, inner in (fields or {}).items():
                    if inner is not None or last in CLEARED:
                        place[last] = _placed(last, inner, place.get(last))
        elif name not in KEPT:
            found[name] = _placed(name, value, None)
    return found


def is_audible(session: dict, request: dict) -> bool:
    """Whether a response that is asked for would be spoken; otherwise it is text."""
    wanted = merged({}, {name: request[name] for name in ("output_modalities", "modalities") if name in request})
    return wanted.get("output_modalities", session["output_modalities"]) == ["audio"]


def shown(session: dict) -> dict:
    """As the client sees it: one that transcribes only speaks no words of its own."""
    if session["type"] != TRANSCRIPTION:
        return session
    return {name: session[name] for name in ("type", "id", "include")} | {
        "object": "realtime.transcription_session", "audio": {"input": session["audio"]["input"]}}


def _placed(name: str, value, before):
    """A value as it is kept: whole, whatever was left out of it."""
    if name == "format":
        return dict(BETA_FORMATS[value]) if isinstance(value, str) else TYPES[value["type"]] | (
            {"rate": value["rate"]} if value["type"] == PCM and "rate" in value else {})
    if name in ("transcription", "noise_reduction") and value is not None:
        return {**(before or {}), **{key: inner for key, inner in value.items() if inner is not None}}
    if name == "turn_detection" and value is not None:
        kind = value.get("type") or (before or {}).get("type", "server_vad")
        start = before if before and before["type"] == kind else DETECTORS[kind]
        given = {key: inner for key, inner in value.items() if inner is not None or key == "idle_timeout_ms"}
        return {**start, **{key: inner for key, inner in given.items() if key in DETECTORS[kind]}, "type": kind}
    if name == "output_modalities":
        return ["audio"] if "audio" in value else ["text"]
    return value
