"""Several endpoints of a stage: how they are written down, who is asked, what becomes of an answer that breaks off."""
import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_endpoint import KEY, Exchange, LocalEndpoint, begins, completion, does, fails, says
from test_openai_speech import Caller, final, hears, listen, say, sound, speaks

from opusagent import ConfigError, EngineError
from opusagent.config import Config, OpenAI
from opusagent.endpoints import Target, targets
from opusagent.engines.openai.llm import Llm
from opusagent.engines.openai.stt import Stt
from opusagent.engines.openai.tts import Tts, unspoken
from opusagent.engines.remote.breaker import CLOSED, FAILURES, OPEN, PROBING, REST_SECONDS, WINDOW_SECONDS, Breaker
from opusagent.engines.remote.continuing import GO_ON, Continuing, bare
from opusagent.engines.remote.race import ENOUGH, Hedging
from opusagent.metrics import Metrics

MESSAGES = ({"role": "system", "content": "You sell tickets."}, {"role": "user", "content": "Hello?"})
SEARCHES = (SimpleNamespace(words=frozenset()),)


# -- how they are written down -----------------------------------------------------------------------------------------

FILE = """
[openai]
api_key = "sk-shared"
llm_model = "big"
[[endpoints.llm]]
base_url = "http://127.0.0.1:8001/v1"
model = "near"
first_seconds = 0.4
[[endpoints.llm]]
base_url = "https://far.example/v1"
api_key = "env:FAR_KEY"
[[endpoints.llm]]
"""


def load(tmp_path, text, environ=None):
    path = tmp_path / "opusagent.toml"
    path.write_text(text)
    return Config.load({}, environ or {}, path)


def test_a_file_lists_the_endpoints_of_a_stage_in_order_of_preference(tmp_path):
    near, far, last = targets(load(tmp_path, FILE, {"FAR_KEY": "sk-far"}), "llm")
    assert (near.base_url, near.model, near.first_seconds) == ("http://127.0.0.1:8001/v1", "near", 0.4)
    assert (far.model, far.api_key, far.first_seconds) == ("big", "sk-far", 1.0)
    assert (last.base_url, last.api_key) == ("https://api.openai.com/v1", "sk-shared")


def test_a_key_is_sent_to_the_origin_that_it_is_for_and_to_no_other(tmp_path):
    near, far, _ = targets(load(tmp_path, FILE, {"FAR_KEY": "sk-far"}), "llm")
    assert near.api_key == "" and far.api_key == "sk-far"
    config = Config(openai=OpenAI(api_key="sk-shared", llm_base_url="http://127.0.0.1:8001/v1", tts_api_key="sk-voice"))
    assert [targets(config, stage)[0].api_key for stage in ("stt", "llm", "tts")] == ["sk-shared", "", "sk-voice"]


def test_one_stage_may_have_another_endpoint_by_the_simple_settings():
    config = Config(openai=OpenAI(base_url="http://a/v1", llm_base_url="http://b/v1", llm_api_key="k", tts_model="m"))
    found = [at for stage in ("stt", "llm", "tts") for at in targets(config, stage)]
    assert [(at.base_url, at.api_key, at.model) for at in found] == [
        ("http://a/v1", "", "gpt-4o-mini-transcribe"), ("http://b/v1", "k", "gpt-4o-mini"), ("http://a/v1", "", "m")]


def test_the_printed_configuration_has_them_and_hides_their_keys(tmp_path):
    config = load(tmp_path, FILE.replace('"near"', '"near"\napi_key = "sk-hidden"'), {"FAR_KEY": "sk-far"})
    printed = config.toml()
    assert "sk-" not in printed and "# api_key is set, and not shown" in printed and "sk-" not in repr(config)
    again = load(tmp_path, printed).endpoints["llm"]
    assert again == tuple(replace(target, api_key="") for target in config.endpoints["llm"])


