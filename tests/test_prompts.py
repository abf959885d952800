"""Prompts on the disk: whole or not there, whatever happens while they are written; bounded; shared; spoken once."""
import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from served import SCRIPTED, serving

from opusagent import ConfigError, EngineError
from opusagent._fastpath import MappedFile
from opusagent.config import Config
from opusagent.studio import prompts
from opusagent.studio.prompts import (AHEAD, SPOKEN_RATE, Key, Prompt, Prompts, Store, decode, encode, file_name,
                                      open_store)

KEY = Key("embedded rms", "", "Good morning, Zoë.", 8000)
PCM = np.arange(-40, 60, dtype=np.int16)
MIB = 1 << 20


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, MIB)


def loaded(store, key):
    found = Store(store.directory, store.limit).load(key)
    return None if found is None else found.pcm.tolist()


# ---- a file ----------------------------------------------------------------------------------------------------------

def test_what_was_saved_is_loaded(store):
    prompt = Prompt(PCM, 8000, lead=7)
    assert store.load(KEY) is None
    assert store.save(KEY, prompt)
    found = store.load(KEY)
    assert (found.pcm.tolist(), found.lead) == (PCM.tolist(), 7)
    assert not found.pcm.flags.writeable


def test_a_text_without_a_word_is_a_prompt_too(store):
    store.save(KEY, Prompt(PCM[:0], 8000))
    assert loaded(store, KEY) == []


@pytest.mark.parametrize("change", [{"engine": "embedded slt"}, {"voice": "slt"}, {"text": "Good morning"},
                                    {"rate": 16000}], ids=lambda change: next(iter(change)))
def test_what_would_sound_otherwise_is_another_prompt(store, change):
    store.save(KEY, Prompt(PCM, 8000))
    assert store.load(KEY._replace(**change)) is None


def test_a_file_that_is_cut_anywhere_or_changed_anywhere_is_none():
    whole = encode(KEY, Prompt(PCM, 8000))
    assert decode(KEY, memoryview(whole)).pcm.tolist() == PCM.tolist()
    for i in range(len(whole)):
        assert decode(KEY, memoryview(whole[:i])) is None
        assert decode(KEY, memoryview(whole[:i] + bytes(len(whole) - i))) is None or not any(whole[i:])
        assert decode(KEY, memoryview(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1:])) is None


def test_a_torn_file_is_told_and_written_anew(store, caplog):
    store.save(KEY, Prompt(PCM, 8000))
    path = store.directory / file_name(KEY)
    path.write_bytes(path.read_bytes()[:-3])
    assert store.load(KEY) is None
    assert "is not whole; its text is spoken again" in caplog.text
    store.save(KEY, Prompt(PCM, 8000))
    assert loaded(store, KEY) == PCM.tolist()


def test_a_file_of_another_text_under_its_name_is_none(store):
    (store.directory / file_name(KEY)).write_bytes(encode(KEY._replace(text="Goodbye."), Prompt(PCM, 8000)))
    assert store.load(KEY) is None


def test_a_prompt_that_is_played_survives_its_file_and_keeps_no_descriptor(store):
    store.save(KEY, Prompt(PCM, 8000))
    before = len(os.listdir("/proc/self/fd"))
    prompt = store.load(KEY)
    assert len(os.listdir("/proc/self/fd")) == before
    (store.directory / file_name(KEY)).unlink()
    assert prompt.pcm.tolist() == PCM.tolist()


def test_a_file_is_mapped_as_it_is(tmp_path):
    path = tmp_path / "file"
    for data in (b"x", b"twelve bytes", os.urandom(10_000)):
        path.write_bytes(data)
        with open(path, "rb") as file:
            mapped = MappedFile(file.fileno())
        assert bytes(mapped) == data
        with pytest.raises(TypeError):
            memoryview(mapped)[0] = 0
    with pytest.raises(OSError):
        MappedFile(-1)


# ---- the directory ---------------------------------------------------------------------------------------------------

def saved(store, number, at, samples=100_000):
    key = KEY._replace(text=f"Text {number}.")
    assert store.save(key, Prompt(np.full(samples, number, np.int16), 8000, 0))
    os.utime(store.directory / file_name(key), (at, at))
    return key


def test_what_was_used_longest_ago_goes_first(tmp_path):
    keys = [saved(Store(tmp_path, MIB), number, at=1000 + number) for number in range(5)]      # 200 kB each
    store = Store(tmp_path, MIB)
    store.load(keys[0])                         # used again
    for number in (5, 6):
        keys.append(saved(store, number, time.time()))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= MIB
    assert [loaded(store, key) is not None for key in keys] == [True, False, False, True, True, True, True]


