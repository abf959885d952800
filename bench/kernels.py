"""The audio kernels beside what Python offers for the same: ns per call on one 20 ms frame.

    python bench/kernels.py [--rounds 101] [--ms 0.5] [--only resample] [--json]

A statement is timed with its arguments ready and its result thrown away; an empty Python call, the first row, is the
floor.  audioop, numpy and base64 are what one would write without a compiler of one's own; soxr is a far better filter
that lags far longer (64 ms and more where ours lags 2), and its "LQ" is the one nearest to ours.
The rule: within a round every statement of a row runs right after the others, and ratios are taken within the round;
rounds are short and many, so that on a shared machine most of them are left alone.
"""
import argparse
import importlib
import json
import sys
import timeit
import warnings
from dataclasses import dataclass, field

import numpy
from figures import Ratio, median, median_interval, paired_ratio, table
from subjects import machine

from opusagent import _fastpath
from opusagent.dialects import Audible

RATES = ((8000, 16000), (16000, 8000), (8000, 24000), (24000, 8000), (16000, 24000), (24000, 16000), (16000, 48000),
         (48000, 16000))
HEAD = b'{"event":"media","streamSid":"MZ0123456789abcdef0123456789abcdef","media":{"payload":"'
INBOUND = (b'{"event":"media","sequenceNumber":"4711","media":{"track":"inbound","chunk":"4710","timestamp":"94200",'
           b'"payload":"%b"},"streamSid":"MZ0123456789abcdef0123456789abcdef"}')


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    ours: str                                       # a statement over NAMES
    peers: dict[str, str] = field(default_factory=dict)     # "modules it needs" -> a statement

    def statements(self, names: dict) -> dict[str, str]:
        """Ours and those of the peers that are here."""
        return {"ours": self.ours} | {peer: text for peer, text in self.peers.items()
                                      if all(module.split()[0] in names for module in peer.split(" + "))}


