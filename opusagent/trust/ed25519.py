"""Whether an Ed25519 signature (RFC 8032, pure) fits: for webhooks that Telnyx signs.  It signs nothing.

It takes about 2 ms, once for a webhook.  Everything here is public, so the time may depend on it.  The rule: only what
is spelled canonically counts, a point as the number below P that it is, a scalar below L.
"""
import hashlib

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)          # of -1
Point = tuple[int, int, int, int]       # X, Y, Z, T: x = X/Z, y = Y/Z, x*y = T/Z


def add(a: Point, b: Point) -> Point:
    """RFC 8032 section 5.1.4."""
    left, right = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    cross, both = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = right - left, both - cross, both + cross, right + left
    return e * f % P, g * h % P, f * g % P, e * h % P


def double(a: Point) -> Point:
    """The same section, of a point and itself."""
    x, y, z = a[0] * a[0], a[1] * a[1], 2 * a[2] * a[2]
    both, apart = x + y, x - y
    e, f = (both - (a[0] + a[1]) ** 2) % P, (z + apart) % P
    return e * f % P, apart * both % P, f * apart % P, e * both % P


def point(spelled: bytes) -> Point | None:
    """Section 5.1.3; None for 32 bytes that spell none."""
    number = int.from_bytes(spelled, "little")
    y, odd = number & (1 << 255) - 1, number >> 255
    if len(spelled) != 32 or y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P or not x and odd:
        return None
    x = P - x if x & 1 != odd else x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
NOTHING: Point = (0, 1, 1, 0)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the 64 bytes of `signature` were made over `message` with the secret half of `public_key` (32 bytes)."""
    key, given, scalar = point(public_key), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if key is None or given is None or len(signature) != 64 or scalar >= L:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    minus = P - key[0], key[1], key[2], P - key[3]
    rows = (None, BASE, minus, add(BASE, minus))
    total = NOTHING                     # scalar * BASE - challenge * key, bit by bit from the top
    for bit in range(max(scalar.bit_length(), challenge.bit_length()) - 1, -1, -1):
        total = double(total)
        if row := (scalar >> bit & 1) + 2 * (challenge >> bit & 1):
            total = add(total, rows[row])
    return not ((total[0] - given[0] * total[2]) % P or (total[1] - given[1] * total[2]) % P)