@pytest.mark.parametrize("text, sentence", [
    ("endpoints = 1", "opusagent.toml: endpoints are written as tables, each as [[endpoints.llm]]."),
    ("[endpoints.llm]\nmodel = 'x'", "opusagent.toml: endpoints.llm is a list of tables, each written as "
                                     "[[endpoints.llm]]."),
    ("[[endpoints.vad]]", "opusagent.toml: there are no endpoints.vad; there are those of stt, llm, tts, realtime."),
    ("\n[[endpoints.tts]]\nmodle = 'x'", "opusagent.toml:2: there is no 'modle' of an endpoint; there are base_url, "
     "api_key, model, voice, first_seconds, gap_seconds."),
    ("[[endpoints.tts]]\nbase_url = 'localhost:9'", "opusagent.toml:1: base_url must begin with http:// or https://."),
    ("[[endpoints.tts]]\nbase_url = 'http:///v1'", "opusagent.toml:1: base_url names no host."),
    ("[openai]\nbase_url = 'http://localhost:99999/v1'", "opusagent.toml:2: openai.base_url is not a URL."),
    ("[[endpoints.tts]]\ngap_seconds = 0", "opusagent.toml:1: gap_seconds must be a number from 0.05 to 60, not '0'."),
    ("[[endpoints.stt]]\n[[endpoints.stt]]\napi_key = 'env:NO_SUCH'", "opusagent.toml:2: the variable NO_SUCH is not "
     "set."),
])
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path, text, sentence):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert str(refused.value).replace(f"{tmp_path}/", "") == sentence


@pytest.mark.parametrize("stage, kind, text, place", [
    ("llm", Llm, "", ""),
    ("llm", Llm, "[openai]\nbase_url = 'https://api.openai.com/v1/'", ""),
    ("llm", Llm, "[[endpoints.llm]]\nbase_url = 'http://127.0.0.1:1/v1'\n[[endpoints.llm]]", "opusagent.toml:3: "),
    ("tts", Tts, "[openai]\nllm_api_key = 'sk-for-another-stage'", ""),
])
def test_an_endpoint_that_answers_nobody_without_a_key_is_not_begun_with_none(tmp_path, stage, kind, text, place):
    with pytest.raises(ConfigError) as refused:
        kind(load(tmp_path, text))
    assert str(refused.value).replace(f"{tmp_path}/", "").startswith(f"{place}The endpoint of the ")
    assert "set OPENAI_API_KEY" in str(refused.value)


# -- the breaker -------------------------------------------------------------------------------------------------------

def test_an_endpoint_that_fails_too_often_rests_and_one_request_tries_it():
    breaker = Breaker()
    for i in range(FAILURES):
        assert breaker.wait(i) == 0
        breaker.begin(i)
        breaker.failed(i)
    now = FAILURES - 1
    assert breaker.state is OPEN and breaker.wait(now) == REST_SECONDS
    now += REST_SECONDS
    assert breaker.wait(now) == 0
    breaker.begin(now)
    assert breaker.state is PROBING and breaker.wait(now) > 0
    breaker.failed(now)
    assert breaker.state is OPEN and breaker.opened == 2
    now += REST_SECONDS
    breaker.begin(now)
    breaker.dropped()                           # the caller hung up: the next one tries
    assert breaker.wait(now) == 0
    breaker.begin(now)
    breaker.succeeded()
    assert breaker.state is CLOSED and breaker.wait(now) == 0


def test_failures_that_are_far_apart_or_apart_by_a_success_do_not_count():
    breaker = Breaker()
    for i in range(3 * FAILURES):
        breaker.failed(i * (WINDOW_SECONDS / FAILURES + 1))
    assert breaker.state is CLOSED
    for i in range(3 * FAILURES):
        breaker.failed(1000.0)
        if i % (FAILURES - 1) == 0:
            breaker.succeeded()
    assert breaker.state is CLOSED


# -- the model ---------------------------------------------------------------------------------------------------------

def at(endpoint, **more) -> Target:
    return Target(base_url=endpoint.url, api_key=KEY, **more)


