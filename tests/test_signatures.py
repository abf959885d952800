"""Signatures against vectors of the platforms' own packages, and everything near them refused.

The vectors of Plivo were made with PyPI plivo 4.63.0 (auth token 12345, nonce 67890), those of Vonage with PyJWT
2.15.1; one is RFC 7515's own (appendix A.1).
"""
import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent.trust.signatures import AGE_SECONDS, SKEW_SECONDS, plivo_v3, vonage_claims

TOKEN, NONCE = "12345", "67890"
PLIVO = [
    ("GET", "https://example.com/answer", {}, "SzHHhlSDEyNBcwsG4+5krQl9krs04/w7d7lPRoEUeAc="),
    ("GET", "https://example.com/answer/?b=2&a=1&a=0&c=", {}, "iL1P7eBn8L4Fr2u/Gyza+JIOVCbgTt4hVfIQbGAo6WI="),
    ("GET", "wss://example.com/ws/plivo?token=one%20two", {}, "ibsFMbc6eO8Jjg8iHGtyiHkWBx4a2J6XIVInCfw6tLc="),
    ("GET", "https://example.com/answer?x=1", {"CallUUID": "u", "From": "15550100"},
     "aqxaSNFiElUodiAPHtjEK343iHbcAxEgcAG2TSvcXSE="),
    ("POST", "https://example.com/answer", {"CallUUID": "u", "From": "15550100", "Äh": "ö"},
     "3kXWQGCP9tZ/Xn0O45TeAslSLxlIKEa1MrkMKam+P28="),
    ("POST", "https://example.com/answer?z=1&y=2", {"To": ["b", "a"], "Event": "StartStream"},
     "4eo8aYxqSXoaXYWxq3sLn4hKkllocsOnjcqHpBFN0Fo="),
    ("POST", "https://example.com/answer?z=1", {}, "8NUfgkW6kmra7/lRBzHdSjq2w4AEUdLz33LsCzfsHs8="),
    ("POST", "https://example.com", {}, "+/7UR0tOpEcvzG8+BXP2ISjMkd1s+1n7G9/vDlP3Gok="),
]


@pytest.mark.parametrize("method, url, form, signature", PLIVO)
def test_plivos_own_signatures_fit(method, url, form, signature):
    assert plivo_v3([TOKEN], method, url, NONCE, signature, form)
    assert plivo_v3(["next", TOKEN], method, url, NONCE, f"{'A' * 43}=, {signature}", form)
    assert not plivo_v3([TOKEN], method, url + "/", NONCE, signature, form)
    assert not plivo_v3([TOKEN], method, url, "67891", signature, form)
    assert not plivo_v3([TOKEN], method, url, NONCE, signature, form | {"more": "1"})
    assert not plivo_v3(["54321"], method, url, NONCE, signature, form)


@pytest.mark.parametrize("method, url, form, signature", PLIVO)
def test_no_bit_of_a_plivo_signature_may_differ(method, url, form, signature):
    raw = signature.encode()
    for i in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[i // 8] ^= 1 << i % 8
        assert not plivo_v3([TOKEN], method, url, NONCE, changed.decode("latin-1"), form)
    for header in ("", ",", signature[:-1], signature + "=", signature.rstrip("=")):
        assert not plivo_v3([TOKEN], method, url, NONCE, header, form)


def test_an_empty_secret_signs_nothing():
    made = base64.b64encode(hmac.digest(b"", b"https://h/.1", "sha256")).decode()
    assert not plivo_v3([""], "GET", "https://h/", "1", made) and not plivo_v3([], "GET", "https://h/", "1", made)
    assert vonage_claims([""], jwt({"iat": 100}, ""), 100) is None


# ---- Vonage ----------------------------------------------------------------------------------------------------------

SECRET, ISSUED = "secret-of-the-account", 1790000000
VONAGE = ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJWb25hZ2UiLCJhcGlfa2V5IjoiYTFiMiIsImFwcGxpY2F0aW9uX2l"
          "kIjoiYXBwIiwiaWF0IjoxNzkwMDAwMDAwLCJqdGkiOiJqMSJ9.EIWt-NjK5A394oAFXBxo4g0RwvO-cZMLiCiQ1nSBzrs")
