"""Every setting of OpusAgent, once, with its unit, default, limits and meaning; and what must be true of several.

How a field becomes a flag, a variable, a TOML key, help and a check is settings.py's.  The rule: defaults < file <
environment < flags, and a configuration that loads is one that can be served: everything else is a ConfigError.
"""
import argparse
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from . import ConfigError, credentials, endpoints, settings, targets
from .credentials import Carrier, Key
from .settings import Setting, Table, setting


@dataclass(frozen=True, slots=True)
class Net:
    """Sockets, and what a peer may do on one."""

    nodelay: bool = setting(True, "TCP_NODELAY: send each audio frame at once")
    quickack: bool = setting(True, "TCP_QUICKACK, once at accept: acknowledge the first segments at once")
    quickack_rearm: bool = setting(False, "set TCP_QUICKACK again after each receive, which costs a system call")
    receive_buffer: int = setting(65536, "SO_RCVBUF; 0 leaves it to the kernel", "bytes", low=0, high=1 << 24)
    send_buffer: int = setting(65536, "SO_SNDBUF; 0 leaves it to the kernel", "bytes", low=0, high=1 << 24)
    notsent_lowat: int = setting(16384, "TCP_NOTSENT_LOWAT: unsent bytes the kernel takes, the rest can still be "
                                 "dropped at a barge-in; 0 leaves it to the kernel", "bytes", low=0, high=1 << 24)
    user_timeout_seconds: float = setting(10.0, "TCP_USER_TIMEOUT: sent bytes that nobody acknowledges for so long "
                                          "end the connection; 0 leaves it to the kernel", low=0, high=3600)
    keepalive_seconds: int = setting(5, "TCP keep-alive: idle time and interval of 3 probes; 0 is off",
                                     low=0, high=3600)
    dscp: int = setting(0, "DSCP of our packets (46 is EF); 0 is off", "code", low=0, high=63)
    spin_us: int = setting(0, "poll for so long without sleeping before the worker sleeps: 20000 answers a call some "
                           "15 us sooner and takes a whole core", "us", low=0, high=1_000_000)
    backlog: int = setting(4096, "connections that may wait to be accepted", low=1, high=65535)
    head_seconds: float = setting(3.0, "time for a whole request head", low=0.1, high=60)
    ping_interval_seconds: float = setting(5.0, "time between our pings", low=0.1, high=3600)
    ping_timeout_seconds: float = setting(20.0, "silence of the peer's that ends a connection", low=0.1, high=3600)
    media_timeout_seconds: float = setting(15.0, "silence of the peer's that ends a telephone call",
                                           low=0.1, high=3600)
    resume_seconds: float = setting(20.0, "time that a call waits for another connection, where its platform may come "
                                    "back on one (audiocodes); 0 is not at all", low=0, high=600)
    max_message: int = setting(16777216, "largest message of /ws/echo, /ws/pcm and /v1/realtime", "bytes",
                               low=125, high=1 << 30)
    max_message_telephony: int = setting(65536, "largest message of a telephony dialect", "bytes",
                                         low=1024, high=1 << 24)


@dataclass(frozen=True, slots=True)
class Turns:
    """Endpointing and barge-in; a flow, and each of its states, may set waits of its own."""

    threshold: float = setting(0.5, "speech probability from which a window is speech", low=0.01, high=0.99)
    start_ms: int = setting(64, "speech that begins an utterance", low=0, high=2000)
    pause_ms: int = setting(100, "silence after which a reply is begun and held", low=20, high=5000)
    complete_ms: int = setting(140, "silence that ends a turn whose words complete an expected answer",
                               low=20, high=10000)
    silence_ms: int = setting(400, "silence that ends a turn of free speech", low=20, high=10000)
    incomplete_ms: int = setting(1200, "silence that ends a turn whose words are an answer not finished",
                                 low=20, high=10000)
    no_input_ms: int = setting(6000, "silence after which the caller is asked again", low=200, high=120000)
    adapt: bool = setting(True, "let the waits follow the caller's own pauses, by three quarters to one and a half")
    model: str = setting("", "a turn model (ONNX, as smart-turn v3) that hears in each pause whether that was all, and "
                         "shortens or lengthens the wait; empty is none", "file")
    barge_in_ms: int = setting(200, "speech over our own that stops it, if its words are an interruption",
                               low=20, high=5000)
    insist_ms: int = setting(480, "voice over our own that stops it while nothing is known of its words; at least "
                             "barge_in_ms", low=20, high=5000)
    echo: bool = setting(True, "know the agent's own words when a line gives them back: they are no interruption")
    duck_db: float = setting(14.0, "how much lower the agent speaks while a sound of the caller's is judged; 0 is off",
                             "dB", low=0, high=60)
    speculations: int = setting(200, "replies begun in a caller's pause that a call may throw away; 0 begins none",
                                low=0, high=100000)
    preroll_ms: int = setting(400, "audio before an utterance's start that is recognised with it",
                              low=0, high=5000)


