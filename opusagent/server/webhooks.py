"""What platforms ask by HTTP: what to do with a call that has come in, and who has answered one that we made.

Each answer connects the call's audio to the platform's own route here, in the platform's own language: TwiML, Plivo's
XML, NCCO, TeXML, jambonz's verbs.  ROUTES is the table.  The rule: nothing is answered before the request has shown who
sends it (gate.py), and what it says becomes facts of the call and text inside attributes, nothing else.
"""
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode
from xml.sax.saxutils import escape, quoteattr

import orjson

from .. import ProtocolError, targets
from ..carriers import webhook
from ..continuity.tenure import key_of
from ..credentials import Key
from ..dialects import number_of, text_of
from ..dialects.relay import TRANSFER
from ..transport.http11 import posted_to
from ..transport.inquiry import CALL, Inquiry
from ..trust import auth

XML = "application/xml; charset=utf-8"
JSON = "application/json"
HUMAN, MACHINE, FAX, UNKNOWN = "human", "machine", "fax", "unknown"     # who has answered
# What each platform calls them.
ANSWERED = {"human": HUMAN, "machine_start": MACHINE, "machine_end_beep": MACHINE, "machine_end_silence": MACHINE,
            "machine_end_other": MACHINE, "machine": MACHINE, "true": MACHINE, "false": HUMAN, "fax": FAX,
            "fax_detected": FAX, "human_residence": HUMAN, "human_business": HUMAN, "amd_human_detected": HUMAN,
            "amd_machine_detected": MACHINE, "unknown": UNKNOWN, "not_sure": UNKNOWN, "silence": UNKNOWN,
            "amd_no_speech_detected": UNKNOWN, "amd_decision_timeout": UNKNOWN}
SHOWN_IN = {"twilio": "x-twilio-signature", "plivo": "x-plivo-signature-v3", "vonage": "authorization",
            "telnyx": "telnyx-signature-ed25519", "jambonz": "jambonz-signature"}
NO_FACTS = ("token", "ticket", "relay", "again", "failures")    # of a webhook's query
RELAY = {"dtmfDetection": "true", "reportInputDuringAgentSpeech": "any", "events": "speaker-events tokens-played"}
RELAYED = ("language", "voice", "ttsProvider", "transcriptionProvider", "speechModel", "hints", "speechTimeout",
           "interruptSensitivity", "ignoreBackchannel")     # Twilio's settings
FACT_CHARACTERS = 200       # of one fact that is passed on
MOST_FAILURES = 3           # sessions of a call in text until it is given up


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook that has shown who sends it."""

    server: object
    place: str                      # https://HOST[/PATH]: how the world reaches us
    platform: str
    agent: str                      # that is to answer, "" for the server's flow
    key: Key | None                 # that it has shown
    fields: Mapping[str, str]       # of its form, or the top of its JSON
    content: Mapping                # its JSON, {} for a form
    query: Mapping[str, str]        # of its URL; these are facts, too
    inquiry: Inquiry                # what only other nodes know

    def stream(self, dialect: str = "") -> str:
        """The address of the call's audio, with a ticket where the platform does not sign what it opens there, or is to
        open each address once; Twilio allows no query there."""
        url = f"ws{self.place[4:]}/ws/{dialect or self.platform}" + (f"/{self.agent}" if self.agent else "")
        if self.key is None or not self.key.once and auth.ticketed not in auth.TABLE[self.platform]:
            return url
        ticket = auth.ticket(self.key, self.agent, self.server.gate.wall(), secrets.token_hex(16))
        return f"{url}/ticket/{ticket}" if self.key.once else f"{url}?{urlencode({'ticket': ticket})}"

    def own(self, route: str) -> str:
        """The address of another webhook of the same agent's: whoever may call this one may call that one."""
        return webhook(self.place, self.agent, route)

    def again(self) -> str:
        """The address of this very webhook for a call whose stream has ended; "" where no other node could go on."""
        if self.inquiry.registry is None:
            return ""
        route = next(route for route, (platform, render) in ROUTES.items()
                     if platform == self.platform and render in VOICES)
        return self.own(route) + "?again=yes"

    def is_over(self, call_id: str) -> bool:
        """Whether a call comes here once more, and there is nothing to go on with."""
        if not self.query.get("again"):
            return False
        key = key_of(self.platform, self.agent, self.key.tenant if self.key else "", call_id)
        return not self.inquiry.ask(CALL, key)

    def facts(self, caller: str, callee: str, **more: str) -> dict[str, str]:
        """What the agent is told: the parties, whatever `more` there is, and what stands in the webhook's URL."""
        known = {"caller": self.fields.get(caller, ""), "callee": self.fields.get(callee, ""), **more}
        found = {**{name: self.query[name] for name in self.query if name not in NO_FACTS}, **known}
        return {name: value[:FACT_CHARACTERS] for name, value in found.items() if value}


