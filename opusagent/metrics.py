"""What is measured: the receipt of each turn, and a worker's counters, gauges and histograms.

It reads no clock: every time is handed in, as monotonic ns.  The rule of a receipt: its waits follow one another
without gap or overlap, so they add up to voice-to-voice exactly.  The rule of a metric: labels are words of our own,
never a peer's, so that nobody can make the list of metrics grow.
"""
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from . import __version__
from ._fastpath import Histogram

# The waits of a turn in the order they follow one another; the mark of the same name ends each.
WAITS = ("transport", "endpointing", "recognition", "decision", "llm_first_token", "segment", "synthesis", "playout")
BEGIN = "speech_end"            # the mark that begins the first: the caller's last voiced sample
INDEX = {name: i for i, name in enumerate((BEGIN, *WAITS))}
LAST = INDEX["playout"]

SLOW_FRAME = 5_000_000          # ns of processing from which a frame is counted as slow

# Upper bounds of the buckets that Prometheus sees, ns; the histograms themselves are exact to 1 %.
FINE = (10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000,
        50_000_000, 100_000_000, 250_000_000)
COARSE = tuple(ms * 1_000_000 for ms in (1, 5, 10, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 1500,
                                         2000, 3000, 5000, 10000))

# What a name means.  A counter or gauge that is not here is printed under its own name.
MEANING = {
    "calls": "Calls begun.",
    "turns": "Turns of a caller that were answered.",
    "barge_ins": "Replies that a caller interrupted.",
    "false_stops": "Times that the agent stopped for a voice that was no interruption, and went on.",
    "underruns": "Times that a voice was late in mid-reply, and the caller heard a pause.",
    "turn_model": "Answers of the turn model: heeded, or too late.",
    "slow_frames": "Frames that took more than 5 ms to process.",
    "loop_stalls": "Times that the event loop was late by more than 50 ms; the log says where it stood.",
    "worker_deaths": "Workers that died, or hung and were killed; another took each one's place and its calls.",
    "protocol_errors": "Connections that broke the protocol, by HTTP status or close code.",
    "refused_credentials": "Calls and webhooks that did not show what their platform's [auth] asks for.",
    "strange_news": "Webhooks about calls that are not here.",
    "resumptions": "Calls whose connection ended: awaited, then resumed or given up; moved here, or taken elsewhere.",
    "registry_up": "Workers for which Redis answers.",
    "registry_waiting": "Entries that wait to be written to Redis.",
    "registry_dropped": "Entries that Redis never got: it did not answer for too long, or refused them.",
    "transfers": "Calls that a flow wanted to hand over, by what became of it.",
    "dropped_chunks": "Audio chunks dropped because a peer read too slowly.",
    "speculations": "Replies that were begun before the caller's turn was over: kept, or thrown away.",
    "speculation_saved_seconds": "What callers did not have to wait because a reply had been begun early.",
    "dead_air": "Times that nobody spoke for longer than a flow allows, by who should have spoken.",
    "echoes": "Windows of a caller's audio that were the agent's own words, come back.",
    "recogniser_failures": "Utterances that the recogniser gave no answer to.",
    "voice_failures": "Segments that the voice could not speak.",
    "platform_errors": "Complaints of a platform about what it was sent, where it says so; the log has their codes.",
    "tools": "Tools that were run for a reply: done, or failed.",
    "refused_calls": "Calls that were not let in, by reason: full, draining, broken, or the limit of [limits].",
    "refused_functions": "Functions that a language model called and the state did not allow.",
    "limited_calls": "Calls that had to end because of a limit of [limits], by its name.",
    "calls_ended": "Calls that are over, by outcome.",
    "telephone_seconds": "Length of the calls that are over.",
    "tokens": "Tokens of language models in the calls that are over, in and out; estimated where an endpoint tells "
              "none.",
    "synthesised_seconds": "Speech made for the calls that are over, prompts spoken ahead not counted.",
    "recognised_seconds": "Audio given to the recogniser in the calls that are over.",
    "failed_replies": "Replies that the language model or the voice did not finish.",
    "endpoint_open": "1 while an endpoint is left alone because it failed too often, 0.5 while a request tries it.",
    "endpoint_opened": "Times that an endpoint was left alone because it failed too often.",
    "endpoint_fallbacks": "Times that the next endpoint of a stage was asked because one failed or was late.",
    "llm_hedges": "Replies that were asked for twice because the first token was late.",
    "llm_hedges_won": "... of which the second request was first.",
    "llm_hedges_lost": "... of which the first request was first after all.",
    "llm_hedge_rate": "Share of the replies that were asked for twice.",
    "llm_hedge_after_seconds": "Wait for a first token after which it is asked for once more; 0: not known yet.",
    "llm_retries": "Replies that were asked for once more of an endpoint that had failed.",
    "llm_continued": "Answers that broke off and that another endpoint went on with.",
    "segments_resumed": "Segments of speech that broke off and that another endpoint went on with.",
    "transcription_sessions": "Realtime transcription sessions that are open.",
    "transcription_sessions_opened": "Realtime transcription sessions that were opened.",
    "transcription_sessions_suspected": "... that were taken for dead: nothing was heard of them, or no words in time.",
    "realtime_sessions": "Realtime sessions, speech to speech, that are open.",
    "realtime_sessions_opened": "Realtime sessions that were opened.",
    "realtime_sessions_suspected": "... that were taken for dead, because nothing was heard of them.",
    "engine_alive": "Engine processes that serve calls.",
    "engine_restarts": "Engine processes that died, or hung and were killed.",
    "engine_silent_seconds": "Since the engine process that was silent longest said that it lives; 0.1 is usual.",
    "engine_records_waiting": "Records that found an engine process's ring full.",
    "engine_queue_seconds": "Queue delay, the worst of 5 s: audio that the recogniser had not got to, replies that no "
                            "voice had begun, pauses that the turn model had not judged.",
    "archive_failures": "Files of calls that end early because the disk refused them.",
    "archive_dropped": "Files of calls that end early or are not kept: the disk was too slow, or has too little space.",
    "webhook": "Notices of ended calls: delivered, failed (one attempt), given up, dropped.",
    "log_dropped": "Log lines that nobody read in time.",
    "active_calls": "Calls at this moment.",
    "active_connections": "Connections at this moment.",
    "load": "The greatest of the shares in load_share: new calls are refused above admission.refuse_above.",
    "load_share": "What the most loaded worker uses of its limit of each kind.",
    "load_step": "Workers that leave something out because of their load, by what that is.",
    "info": "Always 1; the label says the version.",
}

