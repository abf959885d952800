"""The model of the engine `openai`, with the real package, against a local server that speaks the real wire format."""
import asyncio
import gzip
import json
import logging
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from llm_endpoint import KEY, Exchange, LocalEndpoint, answers, begins, completion, does, fails, says

from opusagent import ConfigError, EngineError
from opusagent.config import Config, OpenAI
from opusagent.engines.openai.llm import Llm
from opusagent.engines.remote import endpoint as endpoint_module
from opusagent.engines.remote.endpoint import behind_proxy
from opusagent.engines.remote.transport import httpx
from opusagent.flow import FunctionCall
from opusagent.usage import CHARACTERS_A_TOKEN, TOKENS_A_PICTURE, asked

MESSAGES = ({"role": "system", "content": "You sell tickets."}, {"role": "user", "content": "Hello?"})
CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"


def config(url: str, **settings) -> Config:
    return Config(openai=OpenAI(base_url=url, api_key=KEY, **settings))


@asynccontextmanager
async def model(*doings, ssl=None, **settings):
    """An endpoint that will do these, and a model that talks to it."""
    async with LocalEndpoint(ssl) as endpoint:
        endpoint.will(*doings)
        llm = Llm(config(endpoint.url, **settings))
        await llm.open()
        try:
            yield endpoint, llm
        finally:
            await llm.close()


async def ask(llm: Llm, endpoint: LocalEndpoint | None = None) -> tuple[str, str]:
    """What came of the answer, and the sentence it ended with if that was a failure."""
    said = ""
    try:
        async for piece in llm.reply(MESSAGES):
            said += piece
            if endpoint is not None:
                endpoint.go.set()
    except EngineError as error:
        return said, str(error)
    return said, ""


# -- what is asked and answered ----------------------------------------------------------------------------------------

def test_an_answer_that_is_packed_though_nobody_asked_for_that(run):
    events = "".join(f"data: {json.dumps(completion(piece))}\n\n" for piece in ("Sure", " thing")) + "data: [DONE]\n\n"

    async def scenario():
        packed = answers(200, "text/event-stream", gzip.compress(events.encode()), **{"Content-Encoding": "gzip"})
        async with model(packed) as (_, llm):
            return await ask(llm)
    assert run(scenario()) == ("Sure thing", "")


def test_the_pieces_are_those_that_were_sent(run):
    async def scenario():
        async with model(says("Sure", " thing", ",", "", " Ümläut", " 👍")) as (_, llm):
            return [piece async for piece in llm.reply(MESSAGES)]
    assert run(scenario()) == ["Sure", " thing", ",", " Ümläut", " 👍"]


def test_the_request_is_what_the_configuration_says(run):
    async def scenario():
        async with model(says("Yes."), llm_model="tiny", max_tokens=7, temperature=0.25) as (endpoint, llm):
            await ask(llm)
            assert endpoint.seen[0].headers["accept-encoding"] == "identity"        # what is packed comes late
            return endpoint.seen[0].body
    assert run(scenario()) == {"model": "tiny", "messages": list(MESSAGES), "stream": True, "max_tokens": 7,
                               "temperature": 0.25}


def test_a_picture_is_shown_and_counted_as_one(run):
    shown = {"role": "user", "content": [
        {"type": "text", "text": "What is that?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K", "detail": "low"}}]}

    async def scenario():
        async with model(says("A cat.")) as (endpoint, llm):
            said = [piece async for piece in llm.reply((shown,))]
            return said, endpoint.seen[0].body["messages"]
    assert run(scenario()) == (["A cat."], [shown])
    assert asked([shown]) == len("What is that?") / CHARACTERS_A_TOKEN + TOKENS_A_PICTURE


def test_an_answer_is_over_when_it_says_so_and_not_when_its_stream_ends(run):
    """Between the last word and the end of the stream may lie a while, in which the last sentence would wait."""
    async def scenario():
        last = begins(completion("Bye."), completion(finish="stop"), then=Exchange.until_gone)
        async with model(last) as (endpoint, llm):
            said = await ask(llm)
            await endpoint.seen[0].gone.wait()              # and nobody listens to the rest for long
            return said
    assert run(scenario()) == ("Bye.", "")


