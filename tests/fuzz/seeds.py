"""The corpus that guided fuzzing begins with: literal frames, heads and messages, one of each kind of thing.

    python -m fuzz.seeds        (in tests/) writes corpus/ again; test_corpus.py says when that is due

Keys of masked frames are zero here, so that a mutation of the wire is one of the text.
"""
import json
import shutil
from pathlib import Path

from test_dialects import CALLS, read, wire
from test_websocket import plain_frame

from opusagent.dialects import BINARY, TABLE

CORPUS = Path(__file__).parent / "corpus"
KEY = bytes(4)


def frame(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return plain_frame(opcode, payload, fin, KEY)


FRAMES = {
    "text": frame(1, b"Hello"),
    "text-of-every-length-of-character": frame(1, "a\u00e9\u20ac\U0001f600".encode()),
    "text-cut-inside-a-character": frame(1, b"\xe2\x82", False) + frame(0, b"\xac"),
    "text-that-is-not": frame(1, b"\xed\xa0\x80"),
    "binary-126": frame(2, bytes(126)),
    "fragments": frame(2, b"one", False) + frame(9, b"between") + frame(0, b"", False) + frame(0, b"two"),
    "ping-pong": frame(9, b"x" * 125) + frame(10, b"y"),
    "close": frame(8, b"\x03\xe8bye") + frame(1, b"late"),
    "close-empty": frame(8),
    "close-wrong": frame(8, b"\x03\xed"),
    "long-form-64": b"\x82\xff" + (65536).to_bytes(8) + KEY,
    "long-form-top-bit": b"\x82\xff\x80" + bytes(7) + KEY,
    "long-form-not-shortest": b"\x82\xfe\x00\x05" + KEY + b"Hello",
    "reserved": b"\xc1\x80" + KEY,
    "unmasked": b"\x81\x05Hello",
    "too-long": frame(2, bytes(300), False) + frame(0, bytes(201)),
}
UPGRADE = (b"GET /ws/pcm?rate=8000&name=%C3%A9+x HTTP/1.1\r\nHost: here:1\r\nUpgrade: websocket\r\n"
           b"Connection: a, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
           b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
HEADS = {
    "upgrade": UPGRADE,
    "upgrade-with-frames": UPGRADE + FRAMES["text"],
    "upgrade-with-offers": UPGRADE[:-2] + b"Sec-WebSocket-Protocol: x, a\r\nSec-WebSocket-Extensions: d; b=1\r\n\r\n",
    "page": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "head": b"HEAD /health HTTP/1.1\r\nHost:[::1]\r\nX:\t \r\n\r\n",
    "body": b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
    "chunked": b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "twice": b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
    "folded": b"GET / HTTP/1.1\r\nHost: h\r\n x\r\n\r\n",
    "bare-lf": b"GET / HTTP/1.1\nHost: h\n\n",
    "query": b"GET /?a=1&a=2&%ff&%0a HTTP/1.1\r\nHost: h\r\n\r\n",
    "too-many-lines": b"GET / HTTP/1.1\r\nHost: h\r\n" + b"a:\r\n" * 64 + b"\r\n",
}


def recorded() -> dict[str, bytes]:
    """One recorded call of each carrier, its first messages."""
    found = {}
    for path in CALLS:
        name = path.parent.name
        if name in TABLE and name not in found:
            lines = [wire(line) for line in read(path)[1] if line["direction"] == "in"][:8]
            found[name] = b"\x00".join([name.encode(), *(bytes(text) for opcode, text in lines if opcode != BINARY)])
    return found


def twilio(*messages: dict) -> bytes:
    texts = [json.dumps(message) for message in ({"event": "start", "streamSid": "M", "start": {}}, *messages)]
    return "\x00".join(["twilio", *texts]).encode()


def corpus() -> dict[str, bytes]:
    """The contents of each file, by its path in corpus/."""
    media = {"event": "media", "media": {"track": "inbound", "chunk": "1", "payload": "/39+gH8="}}
    odd = {"media": {"payload": "//8", "track": "outbound"}, "event": "media", "n": 1.5}
    files = {f"frames/{name}": b"\x00" + wire for name, wire in FRAMES.items()}
    files |= {f"connections/{name}": b"\x03\x00" + wire for name, wire in FRAMES.items()}
    files |= {f"heads/{name}": b"\x00" + wire for name, wire in HEADS.items()}
    files |= {f"messages/{name}": data for name, data in recorded().items()}
    return files | {"messages/twilio-media": twilio(media, odd, {"event": "stop"})}


def write() -> None:
    shutil.rmtree(CORPUS, ignore_errors=True)
    for name, data in corpus().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    write()
