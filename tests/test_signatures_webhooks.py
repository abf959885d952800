"""Twilio's, Telnyx's and jambonz's signatures, and Ed25519 itself, against published vectors; what is near is refused.

Twilio's vectors are those of its documentation and of twilio-python's tests, the two for streams were made with PyPI
twilio 9.13.0; Ed25519's are RFC 8032's (section 7.1).
"""
import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent.trust import ed25519
from opusagent.trust.signatures import AGE_SECONDS, jambonz_webhook, telnyx_webhook, twilio_signature, with_ports

TOKEN = "12345"
CALL = {"CallSid": "CA1234567890ABCDE", "Caller": "+12349013030", "Digits": "1234", "From": "+12349013030",
        "To": "+18005551212"}
ANOTHER = CALL | {"Caller": "+14158675309", "From": "+14158675309"}
TWILIO = [
    ("https://mycompany.com/myapp.php?foo=1&bar=2", CALL, "0/KCTR6DLpKmkAf8muzZqo1nDgQ="),
    ("https://mycompany.com/myapp.php?foo=1&bar=2", ANOTHER, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
    ("wss://example.com/media", {}, "7PR3qMkpDyEJtMrVOY/LDyNq8J8="),
    ("wss://example.com:443/media", {}, "zyyJQiPZXIGCLy3HYdHEfry0yDg="),
]


@pytest.mark.parametrize("url, form, signature", TWILIO)
def test_twilios_own_signatures_fit(url, form, signature):
    assert twilio_signature([TOKEN], [url], signature, form)
    assert twilio_signature(["next", TOKEN], ["https://elsewhere/", url], signature, form)
    assert twilio_signature([TOKEN], [url], signature, {name: [value] for name, value in form.items()})
    for wrong in (([TOKEN], [url + "/"], signature, form), (["54321"], [url], signature, form),
                  ([], [url], signature, form), ([TOKEN], [url], signature, form | {"More": "1"}),
                  ([TOKEN], [], signature, form), ([""], [url], "", form)):
        assert not twilio_signature(*wrong)


@pytest.mark.parametrize("url, form, signature", TWILIO)
def test_no_bit_of_a_twilio_signature_may_differ(url, form, signature):
    raw = signature.encode()
    for i in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[i // 8] ^= 1 << i % 8
        assert not twilio_signature([TOKEN], [url], changed.decode("latin-1"), form)


def test_a_port_that_the_scheme_implies_may_be_signed_or_not():
    for url, _, signature in TWILIO[2:]:
        assert twilio_signature([TOKEN], ["wss://example.com/media"], signature)
        assert twilio_signature([TOKEN], ["wss://example.com:443/media"], signature)
        assert not twilio_signature([TOKEN], ["wss://example.com:8443/media"], signature)
    assert with_ports("http://h") == ("http://h", "http://h:80") and with_ports("wss://h:80/") == ("wss://h:80/",)


def test_a_field_that_came_twice_is_signed_once_for_each_value():
    made = base64.b64encode(hmac.digest(TOKEN.encode(), b"https://h/aXaYb1", "sha1")).decode()
    assert twilio_signature([TOKEN], ["https://h/"], made, {"b": ["1"], "a": ["Y", "X", "Y"]})


# ---- Ed25519 ---------------------------------------------------------------------------------------------------------

VECTORS = [(bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature)) for key, message, signature in (
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
     "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
     "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
     "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
)]


@pytest.mark.parametrize("key, message, signature", VECTORS)
def test_ed25519_as_the_rfc_has_it(key, message, signature):
    assert ed25519.verify(key, message, signature)
    assert not ed25519.verify(key, message + b"!", signature)


def test_no_bit_of_an_ed25519_signature_may_differ():
    key, message, signature = VECTORS[1]
    for i in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[i // 8] ^= 1 << i % 8
        assert not ed25519.verify(key, message, bytes(changed)), i


def test_only_the_canonical_spelling_of_an_ed25519_signature_counts():
    key, message, signature = VECTORS[0]
    scalar = int.from_bytes(signature[32:], "little") + ed25519.L
    assert not ed25519.verify(key, message, signature[:32] + scalar.to_bytes(32, "little"))
    assert ed25519.point((ed25519.P + 1).to_bytes(32, "little")) is None                        # y not below P
    assert ed25519.point(bytes([1]) + bytes(30) + bytes([0x80])) is None                        # x = 0, said to be odd
    for cut in (b"", signature[:63], signature + b"\0"):
        assert not ed25519.verify(key, message, cut)
    assert not ed25519.verify(key[:31], message, signature) and not ed25519.verify(b"", message, signature)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=64))