def test_comments_and_foreign_events_are_no_text(run):
    async def scenario():
        noise = (b": PROCESSING\n\n", b"event: ping\ndata: {}\n\n", b"id: 7\nretry: 100\n\n",
                 b"data: {\"choices\":[]}\r\n\r\n")
        end = (completion("One"), *noise, completion(" two."), completion(finish="stop"), "[DONE]")
        async with model(begins(*noise, *end, then=Exchange.end)) as (_, llm):
            return await ask(llm)
    assert run(scenario()) == ("One two.", "")


@pytest.mark.parametrize("text, said", [
    ("<think>The caller asks.\nI say yes.</think>\n\nYes, we are.", "Yes, we are."),
    ("\n<think>\n\n</think>\n\nYes.", "Yes."), ("<think></think>Yes.", "Yes."),
    ("Yes <think>or no</think>.", "Yes <think>or no</think>."), ("<thinking> is hard.", "<thinking> is hard."),
    ("< 3 euros.", "< 3 euros.")])
def test_what_a_model_thinks_is_nobodys_to_hear(run, text, said):
    async def scenario(*pieces):
        async with model(says(*pieces)) as (_, llm):
            return await ask(llm)
    assert run(scenario(text)) == (said, "")
    assert run(scenario(*text)) == (said, "")


def test_a_model_that_only_thinks_has_not_answered(run):
    async def scenario(*doings):
        async with model(*doings) as (_, llm):
            return [await ask(llm) for _ in doings]
    assert run(scenario(says("<think>Well,"), says("<think>Well", finish="length"), says("<think>Hm.</think>\n"))) == [
        ("", "The model's answer is empty."), ("", "The model's answer did not end within 150 tokens."),
        ("", "The model's answer is empty.")]


def test_an_option_that_a_model_does_not_take_is_not_sent_again(run):
    async def scenario():
        async with model(says("One."), says("Two.")) as (endpoint, llm):
            endpoint.refuses = {"max_tokens", "temperature"}
            said = await ask(llm), await ask(llm)
            return said, len(endpoint.seen), endpoint.seen[-1].body
    said, requests, body = run(scenario())
    assert said == (("One.", ""), ("Two.", "")) and requests == 4
    assert body["max_completion_tokens"] == 150 and not {"max_tokens", "temperature"} & body.keys()


TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}},)


def calls(*pieces: dict) -> dict:
    chunk = completion()
    chunk["choices"][0]["delta"] = {"tool_calls": list(pieces)}
    return chunk


def begun(name="look", id="call_1", index=0):
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}


def more(arguments, index=0):
    return {"index": index, "function": {"arguments": arguments}}


@pytest.mark.parametrize("chunks, said, call", [
    ((calls(begun()), calls(more('{"day": "2026')), calls(more('-03-03"}'))), "",
     FunctionCall("look", {"day": "2026-03-03"}, "call_1")),
    ((completion("Let me look."), calls(begun(), more("{}"))), "Let me look.", FunctionCall("look", {}, "call_1")),
    ((calls(begun()), calls(begun("other", "call_2", 1), more('{"x": 1}', 1)), calls(more('{"a": 1}'))), "",
     FunctionCall("look", {"a": 1}, "call_1")),                             # the first one only
    ((calls(begun()),), "", FunctionCall("look", {}, "call_1")),
    ((calls(begun()), calls(more('{"a": '))), "", FunctionCall("look", None, "call_1")),  # no JSON: the flow refuses it
    ((calls(begun(), more('{"a": 1}')), calls(begun("look", "call_2"), more('{"a": 2}'))), "",
     FunctionCall("look", {"a": 1}, "call_1")),                             # some servers count none of them
    ((calls(begun(id=""), more('{"a": 1}')), calls(begun("other", ""), more('{"a": 2}'))), "",
     FunctionCall("look", {"a": 1}, "")),
    ((calls(begun(), more('{"a"')), calls(begun(), more(": 1}"))), "", FunctionCall("look", {"a": 1}, "call_1")),
    ((calls({"function": {"name": "look", "arguments": {"a": 1}}}),), "", FunctionCall("look", {"a": 1}, "")),
    ((completion("<think>Shall I look?"), completion("</think>\n"), calls(begun(), more("{}"))), "",
     FunctionCall("look", {}, "call_1")),
    ((completion("Let me look."), calls(begun(index=1)), calls(more('{"a": 1}', 1)),
      calls(begun("other", "call_2", 2))), "Let me look.",
     FunctionCall("look", {"a": 1}, "call_1")),                             # the text was block 0
], ids=["in pieces", "after words", "two at once", "without arguments", "no JSON", "two under one index",
        "and without ids", "named in every piece", "arguments that are no text", "after thoughts",
        "counted from one"])
