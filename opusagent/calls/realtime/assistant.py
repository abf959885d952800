"""The agent `assistant` as a client of the Realtime protocol leads it, and the model as such a client knows it.

It decides what a language model is asked; it hears and says nothing.  The rule: a decision changes nothing, as a
Dialogue's does not, until it is committed.
"""
import orjson

from ...dialects.realtime.chat import chat, functions, needs, pictured
from ...engines.remote.continuing import GoingOn
from ...flow import Expect, FunctionCall, Reply, Waits
from ...flow.dialogue import ANSWER, BEGIN, DTMF, SILENCE
from ...flow.phrases import bare, murmured, words

NEVER_MS = 86_400_000
LEAST = 0.5                     # of a silence that the client has asked for
EAGERNESS = {"low": (1000, 8000), "medium": (600, 4000), "auto": (600, 4000), "high": (400, 2000)}


def waits_of(detector: dict | None) -> Waits:
    """The silences that end a turn on an agent that leads no dialogue: [ms] after a sentence, and after half of one.

    They follow the caller's own pauses and the turn model as a flow's do; no less than LEAST of them is waited for.
    """
    if detector is None:
        return Waits(NEVER_MS, NEVER_MS, NEVER_MS, NEVER_MS)
    if detector["type"] == "semantic_vad":
        whole, half = EAGERNESS[detector["eagerness"]]
        return Waits(round(LEAST * whole), whole, half, NEVER_MS)
    silence = detector["silence_duration_ms"]
    return Waits(round(LEAST * silence), silence, silence, detector["idle_timeout_ms"] or NEVER_MS)


class Assistant:
    """What Dialogue is to a flow, for the agent that the client leads: its items and instructions make the chat."""

    __slots__ = ("flow", "dialect", "state", "facts", "turn", "today", "_expect")

    def __init__(self, flow, dialect):
        self.flow = flow
        self.dialect = dialect
        self.state = flow.start
        self.facts: dict[str, str] = {}
        self.turn = 0                               # replies committed
        self.today = ""                             # no flow asks for it
        self._expect: Expect | None = None

    @property
    def expect(self) -> Expect:
        waits = waits_of(self.dialect.detector)
        if self._expect is None or self._expect.waits != waits:
            of_flow = self.flow.states[self.state].expect
            self._expect = Expect(of_flow.id, of_flow.kind, waits, of_flow.answers)
        return self._expect

    @property
    def overhear(self) -> int:
        return self.flow.states[self.state].overhear

    def judge(self, text: str) -> str:
        return self.expect.judge(text)

    def interrupts(self, text: str) -> bool | None:
        """Any words do, but those that say "go on"; None: not known yet."""
        said = words(text)
        if said and murmured(said, self.flow.states[self.state].backchannels):
            return False
        return True if bare(said) else None

    def murmured(self, text: str) -> bool:
        """Whether these words are a whole backchannel."""
        return murmured(words(text), self.flow.states[self.state].backchannels, begun=False)

    def answered(self, who: str) -> None:
        return None

    def begin(self) -> None:
        return None

    def failure(self) -> None:
        """The client learns of it, and goes on as it likes."""
        return None

    def answer(self, text: str) -> Reply:
        return self._reply(ANSWER, text)

    def silence(self) -> Reply:
        return self._reply(SILENCE, "(The caller says nothing.)")

    def dtmf(self, keys: str) -> Reply:
        return self._reply(DTMF, f"(The caller presses {keys}.)")

    def respond(self, request: dict) -> Reply:
        """To what is in the conversation, or in the request itself."""
        return self._reply(BEGIN, "", request)

    def commit(self, reply: Reply) -> None:
        self.turn += 1

    def heard(self, reply: Reply, text: str) -> None:
        """The items keep that."""

    def checkpoint(self) -> tuple:
        """As a Dialogue's."""
        return self.state, {}, (), self.turn, {}, 0

    def restore(self, checkpoint: tuple) -> None:
        self.turn = checkpoint[3]

    def retract(self, checkpoint: tuple) -> None:
        """Nothing is done here: the functions are the client's."""

    keep = retract

    def _reply(self, kind: str, latest: str, request: dict | None = None) -> Reply:
        dialect, request = self.dialect, request or {}
        items = dialect.inputs(request)
        state = self.flow.states[self.state]
        asked = request.get("instructions")
        instructions = asked if asked is not None else dialect.session["instructions"]
        spoken = (request.get("output_modalities") or dialect.session["output_modalities"]) == ["audio"]
        messages = chat(dialect.items.order if items is None else items,
                        instructions or " ".join(filter(None, (self.flow.persona, state.prompt))), spoken,
                        latest if kind != ANSWER or dialect.listening else "")
        if not any(message["role"] != "system" for message in messages):
            messages += ({"role": "user", "content": "(The conversation begins.)"},)
        return Reply(kind, self.turn, self.state, (), messages, bare(words(latest)), caller=latest)


def asks_for(settings: dict) -> tuple:
    """What a model is asked besides the messages: the client's functions, and whether it must call one."""
    tools = functions(settings["tools"], settings["tool_choice"])
    return (tools, *needs(settings["tool_choice"])) if tools else ()


def call_for(response, function: FunctionCall) -> None:
    """The client is to call a function, as the model wants it."""
    arguments = function.arguments
    response.call(function.name, arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode(),
                  function.id)


class Made:
    """What a model has made of one reply: pieces of text and calls of the client's functions, in their order."""

    __slots__ = ("parts", "told", "limited")

    def __init__(self):
        self.parts: list = []
        self.told = 0                   # of them, the client has been told
        self.limited = False            # the client's max_output_tokens were reached


class ClientModel:
    """The model, for a call whose client has tools of its own and wants to see every piece of text."""

    __slots__ = ("call", "llm", "made")

    def __init__(self, call, llm, made: Made | None = None):
        self.call = call
        self.llm = llm
        self.made = made                # what there is of the answer; None: it begins

    def going_on(self, said: str) -> "ClientModel":
        return ClientModel(self.call, GoingOn(self.llm, said), self.call.made)

    async def reply(self, messages, *flow_tools):
        """Pieces of what is to be spoken; "" for those that are not."""
        call = self.call
        made = call.made = self.made or Made()
        response = call.dialect.response
        settings = response.settings if response.active else call.dialect.session
        spoken, most = settings["output_modalities"] == ["audio"], settings["max_output_tokens"]
        asked = call.assistant and asks_for(settings) or flow_tools
        async for piece in self.llm.reply(pictured(messages, call.dialect.items), *asked):
            if not (call.assistant or isinstance(piece, str)):
                yield piece                             # a tool of the flow's, which is not the client's business
                continue
            made.parts.append(piece)
            yield piece if spoken and isinstance(piece, str) else ""
            if most != "inf" and len(made.parts) >= most:
                made.limited = True
                return