def test_what_is_in_use_stays_and_what_does_not_fit_is_told_once(tmp_path, caplog):
    store = Store(tmp_path, MIB)
    keys = [saved(store, number, at=1000) for number in range(5)]
    for number in (5, 6):
        assert not store.save(KEY._replace(text=f"Text {number}."), Prompt(np.zeros(100_000, np.int16), 8000, 0))
    assert all(loaded(store, key) is not None for key in keys)
    assert caplog.text.count("the prompts take more than the 1 MiB that may be kept") == 1


def test_a_disk_that_fails_is_told_once_and_no_error(tmp_path, caplog):
    store = Store(tmp_path / "gone", MIB)
    assert not store.save(KEY, Prompt(PCM, 8000)) and not store.save(KEY._replace(rate=16000), Prompt(PCM, 8000))
    assert caplog.text.count("a prompt cannot be kept in") == 1


def test_a_file_that_was_never_finished_goes_some_time(tmp_path):
    old, new = tmp_path / f".{file_name(KEY)}.1", tmp_path / f".{file_name(KEY)}.2"
    for path in (old, new):
        path.write_bytes(b"half of it")
    os.utime(old, (1000, 1000))
    Store(tmp_path, MIB).save(KEY, Prompt(PCM, 8000))
    assert not old.exists() and new.exists()


SAVE_FOR_EVER = """
    import pathlib, sys
    import numpy as np
    from opusagent.studio.prompts import Key, Prompt, Store

    store = Store(pathlib.Path(sys.argv[1]), 1 << 30)
    print("ready", flush=True)
    for turn in range(1_000_000):
        for number in range(8):
            store.save(Key("e", "v", str(number), 8000), Prompt(np.full(300_000, turn, np.int16), 8000, 0))
"""


def test_a_process_that_is_killed_while_it_writes_leaves_whole_files_only(tmp_path, caplog):
    chance = random.Random(7)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(SAVE_FOR_EVER), tmp_path],
                              stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.08))
            os.kill(writer.pid, signal.SIGKILL)
        files = {file.name for file in tmp_path.glob("*.prompt")}
        keys = [Key("e", "v", str(number), 8000) for number in range(8)]
        whole = [np.unique(prompt.pcm).size for key in keys if (prompt := Store(tmp_path, MIB).load(key))]
        assert whole == [1] * len(files)
    assert files and "not whole" not in caplog.text


# ---- where -----------------------------------------------------------------------------------------------------------

def config(**settings):
    return Config.load({f"prompts.{key}": value for key, value in settings.items()}, {})


@pytest.mark.parametrize("environ, directory", [
    ({"CACHE_DIRECTORY": "{}/a:{}/b", "XDG_CACHE_HOME": "{}/c"}, "a"),
    ({"XDG_CACHE_HOME": "{}/c"}, "c/opusagent"),
], ids=["systemd", "XDG"])
def test_where_prompts_are_kept(tmp_path, environ, directory):
    store = open_store(config(), {name: value.replace("{}", str(tmp_path)) for name, value in environ.items()})
    assert store.directory == tmp_path / directory
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert store.limit == 256 * MIB


def test_a_home_is_the_last_resort(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store(config(), {}).directory == tmp_path / ".cache/opusagent"


def test_a_directory_that_is_named_must_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--prompts-directory: Prompts cannot be kept in .*: Not a directory."):
        open_store(config(directory=str(tmp_path / "file" / "below")), {})
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="others than its user may write there"):
        open_store(config(directory=str(tmp_path)), {})


