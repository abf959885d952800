"""The platforms' REST interfaces: how a call is placed, ended and handed over where no WebSocket message does it.

One file each, found in TABLE, with the same functions; each makes a Request and sends nothing (rest.py does):
    dial(account, errand) -> Request            a call to `errand.number`, whose audio comes to our route
    hang_up(account, call_id) -> Request
    transfer(account, call_id, target, ours) -> Request     to "+49..." or "sip:..."; `ours(route)` is a webhook's
                                                address, for platforms that come back to ask what to do
    placed(answer) -> str                       the id of the call that dial() has made, from the JSON that came back
    API                                         the address of the interface, unless the account names another

`dialling` is the command that places a call, and `rs256` how Vonage's requests are signed.

The rule: no function decides whom to call (targets.py does), and no credentials stand in a path or a body.
"""
from dataclasses import dataclass, field

from ..credentials import Carrier


def webhook(place: str, agent: str, route: str) -> str:
    """The address of one of ours, with the keys of the agent, "" for those of no agent in particular."""
    return f"{place}{route}" + (f"/{agent}" if agent else "")


@dataclass(frozen=True, slots=True)
class Errand:
    """A call to be placed."""

    number: str                 # as targets.py writes it
    place: str                  # https://HOST[/PATH]: how the world reaches the server that will hold the call
    agent: str = ""             # of that server; "" is the flow that it was started with
    detect: bool = True         # ask the platform whether a machine has answered
    token: str = ""             # what the stream is to show, where the platform takes such a thing

    def webhook(self, route: str) -> str:
        return webhook(self.place, self.agent, route)

    def stream(self, dialect: str) -> str:
        return f"ws{self.place[4:]}/ws/{dialect}" + (f"/{self.agent}" if self.agent else "")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, without what it is authenticated by."""

    method: str
    path: str                                   # behind the API's address
    form: dict[str, str] | None = None          # the body as a form,
    json: dict | None = None                    # or as JSON
    again: bool = False                         # may be sent a second time: its effect is the same
    gone: tuple[int, ...] = ()                  # statuses that say that the call is over already
    headers: dict[str, str] = field(default_factory=dict)


def api_of(account: Carrier) -> str:
    return (account.api or TABLE[account.platform].API).rstrip("/")


from . import jambonz, plivo, telnyx, twilio, vonage        # noqa: E402  (they make the Requests above)

TABLE = {"twilio": twilio, "telnyx": telnyx, "plivo": plivo, "vonage": vonage, "jambonz": jambonz}
