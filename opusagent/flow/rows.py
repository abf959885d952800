"""Reads what a caller may answer, and texts: the values of a flow's rows, from a document.

Each method is the reader of one kind of value: a Node in, the value or None out.  The rule: a value that is not
understood is a fault with its line, and reading goes on.
"""

import re
from dataclasses import replace

from .expect import INTERRUPTIONS, NO, YES, Answer, Expect, Search, Waits, grammar, spoken_words
from .numerals import CURRENCIES, TIME
from .phrases import Digits, Group, pattern, words
from .phrasing import SLOT, TODAY, Text, cut
from .quantities import Quantity, amount, date, number, time
from .states import Ladder, Transition
from .tomlfile import Document, Node, did_you_mean
from .tools import KINDS, Typed, Use

NAME = re.compile(r"[a-z_][a-z0-9_]*\Z", re.IGNORECASE)
EXPECTING = ("phrases", "digits", "number", "date", "time", "amount", "yes", "no", "free", "dtmf")
WHEN = ("future", "past", "any")
SHOWN = 60                      # characters of a phrase, in a sentence about it


class Rows:
    """Reads one document; Reader adds what surrounds the rows."""

    def __init__(self, document: Document, prefix: str = "", renamed: dict[str, str] | None = None):
        self.document = document
        self.prefix = prefix                        # of a sub-flow's states and facts
        self.renamed = renamed or {}                # its facts that are the outer flow's, and their names there
        self.lists: dict[str, tuple[Group, ...]] = {}
        self.tools: dict = {}                       # name -> Tool
        self.kinds: dict[str, str] = {}             # fact -> its kind, where that is not plain text
        self.row_keys = {
            "phrases": self.phrases, "digits": self.digits, "number": self.number, "date": self.date,
            "time": self.time, "amount": self.amount, "yes": Node.flag, "no": Node.flag, "free": Node.flag,
            "dtmf": self.keys, "fact": self.fact_name, "say": self.script, "go": self.state_name,
            "call": self.tool_name, "results": self.results,
        }
        self.ladder_keys = {"say": self.steps, "go": self.state_name}
        self.range_keys = {"min": lambda node: node.whole(0, 999_999), "max": lambda node: node.whole(0, 999_999)}

    # -- names ---------------------------------------------------------------------------------------------------------

    def name(self, node: Node) -> str | None:
        name = node.text()
        if name and not NAME.match(name):
            node.fault(f"\"{name}\" is no name for `{node.label}`: letters, digits and _ only, a letter first.")
            return None
        return name

    def fact(self, name: str) -> str:
        """The fact's name in the whole conversation."""
        return self.renamed.get(name) or (self.prefix + name if name != TODAY else name)

    def fact_name(self, node: Node) -> str | None:
        name = self.name(node)
        if name == TODAY:
            node.fault(f"the fact \"{TODAY}\" is the date of the call: choose another name.")
            return None
        return name and self.fact(name)

    def fact_names(self, node: Node) -> tuple[str, ...] | None:
        names = node.texts()
        return names and tuple(map(self.fact, names))

    def state_name(self, node: Node) -> str | None:
        name = node.text()
        return name and self.prefix + name

    def kind(self, fact: str | None, kind: str) -> None:
        """Notes what a fact is; where that depends, it is text."""
        if fact:
            self.kinds[fact] = kind if self.kinds.get(fact, kind) == kind else "text"

    # -- rows ----------------------------------------------------------------------------------------------------------

    def rows(self, node: Node) -> tuple[Transition, ...]:
        return tuple(row for row in map(self.row, node.items()) if row)

    def row(self, node: Node) -> Transition | None:
        if node.of(dict) is None:
            return None
        found = node.read(self.row_keys)
        spoken = found.pop("phrases", ()) + found.pop("digits", ())
        for key in ("number", "date", "time", "amount"):
            spoken += found.pop(key, ())
        for key, group in (("yes", YES), ("no", NO)):
            if found.pop(key, False):
                spoken += (group,)
        answer = Answer(spoken, found.pop("free", False), found.pop("dtmf", ""))
        if all(node.value.get(key, False) is False for key in EXPECTING):
            node.fault("this row expects nothing: give it `phrases`, `digits`, `yes`, `no`, `free` or `dtmf`.")
        kinds = {option.kind if isinstance(option, Quantity) else "text" for option in spoken} or {"text"}
        self.kind(found.get("fact"), kinds.pop() if len(kinds) == 1 and not answer.free else "text")
        found["use"] = self.use(node, found.pop("call", None), found.pop("results", None))
        return Transition(answer, node.line, **found)

    def use(self, node: Node, tool: str | None, results: dict[str, str] | None) -> Use | None:
        """A tool that is called here; `node` has `call` and `results`."""
        if tool is None:
            if results and "call" not in node.members():
                node.members()["results"].fault("`results` belong to a `call`, which is not here.")
            return None
        return Use(self.tools[tool], node.line, results or {})

    def tool_name(self, node: Node) -> str | None:
        name = node.text()
        if name and name not in self.tools:
            self.unknown(node, name, self.tools, "tool", "[tools.NAME]")
            return None
        return name

    def unknown(self, node: Node, name: str, known, what: str, where: str) -> None:
        node.fault(f"\"{name}\" is no {what} of this flow{did_you_mean(name, known)}; one is declared as {where}.")

    def results(self, node: Node) -> dict[str, str]:
        return {name: target for name, member in node.members().items() if (target := self.state_name(member))}

    def phrases(self, node: Node) -> tuple[Group, ...] | None:
        """["one", ["two", "too"]] or {value = ["one way", "another"]}: a group for each member."""
        if node.of(list, dict) is None:
            return None
        named = type(node.value) is dict
        groups = [self.group(member, key if named else None) for key, member in
                  (node.members().items() if named else enumerate(node.items()))]
        if named and not groups:
            node.fault(f"`{node.label}` is empty.")
        return tuple(group for group in groups if group) or None

    def group(self, node: Node, value: str | None) -> Group | None:
        if node.of(str, list) is None:
            return None
        forms = []
        for item in [node] if type(node.value) is str else node.items():
            text = item.text()
            try:
                forms += [pattern(text, self.lists)] if text else []
            except ValueError as error:
                item.fault(f"the phrase \"{text if len(text) <= SHOWN else text[:SHOWN].rstrip() + '...'}\" {error}.")
        return Group(tuple(forms), value) if forms else None

    def read_lists(self, node: Node) -> None:
        for name, member in node.members().items():
            if self.name(Node(self.document, member.path, name)) and (groups := self.phrases(member)):
                self.lists[name] = groups

    def digits(self, node: Node) -> tuple[Digits] | None:
        if type(node.value) is dict:
            found = node.read({"min": lambda member: member.whole(1, 32), "max": lambda member: member.whole(1, 32)})
            low, high = self.ordered(node, found.get("min", 1), found.get("max", 32))
            return (Digits(low, high),)
        count = node.whole(1, 32)
        return (Digits(count, count),) if count else None

    def ordered(self, node: Node, low, high) -> tuple:
        if low > high:
            node.fault(f"`{node.label}` has a min of {low} above its max of {high}.")
        return low, max(low, high)

    def number(self, node: Node) -> tuple[Quantity] | None:
        if node.of(bool, dict) is None or node.value is False:
            return None
        found = node.read(self.range_keys) if type(node.value) is dict else {}
        return (number(*self.ordered(node, found.get("min", 0), found.get("max", 999_999))),)

    def amount(self, node: Node) -> tuple[Quantity] | None:
        if node.of(str, dict) is None:
            return None
        keys = {"currency": Node.text, **self.range_keys}
        found = node.read(keys) if type(node.value) is dict else {"currency": node.text()}
        code = found.get("currency")
        if code not in CURRENCIES:
            node.fault(f"`{node.label}` needs a currency: {', '.join(CURRENCIES)}.")
            return None
        return (amount(code, *self.ordered(node, found.get("min", 0), found.get("max", 100_000))),)

    def date(self, node: Node) -> tuple[Quantity] | None:
        if node.of(bool, str) is None or node.value is False:
            return None
        when = "future" if node.value is True else node.value
        if when not in WHEN:
            node.fault(f"`{node.label}` must be true, \"future\", \"past\" or \"any\", not \"{when}\".")
            return None
        return (date(when),)

    def time(self, node: Node) -> tuple[Quantity] | None:
        if node.of(bool, dict) is None or node.value is False:
            return None
        found = node.read(dict.fromkeys(("from", "to"), self.clock)) if type(node.value) is dict else {}
        return (time(*self.ordered(node, found.get("from", "07:00"), found.get("to", "23:59"))),)

    def clock(self, node: Node) -> str | None:
        text = node.text()
        if text and not TIME.match(text):
            node.fault(f"`{node.label}` must be a time such as 08:30, not \"{text}\".")
            return None
        return text

    def keys(self, node: Node) -> str | None:
        keys = node.text()
        if keys and keys.strip("0123456789*#"):
            node.fault(f"`{node.label}` may have the keys 0 to 9, * and #, not \"{keys}\".")
        return keys

    def typed(self, node: Node) -> tuple[Typed, ...]:
        """{ day = "date", part = ["am", "pm"], member = { fact = "number", kind = "digits" } }"""
        return tuple(filter(None, (self.one_typed(name, member) for name, member in node.members().items())))

    def one_typed(self, name: str, node: Node) -> Typed | None:
        if not self.name(Node(self.document, node.path, name)):
            return None
        if type(node.value) is list:
            return Typed(name, choices=node.texts() or (), fact=self.fact(name))
        if type(node.value) is dict:
            found = node.read({"fact": self.name, "kind": self.value_kind})
            fact = self.fact(found.get("fact", name))
            return Typed(name, found.get("kind", "text"), fact=fact, fixed="fact" in found)
        kind = self.value_kind(node)
        return Typed(name, kind, fact=self.fact(name)) if kind else None

    def value_kind(self, node: Node) -> str | None:
        kind = node.text()
        if kind and kind not in KINDS:
            node.fault(f"`{node.label}` must be one of {', '.join(KINDS)}, or a list of values, not \"{kind}\".")
            return None
        return kind

    # -- texts ---------------------------------------------------------------------------------------------------------

    def script(self, node: Node) -> Text | None:
        text = node.text()
        if text is None:
            return None
        if re.search(r"[{}]", SLOT.sub("", text)):
            node.fault(f"`{node.label}` has a brace that is no slot; a slot is the name of a fact, as in {{member}}.")
        if not SLOT.search(text) and not cut(text):
            node.fault(f"`{node.label}` has nothing in it that can be spoken.")
        named = SLOT.sub(lambda slot: f"{{{self.fact(slot[1])}}}", " ".join(text.split()))
        return Text(named, node.line, self.kinds)

    def said(self, node: Node) -> Text | None:
        """What a state says: "" is nothing, so that it only listens."""
        return Text("", node.line) if node.value == "" else self.script(node)

    def fixed(self, node: Node) -> Text | None:
        text = self.script(node)
        if text and text.slots:
            slot = text.slots[0]
            node.fault(f"`{node.label}` is rendered before the call, so it can have no slot such as {{{slot}}}.")
        return text

    def steps(self, node: Node) -> tuple[Text, ...] | None:
        items = [node] if type(node.value) is str else node.items()
        return tuple(text for text in map(self.script, items) if text) or None

    def ladder(self, node: Node) -> Ladder | None:
        if node.of(str, list, dict) is None:
            return None
        if type(node.value) in (str, list):         # texts alone, no `go`
            return Ladder(self.steps(node) or (), None, node.line)
        found = node.read(self.ladder_keys)
        if "say" not in node.members() and "go" not in node.members():
            node.fault(f"`{node.label}` does nothing: give it `say`, `go` or both.")
        return Ladder(found.get("say", ()), found.get("go"), node.line)

    def waits(self, node: Node) -> dict[str, int]:
        return node.read(dict.fromkeys(Waits.__slots__, lambda member: member.whole(0, 60_000)))

    def growing(self, node: Node, waits: Waits) -> None:
        if not waits.complete <= waits.free <= waits.incomplete:
            node.fault(f"`{node.label}` must grow from complete ({waits.complete} ms) over free ({waits.free} ms) to "
                       f"incomplete ({waits.incomplete} ms).")

    def lead_ins(self, node: Node) -> tuple[tuple[str, ...], ...]:
        return tuple(map(words, node.texts() or ())) if node.value != [] else ()

    def word_lists(self, node: Node) -> frozenset[tuple[str, ...]]:
        return frozenset(map(words, node.texts() or ())) if node.value != [] else frozenset()


