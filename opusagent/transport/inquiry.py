"""What an answer depends on and only the registry knows: whether a nonce is new to all nodes, whether a call exists.

A request is taken once, and if that has raised questions, once more when they are answered: it decides nothing else.
The rule: without an answer in time the request is judged by what this node knows.
"""
from collections.abc import Callable, Coroutine
from hashlib import blake2b

NONCE, CALL = "nonce", "call"       # kinds of questions


class Inquiry:
    """Of one connection's request.  `registry`: None where there is no other node."""

    __slots__ = ("registry", "answers", "questions")

    def __init__(self, registry):
        self.registry = registry
        self.answers: dict[tuple, bool] = {}
        self.questions: dict[tuple, float] = {}     # question -> seconds that a nonce counts

    def ask(self, *question: str, seconds: float = 0.0) -> bool | None:
        """The answer; None where it is not known, and then it is asked for, if there is whom to ask."""
        if question not in self.answers and self.registry is not None and self.registry.up:
            self.questions[question] = seconds
        return self.answers.get(question)

    async def settle(self) -> None:
        """Every question has its answer."""
        questions, self.questions = self.questions, {}
        for question, seconds in questions.items():
            self.answers[question] = await ASK[question[0]](self.registry, *question[1:], seconds)


async def is_new(registry, key: str, nonce: str, seconds: float) -> bool:
    digest = blake2b(f"{len(key)}:{key}{nonce}".encode("utf-8", "replace"), digest_size=16).hexdigest()
    return await registry.once(digest, seconds)


async def is_known(registry, key: str, seconds: float) -> bool:
    return await registry.known(key)


ASK: dict[str, Callable[..., Coroutine]] = {NONCE: is_new, CALL: is_known}


class Nonces:
    """The nonces that this node has seen, and those of the others: what take() is to who checks a signature."""

    __slots__ = ("here", "inquiry")

    def __init__(self, here, inquiry: Inquiry):
        self.here = here
        self.inquiry = inquiry

    def take(self, key: str, nonce: str, now: float, until: float) -> bool:
        """True the first time that `nonce` is used with `key`."""
        answer = self.inquiry.answers.get((NONCE, key, nonce))
        if answer is None and self.here.take(key, nonce, now, until):
            self.inquiry.ask(NONCE, key, nonce, seconds=until - now)
            return True
        return bool(answer)