@dataclass(frozen=True, slots=True)
class History:
    """What a language model is told of the call so far."""

    exchanges: int = setting(10, "last exchanges that are kept", low=0, high=1000)
    characters: int = setting(100, "characters kept of each side of an exchange", low=10, high=100000)


@dataclass(frozen=True, slots=True)
class OpenAI:
    """The engines `openai` and `realtime`: any endpoint that speaks this API."""

    base_url: str = setting("", "the endpoint; empty is the package's own", "URL", also="OPENAI_BASE_URL")
    api_key: str = setting("", "the key", secret=True, also="OPENAI_API_KEY")
    stt_base_url: str = setting("", "another endpoint that recognises", "URL")
    llm_base_url: str = setting("", "another endpoint that answers", "URL")
    tts_base_url: str = setting("", "another endpoint that speaks", "URL")
    realtime_base_url: str = setting("", "another endpoint for speech to speech", "URL")
    stt_api_key: str = setting("", "its key", secret=True)
    llm_api_key: str = setting("", "its key", secret=True)
    tts_api_key: str = setting("", "its key", secret=True)
    realtime_api_key: str = setting("", "its key", secret=True)
    stt_model: str = setting("gpt-4o-mini-transcribe", "model that recognises", "name")
    llm_model: str = setting("gpt-4o-mini", "model that answers", "name")
    tts_model: str = setting("gpt-4o-mini-tts", "model that speaks", "name")
    realtime_model: str = setting("gpt-realtime", "model that hears and speaks", "name")
    stt_first_seconds: float = setting(0.7, "wait for a recogniser's answer, then the next endpoint is asked",
                                       low=0.05, high=60)
    llm_first_seconds: float = setting(1.0, "wait for an endpoint's first token, then the next one is asked",
                                       low=0.05, high=60)
    tts_first_seconds: float = setting(0.7, "wait for the first audio of a segment, then the next endpoint is asked",
                                       low=0.05, high=60)
    realtime_first_seconds: float = setting(1.0, "wait for the beginning of a spoken answer, then the next endpoint is "
                                            "asked", low=0.05, high=60)
    stt_realtime: bool = setting(True, "transcribe over Realtime sessions where the endpoint has them")
    hedge_share: float = setting(0.1, "share of the model's requests that may be made twice, when the first token is "
                                 "later than 95 % of them are; 0 is off", "share", low=0, high=1)
    voice: str = setting("alloy", "voice that it speaks with", "name")
    count_tokens: bool = setting(False, "ask the model's endpoint how many tokens it has counted "
                                 "(stream_options.include_usage); without, four characters are one")
    max_tokens: int = setting(150, "tokens of one reply", low=1, high=100000)
    temperature: float = setting(0.7, "sampling temperature", low=0, high=2)
    first_token_seconds: float = setting(2.0, "wait for the first token, then the fallback", low=0.05, high=60)
    filler_seconds: float = setting(1.2, "wait for the first token, then a filler is spoken", low=0.05, high=60)
    token_gap_seconds: float = setting(1.0, "wait between two tokens, then the reply ends", low=0.05, high=60)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The engines `embedded`: no account and no network."""

    voice: str = setting("rms", "voice of flite, or espeak: espeak-ng where it is installed",
                         choices=("rms", "slt", "awb", "kal16", "kal", "espeak"))
    processes: int = setting(0, "engine processes of each kind for a worker; 0 is its share of the cores that the "
                             "workers leave, from 1 to 4", low=0, high=64)


@dataclass(frozen=True, slots=True)
class Piper:
    """The voices `piper`: Piper as a program, with voice files of your own."""

    command: str = setting("piper", "the program", "file")
    voice: str = setting("", "a voice: its .onnx file, with the .json beside it; a flow names others in its directory",
                         "file")
    processes: int = setting(2, "texts that a worker has spoken at once", low=1, high=64)


@dataclass(frozen=True, slots=True)
class Sherpa:
    """The recogniser `sherpa`: a streaming model of sherpa-onnx, in engine processes."""

    model: str = setting("", "the directory of a streaming transducer: tokens.txt, encoder*.onnx, decoder*.onnx and "
                         "joiner*.onnx", "directory")


@dataclass(frozen=True, slots=True)
class Scripted:
    """The engines `scripted`: what a file says, after set times."""

    stt: str = setting("", "what callers are heard to say: a line for each utterance", "file")
    stt_ms: float = setting(0.0, "time from the end of an utterance to its text", "ms", low=0, high=60000)
    llm: str = setting("", "what the model answers: [[reply]] tables of `when` and `say`", "file")
    llm_first_ms: float = setting(0.0, "time to the first piece of an answer", "ms", low=0, high=60000)
    llm_piece_ms: float = setting(0.0, "time between two pieces", "ms", low=0, high=60000)
    tts_ms: float = setting(0.0, "time to the speech of a segment", "ms", low=0, high=60000)


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is spoken ahead, and kept over restarts."""

    directory: str = setting("", "where prompts are kept; empty is $CACHE_DIRECTORY, $XDG_CACHE_HOME/opusagent or "
                             "~/.cache/opusagent", "directory")
    megabytes: int = setting(256, "most that is kept, what was used longest ago goes first; 0 keeps nothing", "MiB",
                             low=0, high=1 << 20)