def expectation(answers: tuple[Answer, ...], waits: Waits, lead_ins: tuple, searches: dict[tuple, Search]) -> Expect:
    """What these rows expect; `searches` (by JSGF, "" for the language model, and murmurs) gains what it lacks."""
    free = any(answer.free for answer in answers)
    jsgf = "" if free else grammar(answers, lead_ins)
    if not free and not jsgf:
        return Expect(-1, "none", waits, answers, lead_ins)
    kind = "free" if free else "grammar"
    search = searches.setdefault((jsgf, ()), Search(len(searches), kind, jsgf, spoken_words(jsgf)))
    return Expect(search.id, kind, waits, answers, lead_ins)


def overhearing(expect: Expect, murmurs: frozenset, searches: dict[tuple, Search]) -> int:
    """The id of the search for what is said in that state while the agent speaks; `searches` gains it."""
    if expect.kind != "grammar" or not murmurs:
        return expect.id
    plain = next(search for search in searches.values() if search.id == expect.id)
    said = tuple(sorted(map(" ".join, murmurs)))
    others = tuple(text for text in INTERRUPTIONS if words(text) not in murmurs and expect.match(text) is None)
    return searches.setdefault((plain.jsgf, said), replace(plain, id=len(searches), murmurs=said,
                                                           interruptions=others)).id