@asynccontextmanager
async def models(*plans, first_seconds=0.8, **settings):
    """An endpoint for each plan (a list of what it does), and a model that asks them in this order."""
    endpoints = [LocalEndpoint() for _ in plans]
    for endpoint, plan in zip(endpoints, plans):
        await endpoint.__aenter__()
        endpoint.will(*plan)
    rows = tuple(at(each, first_seconds=first_seconds, model=f"m{i}") for i, each in enumerate(endpoints, 1))
    llm = Llm(Config(openai=OpenAI(**settings), endpoints={"llm": rows}))
    await llm.open()
    try:
        yield endpoints, llm
    finally:
        await llm.close()
        for endpoint in endpoints:
            await endpoint.__aexit__()


async def ask(llm) -> tuple[str, str]:
    """What came of the answer, and the sentence it ended with if that was a failure."""
    said = ""
    try:
        async for piece in llm.reply(MESSAGES):
            said += piece
    except EngineError as error:
        return said, str(error)
    return said, ""


def gauges(llm) -> dict:
    metrics = Metrics()
    llm.measure(metrics)
    return {name + "".join(f" {value}" for key, value in labels if key != "stage"): value
            for (name, labels), value in metrics.gauges.items()}


FIRST_WORDS = {                 # what the first endpoint does before it has said a word
    "an error 500": fails(500),
    "too many requests": fails(429, Retry_After="3"),
    "a key it does not know": fails(401, "invalid_api_key"),
    "a page with status 200": lambda it: it.whole(200, "text/html", b"<html>"),
    "a reset": does(Exchange.reset),
    "an empty answer": says(),
    "a stream cut short": begins(b"data: {\"choi", then=Exchange.end),
    "nothing at all": does(Exchange.until_gone),
    "a head and no token": begins(then=Exchange.until_gone),
    "nothing but space": begins(completion(" "), then=Exchange.until_gone),
}


@pytest.mark.parametrize("fault", FIRST_WORDS)
def test_the_next_endpoint_answers_when_the_first_one_does_not(run, caplog, fault):
    async def scenario():
        async with models([FIRST_WORDS[fault]] * 2, [says("One", " two.")]) as (endpoints, llm):
            return await ask(llm), endpoints[1].seen[0].body["model"], gauges(llm)
    said, model, measured = run(scenario())
    assert said == ("One two.", "") and model == "m2"
    assert measured["endpoint_fallbacks"] == 1 and measured["endpoint_failures 1"] == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and lines[0].startswith("The model's ") and lines[0].endswith("The next endpoint is asked.")


def test_an_endpoint_that_is_only_late_may_still_be_the_first(run):
    async def slow(exchange):
        await asyncio.sleep(0.2)
        await says("One.")(exchange)

    async def scenario():
        async with models([slow], [does(Exchange.until_gone)], first_seconds=0.05) as (endpoints, llm):
            said = await ask(llm)
            await endpoints[1].seen[0].gone.wait()
            return said
    assert run(scenario()) == ("One.", "")


def test_when_one_connection_was_dead_the_idle_ones_are_opened_anew(run):
    async def scenario():
        async with models([does(Exchange.until_gone), says("One.")], [says("Two.")], first_seconds=0.1) as (its, llm):
            transport = llm.endpoints.best.transport
            while sum(map(len, transport.idle.values())) < 2:
                await asyncio.sleep(0.01)
            old = {each for idle in transport.idle.values() for each in idle}
            said = await ask(llm)
            while sum(map(len, transport.idle.values())) < 2:
                await asyncio.sleep(0.01)
            return said, old & {each for idle in transport.idle.values() for each in idle}, await ask(llm)
    assert run(scenario()) == (("Two.", ""), set(), ("One.", ""))