@dataclass(frozen=True, slots=True)
class Archive:
    """What calls leave behind on disk."""

    directory: str = setting("", "where calls are kept, in a folder for each day; empty keeps nothing", "directory")
    journals: bool = setting(True, "keep each call's journal, for `opusagent replay`; it holds what the caller said")
    recordings: bool = setting(False, "keep each call's sound: a stereo WAV, the caller left, the agent right")
    transcripts: bool = setting(False, "keep each call's record when it ends: facts, turns and their receipts")
    days: int = setting(0, "remove what is older; 0 keeps it", "days", low=0, high=36500)
    free_megabytes: int = setting(256, "space that is left to others: with less, nothing is kept, and calls go on",
                                  "MiB", low=0, high=1 << 24)


@dataclass(frozen=True, slots=True)
class Admission:
    """When new calls are refused so that live ones stay good."""

    refuse_above: float = setting(0.70, "load from which new calls get 503; 1 refuses nobody", low=0.05, high=1)
    resume_below: float = setting(0.60, "load below which they are taken again", low=0.01, high=1)
    lag_ms: float = setting(140.0, "lateness of the loop's ticks, at p99, that is a load of 1; 0 does not count",
                            low=0, high=10000)
    late_ms: float = setting(140.0, "lateness of the agent's audio, at p99, that is a load of 1; 0 does not count",
                             low=0, high=10000)
    engine_ms: float = setting(1000.0, "wait of audio for an engine process's recogniser, or of a reply for its "
                               "voice, that is a load of 1; 0 does not count", low=0, high=60000)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one call may be and use, and how many a caller and a tenant may have; 0 is no limit."""

    call_seconds: float = setting(0.0, "longest call; then its caller hears the flow's parting, and it ends",
                                  low=0, high=864000)
    silence_seconds: float = setting(0.0, "longest time without a word or key of the caller's; then it ends so",
                                     low=0, high=86400)
    tokens: int = setting(0, "tokens of language models, in and out, that a call may use; then it ends so",
                          low=0, high=1 << 40)
    spoken_seconds: float = setting(0.0, "synthesised speech that a call may use, prompts spoken ahead not counted; "
                                    "then it ends so", low=0, high=864000)
    calls_per_caller: int = setting(0, "calls at once of one caller's number", low=0, high=1 << 24)
    calls_per_tenant: int = setting(0, "calls at once of one tenant: the account of a call's credentials, or the one "
                                    "that the platform names", low=0, high=1 << 24)
    calls_per_caller_a_day: int = setting(0, "calls of one caller's number on a day", low=0, high=1 << 24)
    calls_per_tenant_a_day: int = setting(0, "calls of one tenant on a day", low=0, high=1 << 24)


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told of each call that has ended, by a signed POST."""

    url: str = setting("", "where to; empty is nobody", "URL")
    secret: str = setting("", "what its signatures are made with, at least 16 characters", secret=True)
    transcript: bool = setting(True, "tell the turns and facts of the call, too, which hold what was said")
    timeout_seconds: float = setting(5.0, "wait for its answer", low=0.1, high=60)
    attempts: int = setting(10, "times that it is tried, ever more rarely; then a notice is given up", low=1, high=100)
    directory: str = setting("", "where what could not be delivered at a stop waits for the next start; empty keeps "
                             "nothing", "directory")


