"""Vonage's Voice API, v1: JSON both ways, a token that the application's private key signs (RS256) as a bearer.

Numbers are written without a plus.  The rule: as in __init__.py.
"""
from collections.abc import Callable
from urllib.parse import quote

from ..credentials import Carrier
from . import Errand, Request, rs256

API = "https://api.nexmo.com/v1"
TOKEN_SECONDS = 60


def authorization(account: Carrier, now: int, nonce: str) -> str:
    """The bearer; `account.account` is the application's id, `account.secret` its private key in PEM."""
    claims = {"application_id": account.account, "iat": now, "exp": now + TOKEN_SECONDS, "jti": nonce}
    return rs256.token(claims, account.secret)


def party(target: str) -> dict[str, str]:
    if target.startswith("sip:"):
        return {"type": "sip", "uri": target}
    return {"type": "phone", "number": target.removeprefix("+")}


def dial(account: Carrier, errand: Errand) -> Request:
    content = {"to": [party(errand.number)], "from": party(account.sender),
               "answer_url": [errand.webhook("/vonage/answer")], "answer_method": "POST",
               "event_url": [errand.webhook("/vonage/event")], "event_method": "POST"}
    return Request("POST", "/calls", json=content | ({"machine_detection": "continue"} if errand.detect else {}))


def placed(answer: dict) -> str:
    return str(answer.get("uuid", ""))


def hang_up(account: Carrier, call_id: str) -> Request:
    return Request("PUT", f"/calls/{quote(call_id, '')}", json={"action": "hangup"}, again=True, gone=(400, 404))


def transfer(account: Carrier, call_id: str, target: str, ours: Callable[[str], str]) -> Request:
    sender = {"from": account.sender.removeprefix("+")} if account.sender else {}       # else it is nobody's number
    ncco = [{"action": "connect", **sender, "endpoint": [party(target)]}]
    return Request("PUT", f"/calls/{quote(call_id, '')}",
                   json={"action": "transfer", "destination": {"type": "ncco", "ncco": ncco}})
