"""Reads a flow from a document: what surrounds the rows, and the flows that a flow runs.

A sub-flow is read into the states of the flow that runs it, its states and facts under names of their own, and its
ends lead back.  The rule: what is here is one value at a time; what the states are to one another is check.py's.
"""

import re
from dataclasses import replace
from os.path import realpath
from pathlib import Path

from .. import ConfigError
from .expect import SPOKEN_LEAD_INS, Search, Waits
from .phrases import words
from .phrasing import SLOT
from .rows import NAME, Rows, expectation, overhearing
from .signals import Keys, Recording, fault_of
from .states import (ALWAYS, BACKCHANNELS, FAILED, HISTORY, INTERRUPTS, NEVER, NO_MATCH, SILENCE, Branch, Flow,
                     State, text_of_file)
from .tomlfile import Document, Node, did_you_mean
from .tools import DONE, EFFECTS, FAILURE, PURE, TIMEOUT, Target, Tool, Typed, Use, function

DEPTH = 8                   # flows within flows
EARLY = ("lists", "tools", "transfers", "sounds")       # tables that the others need
FUNCTION = re.compile(r"[\w./-]+:[a-z_]\w*\Z", re.IGNORECASE)
SHARED = ("waits", "silence", "no_match", "failure", "global", "lead_ins", "backchannels", "interrupt")