@dataclass(frozen=True, slots=True)
class Redis:
    """Where nodes tell one another of their calls, so that one that comes back to another node goes on there."""

    url: str = setting("", "redis://[:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// or unix://PATH; empty is none",
                       secret=True)
    prefix: str = setting("opusagent", "what the names of our keys begin with", "name")
    lease_seconds: float = setting(1.5, "time after which a node that does not answer has lost its calls",
                                   low=0.3, high=60)
    timeout_ms: int = setting(250, "wait for an answer; without one it is done without, and nobody asks again until "
                              "there is one", low=5, high=5000)
    move: bool = setting(False, "after drain_seconds, have platforms dial another node, instead of saying goodbye")
    waiting: int = setting(10000, "entries that may wait while there is none; then the oldest are dropped", low=1,
                           high=1_000_000)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a process.  Config() is the defaults; load() reads, checks and remembers where each came from."""

    host: str = setting("127.0.0.1", "address or name to listen on; empty is every address", "host")
    port: int = setting(8000, "port to listen on; 0 is a free one", "port", low=0, high=65535)
    workers: int = setting(0, "worker processes; 0 is the cores less one, at least one", low=0, high=1024)
    flow: str = setting("", "the conversation; empty is the demo's", "file")
    config: str = setting("", "a TOML file with these settings", "file")
    stt: str = setting("embedded", "engine that recognises", "engine")
    llm: str = setting("scripted", "engine that answers where the flow leaves it open", "engine")
    tts: str = setting("embedded", "engine that speaks", "engine")
    audiosocket: int = setting(0, "port for calls by Asterisk's AudioSocket, TCP without authentication; 0 is none",
                               "port", low=0, high=65535)
    admin: str = setting("", "an address of their own for the pages: HOST:PORT", "address")
    admin_token: str = setting("", "what a peer beyond loopback shows as its bearer token, at least 16 characters",
                               secret=True)
    auth: Table = setting(Table(), "what a platform's calls must show: [auth.PLATFORM] secrets = [...]", secret=True)
    carriers: Table = setting(Table(), "accounts to dial, transfer and hang up by: [carriers.NAME]", secret=True)
    targets: tuple[str, ...] = setting((), "whom `dial` may call and a flow may hand calls over to: +4930123456, "
                                       "+4930*, sip:*@HOST; empty is nobody", "numbers")
    public_url: str = setting("", "where the world reaches this server, https://HOST[:PORT][/PATH]; platforms sign it",
                              "URL")
    proxies: tuple[str, ...] = setting((), "addresses or networks of proxies, whose X-Forwarded headers are believed",
                                       "addresses")
    origins: tuple[str, ...] = setting((), "web origins whose pages may connect, as https://HOST[:PORT]", "origins")
    tls_cert: str = setting("", "certificate chain (PEM); with tls_key it serves https and wss; calls survive their "
                            "worker where a proxy ends TLS instead", "file")
    tls_key: str = setting("", "private key (PEM)", "file")
    insecure: bool = setting(False, "listen beyond loopback without authentication")
    diagnostics: bool = setting(False, "answer /ws/echo and the echo agent beyond loopback")
    max_calls: int = setting(500, "most calls at once in a worker", low=1, high=100000)
    drain_seconds: float = setting(1800.0, "time that live calls have to finish after SIGTERM", low=0, high=86400)
    pin: bool = setting(True, "each worker on a core of its own, where there are at least 4 and one more than workers")
    nice: int = setting(0, "priority of the workers' processes, as of nice(1); below 0 takes a privilege",
                        low=-20, high=19)
    log_level: str = setting("info", "least severe lines to log", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("text", "how lines are logged: to be read, an object in each, or by fields",
                              choices=("text", "json", "journal"))
    log_speech: bool = setting(True, "log what is said in a call; without, a turn's line has its times alone")

    net: Net = Net()
    turns: Turns = Turns()
    history: History = History()
    openai: OpenAI = OpenAI()
    embedded: Embedded = Embedded()
    piper: Piper = Piper()
    sherpa: Sherpa = Sherpa()
    scripted: Scripted = Scripted()
    prompts: Prompts = Prompts()
    admission: Admission = Admission()
    limits: Bounds = Bounds()
    webhook: Webhook = Webhook()
    archive: Archive = Archive()
    redis: Redis = Redis()

    endpoints: "endpoints.Tables" = field(default_factory=dict)       # of a file, by stage; see endpoints.targets()
    places: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)      # key -> where it was set

    @classmethod
    def load(cls, overrides: Mapping[str, Any], environ: Mapping[str, str], path: str | Path | None = None) -> Self:
        """The settings of this process, from flags (`overrides` by key; None is not given), `environ` and the file.

        The file is `path`, or else what the setting `config` says.  Raises ConfigError.
        """
        given = {**settings.from_environment(SETTINGS, environ), **settings.from_flags(SETTINGS, overrides)}
        path = path or given.get("config", ("",))[0]
        given = settings.joined(settings.from_file(SETTINGS, Path(path), READERS) if path else {}, given)
        rows, _ = given.pop("endpoints", ({}, ""))
        values = {key: credentials.resolved(value, environ, place) if SETTINGS[key].secret else value
                  for key, (value, place) in given.items()}
        values["endpoints"] = endpoints.with_keys(rows, environ)
        parts = {section.name: section.type(**{key.partition(".")[2]: value for key, value in values.items()
                                               if key.startswith(section.name + ".")})
                 for section in settings.sections(cls)}
        loaded = cls(**{key: value for key, value in values.items() if "." not in key}, **parts,
                     places={key: place for key, (_, place) in given.items()})
        _check(loaded)
        return loaded

    def get(self, key: str) -> Any:
        """The value of a setting by its key, such as "net.dscp"."""
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, name)

    def origin(self, *keys: str) -> str:
        """Where the first of these settings that was set came from: "FILE:LINE", a variable or a flag, or "default"."""
        return next((self.places[key] for key in keys if key in self.places), "default")

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Host and port of the pages' own address, None where they share the main one."""
        return _address(self.admin) if self.admin else None

    @property
    def keys(self) -> tuple[Key, ...]:
        """Who may call, by [auth]."""
        return credentials.keys(self.auth, self.origin("auth"))

    @property
    def accounts(self) -> dict[str, Carrier]:
        """By what we call, by name of [carriers]."""
        return credentials.carriers(self.carriers, self.origin("carriers"))

    def toml(self) -> str:
        """All settings as a commented TOML file that loads back to the same; secrets are said to be set, not shown."""
        lines, section = [], ""
        for known in SETTINGS.values():
            if known.key == "config":
                continue
            if known.section != section:
                section = known.section
                lines += ["", f"[{section}]"]
            lines += settings.toml_lines(known, self.get(known.key), self.origin(known.key))
        return "\n".join(lines + endpoints.toml(self.endpoints)) + "\n"


