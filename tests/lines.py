"""One WebSocket to a running server, over a blocking socket: what a test of refusals, ends and descriptors needs."""
import socket
import time

from opusagent._fastpath import build_frame

UPGRADE = ("GET {} HTTP/1.1\r\nHost: {}:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{}\r\n")
SILENCE = bytes(320)            # 20 ms of PCM at 8 kHz


class WebSocketLine:
    """Dials at once; `status` and `head` are what the server answered."""

    def __init__(self, host: str, port: int, route: str, headers: str = "", seconds: float = 10):
        self.began = time.monotonic()
        self.sock = socket.create_connection((host, port), seconds)
        self.sock.sendall(UPGRADE.format(route, host, port, headers).encode())
        self.data = b""                 # not read yet
        while b"\r\n\r\n" not in self.data and (piece := self._piece()):
            self.data += piece
        self.answered_ms = (time.monotonic() - self.began) * 1000
        self.head, _, self.data = self.data.partition(b"\r\n\r\n")
        self.head += b"\r\n"
        self.status = int(self.head.split()[1]) if self.head.strip() else 0     # 0: closed without an answer

    def _piece(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except ConnectionError:
            return b""

    def send(self, payload: bytes, opcode: int = 2) -> None:
        self.sock.sendall(build_frame(opcode, payload, True, b"\x01\x02\x03\x04"))

    def frame(self) -> tuple[int, bytes] | None:
        """(opcode, payload) of the next frame; None at the end."""
        while True:
            size = self.data[1] & 127 if len(self.data) > 1 else 0
            begin = 4 if size == 126 else 10 if size == 127 else 2
            if len(self.data) >= begin:
                size = int.from_bytes(self.data[2:begin], "big") if begin > 2 else size
                if len(self.data) >= begin + size:
                    opcode, payload = self.data[0] & 15, self.data[begin:begin + size]
                    self.data = self.data[begin + size:]
                    return opcode, payload
            if not (piece := self._piece()):
                return None
            self.data += piece

    def until_closed(self, seconds: float) -> int:
        """Reads to the end; the code of the closing handshake, 1006 where there was none."""
        self.sock.settimeout(seconds)
        while (frame := self.frame()) is not None:
            if frame[0] == 8:
                self.send(frame[1], 8)
                return int.from_bytes(frame[1][:2], "big") if frame[1] else 1005
        return 1006

    def close(self) -> None:
        self.sock.close()

    __del__ = close
