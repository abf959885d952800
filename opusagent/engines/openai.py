"""The engine `openai`: any endpoint that speaks the OpenAI API, through the `openai` package.

It streams and fails; it does not decide what is said instead.  The rule: deadlines are ours (monotonic, set by the
turn), the client's own retries and time-outs are off, and every failure leaves here as one EngineError.
"""
import asyncio
import contextlib
from collections.abc import AsyncIterator

from .. import EngineError
from ..config import Config, OpenAI

CONNECT_SECONDS = 2.0           # for TCP and TLS, not for the answer
NO_KEY = "no-key"               # self-hosted endpoints ask for none, the package insists on one


class Llm:
    """Chat completions, streamed."""

    def __init__(self, config: Config):
        self.settings: OpenAI = config.openai
        self.client = None
        self.requests = 0                   # begun
        self.failures = 0

    async def open(self) -> None:
        """Make the client and warm its connection, so that no call waits for imports, TCP or TLS."""
        import httpx
        import openai
        settings = self.settings
        self.client = openai.AsyncOpenAI(
            api_key=settings.api_key or NO_KEY, base_url=settings.base_url or None, max_retries=0,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))
        self.error = openai.OpenAIError
        with contextlib.suppress(openai.OpenAIError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await self.client.models.list()

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close()

    async def reply(self, messages: tuple[dict, ...]) -> AsyncIterator[str]:
        """The pieces of the answer as they come.  Raises EngineError; closing the iterator cancels the request."""
        self.requests += 1
        stream = None
        try:
            stream = await self.client.chat.completions.create(
                model=self.settings.llm_model, messages=list(messages), stream=True,
                max_tokens=self.settings.max_tokens, temperature=self.settings.temperature)
            async for chunk in stream:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    yield piece
        except self.error as error:
            self.failures += 1
            raise EngineError(f"The model's endpoint failed: {summary(error)}") from None
        except ValueError as error:             # what is no JSON, in a stream that began well
            self.failures += 1
            raise EngineError(f"The model's endpoint sent what is not its protocol: {error}") from None
        finally:
            if stream is not None:
                await stream.close()

    def measure(self, metrics) -> None:
        metrics.gauge("llm_requests", self.requests)
        metrics.gauge("llm_failures", self.failures)


def summary(error: Exception) -> str:
    """One line of an error of the package, without what was sent."""
    status = getattr(error, "status_code", None)
    return f"status {status}" if status else type(error).__name__
