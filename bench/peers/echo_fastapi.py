"""Peer: echo on FastAPI + uvicorn (uvloop, websockets).  usage: echo_fastapi.py PORT [echo|twilio]

Not a server to run: it is the stack most voice-agent tutorials build on, compression off.
"""
import base64
import json
import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


async def echo(ws):
    while True:
        await ws.send_bytes(await ws.receive_bytes())


async def twilio(ws):
    while True:
        message = json.loads(await ws.receive_text())
        if message["event"] != "media":
            continue
        pcm = audioop.ulaw2lin(base64.b64decode(message["media"]["payload"]), 2)
        payload = base64.b64encode(audioop.lin2ulaw(pcm, 2)).decode()
        await ws.send_text(json.dumps(
            {"event": "media", "streamSid": message["streamSid"], "media": {"payload": payload}}))


@app.websocket("/")
async def call(ws: WebSocket):
    await ws.accept()
    try:
        await answer(ws)
    except WebSocketDisconnect:
        pass


answer = twilio if sys.argv[2:] == ["twilio"] else echo
if answer is twilio:
    import audioop
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), ws="websockets", loop="uvloop", http="auto",
            log_level="error", ws_per_message_deflate=False)