def names() -> dict:
    """What the statements are made of: the modules that are installed, and one frame in all its forms."""
    found = {name: getattr(_fastpath, name) for name in dir(_fastpath) if not name.startswith("_")}
    for module in ("audioop", "numpy", "soxr", "pybase64", "binascii", "base64", "orjson", "json"):
        try:
            found[module] = importlib.import_module(module)
        except ImportError:
            print(f"{module} is left out: it is not installed.", file=sys.stderr)
    noise = numpy.random.default_rng(1)
    speech = noise.normal(0, 3000, 160).astype(numpy.int16)
    codes, alaw = bytearray(160), bytearray(160)
    _fastpath.ulaw_encode(speech, codes)
    _fastpath.alaw_encode(speech, alaw)
    text = _fastpath.base64_encode(codes)
    table_of = numpy.zeros(256, numpy.int16)
    _fastpath.ulaw_decode(bytes(range(256)), table_of)
    found |= {"pcm": memoryview(speech.tobytes()).cast("h"), "raw": speech.tobytes(), "pcm16k": noise.bytes(640),
              "out": memoryview(bytearray(320)).cast("h"), "coded": bytearray(160), "codes": bytes(codes),
              "alaw": bytes(alaw), "codes_array": numpy.frombuffer(codes, numpy.uint8), "TABLE": table_of,
              "array": numpy.frombuffer(noise.bytes(640), numpy.int16), "text": text, "HEAD": HEAD, "TAIL": b'"}}',
              "message": INBOUND % text, "room": Audible(160, "PCMU"), "record": _fastpath.Histogram().record,
              "nothing": lambda argument: None}
    for rate in (8000, 16000, 24000, 48000):
        found[f"frame{rate}"] = noise.normal(0, 3000, rate // 50).astype(numpy.int16)
        found[f"bytes{rate}"] = found[f"frame{rate}"].tobytes()
    for a, b in RATES:
        found[f"ours{a}_{b}"] = _fastpath.Resampler(a, b)
        if "soxr" in found:
            found[f"soxr{a}_{b}"] = found["soxr"].ResampleStream(a, b, 1, dtype="int16")
            found[f"lq{a}_{b}"] = found["soxr"].ResampleStream(a, b, 1, dtype="int16", quality="LQ")
        if "audioop" in found:
            found[f"state{a}_{b}"] = found["audioop"].ratecv(found[f"bytes{a}"], 2, 1, a, b, None)[1]
    return found


PARSE = 'audioop.ulaw2lin({decode}({loads}(message)["media"]["payload"]), 2)'
BUILD = ('{dumps}({{"event": "media", "streamSid": "MZ0123456789abcdef0123456789abcdef", '
         '"media": {{"payload": {encode}(audioop.lin2ulaw(raw, 2)).decode()}}}})')


def rows() -> list[Row]:
    resampling = [Row(f"resample {a // 1000} -> {b // 1000} kHz", f"ours{a}_{b}.push(frame{a})", {
        "soxr": f"soxr{a}_{b}.resample_chunk(frame{a})", "soxr LQ": f"lq{a}_{b}.resample_chunk(frame{a})",
        "audioop": f"audioop.ratecv(bytes{a}, 2, 1, {a}, {b}, state{a}_{b})"}) for a, b in RATES]
    return [
        Row("an empty Python call", "nothing(0)"),
        Row("mu-law decode", "ulaw_decode(codes, out)", {"audioop": "audioop.ulaw2lin(codes, 2)",
                                                         "numpy": "TABLE[codes_array]"}),
        Row("mu-law encode", "ulaw_encode(pcm, coded)", {"audioop": "audioop.lin2ulaw(raw, 2)"}),
        Row("A-law decode", "alaw_decode(alaw, out)", {"audioop": "audioop.alaw2lin(alaw, 2)"}),
        Row("A-law encode", "alaw_encode(pcm, coded)", {"audioop": "audioop.lin2alaw(raw, 2)"}),
        Row("energy at 16 kHz", "energy(pcm16k)", {"audioop": "audioop.rms(pcm16k, 2)",
                                                   "numpy": "numpy.square(array, dtype=numpy.float32).mean()"}),
        Row("peak at 16 kHz", "peak(pcm16k)", {"audioop": "audioop.max(pcm16k, 2)", "numpy": "numpy.abs(array).max()"}),
        Row("base64 decode", "base64_decode(text, coded)", {"pybase64": "pybase64.b64decode(text)",
                                                            "binascii": "binascii.a2b_base64(text)"}),
        Row("base64 encode", "base64_encode(codes)", {"pybase64": "pybase64.b64encode(codes)",
                                                      "binascii": "binascii.b2a_base64(codes, newline=False)"}),
        Row("Twilio message to samples", "room.media(message)", {
            "orjson + pybase64 + audioop": PARSE.format(decode="pybase64.b64decode", loads="orjson.loads"),
            "json + base64 + audioop": PARSE.format(decode="base64.b64decode", loads="json.loads")}),
        Row("samples to Twilio message", "media_message(HEAD, pcm, TAIL, 'PCMU')", {
            "orjson + pybase64 + audioop": BUILD.format(dumps="orjson.dumps", encode="pybase64.b64encode"),
            "json + base64 + audioop": BUILD.format(dumps="json.dumps", encode="base64.b64encode")}),
        *resampling,
        Row("histogram record", "record(123456)"),
    ]


class Clock:
    """Times one statement, in slices of about `ms`."""

    def __init__(self, statement: str, found: dict, ms: float):
        self.timer = timeit.Timer(statement, globals=found)
        self.count = 1
        while self.timer.timeit(self.count) * 1e3 < ms:
            self.count *= 2

    def ns(self) -> float:
        return self.timer.timeit(self.count) / self.count * 1e9


def measure(row: Row, found: dict, rounds: int, ms: float) -> dict[str, list[float]]:
    """ns of each statement, round by round, in an order that turns."""
    clocks = {name: Clock(text, found, ms) for name, text in row.statements(found).items()}
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for turn in range(rounds):
        order = list(clocks)
        for name in order[turn % len(order):] + order[:turn % len(order)]:
            times[name].append(clocks[name].ns())
    return times


def cells(row: Row, times: dict[str, list[float]]) -> list[list[str]]:
    """One line for ours and one for each peer."""
    lines = []
    for name, ns in times.items():
        low, high = median_interval(ns)
        ratio = "" if name == "ours" else str(paired_ratio(times["ours"], ns))
        lines.append([row.title if name == "ours" else "", name, f"{median(ns):.0f}", f"{low:.0f}-{high:.0f}",
                      f"{min(ns):.0f}", ratio])
    return lines


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101, help="at least 5 give a 90 %% interval (default 101)")
    parser.add_argument("--ms", type=float, default=0.5, help="length of one measurement (default 0.5)")
    parser.add_argument("--only", default="", help="rows whose title holds this")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def main() -> int:
    args = parse()
    warnings.simplefilter("ignore", DeprecationWarning)     # audioop is leaving the standard library
    found = names()
    lines, results = [["20 ms of", "", "ns", "90 %", "least", "ours / theirs"]], {}
    for row in rows():
        if args.only in row.title:
            results[row.title] = measure(row, found, args.rounds, args.ms)
            lines += cells(row, results[row.title])
    if args.json:
        ratios = {title: {name: paired_ratio(times["ours"], ns) for name, ns in times.items() if name != "ours"}
                  for title, times in results.items()}
        print(json.dumps({"machine": machine(), "ns": results, "ratios": ratios}, default=Ratio.as_json))
        return 0
    print("; ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{args.rounds} rounds of {args.ms:g} ms; ratios are medians of the rounds' paired ratios\n\n{table(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
