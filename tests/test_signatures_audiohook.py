"""AudioHook's signature: vectors made with `openssl dgst -sha256 -mac HMAC`, and everything near them refused."""
import base64
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent.trust.signatures import COVERED, Nonces, audiohook_key, same_tenant

KEY, SECRET, OTHER = "our-key", "YSBjbGllbnQgc2VjcmV0IG9mIDMyIGJ5dGVzLCBvayEh", "YW5vdGhlcg=="
CREATED = 1780000000
TARGET, AUTHORITY = "/ws/audiohook/cards?region=eu", "voice.example.com"
HEADERS = {
    "audiohook-organization-id": "0a000000-0000-4000-8000-000000000001",
    "audiohook-session-id": "0b000000-0000-4000-8000-000000000002",
    "audiohook-correlation-id": "0c000000-0000-4000-8000-000000000003",
    "x-api-key": KEY,
    "signature-input": 'sig1=("@request-target" "@authority" "audiohook-organization-id" "audiohook-session-id" '
                       '"audiohook-correlation-id" "x-api-key");keyid="our-key";nonce="bm9uY2UtbnVtYmVyLW9uZQAA";'
                       'alg="hmac-sha256";created=1780000000;expires=1780000030',
    "signature": "sig1=:6icBArcFYM3OmqnQjA2s23tcb0axchx/8Y1ok+/tIe8=:",
}


def key_of(headers=HEADERS, now=CREATED, target=TARGET, authority=AUTHORITY, secrets=None, nonces=None):
    secrets = {KEY: [SECRET]} if secrets is None else secrets
    return audiohook_key(secrets, target, authority, headers.get, now, Nonces() if nonces is None else nonces)


def signed(secret=SECRET, key=KEY, created=CREATED, names=COVERED, more="", nonce="bm9uY2UtbnVtYmVyLW9uZQAA"):
    """HEADERS with a signature of our own over other parameters."""
    listed = "(" + " ".join(f'"{name}"' for name in names) + f');keyid="{key}";nonce="{nonce}";created={created}{more}'
    values = {"@request-target": TARGET, "@authority": AUTHORITY} | HEADERS | {"x-api-key": key}
    lines = [f'"{name}": {values.get(name, "")}' for name in names] + [f'"@signature-params": {listed}']
    made = hmac.digest(base64.b64decode(secret), "\n".join(lines).encode(), "sha256")
    return HEADERS | {"x-api-key": key, "signature-input": f"sig1={listed}",
                      "signature": f"sig1=:{base64.b64encode(made).decode()}:"}


def test_a_signature_fits():
    assert key_of() == KEY


def test_the_order_of_the_components_is_the_signers_and_there_may_be_more():
    headers = HEADERS | {
        "user-agent": " Genesys ", "signature": "s=:mmpjIkOt9jjOaOycm8bRDpAbO6HQYL2K9RPE4IxBHqE=:",
        "signature-input": 's=("x-api-key" "@authority" "@request-target" "audiohook-correlation-id" '
                           '"audiohook-session-id" "audiohook-organization-id" "user-agent");created=1780000000;'
                           'nonce="bm9uY2UtbnVtYmVyLXR3bwAA";keyid="our-key"'}
    here = {"target": "/ws/audiohook", "authority": "Voice.Example.COM:8443", "secrets": {KEY: [SECRET, OTHER]}}
    assert key_of(headers, **here) == KEY
    assert key_of({name: value for name, value in headers.items() if name != "user-agent"}, **here) is None


def test_the_port_of_the_scheme_is_not_part_of_the_authority():
    assert key_of(authority="voice.example.com:443") == KEY and key_of(authority="VOICE.example.com:80") == KEY
    assert key_of(authority="voice.example.com:8443") is None and key_of(authority="example.com") is None


