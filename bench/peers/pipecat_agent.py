"""Peer: a Pipecat telephone agent whose engines cost nothing, so that what is left is Pipecat.

    python bench/peers/pipecat_agent.py PORT LLM_URL [MS_PER_CHARACTER]

The pipeline of Pipecat's own examples at its fastest settings: FastAPI transport, Twilio's serializer, 8 kHz in and
out (no resampling), Silero with stop_secs 0.2 and no wait beyond, Pipecat's own client of a language model.  The
recogniser answers when the turn ends, the voice is a tone, both at once.  The rule: nothing here works but Pipecat,
and for each turn's end it prints a line, `endpoint CALL FRAMES SILENT`: the call, how many 20 ms frames its detector
has taken, and how many of the last of them were digital silence.
"""
import asyncio
import math
import sys

from loguru import logger

logger.remove()

import uvicorn                                                                          # noqa: E402
from fastapi import FastAPI, WebSocket                                                  # noqa: E402
from pipecat.audio.vad.silero import SileroVADAnalyzer                                  # noqa: E402
from pipecat.audio.vad.vad_analyzer import VADParams, VADState                          # noqa: E402
from pipecat.frames.frames import (TranscriptionFrame, TTSAudioRawFrame,                # noqa: E402
                                   VADUserStoppedSpeakingFrame)
from pipecat.pipeline.pipeline import Pipeline                                          # noqa: E402
from pipecat.pipeline.worker import PipelineParams, PipelineWorker                      # noqa: E402
from pipecat.processors.aggregators.llm_context import LLMContext                       # noqa: E402
from pipecat.processors.aggregators.llm_response_universal import (                     # noqa: E402
    LLMContextAggregatorPair, LLMUserAggregatorParams)
from pipecat.runner.utils import parse_telephony_websocket                              # noqa: E402
from pipecat.serializers.twilio import TwilioFrameSerializer                            # noqa: E402
from pipecat.services.openai.llm import OpenAILLMService                                # noqa: E402
from pipecat.services.settings import STTSettings, TTSSettings                          # noqa: E402
from pipecat.services.stt_service import STTService                                     # noqa: E402
from pipecat.services.tts_service import TextAggregationMode, TTSService                # noqa: E402
from pipecat.transports.websocket.fastapi import (FastAPIWebsocketParams,               # noqa: E402
                                                  FastAPIWebsocketTransport)
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy                   # noqa: E402
from pipecat.turns.user_turn_strategies import UserTurnStrategies                       # noqa: E402
from pipecat.utils.time import time_now_iso8601                                         # noqa: E402
from pipecat.workers.runner import WorkerRunner                                         # noqa: E402

PORT, LLM = int(sys.argv[1]), sys.argv[2]
MS_PER_CHARACTER = float(sys.argv[3]) if len(sys.argv) > 3 else 60.0
RATE = 8000
FRAME = RATE // 50
TONE = b"".join(round(6000 * math.sin(2 * math.pi * 400 * i / RATE)).to_bytes(2, "little", signed=True)
                for i in range(FRAME))                  # whole periods, so that frames follow one another smoothly
app = FastAPI()


class Detector(SileroVADAnalyzer):
    """Pipecat's own; it counts what it has taken when it finds the end of speech."""

    def __init__(self, call: str):
        super().__init__(params=VADParams(stop_secs=0.2))
        self.call, self.frames, self.silent = call, 0, 0

    def _run_analyzer(self, buffer: bytes) -> VADState:
        before = self._vad_state
        for at in range(0, len(buffer), 2 * FRAME):
            self.frames += 1
            self.silent = 0 if any(buffer[at:at + 2 * FRAME]) else self.silent + 1
        state = super()._run_analyzer(buffer)
        if before is VADState.STOPPING and state is VADState.QUIET:
            print("endpoint", self.call, self.frames, self.silent, flush=True)
        return state


class Recogniser(STTService):
    """Says what was said the moment that speech has ended."""

    def __init__(self):
        super().__init__(ttfs_p99_latency=0.0, settings=STTSettings(model="stub", language=None))

    async def run_stt(self, audio):
        yield None

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            await self.push_frame(TranscriptionFrame("where is my order", "caller", time_now_iso8601(),
                                                     finalized=True))


class Voice(TTSService):
    """Speaks a tone as long as the text would take."""

    def __init__(self):
        super().__init__(sample_rate=RATE, push_start_frame=True, push_stop_frames=True,
                         text_aggregation_mode=TextAggregationMode.SENTENCE,
                         settings=TTSSettings(model="stub", voice="stub", language=None))

    async def run_tts(self, text, context_id):
        for _ in range(max(1, round(len(text) * MS_PER_CHARACTER / 20))):
            yield TTSAudioRawFrame(TONE, RATE, 1, context_id=context_id)


@app.websocket("/ws")
async def call(websocket: WebSocket):
    await websocket.accept()
    _, data = await parse_telephony_websocket(websocket)
    serializer = TwilioFrameSerializer(stream_sid=data["stream_id"], call_sid=data["call_id"],
                                       params=TwilioFrameSerializer.InputParams(auto_hang_up=False))
    transport = FastAPIWebsocketTransport(websocket, FastAPIWebsocketParams(
        audio_in_enabled=True, audio_out_enabled=True, serializer=serializer))
    no_wait = UserTurnStrategies(stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.0)])
    user, assistant = LLMContextAggregatorPair(LLMContext(), user_params=LLMUserAggregatorParams(
        vad_analyzer=Detector(data["call_id"]), user_turn_strategies=no_wait))
    model = OpenAILLMService(api_key="stub", base_url=LLM, settings=OpenAILLMService.Settings(
        model="stub", system_instruction="You are a phone agent."))
    worker = PipelineWorker(
        Pipeline([transport.input(), Recogniser(), user, model, Voice(), transport.output(), assistant]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE), idle_timeout_secs=None)
    runner = WorkerRunner(handle_sigint=False)

    @transport.event_handler("on_client_disconnected")
    async def gone(transport, client):
        await runner.cancel()

    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    asyncio.run(uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=PORT, log_level="warning",
                                              loop="uvloop")).serve())