def test_nothing_that_is_sent_makes_ed25519_stumble(key, signature):
    assert not ed25519.verify(key, b"", signature)


# ---- webhooks --------------------------------------------------------------------------------------------------------

NOW, BODY = 1_790_000_000, b'{"data": {"event_type": "call.initiated"}}'


def signed(secret: bytes, message: bytes) -> tuple[bytes, bytes]:
    """(public key, signature) by RFC 8032 section 5.1.6: the half that opusagent/trust/ed25519.py does not have."""
    def times(scalar):
        total, point = ed25519.NOTHING, ed25519.BASE
        while scalar:
            total = ed25519.add(total, point) if scalar & 1 else total
            point, scalar = ed25519.add(point, point), scalar >> 1
        inverse = pow(total[2], ed25519.P - 2, ed25519.P)
        x, y = total[0] * inverse % ed25519.P, total[1] * inverse % ed25519.P
        return (y | (x & 1) << 255).to_bytes(32, "little")
    expanded = hashlib.sha512(secret).digest()
    scalar = int.from_bytes(expanded[:32], "little") & (1 << 254) - 8 | 1 << 254
    public = times(scalar)
    r = int.from_bytes(hashlib.sha512(expanded[32:] + message).digest(), "little") % ed25519.L
    spelled = times(r)
    challenge = int.from_bytes(hashlib.sha512(spelled + public + message).digest(), "little")
    return public, spelled + ((r + challenge * scalar) % ed25519.L).to_bytes(32, "little")


def test_the_other_half_makes_the_rfcs_signatures():
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert signed(secret, b"") == (VECTORS[0][0], VECTORS[0][2])


def test_telnyxs_webhooks_are_signed_with_their_time():
    public, signature = signed(b"s" * 32, str(NOW).encode() + b"|" + BODY)
    keys = [base64.b64encode(key).decode() for key in (b"k" * 32, public)]
    header = base64.b64encode(signature).decode()
    assert telnyx_webhook(keys, str(NOW), header, BODY, NOW) and telnyx_webhook(keys, str(NOW), header, BODY, NOW + 299)
    for wrong in ((keys, str(NOW), header, BODY + b" ", NOW), (keys, str(NOW + 1), header, BODY, NOW),
                  (keys[:1], str(NOW), header, BODY, NOW), (keys, str(NOW), header, BODY, NOW + AGE_SECONDS + 1),
                  (keys, str(NOW), "", BODY, NOW), (keys, "", header, BODY, NOW), (keys, "soon", header, BODY, NOW)):
        assert not telnyx_webhook(*wrong)


def test_jambonzs_webhooks_are_signed_with_their_time():
    made = hmac.digest(b"secret-one", f"{NOW}.".encode() + BODY, "sha256").hex()
    header = f"t={NOW},v1={'0' * 64},v1={made}"
    assert jambonz_webhook(["secret-two", "secret-one"], header, BODY, NOW)
    for wrong in ((["secret-two"], header, BODY, NOW), (["secret-one"], header, BODY + b" ", NOW),
                  (["secret-one"], header, BODY, NOW + AGE_SECONDS + 1), (["secret-one"], "", BODY, NOW),
                  (["secret-one"], header.replace(f"t={NOW}", f"t={NOW + 1}"), BODY, NOW),
                  (["secret-one"], made, BODY, NOW)):
        assert not jambonz_webhook(*wrong)
    for i in range(8 * len(made)):
        raw = bytearray(made.encode())
        raw[i // 8] ^= 1 << i % 8
        assert not jambonz_webhook(["secret-one"], f"t={NOW},v1={raw.decode('latin-1')}", BODY, NOW)
