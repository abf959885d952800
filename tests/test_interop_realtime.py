"""/v1/realtime with the clients that people use: the openai package (async, sync, beta), openai-agents, LiveKit's.

One server, its engines scripted, its callers recordings of a person.  Each client does what its users do with it, and
must see what it is made to see; nothing here reads a message itself.  A client that is not installed is skipped.
"""
import asyncio
import base64
import threading
import time

import numpy as np
import pytest

from opusagent import ConfigError
from opusagent.client.people import person
from served import SCRIPTED, serving

pytestmark = pytest.mark.filterwarnings("default")      # of the clients, and of what they are made of

SAID = ["what is the weather like", "and tomorrow"]
MODEL = """
[[reply]]
when = "(?i)weather"
say = "It is sunny in Paris. You do not need an umbrella today, and neither do you need a coat."
[[reply]]
when = "tomorrow"
say = "Tomorrow it rains."
[[reply]]
when = "temperature"
call = "temperature"
arguments = { place = "Paris" }
[[reply]]
when = "21 degrees"
say = "It has twenty one degrees."
[[reply]]
say = "Hello."
"""
WEATHER = "It is sunny in Paris. You do not need an umbrella today, and neither do you need a coat."
RATE = 24000
WITHIN = 30                     # seconds, for what takes one
TOOL = {"type": "function", "name": "temperature", "description": "Of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("realtime")
    (folder / "model.toml").write_text(MODEL)
    (folder / "said.txt").write_text("\n".join(SAID))
    with serving(*SCRIPTED, "--scripted-llm", str(folder / "model.toml"), "--scripted-stt", str(folder / "said.txt"),
                 "--scripted-llm-piece-ms", "5", "--admission-refuse-above", "1") as running:
        yield running


@pytest.fixture(scope="module")
def voice():
    """Two utterances of a person at 24 kHz, as bytes."""
    try:
        says = {say.name: say.pcm for say in person(RATE)[1]}
    except ConfigError as error:
        pytest.skip(str(error))
    return [says["ten of clubs"].tobytes(), says["seven of clubs"].tobytes()]


def client_of(module):
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install 'opusagent[interop]'")


def endpoint(server):
    return f"ws://127.0.0.1:{server.port}/v1"


class Heard:
    """The events of one connection of the openai package, as they come."""

    def __init__(self, connection):
        self.connection = connection
        self.events = []
        self._task = asyncio.create_task(self._read())
        self._news = asyncio.Event()

    async def _read(self):
        async for event in self.connection:
            self.events.append(event)
            self._news.set()

    async def until(self, kind, after=0):
        """The first event of a kind from `after` on."""
        async with asyncio.timeout(WITHIN):
            while True:
                found = next((event for event in self.events[after:] if event.type == kind), None)
                if found is not None:
                    return found
                self._news.clear()
                await self._news.wait()

    async def end(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def kinds(self):
        """What came, deltas in a row as one."""
        names = [event.type for event in self.events]
        return [name for i, name in enumerate(names) if not name.endswith(".delta") or name != names[max(0, i - 1)]]

    def audio(self, kind="response.output_audio.delta"):
        return b"".join(base64.b64decode(event.delta) for event in self.events if event.type == kind)

    def text(self, kind):
        return "".join(event.delta for event in self.events if event.type == kind)


async def speak(connection, audio, step_ms=100, rate=RATE):
    size = 2 * rate * step_ms // 1000
    began = time.monotonic()
    for at in range(0, len(audio), size):
        await connection.input_audio_buffer.append(audio=base64.b64encode(audio[at:at + size]).decode())
        await asyncio.sleep(began + (at + size) / (2 * rate) - time.monotonic())


def connected(scenario, server, model="gpt-realtime", beta=False, **settings):
    """Runs a scenario(connection, heard) with a connection of the async client."""
    openai = client_of("openai")
    client_of("websockets")

    async def run():
        client = openai.AsyncOpenAI(api_key="none", websocket_base_url=endpoint(server), base_url=endpoint(server))
        connect = client.beta.realtime.connect if beta else client.realtime.connect
        async with connect(model=model) as connection:
            heard = Heard(connection)
            try:
                await heard.until("session.created")
                if settings:
                    await connection.session.update(session=settings)
                    await heard.until("session.updated")
                return await scenario(connection, heard)
            finally:
                await heard.end()
    return asyncio.run(run())


VAD = {"type": "server_vad", "silence_duration_ms": 1000}       # a machine may stop for a moment in mid-sentence
TRANSCRIBED = {"input": {"transcription": {"model": "whisper-1"}, "turn_detection": VAD}}


# ---- the openai package ----------------------------------------------------------------------------------------------

def test_a_spoken_turn_is_answered_event_by_event(server, voice):
    async def scenario(connection, heard):
        await speak(connection, voice[0])
        done = await heard.until("response.done")
        await heard.until("rate_limits.updated")
        return done.response, heard

    response, heard = connected(scenario, server, type="realtime", instructions="Be kind.", audio=TRANSCRIBED)
    kinds = heard.kinds
    order = ["session.created", "session.updated", "input_audio_buffer.speech_started",
             "input_audio_buffer.speech_stopped", "input_audio_buffer.committed", "conversation.item.added",
             "conversation.item.done", "conversation.item.input_audio_transcription.completed", "response.created",
             "response.output_item.added", "response.content_part.added", "response.output_audio.done",
             "response.output_audio_transcript.done", "response.content_part.done", "response.output_item.done",
             "response.done", "rate_limits.updated"]
    assert sorted(order, key=kinds.index) == order
    assert len({event.event_id for event in heard.events}) == len(heard.events)
    assert response.status == "completed" and response.usage.total_tokens > 0
    assert response.output[0].content[0].transcript == WEATHER
    assert heard.text("response.output_audio_transcript.delta") == WEATHER
    assert heard.text("conversation.item.input_audio_transcription.delta") == SAID[0]
    assert len(heard.audio()) / 2 / RATE == pytest.approx(len(WEATHER) * 0.06, abs=0.5)
    created = next(event for event in heard.events if event.type == "response.output_item.added")
    committed = next(event for event in heard.events if event.type == "input_audio_buffer.committed")
    added = [event for event in heard.events if event.type == "conversation.item.added"]
    assert added[0].item.id == committed.item_id and added[1].previous_item_id == committed.item_id
    assert added[1].item.id == created.item.id


def test_the_audio_comes_faster_than_it_is_spoken_and_a_barge_in_is_settled_by_the_client(server, voice):
    async def scenario(connection, heard):
        await speak(connection, voice[0])
        await heard.until("response.created")
        began = time.monotonic()
        done = await heard.until("response.done")
        took = time.monotonic() - began
        item = done.response.output[0].id
        await asyncio.sleep(0.5)
        after = len(heard.events)
        speaking = asyncio.create_task(speak(connection, voice[1]))
        await heard.until("input_audio_buffer.speech_started", after)
        await connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=1500)
        await heard.until("conversation.item.truncated", after)
        await connection.conversation.item.retrieve(item_id=item)
        cut = await heard.until("conversation.item.retrieved", after)
        await speaking
        answer = await heard.until("response.done", after)
        return took, cut.item, answer.response

    took, cut, answer = connected(scenario, server, type="realtime", audio=TRANSCRIBED)
    assert took < 4, "the reply takes more than five seconds to be spoken"
    assert cut.content[0].transcript == "It is sunny in Paris."
    assert answer.output[0].content[0].transcript == "Tomorrow it rains."


def test_the_client_ends_its_turns_itself_and_may_want_text(server, voice):
    async def scenario(connection, heard):
        await connection.input_audio_buffer.commit(event_id="too soon")
        error = await heard.until("error")
        await connection.input_audio_buffer.append(audio=base64.b64encode(voice[0]).decode())   # all at once
        await connection.input_audio_buffer.commit()
        await heard.until("input_audio_buffer.committed")
        await asyncio.sleep(0.5)
        alone = [event.type for event in heard.events if event.type.startswith("response.")]
        await connection.response.create(response={"output_modalities": ["text"], "metadata": {"topic": "weather"}})
        return error.error, alone, (await heard.until("response.done")).response, heard

    error, alone, response, heard = connected(scenario, server, type="realtime", audio={"input": {
        "turn_detection": None, "transcription": {"model": "whisper-1"}}})
    assert (error.event_id, error.code) == ("too soon", "input_audio_buffer_commit_empty")
    assert not alone and not heard.audio()
    assert response.metadata == {"topic": "weather"} and response.output_modalities == ["text"]
    assert heard.text("response.output_text.delta") == response.output[0].content[0].text == WEATHER


def test_a_response_is_cancelled_and_what_cannot_be_done_is_an_error_of_its_event(server):
    async def scenario(connection, heard):
        await connection.conversation.item.create(item={
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": "the weather?"}]})
        await connection.response.create()
        await heard.until("response.output_audio_transcript.delta")
        await connection.response.create(event_id="second")
        second = await heard.until("error")
        await connection.response.cancel()
        done = await heard.until("response.done")
        after = len(heard.events)
        await connection.response.cancel(event_id="nothing")
        nothing = await heard.until("error", after)
        after = len(heard.events)
        await connection.session.update(event_id="wrong", session={
            "type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 7}}}})
        wrong = await heard.until("error", after)
        return second.error, done.response, nothing.error, wrong.error

    second, cancelled, nothing, wrong = connected(scenario, server)
    assert (second.event_id, second.code) == ("second", "conversation_already_has_active_response")
    assert (cancelled.status, cancelled.status_details.reason) == ("cancelled", "client_cancelled")
    assert cancelled.output[0].status == "incomplete"
    assert nothing.event_id == "nothing"
    assert (wrong.event_id, wrong.param) == ("wrong", "session.audio.input.turn_detection.threshold")


def test_a_note_is_written_while_the_answer_is_spoken(server):
    def words(text):
        return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}

    async def scenario(connection, heard):
        await connection.conversation.item.create(item=words("the weather?"))
        await connection.response.create()
        await heard.until("response.output_audio.delta")
        await connection.response.create(response={
            "conversation": "none", "output_modalities": ["text"], "metadata": {"topic": "note"},
            "input": [words("and tomorrow?")]})
        await heard.until("response.output_text.done")
        first = await heard.until("response.done")
        second = await heard.until("response.done", heard.events.index(first) + 1)
        return sorted((event.response for event in (first, second)), key=lambda response: bool(response.metadata))
    answer, note = connected(scenario, server)
    assert note.metadata == {"topic": "note"} and note.conversation_id is None
    assert note.output[0].content[0].text == "Tomorrow it rains."
    assert answer.output[0].content[0].transcript == WEATHER and answer.status == "completed"


def test_a_picture_is_shown(server):
    async def scenario(connection, heard):
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "and tomorrow?"},
            {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}]})
        await connection.response.create(response={"output_modalities": ["text"]})
        await heard.until("response.done")
        return heard
    heard = connected(scenario, server)
    assert heard.text("response.output_text.delta") == "Tomorrow it rains."
    item = next(event for event in heard.events if event.type == "conversation.item.added").item
    assert [part.type for part in item.content] == ["input_text", "input_image"]