def test_a_function_call_comes_last(run, chunks, said, call):
    async def scenario():
        end = (*chunks, completion(finish="tool_calls"), "[DONE]")
        async with model(begins(*end, then=Exchange.end)) as (endpoint, llm):
            pieces = [piece async for piece in llm.reply(MESSAGES, TOOLS)]
            assert endpoint.seen[0].body["tools"] == list(TOOLS)
            return pieces
    *text, last = run(scenario())
    assert "".join(text) == said and last == call


@pytest.mark.parametrize("text, said, call", [
    ('Let me look.\n<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>\nDone.', "Let me look.\n",
     FunctionCall("look", {"a": 1})),
    ('<tool_call>\n<function=look>\n<parameter=a>\nb c\n</parameter>\n</function>\n</tool_call>', "",
     FunctionCall("look", {"a": "b c"})),
    ('Sure. <function=look>{"a": 1}</function>', "Sure. ", FunctionCall("look", {"a": 1})),
    ("<function=look></function>", "", FunctionCall("look", {})),
    ('<function=look>{"a": </function>', "", FunctionCall("look", None)),   # no JSON: the flow refuses it
    ('<|python_tag|>{"name": "look", "parameters": {"a": 1}}', "", FunctionCall("look", {"a": 1})),
    ('[TOOL_CALLS] [{"name": "look", "arguments": {"a": 1}}, {"name": "other"}]', "", FunctionCall("look", {"a": 1})),
    (' {"name": "look", "parameters": {"a": 1}}', " ", FunctionCall("look", {"a": 1})),
    ('<think>Well.</think>\n{"name": "look"}', "", FunctionCall("look", {})),
    ("It is < 3 <b>euros</b> [today] {a}, <", "It is < 3 <b>euros</b> [today] {a}, <", None),
], ids=["Qwen", "its coder", "Llama", "without arguments", "no JSON", "another Llama", "Mistral", "nothing but JSON",
        "thought of", "none of these"])
def test_a_function_call_that_is_written_into_the_text_is_one_and_is_not_spoken(run, text, said, call):
    async def scenario(*pieces):
        async with model(says(*pieces)) as (_, llm):
            told = [piece async for piece in llm.reply(MESSAGES, TOOLS)]
            found = told.pop() if isinstance(told[-1], FunctionCall) else None
            return "".join(told), found
    assert run(scenario(text)) == run(scenario(*text)) == (said, call)


def test_text_is_text_where_no_functions_were_offered(run):
    async def scenario():
        async with model(says('<function=look>{"a": 1}')) as (_, llm):
            return await ask(llm)
    assert run(scenario()) == ('<function=look>{"a": 1}', "")


UNREADABLE = "The model's answer calls a function, and it cannot be read which."