def flipped(text):
    """Every text that differs in one bit."""
    raw = text.encode()
    for i in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[i // 8] ^= 1 << i % 8
        yield changed.decode("latin-1")


@pytest.mark.parametrize("name", HEADERS)
def test_no_bit_of_what_is_signed_may_differ_nor_of_the_signature(name):
    nonces = Nonces()
    for changed in flipped(HEADERS[name]):
        if changed.strip() != HEADERS[name]:
            assert key_of(HEADERS | {name: changed}, nonces=nonces) is None, changed
    assert key_of({other: value for other, value in HEADERS.items() if other != name}, nonces=nonces) is None
    assert len(nonces) == 0                     # what is refused is not remembered


def test_no_bit_of_the_target_may_differ():
    assert all(key_of(target=changed) is None for changed in flipped(TARGET))
    assert all(key_of(authority=changed) is None for changed in flipped(AUTHORITY) if changed.lower() != AUTHORITY)


def test_a_signature_is_written_in_one_way():
    digest = HEADERS["signature"][6:-1]
    for text in (digest, digest[:-1], digest.rstrip("="), digest[:-2] + "9=", digest + "=", "", ":"):
        for spelling in (f"sig1=:{text}:", f"sig1={text}", f"sig2=:{text}:", f"sig1=:{text}:, sig1=:{text}:"):
            assert key_of(HEADERS | {"signature": spelling}) == (KEY if spelling == HEADERS["signature"] else None)


@pytest.mark.parametrize("now, fits", [(-4, False), (-3, True), (0, True), (10, True), (10.5, False), (11, False)])
def test_a_signature_lives_for_ten_seconds_of_two_clocks(now, fits):
    assert (key_of(now=CREATED + now) == KEY) == fits


def test_a_signature_may_expire_earlier():
    headers = signed(more=f";expires={CREATED + 4}")
    assert key_of(headers, now=CREATED + 4) == KEY and key_of(headers, now=CREATED + 5) is None


@pytest.mark.parametrize("headers", [
    signed(nonce="short"), signed(nonce=""), signed(more=';alg="hmac-sha1"'), signed(created="x"),
    signed(more=";expires=x"), signed(names=COVERED[:-1]), signed(names=COVERED + ("x-api-key",)),
    signed(names=COVERED + ("@method",)),
    signed(names=()), signed(key="other-key"), signed() | {"x-api-key": "other-key"}, signed(secret=OTHER), {},
    signed() | {"audiohook-session-id": HEADERS["audiohook-session-id"] + ", " + HEADERS["audiohook-session-id"]},
])
def test_what_is_not_signed_as_it_must_be(headers):
    assert key_of(headers) is None


def test_two_secrets_live_while_one_follows_the_other():
    for secrets in ([SECRET, OTHER], [OTHER, SECRET]):
        assert key_of(secrets={KEY: secrets}) == KEY and key_of(signed(secret=OTHER), secrets={KEY: secrets}) == KEY
    assert key_of(secrets={KEY: [OTHER]}) is None


@pytest.mark.parametrize("secrets", [{}, {KEY: []}, {KEY: [""]}, {KEY: ["no base64"]}, {"other": [SECRET]}])
def test_a_key_without_a_secret_opens_nothing(secrets):
    for secret in (SECRET, "", "A" * 43 + "="):
        assert key_of(signed(secret=secret), secrets=secrets) is None


def test_a_signature_is_used_once():
    nonces = Nonces()
    assert key_of(nonces=nonces) == KEY
    assert all(key_of(now=CREATED + late, nonces=nonces) is None for late in range(11))
    assert key_of(signed(nonce="another-nonce-of-enough-letters"), nonces=nonces) == KEY
    later = CREATED + 11                        # the nonce is forgotten when it could not be used again
    assert key_of(signed(created=later), now=later, nonces=nonces) == KEY


def test_a_nonce_is_the_keys_own():
    nonces = Nonces()
    assert [nonces.take(key, "nonce", 0, 10) for key in ("a", "b", "a")] == [True, True, False]


def test_nonces_are_bounded_and_none_is_forgotten_early():
    nonces = Nonces(most=100)
    assert [nonces.take("k", str(i), 0, 10) for i in range(150)] == [True] * 100 + [False] * 50
    assert not nonces.take("k", "0", 10, 20) and len(nonces) == 100
    assert nonces.take("k", "0", 11, 21) and len(nonces) == 1


@given(st.text(), st.text(), st.text())
def test_any_headers_at_all(given_input, signature, key):
    headers = HEADERS | {"signature-input": given_input, "signature": signature, "x-api-key": key}
    assert key_of(headers) is None


def test_a_tenant_is_the_one_of_the_key():
    tenant = HEADERS["audiohook-organization-id"]
    assert same_tenant(tenant, tenant, tenant.upper())
    assert not same_tenant(tenant, tenant, tenant[:-1] + "2") and not same_tenant(tenant, "", tenant)
    assert not same_tenant("", "") and not same_tenant(tenant)
    assert not any(same_tenant(tenant, changed) for changed in flipped(tenant) if changed.lower() != tenant)
