"""Sends what the tables of this package make: one HTTP client for a process, with its deadlines and second tries.

It runs on the event loop, beside the audio and never in its way: a call never waits for it.  The rules: a request is
sent again only where that changes nothing, or where it cannot have arrived; redirects are not followed; what a
platform says of an error is told by its status and its code, and no credentials and no number stand in a sentence.
"""
import asyncio
import logging
import re
import secrets
import time

from .. import EngineError
from ..credentials import Carrier
from ..engines.remote.transport import httpx
from . import TABLE, Request, api_of, vonage

SECONDS = 10.0              # for an answer
CONNECT_SECONDS = 3.0
TRIES = 3
PAUSE_SECONDS = 0.25        # before the second try, twice as long before the third
LONGEST_PAUSE = 2.0         # that a platform may ask for
LATER = (429, 500, 502, 503, 504)
NEVER_ARRIVED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
MOST_BYTES = 1 << 20        # of an answer


class Rest:
    """`send` is the only thing it does."""

    def __init__(self, client: httpx.AsyncClient | None = None):
        """`client`: one of the user's own; otherwise one is made, which takes a while."""
        for name in ("httpx", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)       # it logs every address otherwise
        self.client = client or httpx.AsyncClient(timeout=httpx.Timeout(SECONDS, connect=CONNECT_SECONDS),
                                                  limits=httpx.Limits(max_connections=20), follow_redirects=False)

    async def close(self) -> None:
        await self.client.aclose()

    async def send(self, account: Carrier, request: Request) -> dict:
        """The JSON of the answer, {} where it has none or the call was over already.  EngineError if it failed."""
        for left in range(TRIES - 1, -1, -1):
            pause = PAUSE_SECONDS * 2 ** (TRIES - 1 - left)
            try:
                response = await self._once(account, request)
            except NEVER_ARRIVED:
                sentence = "cannot be reached"
            except httpx.HTTPError as error:
                sentence = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "broke off"
                left *= request.again
            else:
                if response.is_success or response.status_code in request.gone:
                    return content_of(response)
                hint = f", so look at the account and the secret of [carriers.{account.name}]"
                sentence = f"answered with status {response.status_code}{code_of(response)}" + (
                    hint if response.status_code == 401 else "")
                left *= request.again and response.status_code in LATER
                pause = max(pause, min(seconds_of(response.headers.get("retry-after", "")), LONGEST_PAUSE))
            if not left:
                break
            await asyncio.sleep(pause)
        raise EngineError(f"The carrier {account.name} {sentence}.")

    async def _once(self, account: Carrier, request: Request) -> httpx.Response:
        shown = await asyncio.to_thread(authorization, account)     # some are signed, which takes a while
        headers = dict(request.headers)
        if isinstance(shown, str):
            headers["Authorization"] = f"Bearer {shown}"
        return await self.client.request(
            request.method, api_of(account) + request.path, data=request.form, json=request.json, headers=headers,
            auth=shown if isinstance(shown, tuple) else None)


def authorization(account: Carrier) -> tuple[str, str] | str:
    """(user, password), or a bearer."""
    if account.platform == "vonage":
        return vonage.authorization(account, int(time.time()), secrets.token_hex(16))
    return TABLE[account.platform].authorization(account)


def content_of(response: httpx.Response) -> dict:
    if len(response.content) > MOST_BYTES:
        return {}
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def code_of(response: httpx.Response) -> str:
    """The platform's own code of an error, if it has one, as " (CODE)"."""
    content = content_of(response)
    errors = content.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        content = errors[0]
    code = str(content.get("code", ""))
    return f" ({code})" if re.fullmatch(r"[\w.-]{1,40}", code) else ""


def seconds_of(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0
