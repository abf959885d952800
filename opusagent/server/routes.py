"""What may be asked of a worker: its pages, what is posted to it, and calls.

It reads what an address names, and begins what may come in; whether it may is for gate.py, limits.py and admission.py
to say.  The rule: who is refused has had nothing allocated.
"""
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace

import orjson

from .. import ProtocolError
from .. import config as settings
from ..calls import journal
from ..calls.call import Call
from ..calls.echo import EchoCall, EchoSession
from ..calls.kinds import call_of
from ..continuity.returning import meet
from ..dialects import DIALECTS, Dialect, OpenAIRealtime, dialect_of
from ..transport import http11, net
from ..transport.connection import Connection, Limits
from ..trust.auth import offered_keys
from ..trust.ephemeral import Opened
from . import client_secrets, pages, webhooks
from .limits import caller_of

BETA = "openai-beta.realtime-v1"        # a subprotocol
FASTEST_CALL = 128 << 10        # bytes a second on a telephony route: four times what the widest of them needs
CONTROL_RATE = 8                # control frames a second on a telephony route
POSTED = (webhooks, client_secrets)     # what answers a POST: takes_post(), check(), respond() of each


class Routes:
    """A worker's."""

    __slots__ = ("server", "wide", "narrow", "diagnostic")

    def __init__(self, server):
        net_config = server.config.net
        self.server = server
        # what a peer may do: anybody's own client, a telephony platform, and one that tries the echo
        self.wide = Limits(net_config.max_message, 1 << 17, 60.0, net_config.ping_timeout_seconds)
        self.narrow = Limits(net_config.max_message_telephony, 16, 5.0, net_config.media_timeout_seconds,
                             FASTEST_CALL, CONTROL_RATE)
        self.diagnostic = replace(self.narrow, bytes_per_second=0)

    # -- pages ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def takes_post(path: str):
        """The module that answers what is posted to a path; None where nothing can be."""
        return next((module for module in POSTED if module.takes_post(path)), None)

    def check_post(self, connection: Connection, head: http11.Head) -> None:
        """Raises ProtocolError for a POST that need not be read."""
        self.takes_post(head.path).check(self.server, head)

    def page(self, connection: Connection, head: http11.Head, body: bytes = b"") -> bytes:
        """The answer to a plain GET or HEAD, or to a POST.  Raises ProtocolError(status, sentence)."""
        if (posted := self.takes_post(head.path)) is not None:
            return http11.response(*posted.respond(self.server, connection, head, body))
        name = head.path if head.path in pages.PAGES else "/" + head.path[1:].partition("/")[0] + "/"
        page = pages.PAGES.get(name)
        if page is None or not (connection.pages or page.open):
            raise pages.missing(head.path)
        if not page.open:
            self.server.gate.check_trusted(connection, head)
        return http11.response(*page.render(self.server, head), head_only=head.method == "HEAD")

    # -- calls ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def protocols(head: http11.Head) -> tuple[str, ...]:
        """The subprotocols of which a peer may have the first that it offers: those of its route's dialect."""
        return DIALECTS.get(dialect_of(head.path), Dialect).protocols

    def session(self, connection: Connection, head: http11.Head) -> tuple[Limits, Callable]:
        """What an upgrade asks for: its limits, and the function that begins its session once the 101 is out."""
        server, gate = self.server, self.server.gate
        parts = without_ticket(head.path)[0].split("/")
        if parts[1:] == ["ws", "echo"]:
            gate.check_diagnostics(connection, head)
            gate.check_origin(connection, head)
            return self.wide, EchoSession
        name = dialect_of(head.path)
        if len(parts) not in (3, 4) or not name:
            raise ProtocolError(404, "There is no such route here; calls come to /ws/<dialect>[/<agent>].")
        dialect = DIALECTS.get(name)
        if dialect is None:
            raise ProtocolError(404, f"There is no such dialect here; there are {', '.join(DIALECTS)}.")
        agent, query, opened = parts[3] if len(parts) == 4 else "", without_secrets(head.query), None
        if name == OpenAIRealtime.name:
            opened = gate.opened(head, server.studio.agent_of)
            query = realtime_query(head, query, opened)
            agent = agent or server.studio.agent_of(query.get("model", ""))
        self._check_call(connection, head, agent, dialect.platform or dialect.name, opened)
        limits = self.allowance(dialect, agent)
        spoken = dialect(query)
        if agent == "echo":
            return limits, lambda connection: EchoCall(server, connection, spoken, agent)
        make = call_of(name)
        return limits, lambda connection: meet(server, connection, spoken, agent, lambda line: make(
            server, line, spoken, agent, self._journal(spoken, query, agent)))

    def allowance(self, dialect, agent: str) -> Limits:
        """What the peer of such a call may do."""
        telephony = dialect.max_message <= self.narrow.max_message
        return self.wide if not telephony else self.diagnostic if agent == "echo" else self.narrow

    def bare_session(self, connection, dialect) -> Call:
        """A call without a request, so without a token, to the flow that the server was started with."""
        if not (net.is_loopback(connection.peer) or self.server.config.insecure):
            raise ProtocolError(401, "A call without authentication from another machine needs --insecure.")
        self.server.admission.check(connection)
        return Call(self.server, connection, dialect, "", self._journal(dialect, {}, ""))

    def _check_call(self, connection: Connection, head: http11.Head, agent: str, platform: str,
                    opened: Opened | None) -> None:
        server, gate = self.server, self.server.gate
        if agent == "echo":
            gate.check_diagnostics(connection, head)
        if opened is not None and agent != server.studio.agent_of(opened.model):
            gate.refuse(platform)
        key = opened.key if opened is not None else gate.admit(connection, head, platform, agent)
        if key is None or not offered_keys(head.get):       # no other site's page could offer our key
            gate.check_origin(connection, head)
        connection.tenant = key.tenant if key else ""
        if agent != "echo" and agent and agent not in server.studio.flows:
            raise ProtocolError(404, "There is no such agent here.")
        if agent != "echo":
            server.limits.check(caller_of(head.query), connection.tenant)
        server.admission.check(connection)

    def _journal(self, dialect, query: dict[str, str], agent: str) -> "journal.Journal | None":
        """What a new call notes; None where nothing is kept."""
        server = self.server
        if server.archive is None or not server.config.archive.journals:
            return None
        return journal.Journal(self._journal_file, journal.header(
            dialect.name, query, agent, server.studio.flows[agent], server.config, settings.SETTINGS, server.today))

    def _journal_file(self, call_id: str):
        return self.server.archive.file(call_id + ".jsonl", self.server.calls[call_id].usage.began_at)


# -- what an address names --------------------------------------------------------------------------------------------

def without_ticket(path: str) -> tuple[str, str]:
    """A route, and the ticket at its end, "" without one: where a platform allows no query, it ends with /ticket/..."""
    route, _, ticket = path.partition("/ticket/")
    return route, ticket


def without_secrets(query: Mapping[str, str]) -> dict[str, str]:
    """A query as a dialect may see it."""
    return {name: value for name, value in query.items() if name not in ("token", "ticket")}


def realtime_query(head, query: dict[str, str], opened: Opened | None) -> dict[str, str]:
    """The query as the dialect takes it: with a name for the call, whether beta's names are wanted, and what an
    ephemeral key has brought along."""
    beta = "realtime=v1" in (head.get("openai-beta") or "") or BETA in head.tokens("sec-websocket-protocol")
    found = {"call_id": secrets.token_hex(8), **query, **({"beta": "1"} if beta else {})}
    found.pop("session", None)                  # whoever calls may say so when the call has begun
    if opened is not None:
        found = {"model": opened.model} | found | {"session": orjson.dumps(opened.session).decode()}
    return found