def test_an_endpoint_that_fails_too_often_is_not_asked_for_a_while(run, caplog):
    async def scenario():
        async with models([fails(500)] * FAILURES, [says("One.")] * 9) as (endpoints, llm):
            said = {await ask(llm) for _ in range(9)}
            return said, [len(each.seen) for each in endpoints], gauges(llm)
    said, asked, measured = run(scenario())
    assert said == {("One.", "")} and asked == [FAILURES, 9]
    assert (measured["endpoint_open 1"], measured["endpoint_open 2"], measured["endpoint_opened 1"]) == (1, 0, 1)


def test_when_all_of_them_fail_it_is_said_once_and_at_once_when_they_rest(run):
    async def scenario():
        async with models([fails(500)] * FAILURES, [fails(503)] * FAILURES) as (endpoints, llm):
            told = [await ask(llm) for _ in range(FAILURES + 1)]
            return told, [len(each.seen) for each in endpoints]
    told, asked = run(scenario())
    assert asked == [FAILURES, FAILURES]
    assert told[0][1] == "The model's endpoint 2 answered with status 503 (invalid_request_error)."
    assert told[-1][1].startswith("The model's endpoint 1 failed too often and is left alone for ")


BREAKS = {                      # how the first endpoint's answer breaks off in the middle
    "a reset": Exchange.reset, "a close": Exchange.close, "an end": Exchange.end,
    "no more tokens": Exchange.until_gone,
    "nonsense": lambda it: it.event("{\"choices\": 7}"), "an error": lambda it: it.event({"error": {"message": "no"}}),
}
GOES_ON = {                     # what the next one says when it is to go on with "Your order left to"
    "as it is told": ("day. It will come", " on Monday."),
    "with the last words again": ("left to", "day. It will come on Monday."),
    "from the beginning": ("Your order", " left to", "day. It will come", " on Monday."),
}


@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize("way", GOES_ON)
def test_an_answer_that_breaks_off_is_gone_on_with_and_nothing_is_said_twice(run, caplog, fault, way):
    async def scenario():
        async def breaking(exchange):
            beginning = map(completion, ("Your order", " left", " to"))
            await begins(*beginning, then=lambda it: None)(exchange)
            await asyncio.sleep(0.05)
            if (more := BREAKS[fault](exchange)) is not None:
                await more
        async with models([breaking], [says(*GOES_ON[way])], token_gap_seconds=0.5) as (endpoints, llm):
            return await ask(llm), endpoints[1].seen[0].body["messages"], gauges(llm)
    (said, told), messages, measured = run(scenario())
    assert told == "" and said == "Your order left today. It will come on Monday."
    assert messages[-2:] == [{"role": "assistant", "content": "Your order left to"}, {"role": "user", "content": GO_ON}]
    assert measured["llm_continued"] == 1 and len(caplog.records) == 1


def test_an_answer_that_was_whole_is_not_gone_on_with(run):
    async def scenario():
        async with models([says("One.", finish="length")], []) as (endpoints, llm):
            return await ask(llm), len(endpoints[1].seen), llm.endpoints.best.breaker.state
    said, asked, state = run(scenario())
    assert said == ("One.", "The model's answer did not end within 150 tokens.") and not asked and state is CLOSED


def test_a_reply_that_nobody_wants_any_more_ends_all_of_its_requests(run):
    async def scenario():
        async with models(*[[does(Exchange.until_gone)]] * 2, first_seconds=0.05) as (endpoints, llm):
            asking = asyncio.ensure_future(ask(llm))
            while not endpoints[1].seen:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.wait({asking})
            for endpoint in endpoints:
                await endpoint.seen[0].gone.wait()
            return asking.cancelled()
    assert run(scenario())


# -- hedging -----------------------------------------------------------------------------------------------------------

def test_a_late_first_token_is_asked_for_once_more_and_the_first_one_wins(run):
    async def scenario():
        async with models([does(Exchange.until_gone)], [says("Two.")], first_seconds=9) as (endpoints, llm):
            for _ in range(ENOUGH):
                llm.hedging.took(0.05)
            llm.hedging.credit = 1.0
            said = await ask(llm)
            await endpoints[0].seen[0].gone.wait()
            return said, gauges(llm)
    said, measured = run(scenario())
    assert said == ("Two.", "")
    assert (measured["llm_hedges"], measured["llm_hedges_won"], measured["llm_hedges_lost"]) == (1, 1, 0)
    assert measured["endpoint_fallbacks"] == 0 and measured["llm_hedge_rate"] == 1