SETTINGS: dict[str, Setting] = settings.known_settings(Config)
READERS = {"endpoints": endpoints.read}         # what a file can say besides


# -- what must be true of several together ---------------------------------------------------------------------------

def _check(config: Config) -> None:
    def refuse(key: str, sentence: str) -> None:
        raise ConfigError(f"{config.origin(key)}: {sentence}")

    if bool(config.tls_cert) != bool(config.tls_key):
        refuse("tls_cert" if config.tls_cert else "tls_key", "tls_cert and tls_key are given together or not at all.")
    if config.admin_token and len(config.admin_token) < 16:
        refuse("admin_token", "admin_token has fewer than 16 characters, which can be guessed.")
    if config.public_url and not re.fullmatch(r"https?://[^/@?#\s]+(/[^?#\s]*)?", config.public_url):
        refuse("public_url", "public_url is written https://HOST[:PORT][/PATH], without a query.")
    for target in config.targets:
        if not targets.is_pattern(target):
            refuse("targets", f"{target[:60]!r} is not written as +4930123456, +4930*, sip:NAME@HOST or sip:*@HOST.")
    for proxy in config.proxies:
        try:
            ipaddress.ip_network(proxy, strict=False)
        except ValueError:
            refuse("proxies", f"{proxy[:60]!r} is no address and no network such as 10.0.0.0/8.")
    credentials.keys(config.auth, config.origin("auth"))
    credentials.carriers(config.carriers, config.origin("carriers"))
    for origin in config.origins:
        if not re.fullmatch(r"https?://[^/@?#*\s]+", origin):
            refuse("origins", f"{origin[:60]!r} is not an origin; one is written https://HOST[:PORT].")
    for key in ("openai.base_url", *(f"openai.{stage}_base_url" for stage in endpoints.STAGES)):
        if config.get(key) and (wrong := endpoints.flaw(config.get(key))):
            refuse(key, f"{key} {wrong}.")
    if config.webhook.url and not re.fullmatch(r"https?://[^/@?#\s]+(/[^#\s]*)?", config.webhook.url):
        refuse("webhook.url", "webhook.url is written https://HOST[:PORT][/PATH].")
    if config.webhook.url and len(config.webhook.secret) < 16:
        refuse("webhook.url", "webhook.secret is missing or has fewer than 16 characters: notices could be forged.")
    if config.admission.resume_below > config.admission.refuse_above:
        refuse("admission.resume_below", "admission.resume_below must not exceed admission.refuse_above.")
    if config.redis.url and not re.fullmatch(r"(rediss?://|unix:/)\S+", config.redis.url):
        refuse("redis.url", "redis.url is written redis://[:PASSWORD@]HOST[:PORT][/DATABASE], or rediss://, or "
                            "unix://PATH.")
    if config.redis.timeout_ms > config.redis.lease_seconds * 1000 / 3:
        refuse("redis.timeout_ms", "redis.timeout_ms must not exceed a third of redis.lease_seconds.")
    try:
        admin = config.admin_address
    except ValueError:
        refuse("admin", "admin must be HOST:PORT.")
    check_exposure(config, config.host)
    if admin:
        check_exposure(config, admin[0])


def check_exposure(config: Config, host: str) -> None:
    """ConfigError where listening on `host` would let strangers in: not loopback, and nothing asks who they are."""
    if config.insecure or config.admin_token or config.auth or host == "localhost":
        return
    try:
        inside = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise ConfigError(f"Listening on {host or 'every address'} lets anybody call without authentication: "
                          "set [auth.PLATFORM] secrets, or admin_token, or --insecure if that is meant.")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(text)
    return host.removeprefix("[").removesuffix("]"), int(port)


# -- the command line ------------------------------------------------------------------------------------------------

def add_flags(parser: argparse.ArgumentParser, keys: Iterable[str] | None = None) -> None:
    """A flag for each setting, or for those of `keys`; secrets have none.  What is parsed goes through flags()."""
    settings.add_flags(parser, SETTINGS.values() if keys is None else [SETTINGS[key] for key in keys])


def flags(namespace: argparse.Namespace) -> dict[str, Any]:
    """The overrides for Config.load() in what the parser returned."""
    return {key: value for key, value in vars(namespace).items() if key in SETTINGS and value is not None}