@pytest.mark.parametrize("steps, told", [
    ((completion("Sure."), completion(finish="tool_calls")), UNREADABLE),
    ((completion("Sure. <tool_call> look"), completion(finish="stop")), UNREADABLE),
    ((completion('<tool_call>{"name": "look", "arguments": ' + 5000 * "["), completion(finish="stop")), UNREADABLE),
    ((completion("Sure."), calls(begun(), more('{"a')), completion(finish="length")),
     "The model's answer did not end within 150 tokens."),
], ids=["not sent", "not readable", "too deep", "cut short"])
def test_a_function_call_that_is_none_is_a_failure_whatever_was_said_before(run, steps, told):
    async def scenario():
        async with model(begins(*steps, "[DONE]", then=Exchange.end)) as (_, llm):
            with pytest.raises(EngineError) as caught:
                async for _ in llm.reply(MESSAGES, TOOLS):
                    pass
            return caught.value
    error = run(scenario())
    assert str(error) == told and not error.whole


def test_a_content_in_parts_is_its_text(run):
    thought, text = {"type": "text", "text": "Hm."}, {"type": "text", "text": "Yes."}
    parts = completion([{"type": "thinking", "thinking": [thought]}, text])

    async def scenario():
        async with model(begins(parts, completion(finish="stop"), "[DONE]", then=Exchange.end)) as (_, llm):
            return await ask(llm)
    assert run(scenario()) == ("Yes.", "")


@pytest.mark.parametrize("more, said", [
    ((TOOLS, "required"), {"tools": list(TOOLS), "tool_choice": "required"}), ((TOOLS, "auto"), {"tools": list(TOOLS)}),
    ((TOOLS,), {"tools": list(TOOLS)}), (((), "required"), {}), ((), {})])
def test_a_model_is_told_that_it_must_call_a_function(run, more, said):
    async def scenario():
        async with model(begins(completion("Well."), "[DONE]", then=Exchange.end)) as (endpoint, llm):
            assert [piece async for piece in llm.reply(MESSAGES, *more)]
            body = endpoint.seen[0].body
            assert {name: body[name] for name in ("tools", "tool_choice") if name in body} == said
    run(scenario())


# -- what goes wrong ---------------------------------------------------------------------------------------------------

HTML = "<!doctype html><title>Sign in</title>"
NONSENSE = (b"data: {\"choices\": [{\"delta\": {\"content\": \"wor\n\n", b"data: [1, 2]\n\n", b"data: null\n\n",
            b"data: {\"choices\": {\"0\": 1}}\n\n", b"data: {\"choices\": [{\"delta\": \"text\"}]}\n\n",
            b"data: {\"choices\": [{\"delta\": {\"content\": 7}}]}\n\n", b"data: \xff\xfe\n\n")

