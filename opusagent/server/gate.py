"""Who may come in: what a request must show on its route, asked before anything is allocated for it.

It knows the configuration and the peer; what is compared, and how, is auth.py's.  The rules: a platform that has keys
must show one, from wherever it comes; without keys only this machine and the admin token are let in; whoever is refused
hears one sentence, the same for every reason.
"""
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable, Mapping

from .. import ProtocolError
from ..credentials import Key
from ..transport import net
from ..transport.inquiry import Nonces
from ..trust import auth, ephemeral
from ..trust.nonces import SharedNonces
from . import pages
from .routes import without_ticket

log = logging.getLogger("opusagent")

NONCES = SharedNonces()         # all workers': they are forked after this
OWN = secrets.token_urlsafe(32)     # signs ephemeral keys where nothing is configured that could; all workers', too
TOLD_EVERY_SECONDS = 1.0        # between two lines of the log about refused calls
FORWARDED = ("x-forwarded-for", "x-real-ip", "forwarded")       # a request with one of these came through a proxy
REFUSED = "This call does not show the credentials that its route asks for."


class Gate:
    """One for a worker."""

    __slots__ = ("config", "keyring", "nonces", "wall", "_proxies", "_count", "_told")

    def __init__(self, config, count=lambda name, **labels: None):
        """`count(name, **labels)` is told of each refusal."""
        self.config = config
        self.keyring = auth.Keyring(config.keys)
        self.nonces = NONCES
        self.wall = time.time
        self._proxies = [ipaddress.ip_network(proxy, strict=False) for proxy in config.proxies]
        self._count = count
        self._told = 0.0

    # -- where a request comes from ------------------------------------------------------------------------------------

    def local(self, connection, head) -> bool:
        """True for a peer on this machine; what came through a proxy is where its client is, if we believe that."""
        if not any(head.get(name) is not None for name in FORWARDED):
            return net.is_loopback(connection.peer)
        if not self._believes(connection.peer):
            return False
        client = next((hop for hop in reversed(head.tokens("x-forwarded-for")) if not self._believes(hop)), None)
        return client is not None and net.is_loopback(client)

    def _believes(self, peer) -> bool:
        """Whether an address is that of a proxy of ours."""
        host = peer[0] if isinstance(peer, tuple) and peer else peer
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._proxies)

    def place(self, connection, head) -> str:
        """This server as the request's sender knows it: https://HOST[:PORT][/PATH], without a slash at its end."""
        if self.config.public_url:
            return self.config.public_url.rstrip("/")
        scheme, host = "https" if self.config.tls_cert else "http", head.get("host", "")
        if self._believes(connection.peer):
            scheme = (head.tokens("x-forwarded-proto") or (scheme,))[-1].lower()
            host = (head.tokens("x-forwarded-host") or (host,))[-1]
        return f"{'https' if scheme in ('https', 'wss') else 'http'}://{host}"

    # -- what it shows -------------------------------------------------------------------------------------------------

    def admit(self, connection, head, platform: str, agent: str = "") -> Key | None:
        """The key that an upgrade shows; None where it needs none.  Raises ProtocolError(401)."""
        return self._admit(connection, head, platform, agent, auth.TABLE)

    def admit_webhook(self, connection, head, platform: str, agent: str, form: Mapping, body: bytes) -> Key | None:
        """The same for a webhook."""
        return self._admit(connection, head, platform, agent, auth.WEBHOOKS, form, body)

    def _admit(self, connection, head, platform: str, agent: str, ways: Mapping, form: Mapping = {},
               body: bytes | None = None) -> Key | None:
        if self.has_token(head):
            return None
        if not self.keyring.guards(platform):
            if self.config.insecure or self.local(connection, head):
                return None
            raise ProtocolError(401, "A call from another machine needs the token as a bearer.")
        key = self.keyring.admits(platform, self._shown(connection, head, agent, form, body), ways)
        if key is None:
            self.refuse(platform)
        return key

    # -- ephemeral keys ------------------------------------------------------------------------------------------------

    def signers(self, agent: str) -> list[Key]:
        """Whose secrets sign ephemeral keys for an agent: those of [auth.realtime]; where there are none, the admin's,
        and without such a token this server's own."""
        if self.keyring.guards("realtime"):
            return self.keyring.of("realtime", agent)
        return [Key("realtime", tokens=(self.config.admin_token or OWN,))]

    def opened(self, head, agent_of: Callable[[str], str]) -> ephemeral.Opened | None:
        """What the ephemeral key of an upgrade is good for; None where it shows none.  Raises ProtocolError(401).

        `agent_of`: the agent that a model's name means.
        """
        if not (value := ephemeral.shown(head.get)):
            return None
        found = ephemeral.opened(value, self.keyring.every("realtime") or self.signers(""), self.wall())
        if found is None or found.key not in self.signers(agent_of(found.model)):
            self.refuse("realtime")
        return found

    # -- where a browser is --------------------------------------------------------------------------------------------

    def check_diagnostics(self, connection, head) -> None:
        if not (self.config.diagnostics or self.local(connection, head)):
            raise ProtocolError(403, "The echo answers loopback peers only, unless diagnostics is set.")

    def check_origin(self, connection, head) -> None:
        if head.get("origin") is not None:
            self.check_trusted(connection, head)

    def check_trusted(self, connection, head) -> None:
        """Loopback (and not another site's page in a browser there), an allow-listed origin, or the admin token."""
        origin, host = head.get("origin"), head.get("host")
        if self.has_token(head) or origin in self.config.origins:
            return
        by_name = net.is_loopback_name(host)        # another name may be a site's that was made to lead here
        if origin is not None and not (net.same_place(origin, host) and by_name):
            raise ProtocolError(403, "This origin is not on the list of origins.")
        if not (by_name and self.local(connection, head)):
            raise ProtocolError(401, "This needs loopback, an allowed origin or the admin token.")

    # -- refusals ------------------------------------------------------------------------------------------------------

    def refuse(self, platform: str) -> None:
        """Counts, and raises ProtocolError(401)."""
        self._count("refused_credentials", platform=platform)
        now = self.wall()
        if now - self._told >= TOLD_EVERY_SECONDS:
            self._told = now
            log.warning("a request of %s's was refused: it does not show what [auth.%s] asks for", platform, platform)
        raise ProtocolError(401, REFUSED)

    def _shown(self, connection, head, agent: str, form: Mapping, body: bytes | None) -> auth.Shown:
        scheme, _, place = self.place(connection, head).partition("://")
        _, ticket = without_ticket(head.path)
        query = {**head.query, "ticket": ticket} if ticket else head.query
        names = ("wss", "ws") if body is None else ("https", "http")
        schemes = names[:1] if scheme == "https" else names         # TLS may have ended before us, and nobody told us
        return auth.Shown(
            method=head.method, urls=tuple(f"{name}://{place}{head.target}" for name in schemes), target=head.target,
            authority=place.partition("/")[0], field=head.get, query=query, agent=agent, now=self.wall(),
            nonces=Nonces(self.nonces, connection.inquiry), form=form, body=body)

    def has_token(self, head) -> bool:
        return pages.token_matches(self.config.admin_token, head.get("authorization", ""))

    @staticmethod
    def check_tenant(tenant: str, claimed: str) -> None:
        """ProtocolError(1008) unless a call is of the account that its credentials are of."""
        if tenant and not auth.signatures.same_tenant(tenant, claimed):
            raise ProtocolError(1008, "this call is of another account than its credentials")