def test_one_endpoint_alone_is_hedged_over_another_connection(run):
    async def slow(exchange):
        await asyncio.sleep(0.3)
        await says("One.")(exchange)

    async def scenario():
        async with models([slow, does(Exchange.until_gone)]) as (endpoints, llm):
            for _ in range(ENOUGH):
                llm.hedging.took(0.02)
            llm.hedging.credit = 1.0
            said = await ask(llm)
            return said, len(endpoints[0].seen), gauges(llm)
    said, asked, measured = run(scenario())
    assert said == ("One.", "") and asked == 2 and measured["llm_hedges_lost"] == 1


@pytest.mark.parametrize("share, hedges", [(0.1, 5), (0.0, 0)])
def test_hedges_are_a_share_of_the_requests(share, hedges):
    hedging = Hedging(share)
    for _ in range(100):
        hedging.took(0.1)
    spent = 0
    for _ in range(50):
        hedging.begin()
        spent += hedging.after is not None and hedging.spend()
    assert spent == hedges


def test_the_percentile_is_of_the_latest_first_tokens():
    hedging = Hedging(0.1)
    for i in range(ENOUGH):
        assert hedging.after is None
        hedging.took(i / 10)
    assert hedging.after == 1.8
    for _ in range(200):
        hedging.took(5.0)
    assert hedging.after == 5.0


def test_an_endpoint_alone_is_tried_again_out_of_the_same_budget(run):
    async def scenario():
        async with models([fails(500), says("One."), fails(500)]) as (endpoints, llm):
            llm.hedging.credit = 0.9
            return await ask(llm), await ask(llm), gauges(llm)["llm_retries"]
    first, second, retries = run(scenario())
    assert first == ("One.", "") and second[1].endswith("status 500 (invalid_request_error).") and retries == 1


# -- words that were said already --------------------------------------------------------------------------------------

@pytest.mark.parametrize("said, text, new", [
    ("One two", " three.", " three."), ("One two ", "three.", "three."), ("One two ", "two three.", "three."),
    ("One two", "One two three.", " three."), ("One, two. ", "one two. Three.", "Three."),
    ("One two ", "One two", ""), ("Yes. ", "Yes, it is.", "it is."), ("One two three ", "One two four.", "four."),
    ("A b c ", "x y", "x y"), ("A b c ", "", ""), ("It left to", "day.", "day."),
    ("It left to", "It left today.", "day."),
    ("It left to", "left today. So", "day. So"), ("It left to", "It left to me.", " me."),
])
def test_what_is_new_of_an_answer_that_another_goes_on_with(said, text, new):
    assert passed(said, [text]) == passed(said, text) == new


def passed(said, pieces):
    continuing, found = Continuing(said), ""
    for piece in pieces:
        if continuing is None:
            found += piece
        else:
            new, continuing = continuing.feed(piece)
            found += new
    return found if continuing is None else found + continuing.finish()


WORDS = st.lists(st.sampled_from(["one", "two", "three", "Four.", "five,"]), min_size=1, max_size=8)


@given(WORDS, WORDS, st.integers(0, 3), st.integers(1, 5))
def test_however_it_is_cut_the_same_is_new_and_a_full_repetition_never_is(said, more, again, step):
    text = " ".join(said[-again:] + more if again else said + more)
    pieces = [text[i:i + step] for i in range(0, len(text), step)]
    assert passed(" ".join(said) + " ", pieces) == passed(" ".join(said) + " ", [text])
    repeated = passed(" ".join(said) + " ", [" ".join(said) + " " + " ".join(more)])
    left = [[bare(word) for word in more[i:]] for i in range(len(more) + 1)]
    assert [bare(word) for word in repeated.split()] in left