GREATEST = {"info", "load", "load_share", "engine_queue_seconds", "socket_option"}  # of several workers, not the sum

BLOCKS = "█▓▒░"                 # shades of the bar of waits, taken in turn so that neighbours differ
ASCII = "#=+-"                  # ... where there is no Unicode
COLOURS = (90, 34, 36, 35, 33, 95, 32, 94)      # of each wait, where there are colours
CELL_MS = 10.0                  # of the bar, unless it would be longer than
MOST_CELLS = 40


class TurnTrace:
    """The receipt of one turn while it is being written: who, what, and when."""

    __slots__ = ("turn", "state", "kind", "caller", "agent", "confidence", "stopped_by", "end_ms", "decided_ms",
                 "measured", "saved_ms", "false_stops", "underruns", "_at")

    def __init__(self, turn: int):
        self.turn = turn                        # 1 is the call's first
        self.state = ""                         # of the flow, after the decision
        self.kind = ""                          # of the reply
        self.caller = ""                        # what was recognised
        self.agent = ""                         # what was heard of the reply
        self.confidence: float | None = None    # the recogniser's
        self.stopped_by = ""                    # what ended the reply early, such as "barge-in"
        self.end_ms: float | None = None        # of the call's audio, where the caller's last voiced sample lies,
        self.decided_ms: float | None = None    # and how much had been judged when that was known for the turn's end
        self.measured = True                    # False where nobody's voice began it: a greeting, a reprompt, keys
        self.false_stops = 0                    # times that the reply stopped for nothing, and went on
        self.underruns = 0                      # times that the voice was late in mid-reply, and a pause was heard
        self.saved_ms = 0.0                     # by what was begun before the turn's end (speculation)
        self._at: list[int | None] = [None] * len(INDEX)

    def mark(self, name: str, now: int) -> None:
        """`name` (BEGIN or a wait) is reached at `now`, ns; the first time counts."""
        i = INDEX[name]
        if self._at[i] is None:
            self._at[i] = now

    def adopt(self, other: "TurnTrace") -> None:
        """The marks of a receipt that was begun while the reply was held."""
        self._at = [theirs if ours is None else ours for ours, theirs in zip(self._at, other._at)]

    def marked(self, name: str) -> int | None:
        """When `name` was reached, ns; None if it was not."""
        return self._at[INDEX[name]]

    def waits(self) -> dict[str, float]:
        """Every wait in ms, to the microsecond, 0 where its mark is missing.

        What was done during an earlier wait (speculation) or after the first audio cost nothing, and shows as nothing.
        """
        present = [at for at in self._at if at is not None]
        if not present:
            return dict.fromkeys(WAITS, 0.0)
        begin = present[0]
        end = max(begin, max(present) if self._at[LAST] is None else self._at[LAST])
        waits, reached = {}, 0
        for name, at in zip(WAITS, self._at[1:]):
            before, reached = reached, max(reached, (min(begin if at is None else at, end) - begin + 500) // 1000)
            waits[name] = (reached - before) / 1000
        return waits

    def receipt(self) -> dict[str, Any]:
        """The turn as a dict: who and what, `voice_to_voice_ms` (None if the agent was never heard), `waits`."""
        waits = self.waits()
        answered = self._at[LAST] is not None
        return {"turn": self.turn, "state": self.state, "kind": self.kind, "caller": self.caller, "agent": self.agent,
                "confidence": self.confidence, "stopped_by": self.stopped_by, "end_ms": self.end_ms,
                "decided_ms": self.decided_ms, "measured": self.measured, "saved_ms": round(self.saved_ms, 3),
                "false_stops": self.false_stops, "underruns": self.underruns,
                "voice_to_voice_ms": total(waits) if answered else None, "waits": waits}


def total(waits: Mapping[str, float]) -> float:
    """The sum of waits in ms, exact to the microsecond that they are given to."""
    return round(sum(waits.values()), 3)


class Metrics:
    """Of one worker, or of all together: what /metrics and /health say."""

    __slots__ = ("frames", "lags", "voice_to_voice", "waits", "counters", "gauges")

    def __init__(self, histograms: Mapping[str, Histogram] | None = None) -> None:
        """`histograms`: those that lie in shared memory (board.py), by name."""
        lying = histograms or {name: Histogram() for name in ("frames", "lags", "voice_to_voice", *WAITS)}
        self.frames = lying["frames"]           # ns from a readiness callback's begin to its end
        self.lags = lying["lags"]               # ns by which the loop's tick was late
        self.voice_to_voice = lying["voice_to_voice"]
        self.waits = {name: lying[name] for name in WAITS}
        self.counters: dict[tuple[str, tuple], float] = {}      # (name, labels) -> sum
        self.gauges: dict[tuple[str, tuple], float] = {("info", (("version", __version__),)): 1}

    def frame(self, ns: int) -> bool:
        """Records the processing of what one wake-up brought; True where it was slow enough to warn of."""
        self.frames.record(ns)
        if ns <= SLOW_FRAME:
            return False
        self.count("slow_frames")
        return True

    def lag(self, ns: int) -> None:
        """Records by how much the loop came late to its tick."""
        self.lags.record(ns)

    def count(self, name: str, by: float = 1, **labels: Any) -> None:
        key = name, _sorted(labels)
        self.counters[key] = self.counters.get(key, 0) + by

    def gauge(self, name: str, value: float, **labels: Any) -> None:
        self.gauges[name, _sorted(labels)] = value

    def turn(self, receipt: Mapping[str, Any]) -> None:
        """Records a receipt.  Voice-to-voice and its waits count only where a voice began the turn and was answered."""
        if receipt["stopped_by"] == "barge-in":
            self.count("barge_ins")
        if receipt["underruns"]:
            self.count("underruns", receipt["underruns"])
        if receipt["voice_to_voice_ms"] is None or not receipt["measured"]:
            return
        self.count("turns")
        if receipt["saved_ms"]:
            self.count("speculation_saved_seconds", receipt["saved_ms"] / 1000)
        self.voice_to_voice.record(round(receipt["voice_to_voice_ms"] * 1e6))
        for name, ms in receipt["waits"].items():
            self.waits[name].record(round(ms * 1e6))

    def add(self, counters: Mapping, gauges: Mapping, histograms: Mapping[str, Histogram]) -> None:
        """Adds what another worker has counted.  Of gauges in GREATEST the greatest counts, of the others the sum."""
        for key, value in counters.items():
            self.counters[key] = self.counters.get(key, 0) + value
        for key, value in gauges.items():
            mine = self.gauges.get(key, 0)
            self.gauges[key] = max(mine, value) if key[0] in GREATEST else mine + value
        for name, histogram in histograms.items():
            (getattr(self, name) if name not in self.waits else self.waits[name]).add(histogram)

    def health(self) -> dict[str, dict[str, float]]:
        """The latencies of GET /health, ms: of a frame's processing, of turns, and of the loop itself."""
        return {"latency": summary(self.frames), "voice_to_voice": summary(self.voice_to_voice),
                "loop_lag": summary(self.lags)}

    def text(self) -> str:
        """Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for kind, suffix, values in (("counter", "_total", self.counters), ("gauge", "", self.gauges)):
            for name in sorted({name for name, _ in values}):
                series = sorted((labels, value) for (each, labels), value in values.items() if each == name)
                lines += _head(name + suffix, kind, MEANING.get(name, name.replace("_", " ").capitalize() + "."))
                lines += (f"opusagent_{name}{suffix}{_labels(labels)} {value:.15g}" for labels, value in series)
        for name, meaning, bounds, histograms in self._histograms():
            lines += _head(name, "histogram", meaning)
            for labels, histogram in histograms:
                lines += _series(name, labels, bounds, histogram)
        return "\n".join(lines) + "\n"

    def _histograms(self) -> Iterator[tuple[str, str, Sequence[int], Iterable[tuple[tuple, Histogram]]]]:
        yield ("frame_seconds", "Processing of what one wake-up brought, from its first byte to the last sent.",
               FINE, [((), self.frames)])
        yield "loop_lag_seconds", "How late the event loop came to its tick.", FINE, [((), self.lags)]
        yield ("voice_to_voice_seconds", "From the caller's last voiced sample to the agent's first.", COARSE,
               [((), self.voice_to_voice)])
        yield ("wait_seconds", "The parts of voice-to-voice, by name.", COARSE,
               [((("wait", name),), histogram) for name, histogram in self.waits.items()])


def summary(histogram: Histogram) -> dict[str, float]:
    """A histogram as the ms of GET /health."""
    ns = {"avg": histogram.mean, "min": histogram.min, "max": histogram.max,
          **{f"p{p}": histogram.percentile(p) for p in (50, 95, 99)}}
    return {f"{name}_ms": round(value / 1e6, 3) for name, value in ns.items()}


# -- the text format -------------------------------------------------------------------------------------------------

def _head(name: str, kind: str, meaning: str) -> list[str]:
    escaped = meaning.replace("\\", r"\\").replace("\n", r"\n")
    return [f"# HELP opusagent_{name} {escaped}", f"# TYPE opusagent_{name} {kind}"]


def _sorted(labels: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in labels.items()))


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels)
    inside = ",".join(pairs)
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@cache
def _series_names(name: str, labels: tuple, bounds: Sequence[int]) -> tuple[str, ...]:
    """The names of a histogram's samples (buckets, sum, count); always the same few, so they are kept."""
    limits = (*(f"{bound / 1e9:g}" for bound in bounds), "+Inf")
    return (*(f"opusagent_{name}_bucket{_labels((*labels, ('le', limit)))}" for limit in limits),
            f"opusagent_{name}_sum{_labels(labels)}", f"opusagent_{name}_count{_labels(labels)}")


def _series(name: str, labels: tuple, bounds: Sequence[int], histogram: Histogram) -> Iterator[str]:
    values = (*histogram.cumulative(bounds), histogram.count, f"{histogram.sum / 1e9:.9g}", histogram.count)
    return (f"{sample} {value}" for sample, value in zip(_series_names(name, labels, bounds), values))


# -- for people ------------------------------------------------------------------------------------------------------

def receipt_line(receipt: Mapping[str, Any], colours: bool = False, blocks: bool = True) -> str:
    """A receipt in a line: the turn, its wait, its parts as a bar (10 ms a cell where that fits) and in figures.

        turn 2   214 ms  ████████████████▓▓▓▒▒  endpointing 160.2 + recognition 31.4 + synthesis 22.4
    """
    present = {name: ms for name, ms in receipt["waits"].items() if ms}
    gap = receipt["voice_to_voice_ms"]
    parts = " + ".join(_painted(name, f"{name} {ms:.1f}", colours) for name, ms in present.items())
    answer = "no answer" if gap is None else f"{gap:6.0f} ms"
    turn = f"turn {receipt['turn']:<2} {answer}"
    stopped = f"stopped by {receipt['stopped_by']}" if receipt["stopped_by"] else ""
    saved = f"begun {receipt['saved_ms']:.0f} ms early" if receipt["saved_ms"] >= 1 else ""
    late = f"voice late x{receipt['underruns']}" if receipt.get("underruns") else ""
    bar = _bar(present, colours, BLOCKS if blocks else ASCII)
    return "  ".join(filter(None, (turn, bar, parts, saved, late, stopped)))


def _bar(waits: Mapping[str, float], colours: bool, shades: str) -> str:
    cell = max(CELL_MS, total(waits) / MOST_CELLS)
    bar, reached, drawn = "", 0.0, 0
    for i, (name, ms) in enumerate(waits.items()):
        reached += ms
        cells, drawn = round(reached / cell) - drawn, round(reached / cell)
        bar += _painted(name, (shades[0] if colours else shades[i % len(shades)]) * cells, colours)
    return bar


def _painted(name: str, text: str, colours: bool) -> str:
    return f"\x1b[{COLOURS[WAITS.index(name)]}m{text}\x1b[0m" if colours and text else text
