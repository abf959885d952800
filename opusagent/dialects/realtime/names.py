"""Beta's names: what an event of ours is called by clients that asked for the protocol before its release.

Everything is made in the released form; this turns a whole event into the older one.  The rule: nothing else in the
package knows that there are two.
"""
EVENTS = {      # None: beta has no such event
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": None,
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
}
CONTENT = {"output_audio": "audio", "output_text": "text"}
FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}


def modalities(known: list) -> list:
    return ["text", "audio"] if known == ["audio"] else known


def beta_item(item: dict) -> dict:
    content = [part | {"type": CONTENT.get(part["type"], part["type"])} for part in item.get("content", ())]
    return item | {"content": content} if "content" in item else item


def beta_session(session: dict) -> dict:
    hears, speaks = session["audio"]["input"], session["audio"].get("output")
    heard = {"input_audio_format": FORMATS[hears["format"]["type"]],
             "input_audio_transcription": hears["transcription"],
             "input_audio_noise_reduction": hears["noise_reduction"], "turn_detection": hears["turn_detection"]}
    if speaks is None:                  # it transcribes only
        return {name: session[name] for name in ("id", "object", "include")} | heard
    same = {name: session[name] for name in ("id", "object", "model", "instructions", "tools", "tool_choice", "tracing")
            if name in session}
    return same | heard | {
        "modalities": modalities(session["output_modalities"]), "voice": speaks["voice"], "speed": speaks["speed"],
        "output_audio_format": FORMATS[speaks["format"]["type"]], "temperature": 0.8,
        "max_response_output_tokens": session["max_output_tokens"],
    }


def beta_response(response: dict) -> dict:
    speaks = response["audio"]["output"]
    rest = {name: value for name, value in response.items() if name not in ("audio", "output_modalities")}
    return rest | {"output": [beta_item(item) for item in response["output"]],
                   "modalities": modalities(response["output_modalities"]), "voice": speaks["voice"],
                   "output_audio_format": FORMATS[speaks["format"]["type"]], "temperature": 0.8}


WHOLE = {"item": beta_item, "session": beta_session, "response": beta_response}


def beta(event: dict) -> dict | None:
    """The event as beta has it; None where it has none."""
    name = EVENTS.get(event["type"], event["type"])
    if name is None:
        return None
    if event.get("session", {}).get("type") == "transcription":
        name = f"transcription_{name}"
    found = {field: WHOLE[field](value) if field in WHOLE else value for field, value in event.items()}
    return found | {"type": name}
