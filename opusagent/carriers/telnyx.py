"""Telnyx Call Control, v2: JSON both ways, the API key as a bearer.

A call that is placed here streams by itself once it is answered; who has answered is told to /telnyx/event.
The rule: as in __init__.py; commands carry an id of their own, so that a second one of the same changes nothing.
"""
from collections.abc import Callable
from hashlib import sha256
from urllib.parse import quote

from ..credentials import Carrier
from . import Errand, Request

API = "https://api.telnyx.com/v2"


def authorization(account: Carrier) -> str:
    return account.secret


def action(call_id: str, name: str, **content) -> Request:
    command = sha256(f"{call_id} {name} {content}".encode()).hexdigest()[:32]
    return Request("POST", f"/calls/{quote(call_id, '')}/actions/{name}", json={**content, "command_id": command},
                   again=True, gone=(404, 422))


def dial(account: Carrier, errand: Errand) -> Request:
    """Nobody but us holds such a call: unless we hang up, whoever was called hears silence when the flow is over."""
    content = {"connection_id": account.connection or account.account, "to": errand.number, "from": account.sender,
               "stream_url": errand.stream("telnyx") + "?hang_up=yes", "stream_track": "inbound_track",
               "stream_codec": "PCMU", "stream_bidirectional_mode": "rtp", "stream_bidirectional_codec": "PCMU",
               "webhook_url": errand.webhook("/telnyx/event")}
    if errand.token:
        content["stream_auth_token"] = errand.token
    if errand.detect:
        content["answering_machine_detection"] = "detect"
    return Request("POST", "/calls", json=content)


def placed(answer: dict) -> str:
    data = answer.get("data")
    return str(data.get("call_control_id", "")) if isinstance(data, dict) else ""


def hang_up(account: Carrier, call_id: str) -> Request:
    return action(call_id, "hangup")


def transfer(account: Carrier, call_id: str, target: str, ours: Callable[[str], str]) -> Request:
    return action(call_id, "transfer", to=target)