def parameters(facts: Mapping[str, str]) -> str:
    return "".join(f"<Parameter name={quoteattr(name)} value={quoteattr(value)}/>" for name, value in facts.items())


def answered_by(value: str) -> str:
    """HUMAN, MACHINE, FAX or UNKNOWN of what a platform says of who has answered; "" of anything else that it may say
    in the same place, such as that the call rings or that the machine has stopped speaking."""
    return ANSWERED.get(value.lower(), "")


# ---- calls that come in, or that are answered ------------------------------------------------------------------------

def twilio_voice(hook: Hook) -> tuple[int, str | bytes, str]:
    """TwiML for a number's voice webhook, and for the calls that `opusagent dial` makes."""
    facts = hook.facts("From", "To", direction=hook.fields.get("Direction", ""),
                       answered_by=answered_by(hook.fields.get("AnsweredBy", "")))
    if hook.query.get("relay"):
        return twilio_relay(hook, facts)
    if hook.is_over(hook.fields.get("CallSid", "")):
        return 200, '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Hangup/></Response>\n', XML
    again = f"<Redirect>{escape(hook.again())}</Redirect>" if hook.again() else ""
    return 200, (f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Connect><Stream url={quoteattr(hook.stream())}>'
                 f"{parameters(facts)}</Stream></Connect>{again}</Response>\n"), XML


def twilio_relay(hook: Hook, facts: dict[str, str]) -> tuple[int, str | bytes, str]:
    """TwiML for a call of which Twilio recognises and speaks the words: `relay` stands in the webhook's query."""
    told = {name: facts[name] for name in (*hook.query, "answered_by") if name in facts}    # once more, if it fails
    told |= {"failures": str(failures(hook))} if failures(hook) else {}
    action = hook.own("/twilio/handoff") + (f"?{urlencode(told)}" if told else "")
    named = {"url": hook.stream("twilio-relay"), **RELAY,
             **{name: facts.pop(name) for name in RELAYED if name in facts}}
    attributes = " ".join(f"{name}={quoteattr(value)}" for name, value in named.items())
    return 200, (f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Connect action={quoteattr(action)}>'
                 f"<ConversationRelay {attributes}>{parameters(facts)}</ConversationRelay></Connect></Response>\n"), XML


def failures(hook: Hook) -> int:
    """Sessions of the call that have failed."""
    return (number_of(hook.query.get("failures", "")) or 0) + failed(hook)


def failed(hook: Hook) -> bool:
    """The session that we are told of has not ended as it was to."""
    return hook.fields.get("SessionStatus", "").lower() == "failed"


def telnyx_voice(hook: Hook) -> tuple[int, str | bytes, str]:
    """TeXML for an application's voice URL."""
    facts = hook.facts("From", "To", answered_by=answered_by(hook.fields.get("AnsweredBy", "")))
    return 200, (f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Connect><Stream url={quoteattr(hook.stream())} '
                 'track="inbound_track" codec="PCMU" bidirectionalMode="rtp" bidirectionalCodec="PCMU">'
                 f"{parameters(facts)}</Stream></Connect></Response>\n"), XML


def plivo_answer(hook: Hook) -> tuple[int, str | bytes, str]:
    """Plivo's XML for an application's answer URL."""
    facts = hook.facts("From", "To", direction=hook.fields.get("Direction", ""),
                       answered_by=answered_by(hook.fields.get("Machine", "")))
    plain = [f"{plain_of(name)}={plain_of(value)}" for name, value in facts.items() if plain_of(value)]
    headers = ";".join(plain[:next((i for i in range(len(plain)) if len(";".join(plain[:i + 1])) > 512), len(plain))])
    return 200, ('<?xml version="1.0" encoding="UTF-8"?>\n<Response><Stream bidirectional="true" keepCallAlive="true" '
                 f'contentType="audio/x-mulaw;rate=8000" extraHeaders={quoteattr(headers)}>'
                 f"{escape(hook.stream())}</Stream></Response>\n"), XML