def test_a_recording_is_an_item_and_its_answer_waits_for_what_it_says(server, voice):
    """And what is no audio is an error of its event; the agent's own words are believed."""
    audio = base64.b64encode(voice[0]).decode()

    async def scenario(connection, heard):
        create = connection.conversation.item.create
        await create(item={"type": "message", "role": "assistant", "content": [
            {"type": "output_audio", "audio": audio, "transcript": "What do you want to know?"}]})
        await create(item={"type": "message", "role": "user", "content": [
            {"type": "input_audio", "audio": "no base64!"}]}, event_id="e7")
        await create(item={"type": "message", "role": "user", "id": "asked", "content": [
            {"type": "input_audio", "audio": audio}]})
        await connection.response.create(response={"output_modalities": ["text"]})
        await heard.until("response.done")
        await connection.conversation.item.retrieve(item_id="asked")
        return (await heard.until("conversation.item.retrieved")).item, heard
    asked, heard = connected(scenario, server, type="realtime", audio=TRANSCRIBED)
    assert (asked.content[0].type, asked.content[0].transcript) == ("input_audio", SAID[0])
    assert heard.text("response.output_text.delta") == WEATHER
    error, = (event.error for event in heard.events if event.type == "error")
    assert (error.code, error.param, error.event_id) == ("invalid_value", "item.content[0].audio", "e7")
    known = next(event for event in heard.events
                 if event.type == "conversation.item.input_audio_transcription.completed")
    assert (known.item_id, known.content_index, known.transcript) == ("asked", 0, SAID[0])
    assert known.usage.seconds == pytest.approx(len(voice[0]) / 2 / RATE, abs=0.01)
    items = [event.item for event in heard.events if event.type == "conversation.item.added"]
    assert items[0].content[0].transcript == "What do you want to know?" and items[1].content[0].transcript is None
    assert heard.kinds.index("conversation.item.input_audio_transcription.completed") < heard.kinds.index(
        "response.created")