def test_without_a_cache_there_is_one_sentence(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert open_store(config(), {"CACHE_DIRECTORY": str(tmp_path / "file")}) is None
    assert "They are spoken at every start; set prompts.directory." in caplog.text
    assert open_store(config(megabytes=0), {}) is None


# ---- a worker's ------------------------------------------------------------------------------------------------------

class Voice:
    """It speaks a second of the text's length, and remembers what it spoke."""

    def __init__(self, name="a voice"):
        self.name = name
        self.spoken = []

    def identity(self, voice):
        return f"{self.name} {voice}"

    async def render(self, texts, voice, rate):
        for text in texts:
            await asyncio.sleep(0)
            self.spoken.append(text)
            yield text, np.full(rate, len(text), np.int16)


def test_where_the_words_end_is_kept_with_them(store):
    class Knowing(Voice):
        async def render(self, texts, voice, rate):
            async for text, pcm in super().render(texts, voice, rate):
                yield text, pcm, np.array([4000, 16000])

    asyncio.run(Prompts(Knowing(), store).prepare(["One two."], "rms"))
    warm = Prompts(Voice(), Store(store.directory, MIB))
    assert asyncio.run(warm.prepare(["One two."], "rms")) == 0
    assert [list(warm.get("rms", "One two.", rate).ends) for rate in (8000, 16000)] == [
        [2000, 8000], [4000, 16000]]


def test_every_text_is_spoken_once_in_the_life_of_a_directory(store):
    cold, warm = Prompts(Voice(), store), Prompts(Voice(), Store(store.directory, MIB))
    assert asyncio.run(cold.prepare(["One.", "Two."], "rms")) == 2
    assert asyncio.run(warm.prepare(["Two.", "One."], "rms")) == 0
    assert warm.tts.spoken == []
    for rate in AHEAD:
        assert warm.get("rms", "One.", rate).pcm.tolist() == cold.get("rms", "One.", rate).pcm.tolist()
    assert asyncio.run(warm.prepare(["Two.", "Three."], "rms")) == 1
    assert warm.tts.spoken == ["Three."]


class Slow(Voice):
    """It takes a fifth of the patience that there is for each text, and stops at the last but one."""

    async def render(self, texts, voice, rate):
        for text in texts[:-1]:
            await asyncio.sleep(0.2)
            yield text, np.zeros(rate, np.int16)
        await asyncio.sleep(60)


def test_a_voice_is_waited_for_as_long_as_it_gets_on(store, monkeypatch):
    monkeypatch.setattr(prompts, "RENDER_SECONDS", 1.0)
    texts = [f"{number}." for number in range(9)]
    with pytest.raises(EngineError, match="spoke 8 of 9 prompts, and then nothing for 1 s; starting again goes on"):
        asyncio.run(Prompts(Slow(), store).prepare(texts, "rms"))
    warm = Prompts(Voice(), Store(store.directory, MIB))
    assert asyncio.run(warm.prepare(texts, "rms")) == 1 and warm.tts.spoken == ["8."]


def test_workers_that_start_together_speak_it_once(store):
    async def start():
        workers = [Prompts(Voice(), Store(store.directory, MIB)) for _ in range(3)]
        spoken = await asyncio.gather(*(worker.prepare(["One.", "Two."], "rms") for worker in workers))
        assert all(worker.get("rms", text, rate) for worker in workers for text in ("One.", "Two.") for rate in AHEAD)
        return sorted(spoken)

    assert asyncio.run(start()) == [0, 0, 2]


def test_without_a_disk_it_is_spoken_all_the_same():
    prompts = Prompts(Voice(), None)
    assert asyncio.run(prompts.prepare(["One."], "rms")) == 1
    assert len(prompts.get("rms", "One.", 8000).pcm) == 8000
    assert prompts.get("rms", "Two.", 8000) is None and prompts.get("slt", "One.", 8000) is None


def test_a_prompt_of_a_voice_that_was_replaced_is_none_until_it_is_spoken_anew(store):
    prompts = Prompts(Voice(), store)
    asyncio.run(prompts.prepare(["One."], "rms"))
    prompts.tts.name = "another voice"
    assert prompts.get("rms", "One.", 8000) is None
    assert asyncio.run(prompts.prepare(["One."], "rms")) == 1 and prompts.get("rms", "One.", 8000) is not None


def test_who_the_voice_is_nobody_asks_for_what_was_never_spoken_ahead():
    """It may take reading a file, and calls ask in the midst of their audio."""
    class Unread(Voice):
        def identity(self, voice):
            raise AssertionError

    assert Prompts(Unread(), None).get("slt", "One.", 8000) is None


def test_a_rate_that_is_rarely_asked_for_is_made_then_and_kept(store):
    async def ask(prompts):
        await prompts.prepare(["One."], "rms")
        found = prompts.get("rms", "One.", 24000)
        await prompts.written()
        return found.pcm.tolist()

    first = asyncio.run(ask(Prompts(Voice(), store)))
    assert len(first) == 24000
    assert len(list(store.directory.glob("*.prompt"))) == len(AHEAD) + 1
    again = Prompts(Voice(), Store(store.directory, MIB))
    assert asyncio.run(ask(again)) == first
    assert isinstance(again.get("rms", "One.", 24000).pcm.base, memoryview)        # as it lies on the disk
    assert SPOKEN_RATE != 24000


def test_a_server_that_starts_again_speaks_nothing(tmp_path):
    said = []
    for _ in range(2):
        with serving(*SCRIPTED, "--prompts-directory", str(tmp_path / "cache")) as server:
            said += [line for line in server.written().splitlines() if "had been spoken before" in line]
    first, second = ([int(word) for word in line.replace("(", " ").split() if word.isdigit()] for line in said)
    assert first[-1] == 0 and second[-1] == second[0] == first[0] > 5
