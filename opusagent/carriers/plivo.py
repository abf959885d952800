"""Plivo's REST interface, v1: JSON both ways, HTTP basic authentication with the account's auth id and token.

To hand a call over, Plivo asks an address what to do with it: ours, /plivo/transfer.  The rule: as in __init__.py.
"""
from collections.abc import Callable
from urllib.parse import quote, urlencode

from ..credentials import Carrier
from . import Errand, Request

API = "https://api.plivo.com/v1"


def authorization(account: Carrier) -> tuple[str, str]:
    return account.account, account.secret


def calls(account: Carrier, call_id: str = "") -> str:
    return f"/Account/{quote(account.account, '')}/Call/" + (f"{quote(call_id, '')}/" if call_id else "")


def dial(account: Carrier, errand: Errand) -> Request:
    content = {"from": account.sender, "to": errand.number, "answer_url": errand.webhook("/plivo/answer"),
               "answer_method": "POST"}
    return Request("POST", calls(account), json=content | ({"machine_detection": "true"} if errand.detect else {}))


def placed(answer: dict) -> str:
    return str(answer.get("request_uuid", ""))


def hang_up(account: Carrier, call_id: str) -> Request:
    return Request("DELETE", calls(account, call_id), again=True, gone=(404,))


def transfer(account: Carrier, call_id: str, target: str, ours: Callable[[str], str]) -> Request:
    url = f"{ours('/plivo/transfer')}?{urlencode({'target': target})}"
    return Request("POST", calls(account, call_id), json={"legs": "aleg", "aleg_url": url, "aleg_method": "POST"})
