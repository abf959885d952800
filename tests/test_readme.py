"""The README's two commands: there, first, and the second is what CI runs."""
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commands():
    text = (ROOT / "README.md").read_text()
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)][:2]


def test_the_readme_opens_with_two_one_line_commands():
    demo, test = commands()
    assert "\n" not in demo and demo.endswith("opusagent demo")
    assert "\n" not in test and test.endswith("pytest")
    head = (ROOT / "README.md").read_text().splitlines()[:40]
    assert sum(line.startswith("```sh") for line in head) == 2


def test_ci_runs_the_second_command_as_it_stands():
    assert commands()[1] == (ROOT / ".ci" / "run").read_text().splitlines()[-1]