# what the endpoint does -> what is heard of it, and the end of the sentence that tells of the failure
FAULTS = {
    "a key it does not know": (fails(401, "invalid_api_key"), "", "answered with status 401 (invalid_api_key)."),
    "too many requests": (fails(429, "rate_limit_exceeded"), "", "answered with status 429 (rate_limit_exceeded)."),
    "when to come back": (fails(429, Retry_After="3"), "", "answered with status 429 (invalid_request_error)."),
    "a date to come back": (fails(503, Retry_After="Sun, 22 Nov 2026 12:00:00 GMT"), "",
                            "answered with status 503 (invalid_request_error)."),
    "an error without JSON": (answers(503, "text/plain", f"no upstream for {KEY}"), "", "answered with status 503."),
    "an error of its own": (fails(500, "Traceback: secret"), "", "answered with status 500 (invalid_request_error)."),
    "a page with status 200": (answers(200, "text/html", HTML), "", "answered with text/html instead."),
    "JSON instead": (answers(200, "application/json", "{}"), "", "answered with application/json instead."),
    "no type": (answers(200, "", "data: {}"), "", "answered with something without a type instead."),
    "a redirect to nowhere": (answers(302, "text/html", "", Location="/nowhere"), "",
                              "answered with status 404 (invalid_request_error), asked for gpt-4o-mini."),
    "what is not HTTP": (does(lambda it: it.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")), "",
                         "failed: what it sent is not HTTP."),
    "a chunk that is none": (begins(completion("One."), then=lambda it: it.write(b"zz\r\n")), "One.",
                             "failed: what it sent is not HTTP."),
    "nothing in it": (says(), "", "answer is empty."),
    "nothing but space": (says(" ", "\n"), "", "answer is empty."),
    "no event at all": (begins(then=Exchange.end), "", "ended its answer in the middle."),
    "an end too soon": (says("One.", " Tw", finish=None, done=False), "One. Tw", "ended its answer in the middle."),
    "an event cut short": (begins(completion("One."), b"data: {\"choi", then=Exchange.end), "One.",
                           "ended its answer in the middle."),
    "an error in the stream": (begins(completion("One."), {"error": {"message": KEY}}, then=Exchange.end), "One.",
                               "broke its answer off with an error."),
    "one with a name": (begins({"error": {"message": KEY, "code": 503, "type": "overloaded_error"}}, then=Exchange.end),
                        "", "broke its answer off with an error (overloaded_error)."),
    "one of another form": (begins({"object": "error", "message": KEY, "code": 400}, "[DONE]", then=Exchange.end), "",
                            "broke its answer off with an error."),
    "too long": (says("One.", " Two", finish="length"), "One. Two", "answer did not end within 150 tokens."),
    "a filter": (says("One.", finish="content_filter"), "One.", "answer was withheld by a filter of its endpoint."),
    **{f"nonsense {i}": (begins(completion("One."), event, then=Exchange.end), "One.",
                         "sent an event that is no chunk of a completion.") for i, event in enumerate(NONSENSE)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_becomes_one_sentence_after_all_that_came_before_it(run, fault):
    doing, heard, sentence = FAULTS[fault]

    async def scenario():
        async with model(doing, says("Well.")) as (endpoint, llm):
            first = await ask(llm)
            llm.endpoints.best.held_until = 0
            return first, await ask(llm), llm.endpoints.best
    (said, told), after, client = run(scenario())
    assert said == heard and told.endswith(sentence) and told.startswith("The model's ")
    assert KEY not in told and "secret" not in told and len(told) < 150
    assert after == ("Well.", "") and (client.requests, client.failures) == (2, 1)


@pytest.mark.parametrize("step, sentence", [(Exchange.reset, "failed: connection reset by peer."),
                                            (Exchange.close, "failed: it closed the connection in mid-answer.")])
def test_a_connection_that_ends_in_mid_answer(run, step, sentence):
    async def scenario():
        async with model(says("Well.")) as (endpoint, llm):
            endpoint._doings.appendleft(begins(completion("One."), then=endpoint.on_word(step)))
            return await ask(llm, endpoint), await ask(llm)
    (said, told), after = run(scenario())
    assert said == "One." and told == "The model's endpoint " + sentence
    assert after == ("Well.", "")


def test_an_endpoint_that_is_not_there(run, caplog):
    async def scenario():
        async with LocalEndpoint() as endpoint:
            url = endpoint.url
        llm = Llm(config(url))
        await llm.open()
        told = await ask(llm)
        await llm.close()
        return told
    assert run(scenario()) == ("", "The model's endpoint failed: connection refused.")
    assert [record.getMessage() for record in caplog.records] == ["The model's endpoint failed: connection refused."]


def test_a_name_without_an_address(run, monkeypatch):
    async def scenario():
        llm = Llm(config("http://nowhere.invalid/v1"))
        await llm.open()
        told = await ask(llm)
        await llm.close()
        return told
    assert run(scenario()) == ("", "The model's endpoint failed: its name has no address.")


def test_an_endpoint_that_hangs_up_on_every_request_is_asked_twice_at_most(run):
    async def scenario():
        async with model(*[does(Exchange.close)] * 2) as (endpoint, llm):
            return await ask(llm), len(endpoint.seen)
    assert run(scenario()) == (("", "The model's endpoint failed: it closed the connection without an answer."), 2)


def test_an_event_without_an_end_is_not_collected_for_ever(run):
    async def scenario():
        flood = begins(*[b"data: " + b"x" * 65536] * 20, then=Exchange.until_gone)
        async with model(flood) as (endpoint, llm):
            told = await ask(llm)
            await endpoint.seen[0].gone.wait()
            return told
    assert run(scenario()) == ("", "The endpoint sent an event without an end.")


def test_an_endpoint_that_says_when_is_not_asked_before(run):
    async def scenario():
        async with model(fails(429, "rate_limit_exceeded", Retry_After="3600"), says("Well.")) as (endpoint, llm):
            told = [(await ask(llm))[1] for _ in range(3)]
            wait = llm.endpoints.best.held_until - asyncio.get_running_loop().time()
            llm.endpoints.best.held_until -= wait
            return told, wait, len(endpoint.seen), await ask(llm)
    told, wait, asked, after = run(scenario())
    assert "429" in told[0] and "left alone for 10.0 s more" in told[1] and "left alone" in told[2]
    assert wait < 10.1 and asked == 1 and after == ("Well.", "")


def test_words_that_cannot_be_sent(run):
    async def scenario():
        async with model(says("Well.")) as (endpoint, llm):
            with pytest.raises(EngineError) as failed:
                async for _ in llm.reply(({"role": "user", "content": "half a \ud83d"},)):
                    pass
            return str(failed.value), await ask(llm), len(endpoint.seen)
    told, after, asked = run(scenario())
    assert told == "The model's endpoint was not asked: the words are no Unicode."
    assert after == ("Well.", "") and asked == 1


# -- cancelling --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("doing", [does(Exchange.until_gone), begins(then=Exchange.until_gone),
                                   begins(completion("One."), then=Exchange.until_gone)],
                         ids=["before the head", "before the first piece", "in mid-answer"])
def test_the_endpoint_sees_at_once_that_a_reply_is_cancelled(run, doing):
    async def scenario():
        async with model(doing) as (endpoint, llm):
            asking = asyncio.ensure_future(ask(llm))
            while not endpoint.seen:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            asking.cancel()
            await asyncio.wait({asking})
            await endpoint.seen[0].gone.wait()
            return asking.cancelled(), llm.endpoints.best.failures
    assert run(scenario()) == (True, 0)


def test_closing_the_iterator_is_cancelling(run):
    async def scenario():
        async with model(begins(completion("One."), then=Exchange.until_gone)) as (endpoint, llm):
            pieces = llm.reply(MESSAGES)
            assert await anext(pieces) == "One."
            await pieces.aclose()
            await endpoint.seen[0].gone.wait()
    run(scenario())


# -- connections -------------------------------------------------------------------------------------------------------

def test_no_reply_waits_for_a_connection(run):
    async def scenario():
        async with model(*[says("Yes.")] * 6) as (endpoint, llm):
            transport = llm.endpoints.best.transport
            while transport.opened < 2:
                await asyncio.sleep(0.01)
            for _ in range(3):
                await ask(llm)
                await asyncio.sleep(0.01)                   # in which the rest of the stream is read
            one_by_one = transport.opened
            await asyncio.gather(ask(llm), ask(llm))
            return one_by_one, len(endpoint.seen)
    one_by_one, requests = run(scenario())
    assert one_by_one <= 3 and requests == 5


def test_a_connection_that_the_peer_has_ended_meanwhile_costs_no_reply(run):
    async def scenario():
        async with model(does(Exchange.close), says("Yes.")) as (endpoint, llm):
            return await ask(llm), llm.endpoints.best.transport.stale
    assert run(scenario()) == (("Yes.", ""), 1)


def test_connections_that_the_peer_ends_are_opened_again(run, monkeypatch):
    monkeypatch.setattr("opusagent.engines.remote.transport.PAUSES", (0.0, 0.01))

    async def scenario():
        async with model(says("Yes.")) as (endpoint, llm):
            for _ in range(3):
                while sum(map(len, llm.endpoints.best.transport.idle.values())) < 2:
                    await asyncio.sleep(0.01)
                endpoint.cut()
                await asyncio.sleep(0.05)
            return await ask(llm), llm.endpoints.best.transport.stale
    assert run(scenario()) == (("Yes.", ""), 0)


def test_an_endpoint_without_a_list_of_models_is_as_good(run, caplog):
    async def scenario():
        async with LocalEndpoint() as endpoint:
            endpoint.has_models = False
            llm = Llm(config(endpoint.url))
            await llm.open()
            await llm.close()
    run(scenario())
    assert not caplog.records


def test_a_key_that_is_not_taken_is_told_of_at_once(run, caplog):
    async def scenario():
        async with LocalEndpoint() as endpoint:
            llm = Llm(Config(openai=OpenAI(base_url=endpoint.url, api_key="sk-wrong")))
            await llm.open()
            await llm.close()
    run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "The model's endpoint answered with status 401 (invalid_api_key)."]