def plain_of(text: str) -> str:
    """What Plivo lets stand in extraHeaders: letters and digits."""
    return "".join(c for c in text if c.isascii() and c.isalnum())


def vonage_answer(hook: Hook) -> tuple[int, str | bytes, str]:
    """An NCCO for an application's answer URL, asked by GET or POST."""
    facts = hook.facts("from", "to")
    while len(orjson.dumps(facts)) > 400:
        facts.popitem()
    endpoint = {"type": "websocket", "uri": hook.stream(), "content-type": "audio/l16;rate=16000",
                "headers": {"uuid": hook.fields.get("uuid", ""), **facts}, "authorization": {"type": "vonage"}}
    return 200, orjson.dumps([{"action": "connect", "endpoint": [endpoint]}]), JSON


def jambonz_call(hook: Hook) -> tuple[int, str | bytes, str]:
    """jambonz's verbs for an application's calling webhook."""
    facts = hook.facts("from", "to", direction=hook.fields.get("direction", ""))
    listen = {"verb": "listen", "url": hook.stream(), "mixType": "mono", "sampleRate": 8000, "passDtmf": True,
              "bidirectionalAudio": {"enabled": True, "streaming": True, "sampleRate": 8000}, "metadata": facts}
    if hook.is_over(hook.fields.get("call_sid", "")):
        return 200, orjson.dumps([{"verb": "hangup"}]), JSON
    after = {"verb": "redirect", "actionHook": hook.again()} if hook.again() else {"verb": "hangup"}
    return 200, orjson.dumps([{"verb": "answer"}, listen, after]), JSON


# ---- calls that are handed over --------------------------------------------------------------------------------------

def target_of(hook: Hook) -> str:
    """Whom our own request to the platform named; ProtocolError(403) where that is nobody who may be called."""
    target = targets.spelled(hook.query.get("target", ""))
    if not targets.allowed(target, hook.server.config.targets):
        raise ProtocolError(403, "This call may not be handed over to that number.")
    return target


def twilio_handoff(hook: Hook) -> tuple[int, str | bytes, str]:
    """TwiML for a ConversationRelay session that is over, by the handoffData of its `end`; one that has failed instead
    is followed by another one."""
    try:
        told = orjson.loads(hook.fields.get("HandoffData", "") or "{}")
    except orjson.JSONDecodeError:
        told = {}
    if not told and failed(hook) and failures(hook) < MOST_FAILURES:
        return twilio_relay(hook, hook.facts("From", "To", direction=hook.fields.get("Direction", "")))
    handed_over = isinstance(told, dict) and told.get("do") == TRANSFER
    target = targets.spelled(text_of(told.get("target"))) if handed_over else ""
    if target and not targets.allowed(target, hook.server.config.targets):
        raise ProtocolError(403, "This call may not be handed over to that number.")
    kind = "Sip" if target.startswith("sip:") else "Number"
    verb = f"<Dial><{kind}>{escape(target)}</{kind}></Dial>" if target else "<Hangup/>"
    return 200, f'<?xml version="1.0" encoding="UTF-8"?>\n<Response>{verb}</Response>\n', XML


def plivo_transfer(hook: Hook) -> tuple[int, str | bytes, str]:
    """Plivo's XML that dials whom the agent gave the caller to."""
    target = target_of(hook)
    kind = "User" if target.startswith("sip:") else "Number"
    return 200, ('<?xml version="1.0" encoding="UTF-8"?>\n'
                 f"<Response><Dial><{kind}>{escape(target)}</{kind}></Dial></Response>\n"), XML


def jambonz_transfer(hook: Hook) -> tuple[int, str | bytes, str]:
    """jambonz's verbs that do the same."""
    target = target_of(hook)
    whom = {"type": "sip", "sipUri": target} if target.startswith("sip:") else {"type": "phone", "number": target}
    return 200, orjson.dumps([{"verb": "dial", "target": [whom]}]), JSON


# ---- who has answered, told while the call is on ---------------------------------------------------------------------

def machine(call: str, who: str) -> Callable[[Hook], tuple[int, str, str]]:
    """The answer to a webhook whose field `call` names a call and whose field `who` may say who has answered it."""
    def answer(hook: Hook) -> tuple[int, str, str]:
        if found := answered_by(hook.fields.get(who, "")):
            hook.server.answered_by(hook.fields.get(call, ""), found)
        return 200, "", "text/plain; charset=utf-8"
    return answer