def test_the_client_is_asked_to_call_its_functions(server):
    async def scenario(connection, heard):
        await connection.conversation.item.create(item={
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": "the temperature?"}]})
        await connection.response.create()
        call = await heard.until("response.function_call_arguments.done")
        done = await heard.until("response.done")
        after = len(heard.events)
        await connection.conversation.item.create(item={
            "type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"})
        await connection.response.create()
        return call, done.response, (await heard.until("response.done", after)).response

    call, asked, answered = connected(scenario, server, type="realtime", tools=[TOOL])
    assert (call.name, call.arguments) == ("temperature", '{"place":"Paris"}')
    assert [item.type for item in asked.output] == ["function_call"]
    assert answered.output[0].content[0].transcript == "It has twenty one degrees."


def test_telephone_audio_both_ways(server, voice):
    from opusagent._fastpath import ulaw_encode
    from opusagent.recording import resample

    async def scenario(connection, heard):
        pcm = resample(np.frombuffer(voice[0], np.int16), RATE, 8000)
        codes = bytearray(len(pcm))
        ulaw_encode(pcm, codes)
        for at in range(0, len(codes), 160):
            await connection.input_audio_buffer.append(audio=base64.b64encode(codes[at:at + 160]).decode())
            await asyncio.sleep(0.02)
        return await heard.until("response.done"), len(heard.audio())

    pcmu = {"type": "audio/pcmu"}
    done, codes = connected(scenario, server, type="realtime",
                            audio={"input": {"format": pcmu, "turn_detection": VAD}, "output": {"format": pcmu}})
    assert done.response.audio.output.format.type == "audio/pcmu"
    assert codes / 8000 == pytest.approx(len(WEATHER) * 0.06, abs=0.5)


def test_the_demo_greets_and_is_answered_in_writing(server):
    async def scenario(connection, heard):
        await heard.until("response.done")
        for text in ("two nine three four zero", "the ten of clubs"):
            after = len(heard.events)
            await connection.conversation.item.create(item={
                "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
            await connection.response.create()
            await heard.until("response.done", after)
        return [event.response.output[0].content[0].transcript for event in heard.events
                if event.type == "response.done"]

    greeting, slip, message = connected(scenario, server, model="demo")
    assert greeting.startswith("Welcome to Silver Wheel")
    assert "Which playing card" in slip and message.startswith("Good. The ten of clubs")


def test_the_beta_client_hears_the_names_it_knows(server, voice):
    async def scenario(connection, heard):
        await speak(connection, voice[0])
        return (await heard.until("response.done")).response, heard

    response, heard = connected(scenario, server, beta=True, modalities=["text", "audio"], voice="alloy",
                                input_audio_format="pcm16", output_audio_format="pcm16",
                                input_audio_transcription={"model": "whisper-1"},
                                turn_detection=VAD)
    kinds = {event.type for event in heard.events}
    assert {"conversation.item.created", "response.audio.delta", "response.audio_transcript.delta"} <= kinds
    assert not {kind for kind in kinds if "output_audio" in kind or kind.endswith("item.added") and "conv" in kind}
    assert response.output[0].content[0].type == "audio"
    assert heard.text("response.audio_transcript.delta") == WEATHER
    assert len(heard.audio("response.audio.delta")) / 2 / RATE > 4


def test_a_browser_is_given_an_ephemeral_key_and_calls_with_it(server):
    openai = client_of("openai")
    client_of("websockets")

    async def run():
        site = openai.AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.port}/v1")
        made = await site.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 60},
            session={"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"],
                     "instructions": "You know the weather.", "tools": [TOOL]})
        assert made.session.type == "realtime" and made.session.tools[0].name == "temperature"
        with pytest.raises(openai.BadRequestError, match="expires_after.seconds must be a whole number from 10"):
            await site.realtime.client_secrets.create(expires_after={"anchor": "created_at", "seconds": 1})
        page = openai.AsyncOpenAI(api_key=made.value, websocket_base_url=endpoint(server))
        async with page.realtime.connect() as connection:
            heard = Heard(connection)
            opened = (await heard.until("session.created")).session
            assert (opened.model, opened.instructions) == ("gpt-realtime", "You know the weather.")
            await connection.conversation.item.create(item={
                "type": "message", "role": "user", "content": [{"type": "input_text", "text": "the weather, please"}]})
            await connection.response.create()
            await heard.until("response.done")
            await heard.end()
            return heard.text("response.output_text.delta")
    assert asyncio.run(run()) == WEATHER


