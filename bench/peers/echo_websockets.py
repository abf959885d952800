"""Peer: echo on `websockets` (asyncio API) with uvloop.  usage: echo_websockets.py PORT [echo|twilio]

Not a server to run: it is the program of that library's own front page, compression off.
"""
import base64
import json
import sys

import uvloop
from websockets.asyncio.server import serve


async def echo(ws):
    async for message in ws:
        await ws.send(message)


async def twilio(ws):
    async for text in ws:
        message = json.loads(text)
        if message["event"] != "media":
            continue
        pcm = audioop.ulaw2lin(base64.b64decode(message["media"]["payload"]), 2)
        payload = base64.b64encode(audioop.lin2ulaw(pcm, 2)).decode()
        await ws.send(json.dumps({"event": "media", "streamSid": message["streamSid"], "media": {"payload": payload}}))


async def main(port, answer):
    async with serve(answer, "127.0.0.1", port, compression=None) as server:
        await server.serve_forever()


answer = twilio if sys.argv[2:] == ["twilio"] else echo
if answer is twilio:
    import audioop
uvloop.run(main(int(sys.argv[1]), answer))
