"""A caller: says a WAV file (16-bit mono, 8, 16, 24 or 48 kHz) to an agent, and writes down what the agent says.

    python examples/pcm_client.py ws://127.0.0.1:8000/ws/pcm hello.wav answer.wav [TOKEN]

It needs `pip install websockets`.  The protocol is docs/dialects.md's "pcm".
"""
import asyncio
import json
import sys
import wave

from websockets.asyncio.client import connect


async def call(url: str, said: str, heard: str, token: str = "") -> None:
    with wave.open(said) as wav:
        rate, voice = wav.getframerate(), wav.readframes(wav.getnframes())
    answer, headers = bytearray(), {"Authorization": f"Bearer {token}"} if token else {}
    async with connect(f"{url}?rate={rate}&caller=example", additional_headers=headers) as socket:
        speaking = asyncio.create_task(speak(socket, voice, rate // 50 * 2))
        async for message in socket:                        # until the agent hangs up
            if isinstance(message, bytes):
                answer += message                           # to be played, as fast as it sounds
            elif json.loads(message)["event"] == "mark":    # to be sent back when what came before has been played
                await socket.send(message)                  # at "clear": drop what has not been played
        speaking.cancel()
    with wave.open(heard, "wb") as wav:
        wav.setparams((1, 2, rate, 0, "NONE", ""))
        wav.writeframes(answer)


async def speak(socket, voice: bytes, frame: int) -> None:
    """20 ms at a time, in step with the clock; silence after the last word."""
    clock = asyncio.get_running_loop().time
    begun, sent = clock(), 0
    while sent := sent + 1:
        await socket.send(voice[(sent - 1) * frame:sent * frame].ljust(frame, b"\0"))
        await asyncio.sleep(max(0.0, begun + sent * 0.02 - clock()))

asyncio.run(call(*sys.argv[1:]))
