"""What guided fuzzing begins with, and what it once found: played through its targets, without a fuzzer."""
import logging

import pytest

from .seeds import CORPUS, corpus
from .targets import TARGETS

FILES = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORPUS)))
@pytest.mark.parametrize("step", [None, 0, 1, 5])
def test_a_kept_input_satisfies_its_target(path, step):
    logging.disable(logging.CRITICAL)
    try:
        data = path.read_bytes()
        TARGETS[path.parent.name](data if step is None or path.parent.name == "messages" else bytes([step]) + data[1:])
    finally:
        logging.disable(logging.NOTSET)


def test_the_corpus_is_what_the_seeds_make():
    """Of frames and heads: messages are recorded elsewhere, and what was found since is named found-..."""
    kept = {str(path.relative_to(CORPUS)): path.read_bytes() for path in FILES if not path.name.startswith("found-")}
    literal = {name: data for name, data in corpus().items() if not name.startswith("messages/")}
    assert {name: kept.get(name) for name in literal} == literal, "write it again: python -m fuzz.seeds"
