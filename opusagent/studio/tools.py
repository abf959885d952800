"""Runs the tools of flows: Python coroutines, and endpoints that take JSON.

Where they come from is found when the flow is loaded; what they may be given and may return is flow/tools.py's.  The
rules: a tool has its time and not a moment more, whatever it does with it; a `commit` tool runs at most once in a
call with the same arguments, to its end once it has begun, and its result is kept; and what is not a result is a
failure, with a reason for the log and never for the caller.
"""
import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator
from datetime import date, time
from functools import partial
from pathlib import Path

import orjson

from .. import ConfigError
from ..flow import COMMIT, PURE, Flow, Outcome, Tool, ToolCall, Waits
from ..flow.authoring import Flow as WrittenFlow
from ..flow.states import refuse
from ..flow.tools import FAILURE, TIMEOUT

log = logging.getLogger("opusagent")

LARGEST = 65_536                # bytes of an endpoint's answer
REASON = 200                    # characters of what the log says of an endpoint that failed
PYTHON = re.compile(r"(?P<module>.+?\.py|[\w.]+):(?P<name>[a-z_]\w*)\Z", re.IGNORECASE)

# kind -> what a value of it becomes: for a coroutine, for JSON
VALUES = {"number": (int, int), "yes_no": (lambda text: text == "yes",) * 2,
          "date": (date.fromisoformat, str), "time": (time.fromisoformat, str)}

Functions = dict[tuple, Callable]       # a tool's name and line -> the coroutine function that runs it


def load(path: str, waits: Waits = Waits()) -> Flow:
    """The flow in a TOML file, or in Python: FILE.py:NAME or MODULE:NAME.  Its tools are found, too.  ConfigError."""
    found = PYTHON.match(str(path))
    if not found and not str(path).endswith(".py"):
        flow = Flow.load(path, waits)
    else:
        module, name = (found["module"], found["name"]) if found else (path, "flow")
        written = getattr(imported(module, Path.cwd(), path), name, None)
        if not isinstance(written, WrittenFlow):
            raise ConfigError(f"{path}: there is no flow `{name}` in it, made with opusagent.flow.authoring.Flow.")
        flow = written.compile(waits)
    functions(flow)
    return flow


def functions(flow: Flow) -> Functions:
    """What runs each tool.  ConfigError, a line for each that is not there."""
    found, faults, client = {}, [], None
    for tool in used(flow):
        try:
            if tool.url:
                client = client or http_client()
                found[tool.name, tool.line] = partial(post, client, tool)
            else:
                found[tool.name, tool.line] = taking(tool, flow.functions.get(tool.name) or function(tool))
        except ConfigError as error:
            faults.append((tool.line, str(error)))
    refuse(flow.file, faults)
    return found


def used(flow: Flow) -> Iterator[Tool]:
    """The tools of the flow, and of the flows in it."""
    found = {(use.tool.name, use.tool.line): use.tool for state in flow.states.values() for use in state.uses()}
    yield from found.values()


def http_client():
    """Keeps connections open between calls.  Made ahead: its certificates take a while to read."""
    from ..engines.remote.transport import httpx
    return httpx.AsyncClient(timeout=None)


async def close(found: Functions) -> None:
    """They are not needed any more."""
    for client in {run.args[0] for run in found.values() if isinstance(run, partial)}:
        await client.aclose()


def function(tool: Tool) -> Callable:
    """The coroutine function that a tool names.  Raises ConfigError without it."""
    module, _, name = tool.run.rpartition(":")
    called = getattr(imported(module, Path(tool.folder), f"the tool \"{tool.name}\""), name, None)
    if not inspect.iscoroutinefunction(called):
        raise ConfigError(f"the tool \"{tool.name}\" runs {tool.run}, which is no `async def` function.")
    return called


def taking(tool: Tool, called: Callable) -> Callable:
    """The same function.  Raises ConfigError where it does not take the tool's arguments by their names."""
    try:
        inspect.signature(called).bind(**dict.fromkeys(typed.name for typed in tool.arguments))
    except TypeError as error:
        name = tool.run.rpartition(":")[2]
        raise ConfigError(f"the tool \"{tool.name}\" cannot call {name} with its arguments: {error}.") from None
    return called


def imported(module: str, folder: Path, what: str):
    """A module by its name, or a file of Python.  Raises ConfigError with what its own code raised."""
    try:
        if not module.endswith(".py"):
            return importlib.import_module(module)
        path = (folder / module).resolve()
        name = str(path)
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[name])
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"{what}: there is no file {module}.") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what}: {module} cannot be imported: {type(error).__name__}: {error}.") from None


