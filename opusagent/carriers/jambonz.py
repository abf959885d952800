"""jambonz's REST interface, v1: JSON both ways, the API key as a bearer.  A carrier of it needs `api`, its server's.

To hand a call over, jambonz asks an address what to do with it: ours, /jambonz/transfer.  The rule: as in __init__.py.
"""
from collections.abc import Callable
from urllib.parse import quote, urlencode

from ..credentials import Carrier
from . import Errand, Request

API = "https://jambonz.cloud/api/v1"


def authorization(account: Carrier) -> str:
    return account.secret


def calls(account: Carrier, call_id: str = "") -> str:
    return f"/Accounts/{quote(account.account, '')}/Calls" + (f"/{quote(call_id, '')}" if call_id else "")


def dial(account: Carrier, errand: Errand) -> Request:
    whom = {"type": "sip", "sipUri": errand.number} if errand.number.startswith("sip:") else {
        "type": "phone", "number": errand.number}
    content = {"from": account.sender, "to": whom, "call_hook": {"url": errand.webhook("/jambonz/call"),
                                                                 "method": "POST"}}
    amd = {"amd": {"actionHook": errand.webhook("/jambonz/machine")}} if errand.detect else {}
    return Request("POST", calls(account), json=content | amd)


def placed(answer: dict) -> str:
    return str(answer.get("sid", ""))


def hang_up(account: Carrier, call_id: str) -> Request:
    return Request("PUT", calls(account, call_id), json={"call_status": "completed"}, again=True, gone=(404, 422))


def transfer(account: Carrier, call_id: str, target: str, ours: Callable[[str], str]) -> Request:
    url = f"{ours('/jambonz/transfer')}?{urlencode({'target': target})}"
    return Request("PUT", calls(account, call_id), json={"call_hook": {"url": url, "method": "POST"}})