def telnyx_event(hook: Hook) -> tuple[int, str, str]:
    """Telnyx's Call Control events, of which only who has answered matters here."""
    data = hook.content.get("data")
    payload = data.get("payload") if isinstance(data, dict) else None
    if isinstance(payload, dict) and data.get("event_type") in ("call.machine.detection.ended",
                                                                "call.machine.premium.detection.ended"):
        hook.server.answered_by(text_of(payload.get("call_control_id")), answered_by(text_of(payload.get("result"))))
    return 200, "", "text/plain; charset=utf-8"


ROUTES: dict[str, tuple[str, Callable[[Hook], tuple[int, str | bytes, str]]]] = {
    "/twilio/voice": ("twilio", twilio_voice),
    "/twilio/handoff": ("twilio", twilio_handoff),
    "/twilio/machine": ("twilio", machine("CallSid", "AnsweredBy")),
    "/telnyx/voice": ("telnyx", telnyx_voice),
    "/telnyx/event": ("telnyx", telnyx_event),
    "/plivo/answer": ("plivo", plivo_answer),
    "/plivo/machine": ("plivo", machine("CallUUID", "Machine")),
    "/vonage/answer": ("vonage", vonage_answer),
    "/vonage/event": ("vonage", machine("uuid", "status")),
    "/jambonz/call": ("jambonz", jambonz_call),
    "/plivo/transfer": ("plivo", plivo_transfer),
    "/jambonz/transfer": ("jambonz", jambonz_transfer),
    "/jambonz/machine": ("jambonz", machine("call_sid", "type")),
}
VOICES = (twilio_voice, jambonz_call)              # whose platforms go on to another stream when one has ended
BY_GET = ("/vonage/answer", "/plivo/answer")       # asked by GET, too, unless told otherwise


def route_of(path: str) -> tuple[str, str] | None:
    """(the route, the agent) of a path; None for what is no webhook."""
    parts = path.split("/")
    route = "/".join(parts[:3])
    if route not in ROUTES or len(parts) > 4:
        return None
    return route, parts[3] if len(parts) == 4 else ""


def takes_post(path: str) -> bool:
    return route_of(path) is not None


def check(server, head) -> None:
    """Raises ProtocolError(401) for a webhook that shows nothing at all: its body need not be read."""
    platform = ROUTES[route_of(head.path)[0]][0]
    if server.gate.keyring.guards(platform) and not any(
            head.get(name) for name in (SHOWN_IN[platform], "authorization")):
        server.gate.refuse(platform)


def respond(server, connection, head, body: bytes) -> tuple[int, str | bytes, str]:
    """(status, body, content type).  Raises ProtocolError(400, 401, 404 or 405, sentence)."""
    route, agent = route_of(head.path)
    platform, render = ROUTES[route]
    if head.method != "POST" and (head.method != "GET" or route not in BY_GET):
        raise posted_to()
    form, content = read(head, body)
    key = server.gate.admit_webhook(connection, head, platform, agent, form, body)
    if agent and agent not in server.studio.flows:
        raise ProtocolError(404, "There is no such agent here.")
    asked = head.query if head.method == "GET" else {}
    fields = {name: text_of(value) for name, value in content.items()} | dict(asked)
    fields |= {name: values[-1] for name, values in form.items()}
    facts = {} if head.method == "GET" else head.query
    return render(Hook(server, server.gate.place(connection, head), platform, agent, key, fields, content, facts,
                       connection.inquiry))


def read(head, body: bytes) -> tuple[dict[str, list[str]], dict]:
    """(the fields of a form, the object of a JSON text) of a body; ProtocolError(400) for what is neither."""
    kind = (head.get("content-type") or "").partition(";")[0].strip().lower()
    try:
        if head.method == "GET":
            return {}, {}
        if kind == JSON:
            content = orjson.loads(body)
            if isinstance(content, dict):
                return {}, content
        elif kind == "application/x-www-form-urlencoded":
            return parse_qs(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=200,
                            errors="strict"), {}
        elif not body:
            return {}, {}
    except ValueError:          # orjson.JSONDecodeError and UnicodeDecodeError are such
        pass
    raise ProtocolError(400, "The body is no form and no JSON object.")