class Reader(Rows):
    """Reads one document, and with another Reader each that it names."""

    def __init__(self, document: Document, default_waits: Waits, prefix: str = "", renamed: dict | None = None,
                 outer: "Reader | None" = None):
        super().__init__(document, prefix, renamed)
        self.default_waits = default_waits
        self.outer = outer
        self.inner: list[Reader] = []
        self.searches: dict[tuple, Search] = outer.searches if outer else {}
        self.kinds = outer.kinds if outer else self.kinds
        self.sub: dict[str, State] = {}             # the states of the flows that this one runs
        self.sub_facts: dict[str, str] = {}         # and their facts
        self.transfers: dict[str, str] = {}
        self.sounds: dict[str, Recording] = {}      # by the name that they have under [sounds]
        self.state_keys = {
            "say": self.said, "prompt": Node.text, "facts": self.fact_names, "profile": Node.flag,
            "history": lambda node: node.whole(0, HISTORY), "tools": self.uses, "may_go": self.targets,
            "on": self.rows, "enter": self.branches, "call": self.tool_name, "results": self.results,
            "go": self.state_name, "silence": self.ladder, "no_match": self.ladder, "failure": self.ladder,
            "waits": self.waits, "eager": Node.flag, "interrupt": self.interrupt, "interruptible": Node.flag,
            "backchannels": self.word_lists, "end": Node.flag, "transfer": self.transfer, "voice": Node.text,
            "rate": self.speed, "language": Node.text, "play": self.recording, "send_digits": self.pressed,
        }
        self.sub_keys = {"flow": Node.text, "say": self.script, "facts": self.mapping, "returns": self.results,
                         "go": self.state_name}
        self.tool_keys = {
            "effect": self.effect, "about": Node.text, "run": self.run, "url": self.address, "arguments": self.typed,
            "results": self.tool_results, "facts": self.typed, "timeout": lambda node: node.whole(10, 60_000),
        }
        self.flow_keys = {
            "name": Node.text, "start": self.state_name, "machine": self.state_name, "voice": Node.text,
            "rate": self.speed, "language": Node.text, "persona": Node.text, "filler": self.fixed,
            "farewell": self.fixed, "parting": self.fixed, "facts": self.initial, "profile": self.fact_names,
            "lead_ins": self.lead_ins, "lists": self.read_lists,
            "tools": self.read_tools, "transfers": self.read_transfers, "sounds": self.read_sounds, "waits": self.waits,
            "interrupt": self.interrupt, "backchannels": self.word_lists, "silence": self.ladder,
            "no_match": self.ladder, "failure": self.ladder, "global": self.rows, "states": Node.members,
        }

    def unread(self) -> set[str]:
        """The states that the file has, but with something in them that could not be read."""
        own = {self.prefix + path[1] for path in self.document.refused if path[0:1] == ("states",) and len(path) > 1}
        return own.union(*(reader.unread() for reader in self.inner))

    def flow(self) -> Flow:
        """Where there are faults in the document afterwards, what is returned is good for checks only."""
        top, nodes, shared = self.top()
        states = self.states(nodes, shared, ())
        facts = {**self.sub_facts, **top.pop("facts", {})}
        played = {state.play.text: state.play for state in states.values() if state.play}
        if not self.document.faults:
            self.document.faults += [(sound.line, f"the sound \"{name}\" is never played: give a state `play`.")
                                     for name, sound in self.sounds.items() if sound.text not in played]
        return Flow(self.document.name, **top, source=self.document.text, facts=facts, states=states, tools=self.tools,
                    transfers=self.transfers, sounds=played, searches=tuple(self.searches.values()),
                    lines={key: node.line for key, node in self.document.root.members().items()})

    def top(self) -> tuple[dict, dict[str, Node], dict]:
        """Of the flow: its own values, the nodes of its states, what its states share."""
        root = self.document.root
        members = root.members()
        first = [key for key in EARLY if key in members]
        for key in first:                           # the others need them, wherever in the file they are
            self.flow_keys[key](members[key])
        top = root.read({**self.flow_keys, **dict.fromkeys(EARLY, lambda node: None)})
        nodes = top.pop("states", {})
        if "states" not in members:
            root.fault("a flow needs states: a table [states.NAME] for each.")
        if "start" not in members:
            root.fault("a flow needs `start`: the name of the state that a call begins in.")
        elif nodes and (start := top.get("start", "").removeprefix(self.prefix)) and start not in nodes:
            members["start"].fault(f"`start` names \"{start}\", which is no state{did_you_mean(start, nodes)}.")
        if nodes and (machine := top.get("machine", "").removeprefix(self.prefix)) and machine not in nodes:
            members["machine"].fault(f"`machine` names \"{machine}\", which is no state{did_you_mean(machine, nodes)}.")
        shared = {key: top.pop(key, None) for key in SHARED}
        if shared["lead_ins"] is None and not self.outer:
            shared["lead_ins"] = SPOKEN_LEAD_INS
        if shared["waits"]:
            self.growing(members["waits"], replace(self.default_waits, **shared["waits"]))
        shared |= {key: top.get(key) for key in ("voice", "rate", "language", "persona")}
        return top, nodes, shared

    def states(self, nodes: dict[str, Node], shared: dict, globals_: tuple) -> dict[str, State]:
        """Those of the document and of the flows it runs; `globals_`: the rows that are open in all of them."""
        globals_ = (*(shared["global"] or ()), *globals_)
        own = {}
        for name, node in nodes.items():
            name = self.prefix + name
            if type(node.value) is dict and "flow" in node.value:
                own[name] = self.run_flow(name, node, shared, globals_)
            else:
                own[name] = self.state(name, node, shared, globals_)
        return {**own, **self.sub}

    # -- a state -------------------------------------------------------------------------------------------------------

    def state(self, name: str, node: Node, shared: dict, globals_: tuple) -> State:
        found = node.read(self.state_keys)
        end, own = found.get("end", False), found.get("on", ())
        transfer = found.get("transfer", "")
        use = self.use(node, found.get("call"), found.get("results"))
        leaves = end or bool(transfer) or "go" in found or use
        if leaves and "on" in found:
            says = "ends the call" if end or transfer else "goes on at once"
            node.fault(f"state \"{name}\" {says}, so its `on` would never be used.")
            own = ()
        on = () if leaves else (*own, *globals_)
        waits = replace(self.default_waits, **{**(shared["waits"] or {}), **found.get("waits", {})})
        if "waits" in found:
            self.growing(node.members()["waits"], waits)
        if found.get("eager"):
            waits = replace(waits, complete=0)
        expect = expectation(tuple(row.answer for row in on), waits, shared["lead_ins"], self.searches)
        murmurs = backchannels(found.get("backchannels", shared["backchannels"]), expect)
        policy = self.policy(found, shared, end or bool(transfer) or "send_digits" in found)
        overhear = expect.id if policy == NEVER else overhearing(expect, murmurs, self.searches)
        persona = self.outer and shared["persona"]
        prompt = "\n\n".join(filter(None, (persona, found.get("prompt", "")))) if found.get("prompt") else ""
        tools, targets = found.get("tools", ()), found.get("may_go", ())
        return State(
            name, node.line, expect, found.get("say"), prompt, found.get("facts", ()), found.get("profile", False),
            found.get("history", 0), tools, targets, functions(tools, targets), on, len(own), found.get("enter", ()),
            use, found.get("go"),
            silence=found.get("silence") or shared["silence"] or SILENCE,
            no_match=found.get("no_match") or shared["no_match"] or NO_MATCH,
            failure=found.get("failure") or shared["failure"] or FAILED,
            interrupt=policy, backchannels=murmurs, overhear=overhear,
            end=end or bool(transfer), transfer=transfer,
            voice=found.get("voice") or shared["voice"] or "", rate=found.get("rate") or shared["rate"] or 1.0,
            language=found.get("language") or shared["language"] or "",
            voice_line=self.line_of("voice", node), language_line=self.line_of("language", node),
            play=found.get("play"), keys=found.get("send_digits"),
        )

    def line_of(self, key: str, node: Node) -> int:
        """Where a state has this value from: itself, its flow, or the one around that."""
        own, root = node.members(), self.document.root.members()
        if key in own or key in root:
            return (own.get(key) or root[key]).line
        return self.outer.line_of(key, node) if self.outer else node.line

    def policy(self, found: dict, shared: dict, closed: bool) -> str:
        """Who may interrupt: `interrupt`, or `interruptible`, its older name; nobody if it is `closed` by itself."""
        if "interrupt" in found:
            return found["interrupt"]
        if "interruptible" in found:
            return ALWAYS if found["interruptible"] else NEVER
        return NEVER if closed else shared["interrupt"] or ALWAYS

    def interrupt(self, node: Node) -> str | None:
        return self.one_of(node, INTERRUPTS)

    def one_of(self, node: Node, choices: tuple[str, ...]) -> str | None:
        text = node.text()
        if text and text not in choices:
            node.fault(f"`{node.label}` must be {', '.join(choices[:-1])} or {choices[-1]}, not \"{text}\".")
            return None
        return text

    def speed(self, node: Node) -> float | None:
        rate = node.of(float, int)
        if rate is not None and not 0.5 <= rate <= 2:
            node.fault(f"`{node.label}` must be from 0.5 to 2, not {rate}.")
            return None
        return rate and float(rate)

    def transfer(self, node: Node) -> str | None:
        name = node.text()
        if name and name not in self.transfers:
            written = f"{name} = \"...\"" if NAME.match(name) else f"NAME = \"{name}\""
            self.unknown(node, name, self.transfers, "destination", f"{written} under [transfers]")
            return None
        return name and self.transfers[name]

    def branches(self, node: Node) -> tuple[Branch, ...]:
        rows = []
        for item in node.items():
            found = item.read({"when": self.conditions, "go": self.state_name})
            if type(item.value) is dict and not {"when", "go"} <= item.value.keys():
                item.fault(f"`{item.label}` needs `when` and `go`.")
            elif found.keys() == {"when", "go"}:
                rows.append(Branch(found["when"], found["go"], item.line))
        return tuple(rows)

    def conditions(self, node: Node) -> dict[str, str] | None:
        found = {self.fact(name): member.of(str) for name, member in node.members().items()}
        if node.value == {}:
            node.fault(f"`{node.label}` is empty.")
        return found if found and None not in found.values() else None

    def uses(self, node: Node) -> tuple[Use, ...]:
        """["slots", { call = "book", results = { booked = "done" } }]"""
        found = []
        for item in node.items():
            if type(item.value) is dict:
                read = item.read({"call": self.tool_name, "results": self.results})
                found.append(self.use(item, read.get("call"), read.get("results")))
            else:
                found.append(self.use(item, self.tool_name(item), None))
        return tuple(use for use in found if use)

    def targets(self, node: Node) -> tuple[Target, ...]:
        """["bye"], or { confirm = { day = "date" }, bye = {} }: the states, and what a model gives to go there."""
        if type(node.value) is not dict:
            return tuple(self.target(item, item.text(), ()) for item in node.items() if item.text())
        return tuple(self.target(member, name, self.typed(member)) for name, member in node.members().items())

    def target(self, node: Node, name: str, given: tuple[Typed, ...]) -> Target:
        for typed in given:
            self.kind(typed.fact, typed.kind)
        return Target(self.prefix + name, node.line, f"go_to_{re.sub(r'[^a-zA-Z0-9_-]', '_', name)}"[:64], given)

    # -- tools and facts -----------------------------------------------------------------------------------------------

    def read_tools(self, node: Node) -> None:
        for name, member in node.members().items():
            if not self.name(Node(self.document, member.path, name)):
                continue
            found = member.read(self.tool_keys)
            if type(member.value) is not dict:
                continue
            if ("run" in found) + ("url" in found) != 1 and not {"run", "url"} & {path[-1] for path in
                                                                                 self.document.refused}:
                member.fault(f"the tool \"{name}\" needs either `run` or `url`.")
            if "facts" in found and "results" in found:
                member.fault(f"the tool \"{name}\" has `results`, so its facts belong to them.")
            results = found.get("results") or {DONE: found.get("facts", ())}
            for typed in (typed for facts in results.values() for typed in facts):
                self.kind(typed.fact, typed.kind)
            self.tools[name] = Tool(
                name, member.line, found.get("effect", PURE), found.get("about", ""), found.get("run", ""),
                found.get("url", ""), str(Path(self.document.name).parent), found.get("arguments", ()), results,
                found.get("timeout", 3_000))

    def effect(self, node: Node) -> str | None:
        return self.one_of(node, EFFECTS)

    def run(self, node: Node) -> str | None:
        text = node.text()
        if text and not FUNCTION.match(text):
            node.fault(f"`{node.label}` must be MODULE:FUNCTION or FILE.py:FUNCTION, not \"{text}\".")
            return None
        return text

    def address(self, node: Node) -> str | None:
        text = node.text()
        if text and not re.match(r"https?://[^\s/]+\S*\Z", text):
            node.fault(f"`{node.label}` must begin with http:// or https://.")
            return None
        return text

    def tool_results(self, node: Node) -> dict[str, tuple[Typed, ...]] | None:
        """["booked", "taken"], or { booked = { reference = "text" }, taken = {} }"""
        named = type(node.value) is dict
        found = {name: self.typed(member) for name, member in node.members().items()} if named else dict.fromkeys(
            node.texts() or (), ())
        for name in found:
            if not NAME.match(name) or name in (FAILURE, TIMEOUT):
                node.fault(f"\"{name}\" cannot be the name of a result.")
        return found or None

    def initial(self, node: Node) -> dict[str, str]:
        found = {}
        for name, member in node.members().items():
            if self.fact_name(Node(self.document, member.path, name)) and member.of(str) is not None:
                found[self.fact(name)] = member.value
        return {name: value for name, value in found.items() if name not in self.renamed.values()}

    # -- besides words -------------------------------------------------------------------------------------------------

    def read_sounds(self, node: Node) -> None:
        """{ ring = "ring.wav", hold = { file = "hold.wav", url = "https://..." } }"""
        for name, member in node.members().items():
            named = self.name(Node(self.document, member.path, name))
            found = member.read({"file": self.wav, "url": self.address}) if type(member.value) is dict else {
                "file": self.wav(member)}
            if named and member.value == {}:
                member.fault(f"the sound \"{name}\" needs a `file`, or a `url`.")
            self.sounds[name] = Recording(self.prefix + name, member.line, found.get("file") or "",
                                          found.get("url") or "")

    def wav(self, node: Node) -> str | None:
        """A WAV file, beside the flow's; whether it can be played is seen by who plays it."""
        text = node.text()
        if text and not text.lower().endswith(".wav"):
            node.fault(f"`{node.label}` must be a WAV file (.wav), not \"{text}\".")
            return None
        return text and str(Path(self.document.name).parent / text)

    def recording(self, node: Node) -> Recording | None:
        """A name under [sounds], or a WAV file."""
        text = node.text()
        if text and "." in text:
            file = self.wav(node)
            return Recording(self.prefix + text, node.line, file) if file else None
        if text and text not in self.sounds:
            self.unknown(node, text, self.sounds, "sound", f"{text} = \"FILE.wav\" under [sounds], or name a file")
            return None
        return self.sounds[text] if text else None

    def pressed(self, node: Node) -> Keys | None:
        """Keys, as text."""
        text = node.text()
        if text and (fault := fault_of(text)):
            node.fault(f"`{node.label}` {fault}")
            return None
        return Keys(SLOT.sub(lambda slot: "{" + self.fact(slot[1]) + "}", text), node.line) if text else None

    def read_transfers(self, node: Node) -> None:
        for name, member in node.members().items():
            if target := member.text():
                self.transfers[name] = target

    def mapping(self, node: Node) -> dict[str, str] | None:
        """["street"] or { street = "billing_street" }: a sub-flow's facts, and their names here."""
        if type(node.value) is not dict:
            return {name: self.fact(name) for name in node.texts() or ()}
        return {name: self.fact(member.value) for name, member in node.members().items() if self.name(member)}

    # -- flows in flows ------------------------------------------------------------------------------------------------

    def run_flow(self, name: str, node: Node, shared: dict, globals_: tuple) -> State:
        """The state that runs another flow: it says its text and goes on to that flow's start."""
        found = node.read(self.sub_keys)
        waits = replace(self.default_waits, **(shared["waits"] or {}))
        expect = expectation((), waits, shared["lead_ins"], self.searches)
        start = self.include(name, node, found, shared, globals_) if "flow" in found else None
        return State(name, node.line, expect, found.get("say"), go=start,
                     failure=shared["failure"] or FAILED, voice=shared["voice"] or "", rate=shared["rate"] or 1.0,
                     language=shared["language"] or "", voice_line=self.line_of("voice", node),
                     language_line=self.line_of("language", node))

    def include(self, name: str, node: Node, found: dict, shared: dict, globals_: tuple) -> str | None:
        """Reads the flow in; returns its start."""
        path = str(Path(self.document.name).parent / found["flow"])
        try:
            document = Document(text_of_file(path), path, inner=True)
        except ConfigError as error:
            node.fault(f"state \"{name}\" runs a flow that cannot be read: {error}")
            return None
        chain, reader = [], self
        while reader:
            chain.append(realpath(reader.document.name))
            reader = reader.outer
        if realpath(path) in chain or len(chain) > DEPTH:
            node.fault(f"state \"{name}\" runs {found['flow']}, which would run itself.")
            return None
        reader = Reader(document, self.default_waits, f"{name}/", found.get("facts"), self)
        self.inner.append(reader)
        top, nodes, own = reader.top()
        states = reader.states(nodes, {key: own[key] if own[key] is not None else shared.get(key) for key in own}
                               | {"global": own["global"], "persona": own["persona"]}, globals_)
        returns, ends = found.get("returns", {}), {end for end, state in states.items()
                                                   if state.end and not state.transfer and end.count("/") == name.count(
                                                       "/") + 1}
        for end in ends:
            target = returns.pop(end.removeprefix(f"{name}/"), None) or found.get("go")
            if target is None:
                node.fault(f"state \"{name}\" does not say where to go after \"{end.removeprefix(name + '/')}\" of "
                           f"{found['flow']}: give it `go`, or `returns`.")
            states[end] = replace(states[end], end=False, go=target, interrupt=ALWAYS)
        for unknown in returns:
            node.fault(f"`returns` names \"{unknown}\", which is no end of {found['flow']}.")
        self.document.faults += document.faults
        self.sub |= states
        self.sub_facts |= {**reader.sub_facts, **top.get("facts", {})}
        return top.get("start")


def functions(tools: tuple[Use, ...], targets: tuple[Target, ...]) -> tuple[dict, ...]:
    """What a model may call in a state, as it is told."""
    return (*(function(use.tool.name, use.tool.about, use.tool.arguments) for use in tools),
            *(function(target.function, f"Go on to: {target.state.rpartition('/')[2].replace('_', ' ')}", target.given)
              for target in targets))


def backchannels(given: frozenset | None, expect) -> frozenset[tuple[str, ...]]:
    """The words that do not interrupt in a state: those that are given, or the usual ones that it does not expect."""
    if given is not None:
        return given
    return frozenset(words(text) for text in BACKCHANNELS if expect.match(text) is None or any(
        answer.free for answer in expect.answers))