VONAGE_BODY = ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJWb25hZ2UiLCJpYXQiOjE3OTAwMDAwMDAsImV4cCI6MTc5MDAwMDA"
               "2MCwicGF5bG9hZF9oYXNoIjoiMDE1YWJkN2Y1Y2M1N2EyZGQ5NGI3NTkwZjA0YWQ4MDg0MjczOTA1ZWUzM2VjNWNlYmVhZTYyMjc"
               "2YTk3Zjg2MiJ9.EDoxYyZTGYXn9zt5R9GRK74feemYQxDUF-E0PFno-1Q")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwt(claims, secret=SECRET, **header):
    signed = f"{b64(json.dumps({'alg': 'HS256', 'typ': 'JWT'} | header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{signed}.{b64(hmac.digest(secret.encode(), signed.encode(), 'sha256'))}"


def test_vonages_tokens_fit():
    assert vonage_claims([SECRET], VONAGE, ISSUED)["application_id"] == "app"
    assert vonage_claims(["old", SECRET], VONAGE, ISSUED) is not None
    assert vonage_claims([SECRET], VONAGE_BODY, ISSUED, b'{"a":1}')["iss"] == "Vonage"
    assert vonage_claims([SECRET], VONAGE_BODY, ISSUED, b'{"a":2}') is None
    assert vonage_claims([SECRET], VONAGE, ISSUED, b"") is None, "there is no hash of the body in it"


def test_the_token_of_the_rfc_fits():
    # its key is bytes, most of them no UTF-8; the signature is what counts here
    token = ("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9"
             "leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    key = base64.urlsafe_b64decode(
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow==")

    class Key(str):
        def encode(self):
            return key
    assert vonage_claims([Key("k")], token, 1300819379) == {
        "iss": "joe", "exp": 1300819380, "http://example.com/is_root": True}


def test_no_bit_of_a_token_may_differ():
    raw = VONAGE.encode()
    for i in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[i // 8] ^= 1 << i % 8
        assert vonage_claims([SECRET], changed.decode("latin-1"), ISSUED) is None


@pytest.mark.parametrize("claims, first, last", [
    ({"iat": 1000}, 1000 - SKEW_SECONDS, 1000 + AGE_SECONDS + SKEW_SECONDS - 1),
    ({"iat": 1000, "exp": 1060}, 1000 - SKEW_SECONDS, 1060 + SKEW_SECONDS - 1),
    ({"exp": 1060}, 0, 1060 + SKEW_SECONDS - 1),
    ({"iat": 1000, "nbf": 1010, "exp": 1060}, 1010 - SKEW_SECONDS, 1060 + SKEW_SECONDS - 1)])
def test_a_token_lives_as_long_as_it_says(claims, first, last):
    token = jwt(claims)
    assert vonage_claims([SECRET], token, first) and vonage_claims([SECRET], token, last)
    assert vonage_claims([SECRET], token, last + 1) is None
    assert first == 0 or vonage_claims([SECRET], token, first - 1) is None


@pytest.mark.parametrize("token", [
    jwt({}), jwt({"iat": "1000"}), jwt({"iat": True}), jwt({"iat": 1000, "exp": None, "nbf": []}), jwt([1000]),
    jwt({"iat": 1000}, alg="none"), jwt({"iat": 1000}, alg="RS256"), jwt({"iat": 1000}, alg=["HS256"]),
    jwt({"iat": 1000}, crit=["exp"]), jwt({"iat": 1000}, "another secret"), jwt({"iat": 1000}) + "=",
    jwt({"iat": 1000}).rpartition(".")[0] + ".", jwt({"iat": 1000}).rpartition(".")[0],
    jwt({"iat": 1000, "x": "y" * 9000}), "", ".", "..", "a.b.c", "é.é.é"])
def test_what_is_no_token_of_ours_has_no_claims(token):
    assert vonage_claims([SECRET], token, 1000) is None


@given(st.text(max_size=40), st.sampled_from(["", "GET", "POST"]),
       st.dictionaries(st.text(max_size=4), st.text(max_size=4)))
def test_whatever_comes_is_answered(text, method, form):
    assert vonage_claims([SECRET], text, 1000) is None
    assert not plivo_v3([TOKEN], method, "https://h/" + text.replace("[", "").replace("]", ""), text, text, form)


def test_the_hash_is_the_bodys():
    body = b'{"uuid":"u"}'
    claims = {"iat": 1000, "payload_hash": hashlib.sha256(body).hexdigest().upper()}
    assert vonage_claims([SECRET], jwt(claims), 1000, body) == claims
    assert vonage_claims([SECRET], jwt(claims | {"payload_hash": 5}), 1000, body) is None
