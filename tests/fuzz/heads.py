"""Request heads for the suites: most are right, some wrong in one thing, some in many."""
from hypothesis import strategies as st

from .streams import scarred

NAMES = ["Host", "Upgrade", "Connection", "Origin", "Cookie", "Content-Length", "Transfer-Encoding", "Authorization",
         "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "X-Any"]
VALUES = ["here", "127.0.0.1:8000", "[::1]", "websocket", "WebSocket", "Upgrade", "keep-alive, Upgrade", "13", "8", "0",
          "AAAAAAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAAAAAAAAAAAAB==", "AAAAAAAAAAAAAAAAAAAAAA", "chunked", "a, b ,c", "",
          "permessage-deflate; client_max_window_bits=99", "x" * 4090, "x" * 4097, "\u00e9", "a\tb", "http://here"]
TARGETS = ["/", "/ws/echo", "/ws/pcm?rate=8000", "/ws/pcm?rate=8000&rate=8000", "/?a=%41&b=%", "/?%ff", "/?a=%0a", "*",
           "/a b", "/%", "//", "/ws/twilio/../echo", "http://here/", "/\u00e9", "/" + "x" * 4090, "/health", "/?&=&a"]
LINES = st.builds(lambda name, space, value: f"{name}:{space}{value}", st.sampled_from(NAMES),
                  st.sampled_from([" ", " ", "", "\t ", "  "]), st.sampled_from(VALUES))
ODD_LINES = st.sampled_from([" folded", "\tfolded", "No colon", ": no name", "Name : x", "N\x00: x", "N: \x00",
                             "N: \x7f", "N(: x", "N: a\rb", "x" * 4097, "\u00e9: x"])
UPGRADE_LINES = ["Host: here", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
                 "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]


@st.composite
def heads(draw):
    """A head, perhaps with something behind it."""
    kind = draw(st.sampled_from(["upgrade"] * 3 + ["page"] * 2 + ["scarred"] * 2 + ["many", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    lines = draw(st.permutations(UPGRADE_LINES)) if kind != "page" else UPGRADE_LINES[:1]
    lines = [*lines, *draw(st.lists(LINES, max_size=2)), *draw(st.lists(ODD_LINES, max_size=draw(st.integers(0, 1))))]
    if kind == "many":
        lines += draw(st.lists(LINES, min_size=1, max_size=3)) * draw(st.integers(10, 40))
    first = " ".join((draw(st.sampled_from(["GET"] * 6 + ["HEAD", "POST", "get", "BREW", ""])),
                      draw(st.sampled_from(["/ws/echo"] * 5 + TARGETS)),
                      draw(st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/2", "http/1.1", "HTTP/1.1 "]))))
    end = draw(st.sampled_from(["\r\n"] * 12 + ["\n", "\r"]))
    behind = draw(st.sampled_from([b"", b"", b"\x82\x80keys", b"x"]))
    wire = end.join((first, *lines, "", "")).encode("latin-1") + behind
    return draw(scarred(wire)) if kind == "scarred" else wire
