"""The flows in examples/: each is checked, drawn, and held as a conversation to its end."""
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from talking import Line, scenario

from opusagent import cli
from opusagent.config import Config, Scripted
from opusagent.flow import FunctionCall
from opusagent.flow.drawing import draw
from opusagent.studio import tools
from opusagent.studio.studio import Studio

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted(EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_has_no_mistakes(path, capsys):
    assert cli.main(["flow", "check", str(path)]) == 0
    assert f"{path}: no mistakes; " in capsys.readouterr().out


@pytest.mark.parametrize("desk, allowed, remark", [
    ("+49 (30) 5550 19", "", "can put nobody through until +4930555019 is on `targets`. (a remark)"),
    ("extension 12", "+49*", 'can put nobody through to "extension 12": a number such as +4930123456, or a SIP'),
    ("+4930555019", "+4930*", "")])
def test_who_may_not_be_put_through_to_is_remarked_on(desk, allowed, remark, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPUSAGENT_TARGETS", allowed)
    path = tmp_path / "flow.toml"
    path.write_text(f'start = "desk"\n[transfers]\ndesk = "{desk}"\n[states.desk]\nsay = "Wait."\ntransfer = "desk"\n')
    assert cli.main(["flow", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert f'{path}:4: state "desk" {remark}' in said if remark else "remark" not in said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_picture_has_every_state_once(path, tmp_path):
    assert cli.main(["flow", "draw", str(path), "--out", str(tmp_path / "flow.svg")]) == 0
    picture = (tmp_path / "flow.svg").read_text()
    flow = tools.load(str(path))
    assert picture == draw(flow)                        # the same flow, the same picture
    root = ElementTree.fromstring(picture)
    titles = [title.text.partition(":")[0] for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(titles) == sorted(flow.states)
    boxes = [[float(box.get(key)) for key in ("x", "y", "width", "height")] for box in
             root.iter("{http://www.w3.org/2000/svg}rect") if box.get("rx")]
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(0 <= x and x + w <= width and 0 <= y and y + h <= height for x, y, w, h in boxes)
    for place, (x, y, w, h) in enumerate(boxes):
        assert all(x + w <= a or a + c <= x or y + h <= b or b + d <= y for a, b, c, d in boxes[:place])


@pytest.mark.parametrize("settings, warns", [({"llm": "scripted"}, True), ({"llm": "openai"}, False),
                                             ({"llm": "scripted", "scripted": Scripted(llm="answers.toml")}, False)])
def test_who_serves_a_flow_that_asks_a_model_and_names_none_is_warned(settings, warns, caplog):
    flow, config = tools.load(str(EXAMPLES / "appointments.toml")), Config(flow="my.toml", **settings)
    Studio._miss_model(SimpleNamespace(flows={"": flow}, config=config))
    assert [line.getMessage() for line in caplog.records] == warns * [
        'state "question" of my.toml asks a language model, and there is none: say which by `llm`, as in --llm openai.']


def example(name, **settings):
    return Line(tools.load(str(EXAMPLES / name)), **settings)


@scenario
async def test_the_demo_line():
    line = example("demo.toml")
    await line.listens()
    for words in ("two nine three four zero", "ten of clubs", "seven of clubs", "go forward ten meters"):
        await line.says(words)
    assert line.talk.call.done and line.state == "arrived"
    assert line.facts == {"member": "29340", "slip_card": "ten of clubs", "message_card": "seven of clubs",
                          "way": "go forward ten meters"}


@scenario
async def test_the_appointment_line_by_what_it_expects():
    line = example("appointments.toml")
    await line.listens()
    await line.says("I'd like a haircut please")
    assert line.heard == "For which day?"
    await line.says("on sunday")
    assert line.heard == ("Let me look. We are closed on Sunday the twenty ninth of November. For which day?")
    await line.says("next friday")
    assert line.heard == ("Let me look. On Friday the twenty seventh of November, I have nine in the morning, and "
                          "others until five thirty in the afternoon. At what time?")
    await line.says("half past three")
    assert line.heard == "Friday the twenty seventh of November, three thirty in the afternoon. Shall I book that?"
    await line.says("yes")
    assert line.talk.call.done and line.state == "booked"
    assert line.facts["reference"].startswith("47") and f"{line.facts['day']} {line.facts['at']}" == "2026-11-27 15:30"
    assert line.heard.startswith("One moment, I am booking it. It is booked. Your number is four seven")


@scenario
async def test_the_appointment_line_through_its_model():
    line = example("appointments.toml")
    line.model.answers = [
        [FunctionCall("slots", {"day": "2026-11-28"}, "c1")],
        ["On Saturday there is much time left. ", "Which one?"],
        ["Fine. ", FunctionCall("go_to_confirm", {"day": "2026-11-28", "at": "16:00"}, "c2")],
    ]
    await line.listens()
    await line.says("I have a question")
    await line.says("is there anything on saturday")
    assert line.heard == "On Saturday there is much time left. Which one?" and line.state == "question"
    told = line.model.asked[-1][-2:]
    assert told[0]["tool_calls"][0]["function"] == {"name": "slots", "arguments": '{"day": "2026-11-28"}'}
    assert told[1]["role"] == "tool" and '"first": "09:00"' in told[1]["content"]
    await line.says("four o'clock")
    assert line.state == "confirm" and line.count("refused_functions") == 0
    assert line.heard == ("Fine. Saturday the twenty eighth of November, four in the afternoon. Shall I book that?")
    await line.says("yes")
    assert line.state == "booked" and line.talk.call.done


@scenario
async def test_the_menu_by_keys_and_by_words():
    line = example("menu.toml")
    await line.silence(200)
    await line.presses("1")
    assert line.state == "number"
    await line.presses("4711#")
    assert line.heard == ("Account four seven one one has twelve euros. For the menu, press star; to end the call, "
                          "press hash.")
    await line.presses("*")
    await line.says("send money")
    await line.says("twenty three euros fifty")
    assert line.heard == "I am to send twenty three euros and fifty cents. Press one for yes, or two for no."
    await line.presses("1")
    assert line.state == "sent" and line.talk.call.done and line.facts["sum"] == "23.50 EUR"
