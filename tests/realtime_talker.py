"""A Realtime endpoint that converses: it writes down what the test says was said, and answers what the test says.

It refuses what the real one would: an item that is not there, a truncation beyond the audio, a second answer at once,
a commit of nothing, another voice in a session that has spoken.  The rule: a refusal is an `error` event, and `refused`
shows it to the test.
"""
import asyncio
import base64
import json
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from realtime_endpoint import RealtimeSession

from opusagent._fastpath import ulaw_encode

USAGE = {"type": "duration", "seconds": 1}
CHUNK_MS = 200                  # of audio in one event
PACE = 0.5                      # seconds of time that a second of audio takes to be made


@dataclass
class Answer:
    """What is said to one response.create."""

    text: str = ""
    ms: int = 1000                              # of audio
    lead_ms: int = 0                            # of silence before it
    calls: tuple = ()                           # (name, arguments) of functions that are called after it
    first: float = 0.1                          # seconds to its beginning
    before: object = None                       # (talker) coroutine function: done instead of beginning
    then: object = None                         # (talker) coroutine function: done in its middle, before the rest
    status: str = "completed"
    details: dict | None = None


@dataclass
class Model:
    """What all sessions of an endpoint share."""

    transcripts: deque = field(default_factory=deque)       # of the next passages; None: it cannot be written down
    answers: deque = field(default_factory=deque)
    transcript_after: float = 0.1               # seconds
    talkers: list = field(default_factory=list)
    default: str = "I am calling about my order."

    async def converse(self, session: RealtimeSession) -> None:
        """For realtime_endpoint.realtime()."""
        talker = Talker(self, session)
        self.talkers.append(talker)
        try:
            await talker.run()
        finally:
            for task in talker.tasks:
                task.cancel()

    @property
    def used(self) -> list["Talker"]:
        """The sessions in which something was answered or heard."""
        return [each for each in self.talkers if each.items or each.session.audio]

    @property
    def refused(self) -> list[str]:
        return [sentence for talker in self.talkers for sentence in talker.refused]

    def kinds(self) -> list[str]:
        """What the clients sent, but for the audio."""
        return [event["type"] for talker in self.talkers for event in talker.session.seen]