def test_the_sync_client(server, voice):
    openai = client_of("openai")
    client_of("websockets")
    client = openai.OpenAI(api_key="none", websocket_base_url=endpoint(server))
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session={"type": "realtime", "audio": TRANSCRIBED})

        def say():
            for at in range(0, len(voice[0]), 4800):
                connection.input_audio_buffer.append(audio=base64.b64encode(voice[0][at:at + 4800]).decode())
                time.sleep(0.1)
        speaking = threading.Thread(target=say)
        speaking.start()
        for event in connection:
            if event.type in ("response.done", "error"):
                break
        speaking.join()
    assert event.type == "response.done" and event.response.output[0].content[0].transcript == WEATHER


# ---- openai-agents ---------------------------------------------------------------------------------------------------

def test_openai_agents_speaks_and_is_interrupted(server, voice):
    realtime = client_of("agents.realtime")

    async def scenario():
        runner = realtime.RealtimeRunner(realtime.RealtimeAgent(name="clerk", instructions="Be kind."))
        config = {"api_key": "none", "url": endpoint(server) + "/realtime?model=gpt-realtime"}
        async with await runner.run(model_config=config) as session:
            seen = []

            async def read():
                async for event in session:
                    seen.append(event)
            reading = asyncio.create_task(read())

            async def until(kind, count=1):
                async with asyncio.timeout(WITHIN):
                    while sum(event.type == kind for event in seen) < count:
                        await asyncio.sleep(0.02)
            await session.send_message("How is the weather?")
            await until("agent_end")
            await asyncio.sleep(0.5)                    # half a second of it is heard
            for utterance in voice:
                began = time.monotonic()
                for at in range(0, len(utterance), 4800):
                    await session.send_audio(utterance[at:at + 4800])
                    await asyncio.sleep(began + (at + 4800) / (2 * RATE) - time.monotonic())
                await asyncio.sleep(1.0)
            await until("audio_interrupted")
            await until("agent_end", 2)
            reading.cancel()
            return seen, session._history

    seen, history = asyncio.run(scenario())
    assert not [event for event in seen if event.type == "error"]
    spoken = b"".join(event.audio.data for event in seen if event.type == "audio")
    assert len(spoken) / 2 / RATE > 5
    texts = [part.transcript for item in history if getattr(item, "role", "") == "user" for part in item.content
             if getattr(part, "transcript", None)]
    assert SAID[0] in texts


