"""Peer: echo on picows' core API with uvloop.  usage: echo_picows.py PORT [echo|twilio]

Not a server to run: it is the shortest program a picows user would write, and the fastest.
"""
import binascii
import sys

import orjson
import uvloop
from picows import WSCloseCode, WSListener, WSMsgType, ws_create_server


class Echo(WSListener):
    def on_ws_frame(self, transport, frame):
        kind = frame.msg_type
        if kind == WSMsgType.BINARY or kind == WSMsgType.TEXT:
            self.on_data(transport, kind, frame)
        elif kind == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()

    def on_data(self, transport, kind, frame):
        transport.send(kind, frame.get_payload_as_memoryview())


class Twilio(Echo):
    def on_data(self, transport, kind, frame):
        message = orjson.loads(frame.get_payload_as_memoryview())
        if message["event"] != "media":
            return
        pcm = audioop.ulaw2lin(binascii.a2b_base64(message["media"]["payload"]), 2)
        payload = binascii.b2a_base64(audioop.lin2ulaw(pcm, 2), newline=False).decode()
        transport.send(WSMsgType.TEXT, orjson.dumps(
            {"event": "media", "streamSid": message["streamSid"], "media": {"payload": payload}}))


async def main(port, listener):
    server = await ws_create_server(lambda request: listener(), "127.0.0.1", port)
    await server.serve_forever()


twilio = sys.argv[2:] == ["twilio"]
if twilio:
    import audioop
uvloop.run(main(int(sys.argv[1]), Twilio if twilio else Echo))