class Talker:
    """One session."""

    def __init__(self, model: Model, session: RealtimeSession):
        self.model, self.session = model, session
        self.items: dict[str, dict] = {}        # by name, in order: kind, text, ms, and more
        self.order: list[str] = []
        self.heard = 0                          # samples that belong to a passage, or were cleared
        self.made = 0
        self.active: asyncio.Task | None = None
        self.response = ""                      # its id
        self.spoke = ""                         # the voice that it has spoken with
        self.refused: list[str] = []
        self.tasks: list[asyncio.Task] = []

    def says(self) -> list[tuple[str, str]]:
        """What it remembers."""
        return [(self.items[name]["kind"], self.items[name]["text"]) for name in self.order]

    async def run(self) -> None:
        while True:
            event = await self.session.next()
            does = getattr(self, "on_" + event["type"].replace(".", "_"))
            if (why := await does(event)) is not None:
                self.refused.append(f"{event['type']}: {why}")
                await self.session.send("error", error={"type": "invalid_request_error", "code": "invalid_value",
                                                        "message": why, "event_id": event.get("event_id")})

    def name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}_{self.model.talkers.index(self)}_{self.made}"

    def add(self, name: str, kind: str, text: str = "", before: str | None = None, **more) -> None:
        self.items[name] = {"kind": kind, "text": text, "ms": 0, **more}
        at = len(self.order) if before is None else 0 if before == "root" else self.order.index(before) + 1
        self.order.insert(at, name)

    # -- what the client wants -----------------------------------------------------------------------------------------

    async def on_session_update(self, event):
        voice = event["session"].get("audio", {}).get("output", {}).get("voice")
        if voice and self.spoke not in ("", voice):
            return "the voice cannot be changed any more"

    async def on_input_audio_buffer_clear(self, event):
        self.heard = self.session.heard
        await self.session.send("input_audio_buffer.cleared")

    async def on_input_audio_buffer_commit(self, event):
        if self.session.heard <= self.heard:
            return "the buffer is empty"
        self.heard = self.session.heard
        name = self.name("item")
        text = self.model.transcripts.popleft() if self.model.transcripts else self.model.default
        self.add(name, "user", text or "")
        await self.session.send("input_audio_buffer.committed", item_id=name, previous_item_id=None)
        self.tasks.append(asyncio.ensure_future(self.write_down(name, text)))

    async def write_down(self, name, text):
        await asyncio.sleep(self.model.transcript_after)
        prefix, about = "conversation.item.input_audio_transcription.", {"item_id": name, "content_index": 0}
        if text is None:
            error = {"type": "server_error", "code": "busy", "message": "secret"}
            return await self.session.send(prefix + "failed", **about, error=error)
        for word in text.split()[:1]:
            await self.session.send(prefix + "delta", **about, delta=word)
        await self.session.send(prefix + "completed", **about, transcript=text, usage=USAGE)

    async def on_conversation_item_create(self, event):
        item, before = event["item"], event.get("previous_item_id")
        if item["id"] in self.items or before not in (None, "root", *self.order):
            return "no such place"
        kind = item["role"] if item["type"] == "message" else item["type"]
        text = item["content"][0]["text"] if item["type"] == "message" else item.get("output", item["call_id"])
        if kind == "function_call_output" and not any(each.get("call") == item["call_id"]
                                                      for each in self.items.values()):
            return "no such call"
        self.add(item["id"], kind, text, before, call=item.get("call_id"))
        await self.session.send("conversation.item.added", item=item, previous_item_id=before)

    async def on_conversation_item_delete(self, event):
        if event["item_id"] not in self.order:
            return "no such item"
        self.order.remove(event["item_id"])
        await self.session.send("conversation.item.deleted", item_id=event["item_id"])

    async def on_conversation_item_truncate(self, event):
        item = self.items.get(event["item_id"])
        if item is None or item["kind"] != "assistant" or event["audio_end_ms"] > item["ms"]:
            return "there is no such audio"
        item["text"] = item["text"][:round(len(item["text"]) * event["audio_end_ms"] / max(1, item["ms"]))]
        item["ms"] = event["audio_end_ms"]
        await self.session.send("conversation.item.truncated", item_id=event["item_id"], content_index=0,
                                audio_end_ms=item["ms"])

    async def on_response_create(self, event):
        if self.active is not None:
            return "there is an active response"
        self.response = self.name("resp")
        spoken = event.get("response", {}).get("output_modalities") != ["text"]
        answer = self.model.answers.popleft() if self.model.answers else Answer("Certainly.")
        self.active = asyncio.ensure_future(self.respond(answer, spoken))
        self.tasks.append(self.active)

    async def on_response_cancel(self, event):
        if self.active is None or event.get("response_id") not in (None, self.response):
            return "there is no active response"
        self.active.cancel()
        await self.done("cancelled", {"type": "cancelled", "reason": "client_cancelled"})

    # -- what it says --------------------------------------------------------------------------------------------------

    async def respond(self, answer: Answer, spoken: bool) -> None:
        send, ids = self.session.send, {"response_id": self.response}
        await asyncio.sleep(answer.first)
        if answer.before is not None:
            await answer.before(self)
        await send("response.created", response={"id": self.response, "object": "realtime.response",
                                                 "status": "in_progress", "output": []})
        if answer.text:
            name = self.name("item")
            self.add(name, "assistant")
            item = {"id": name, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
            await send("response.output_item.added", **ids, output_index=0, item=item)
            await (self.speak if spoken else self.write)(answer, name, ids | {"item_id": name, "output_index": 0,
                                                                              "content_index": 0})
            await send("response.output_item.done", **ids, output_index=0, item=item | {"status": "completed"})
        for i, (function, arguments) in enumerate(answer.calls):
            name, call = self.name("item"), self.name("call")
            item = {"id": name, "type": "function_call", "call_id": call, "name": function, "status": "in_progress",
                    "arguments": ""}
            self.add(name, "function_call", function, call=call)
            await send("response.output_item.added", **ids, output_index=1 + i, item=item)
            item |= {"arguments": json.dumps(arguments), "status": "completed"}
            await send("response.output_item.done", **ids, output_index=1 + i, item=item)
        await self.done(answer.status, answer.details)

    async def write(self, answer: Answer, name: str, ids: dict) -> None:
        self.items[name]["text"] = answer.text
        for word in answer.text.split(" "):
            await self.session.send("response.output_text.delta", **ids, delta=word + " ")

    async def speak(self, answer: Answer, name: str, ids: dict) -> None:
        """Words and audio side by side; audio in time PACE."""
        item, form = self.items[name], self.session.session["audio"]["output"]["format"]
        self.spoke = self.session.session["audio"]["output"]["voice"]
        rate = 8000 if form["type"] == "audio/pcmu" else 24000
        tone = 8000 * np.sin(np.arange(answer.ms * rate // 1000) * 2 * np.pi * 300 / rate)
        pcm = np.concatenate((np.zeros(answer.lead_ms * rate // 1000), tone)).astype(np.int16)
        words, chunk = answer.text.split(" "), rate * CHUNK_MS // 1000
        chunks = [pcm[at:at + chunk] for at in range(0, len(pcm), chunk)]
        for i, piece in enumerate(chunks):
            for word in words[i * len(words) // len(chunks):(i + 1) * len(words) // len(chunks)]:
                item["text"] += word + " "
                await self.session.send("response.output_audio_transcript.delta", **ids, delta=word + " ")
            item["ms"] += len(piece) * 1000 // rate
            if answer.then is not None and i == len(chunks) // 2:
                await answer.then(self)
            await self.session.send("response.output_audio.delta", **ids, delta=coded(piece, rate))
            await asyncio.sleep(len(piece) / rate * PACE)
        await self.session.send("response.output_audio.done", **ids)
        await self.session.send("response.output_audio_transcript.done", **ids, transcript=answer.text)

    async def done(self, status: str, details: dict | None) -> None:
        self.active = None
        await self.session.send("response.done", response={"id": self.response, "object": "realtime.response",
                                                           "status": status, "status_details": details, "output": []})


def coded(pcm: np.ndarray, rate: int) -> str:
    data = pcm.astype("<i2").tobytes()
    if rate == 8000:
        data = bytearray(len(pcm))
        ulaw_encode(pcm, data)
    return base64.b64encode(data).decode()


async def resets(talker: Talker) -> None:
    talker.session.exchange.reset()
    await asyncio.Event().wait()


async def falls_silent(talker: Talker) -> None:
    await asyncio.Event().wait()


async def falls_deaf(talker: Talker) -> None:
    talker.session.deaf = True
    await asyncio.Event().wait()


def sends(kind: str, **fields):
    """An event that is not as it should be."""
    async def doing(talker: Talker) -> None:
        about = {"response_id": talker.response, "item_id": talker.order[-1], "output_index": 0, "content_index": 0}
        await talker.session.send(kind, **about | fields)
        await asyncio.Event().wait()
    return doing