def test_openai_agents_calls_its_tools(server):
    realtime = client_of("agents.realtime")
    from agents import function_tool
    asked = []

    @function_tool
    def temperature(place: str) -> str:
        """Of a place."""
        asked.append(place)
        return "21 degrees"

    async def scenario():
        runner = realtime.RealtimeRunner(realtime.RealtimeAgent(name="clerk", tools=[temperature]))
        config = {"api_key": "none", "url": endpoint(server) + "/realtime?model=gpt-realtime"}
        async with await runner.run(model_config=config) as session:
            await session.send_message("What is the temperature?")
            async with asyncio.timeout(WITHIN):
                text = ""
                async for event in session:
                    if event.type == "raw_model_event" and event.data.type == "transcript_delta":
                        text += event.data.delta
                    if event.type == "agent_end" and text:
                        return text
    assert asyncio.run(scenario()) == "It has twenty one degrees."
    assert asked == ["Paris"]


# ---- LiveKit ---------------------------------------------------------------------------------------------------------

def test_livekit_speaks_and_listens(server, voice):
    realtime = client_of("livekit.plugins.openai").realtime
    import aiohttp
    from livekit import rtc

    async def scenario():
        async with aiohttp.ClientSession() as http:
            model = realtime.RealtimeModel(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none",
                                           model="gpt-realtime", http_session=http)
            session, seen = model.session(), []
            for name in ("error", "input_speech_started", "input_speech_stopped",
                         "input_audio_transcription_completed", "generation_created"):
                session.on(name, lambda event, name=name: seen.append((name, event)))
            await session.update_instructions("Be kind.")
            async with asyncio.timeout(WITHIN):
                generation = await session.generate_reply(instructions="Greet.")    # resolved by the metadata
                async for message in generation.message_stream:
                    text = "".join([str(piece) async for piece in message.text_stream])
                    samples = sum([frame.samples_per_channel async for frame in message.audio_stream])
            for at in range(0, len(voice[0]), 4800):
                piece = voice[0][at:at + 4800]
                session.push_audio(rtc.AudioFrame(piece, RATE, 1, len(piece) // 2))
                await asyncio.sleep(0.1)
            async with asyncio.timeout(WITHIN):
                while sum(name == "generation_created" for name, _ in seen) < 2:
                    await asyncio.sleep(0.02)
            await session.aclose()
            await model.aclose()
            return text, samples, seen

    text, samples, seen = asyncio.run(scenario())
    names = [name for name, _ in seen]
    assert "error" not in names
    assert text == "Hello." and samples / RATE == pytest.approx(0.36, abs=0.2)
    assert names.index("input_speech_started") < names.index("input_speech_stopped")
    assert any(event.transcript == SAID[0] for name, event in seen if name == "input_audio_transcription_completed")
