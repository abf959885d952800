#!/usr/bin/env python3
"""An OpenAI-compatible chat-completions server whose latencies are known exactly.

    python bench/stub_llm.py --port 9101 --ttft-ms 0 --itl-ms 5 --tokens 20

Not a model: it says the same sentences to everyone.  The rule: token i is written at an absolute deadline,
request + ttft + i * itl, so that what a client measures beyond that is the client's own.

    POST /v1/chat/completions   streamed (SSE) or whole
    GET  /v1/models             one model
    GET  /log                   one record per streamed completion, times in CLOCK_MONOTONIC ns, which is the same
                                in every process of the machine: t_req (request read), t_tok (each token written),
                                first_sentence (index of the token that ends sentence one), aborted
    POST /reset                 forget the records
"""
import argparse
import asyncio
import json
import time

TEXT = "Sure| thing|,| I| can| help| you|.| Your| order| left| today| and| it| should| arrive| by| next| Tuesday|."
WORDS = TEXT.split("|")         # 20 tokens in two sentences


class Stub:
    """The server's settings and the records of what it streamed."""

    def __init__(self, ttft_ms: float, itl_ms: float, tokens: int):
        self.ttft_ms = ttft_ms                  # request read -> first token written
        self.itl_ms = itl_ms                    # from one token to the next
        self.words = [WORDS[i % len(WORDS)] for i in range(tokens)]
        self.log: list[dict] = []

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one keep-alive connection, until it ends."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request, *lines = head.decode("latin-1").split("\r\n")
                pairs = (line.partition(":") for line in lines if line)
                fields = {name.lower(): value.strip() for name, _, value in pairs}
                method, target, _ = request.split(" ", 2)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                await self.answer(method, target, body, writer)
                await writer.drain()
                if fields.get("connection", "").lower() == "close":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass                                # the client has gone; a stream it left is marked as aborted
        finally:
            writer.close()

    async def answer(self, method: str, target: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if target.endswith("/chat/completions"):
            if json.loads(body).get("stream"):
                await self.stream(writer, time.monotonic_ns())
            else:
                await asyncio.sleep((self.ttft_ms + len(self.words) * self.itl_ms) / 1e3)
                message = {"role": "assistant", "content": "".join(self.words)}
                writer.write(response(completion({"message": message}, "stop")))
        elif target == "/log":
            writer.write(response(self.log))
        elif target == "/reset" and method == "POST":
            self.log.clear()
            writer.write(response({}))
        elif target.endswith("/models"):
            writer.write(response({"object": "list", "data": [{"id": "stub", "object": "model"}]}))
        else:
            writer.write(response({"error": {"message": f"no such route: {target}"}}, "404 Not Found"))

    async def stream(self, writer: asyncio.StreamWriter, t_req: int) -> None:
        end = self.words.index(".") if "." in self.words else len(self.words) - 1
        record = {"t_req": t_req, "t_tok": [], "first_sentence": end, "aborted": True}
        self.log.append(record)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")
        for i, word in enumerate(self.words):
            due = t_req + (self.ttft_ms + i * self.itl_ms) * 1e6
            await asyncio.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            if writer.is_closing():
                raise ConnectionResetError("the client left the stream")
            writer.write(chunk(completion({"delta": {"content": word} | ({} if i else {"role": "assistant"})})))
            record["t_tok"].append(time.monotonic_ns())
        usage = {"prompt_tokens": 1, "completion_tokens": len(self.words), "total_tokens": len(self.words) + 1}
        writer.write(chunk(completion({"delta": {}}, "stop")) + chunk(completion(None, usage=usage))
                     + chunk("[DONE]") + b"0\r\n\r\n")
        record["aborted"] = False


def completion(choice: dict | None, finish: str | None = None, **more) -> dict:
    """The JSON of a completion, or of one chunk of a streamed one."""
    streamed = choice is None or "delta" in choice
    return {"id": "chatcmpl-stub", "object": "chat.completion.chunk" if streamed else "chat.completion", "created": 1,
            "model": "stub", "choices": [{"index": 0, "finish_reason": finish} | choice] if choice else [], **more}


def chunk(body: dict | str) -> bytes:
    """A server-sent event as one chunk of the transfer encoding."""
    text = body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))
    event = f"data: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def response(body, status: str = "200 OK") -> bytes:
    data = json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def main(args: argparse.Namespace) -> None:
    stub = Stub(args.ttft_ms, args.itl_ms, args.tokens)
    server = await asyncio.start_server(stub.connection, "127.0.0.1", args.port)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=9101, help="0: any free one, which it prints")
    parser.add_argument("--ttft-ms", type=float, default=0.0, help="request to first token")
    parser.add_argument("--itl-ms", type=float, default=5.0, help="from token to token")
    parser.add_argument("--tokens", type=int, default=20, help="length of the reply")
    try:
        asyncio.run(main(parser.parse_args()))
    except KeyboardInterrupt:
        pass