class Toolbox:
    """The tools of one call.  Nothing of it is left running but what has an effect."""

    __slots__ = ("functions", "call_id", "tell", "late", "done", "running")

    def __init__(self, functions: Functions, call_id: str, tell: Callable, late: Callable[[dict[str, str]], None]):
        self.functions = functions
        self.call_id = call_id
        self.tell = tell                                # (epoch, part, result, facts, told, reason): what came of one
        self.late = late                                # (facts of a commit tool that nobody waits for)
        self.done: dict[tuple, Outcome] = {}            # commit tools that have run: key -> what came of it
        self.running: dict[tuple, asyncio.Task] = {}    # ... that are running

    def start(self, epoch: int, part: int, call: ToolCall) -> asyncio.Task:
        """Runs it, and tells; cancelled, it tells nothing."""
        return asyncio.ensure_future(self._start(epoch, part, call))

    async def _start(self, epoch: int, part: int, call: ToolCall) -> None:
        outcome = await self.perform(call)
        self.tell(epoch, part, outcome.result, outcome.facts, outcome.told, outcome.reason)

    async def perform(self, call: ToolCall) -> Outcome:
        """What came of it.  Cancelled, it ends at once; a commit tool goes on without us."""
        if call.tool.effect != COMMIT:
            return await self._run(call)
        if call.key not in self.done:
            if call.key not in self.running:
                self.running[call.key] = asyncio.ensure_future(self._run(call))
                self.running[call.key].add_done_callback(lambda task: self._committed(call, task))
            try:
                await asyncio.shield(self.running[call.key])
            except asyncio.CancelledError:
                if call.key in self.running:
                    self.running[call.key].add_done_callback(lambda task: self.late(self.done[call.key].facts))
                raise
        return self.done[call.key]

    def _committed(self, call: ToolCall, task: asyncio.Task) -> None:
        del self.running[call.key]
        outcome = Outcome(FAILURE, reason="The server stopped.") if task.cancelled() else task.result()
        self.done[call.key] = outcome

    async def _run(self, call: ToolCall) -> Outcome:
        tool = call.tool
        given, function = dict(call.arguments), self.functions[tool.name, tool.line]
        values = {typed.name: VALUES.get(typed.kind, (str, str))[bool(tool.url)](given[typed.name])
                  for typed in tool.arguments}
        work = asyncio.ensure_future(function(values, self.call_id) if tool.url else function(**values))
        try:
            done, _ = await asyncio.wait({work}, timeout=tool.timeout_ms / 1000)
            outcome = tool.outcome(plain(work.result())) if done else Outcome(
                TIMEOUT, reason=f"The tool {tool.name} took more than {tool.timeout_ms} ms.")
            if outcome.reason:
                log.warning("call %s: %s", self.call_id, outcome.reason)
            return outcome
        except Exception as error:
            if tool.url:
                what = str(error)[:REASON] or type(error).__name__
                log.warning("call %s: the tool %s failed: %s", self.call_id, tool.name, what)
            else:                               # where in it that was, whose code it is wants to know
                log.warning("call %s: the tool %s failed", self.call_id, tool.name, exc_info=error)
            return Outcome(FAILURE, reason=f"The tool {tool.name} failed: {type(error).__name__}.")
        finally:
            if not work.done():
                work.cancel()               # what does not heed that is nobody's any more
                work.add_done_callback(lambda task: task.cancelled() or task.exception())


def plain(value: object) -> object:
    """What a coroutine returns, its days and times as facts have them."""
    if type(value) is dict:
        return {name: plain(each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return [plain(each) for each in value]
    return f"{value:%H:%M}" if type(value) is time else value.isoformat() if type(value) is date else value


async def post(client, tool: Tool, values: dict, call_id: str) -> object:
    """The arguments go to the tool's endpoint as JSON, and JSON comes back."""
    body = orjson.dumps(values)
    call_id = re.sub(r"[^\x21-\x7e]", "_", call_id)[:100]
    headers = {"content-type": "application/json", "x-opusagent-call": call_id}
    if tool.effect != PURE:
        same = hashlib.sha256(b"%s %s %s" % (call_id.encode(), tool.name.encode(), body)).hexdigest()
        headers["idempotency-key"] = same[:32]
    async with client.stream("POST", tool.url, content=body, headers=headers) as answer:
        told = b""
        async for piece in answer.aiter_bytes():
            told += piece
            if len(told) > LARGEST:
                raise ValueError("the answer is too long")
        if not 200 <= answer.status_code < 300:
            raise ValueError(f"status {answer.status_code}")
        return orjson.loads(told) if told.strip() else None
