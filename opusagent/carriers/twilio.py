"""Twilio's REST interface, 2010-04-01: forms in, JSON out, HTTP basic authentication with the account's SID and token.

SignalWire's and other copies of it take the same requests at an address of their own.  The rule: as in __init__.py.
"""
from collections.abc import Callable
from urllib.parse import quote
from xml.sax.saxutils import escape

from ..credentials import Carrier
from . import Errand, Request

API = "https://api.twilio.com/2010-04-01"


def authorization(account: Carrier) -> tuple[str, str]:
    return account.account, account.secret


def calls(account: Carrier, call_id: str = "") -> str:
    return f"/Accounts/{quote(account.account, '')}/Calls" + (f"/{quote(call_id, '')}" if call_id else "") + ".json"


def dial(account: Carrier, errand: Errand) -> Request:
    """Twilio waits for who has answered, and tells our webhook (AnsweredBy), before it connects the stream."""
    form = {"To": errand.number, "From": account.sender, "Url": errand.webhook("/twilio/voice"), "Method": "POST"}
    return Request("POST", calls(account), form | ({"MachineDetection": "Enable"} if errand.detect else {}))


def placed(answer: dict) -> str:
    return str(answer.get("sid", ""))


def hang_up(account: Carrier, call_id: str) -> Request:
    return Request("POST", calls(account, call_id), {"Status": "completed"}, again=True, gone=(404,))


def transfer(account: Carrier, call_id: str, target: str, ours: Callable[[str], str]) -> Request:
    whom = f"<Sip>{escape(target)}</Sip>" if target.startswith("sip:") else escape(target)
    return Request("POST", calls(account, call_id), {"Twiml": f"<Response><Dial>{whom}</Dial></Response>"})