def test_a_key_that_was_not_sent_is_told_of_as_that(run, caplog):
    """The shared key is the shared origin's; another endpoint is asked with none."""
    async def scenario():
        async with LocalEndpoint() as endpoint:
            llm = Llm(Config(openai=OpenAI(api_key=KEY, llm_base_url=endpoint.url)))
            await llm.open()
            await llm.close()

    run(scenario())
    assert "status 401 (invalid_api_key): there is no key for it" in caplog.text


def test_a_request_is_no_line_in_the_log(run, caplog):
    caplog.set_level(logging.INFO)

    async def scenario():
        async with model(says("Yes.")) as (_, llm):
            await ask(llm)
    run(scenario())
    assert not [record for record in caplog.records if record.name != "asyncio"]


def test_over_tls(run, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    async def scenario():
        stream = begins(completion("One."), then=Exchange.until_gone)
        async with model(stream, says("Yes."), ssl=context) as (endpoint, llm):
            pieces = llm.reply(MESSAGES)
            said = [await anext(pieces)]
            await pieces.aclose()
            await endpoint.seen[0].gone.wait()
            return said, await ask(llm)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert run(scenario()) == (["One."], ("Yes.", ""))


def test_a_certificate_that_nobody_trusts(run, caplog):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    async def scenario():
        async with model(ssl=context) as (_, llm):
            return await ask(llm)
    assert run(scenario())[1].startswith("The model's endpoint failed: its certificate is not trusted, self")


@pytest.mark.parametrize("fault", FAULTS)
def test_behind_a_proxy_the_package_goes_its_own_way(run, monkeypatch, fault):
    monkeypatch.setattr(endpoint_module, "behind_proxy", lambda url: True)
    doing, heard, sentence = FAULTS[fault]

    async def scenario():
        async with model(doing, says("Well.")) as (_, llm):
            assert llm.endpoints.best.transport is None
            first = await ask(llm)
            llm.endpoints.best.held_until = 0
            return first, await ask(llm)
    (said, told), after = run(scenario())
    assert said == heard and told.startswith("The model's ") and KEY not in told and "secret" not in told
    assert after == ("Well.", "")


@pytest.mark.parametrize("environment, url, proxied", [
    ({}, "https://api.openai.com/v1", False),
    ({"HTTPS_PROXY": "http://proxy:3128"}, "https://api.openai.com/v1", True),
    ({"HTTPS_PROXY": "http://proxy:3128"}, "http://127.0.0.1:9000/v1", False),
    ({"ALL_PROXY": "http://proxy:3128", "NO_PROXY": "localhost,.local"}, "http://llm.local/v1", False),
])
def test_the_environment_says_whether_there_is_a_proxy(monkeypatch, environment, url, proxied):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert behind_proxy(httpx.URL(url)) is proxied


@pytest.mark.parametrize("settings, sentence", [
    ({"api_key": "sk-pasted\n"}, "the key has a space, a line end or another character that no key has."),
    ({"base_url": "http://[::1"}, "openai.base_url is not a URL."),
])
def test_a_configuration_that_cannot_be_meant(settings, sentence):
    with pytest.raises(ConfigError) as refused:
        Llm(Config(openai=OpenAI(**settings)))
    assert str(refused.value).endswith(sentence) and "pasted" not in str(refused.value)