# -- the voice and the recogniser --------------------------------------------------------------------------------------

@asynccontextmanager
async def stages(kind, stage, *plans, **target):
    endpoints = [LocalEndpoint() for _ in plans]
    for endpoint, plan in zip(endpoints, plans):
        await endpoint.__aenter__()
        endpoint.will(*plan)
    engine = kind(Config(endpoints={stage: tuple(at(each, **target) for each in endpoints)}))
    await (engine.open(None, SEARCHES) if kind is Stt else engine.open(None))
    try:
        yield endpoints, engine
    finally:
        await engine.close()
        for endpoint in endpoints:
            await endpoint.__aexit__()


VOICES = {"an error": fails(500), "silence": speaks(bytes(48000)), "no audio": speaks(b""),
          "a page": lambda it: it.whole(200, "text/html", b"<html>"), "nothing": does(Exchange.until_gone),
          "another rate": speaks(sound(500).tobytes(), content_type="audio/pcm;rate=5000")}


@pytest.mark.parametrize("fault", VOICES)
def test_the_next_endpoint_speaks_when_the_first_one_does_not(run, caplog, fault):
    async def scenario():
        async with stages(Tts, "tts", [VOICES[fault]], [speaks(sound(800).tobytes())], first_seconds=0.5) as (its, tts):
            call = Caller()
            pcm, told = await listen(tts, call)
            return len(pcm), told, its[1].seen[0].body["input"]
    samples, told, text = run(scenario())
    assert told[0] == "speech" and told[-1] is True and abs(samples - 6560) < 600
    assert text == "Your order left today." and len(caplog.records) == 1


@pytest.mark.parametrize("bytes_sent", [2400, 9601, 24000, 45001])
@pytest.mark.parametrize("step", [Exchange.reset, Exchange.close, Exchange.end, Exchange.until_gone])
def test_a_voice_that_breaks_off_is_gone_on_with_at_the_next_word(run, step, bytes_sent):
    """Whatever the byte: half a sample is no sound, and a word of which something was heard is not spoken again."""
    text = "Your order left today, and it will be with you on Monday."
    whole = sound(len(text) * 65).tobytes()

    async def scenario():
        async def breaking(exchange):
            await speaks(whole[:bytes_sent], then=lambda it: None)(exchange)
            await asyncio.sleep(0.05)
            if (more := step(exchange)) is not None:
                await more
        rest = speaks(sound(2000).tobytes())
        async with stages(Tts, "tts", [breaking], [rest], gap_seconds=0.4) as (its, tts):
            pcm, told = await listen(tts, Caller(), text=text)
            return pcm, told, its[1].seen[0].body["input"]
    pcm, told, asked = run(scenario())
    heard = bytes_sent / 48000 / 0.065                         # characters
    assert told[-1] is True and text.endswith(asked) and len(text) - len(asked) >= heard - 3
    assert text[len(text) - len(asked) - 1] == " " and len(text) - len(asked) < heard + 8
    assert np.abs(np.diff(pcm.astype(int))).max() < 4000


def test_words_that_were_not_spoken():
    text = "one two three"
    assert [unspoken(text, characters) for characters in (0, 1, 4, 5, 8, 9, 99)] == [
        text, "two three", "two three", "three", "three", "", ""]


@pytest.mark.parametrize("fault", ["an error", "a page", "nothing"])
def test_the_next_endpoint_recognises_when_the_first_one_does_not(run, caplog, fault):
    async def scenario():
        async with stages(Stt, "stt", [VOICES[fault]], [hears("Ten of clubs.")], first_seconds=0.5) as (its, stt):
            call = Caller()
            stt.listen(call, 0)
            say(call, 700)
            stt.finish(call, call.slot.written)
            return await final(call)
    assert run(scenario()) == ("final", 3, "Ten of clubs.", 1.0) and len(caplog.records) == 1
