"""WAV files of every kind that is known come in as pcm; every other file is one sentence."""
import struct

import numpy as np
import pytest

from opusagent import ConfigError
from opusagent.recording import Tape, read_raw, read_wav, resample, write_wav

RAMP = np.array([0, 256, -256, 12800, -12800, 32512, -32768], np.int16)     # multiples of 256: exact in 8 bits


def wav(kind, channels, rate, bits, data, extra=b"", before=b""):
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits) + extra
    chunks = before + struct.pack("<4sI", b"fmt ", len(form)) + form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def read(tmp_path, data):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    return read_wav(path)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_what_is_written_is_read_back(tmp_path, rate):
    write_wav(tmp_path / "a.wav", rate, RAMP)
    pcm, its_rate = read_wav(tmp_path / "a.wav")
    assert its_rate == rate and pcm.dtype == np.int16 and np.array_equal(pcm, RAMP)


def test_a_shorter_channel_is_filled_with_silence(tmp_path):
    write_wav(tmp_path / "a.wav", 8000, np.full(4, 1000, np.int16), np.full(2, 3000, np.int16))
    assert read_wav(tmp_path / "a.wav")[0].tolist() == [2000, 2000, 500, 500]


ENCODINGS = {
    "unsigned 8 bit": (1, 8, lambda pcm: ((pcm.astype(np.int32) >> 8) + 128).astype(np.uint8).tobytes()),
    "16 bit": (1, 16, lambda pcm: pcm.astype("<i2").tobytes()),
    "24 bit": (1, 24, lambda pcm: b"".join((int(x) << 8).to_bytes(3, "little", signed=True) for x in pcm)),
    "32 bit": (1, 32, lambda pcm: (pcm.astype("<i4") << 16).tobytes()),
    "float": (3, 32, lambda pcm: (pcm / 32767).astype("<f4").tobytes()),
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_encodings_come_in_alike(tmp_path, name, channels):
    kind, bits, encode = ENCODINGS[name]
    pcm, rate = read(tmp_path, wav(kind, channels, 16000, bits, encode(np.repeat(RAMP, channels))))
    assert rate == 16000
    assert np.abs(pcm.astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize("kind, silence, loudest", [(7, 0xFF, 0x80), (6, 0xD5, 0xAA)])
def test_companded_telephone_audio_is_known(tmp_path, kind, silence, loudest):
    pcm, _ = read(tmp_path, wav(kind, 1, 8000, 8, bytes([silence, loudest])))
    assert abs(int(pcm[0])) <= 8 and pcm[1] > 32000


def test_extensible_headers_and_other_chunks_are_read_through(tmp_path):
    extra = struct.pack("<HHIH14s", 22, 16, 4, 1, bytes(14))
    note = struct.pack("<4sI", b"LIST", 3) + b"abc\0"               # an odd length is padded
    pcm, _ = read(tmp_path, wav(0xFFFE, 1, 48000, 16, RAMP.tobytes(), extra, note))
    assert np.array_equal(pcm, RAMP)


def test_a_file_cut_short_gives_what_is_there(tmp_path):
    pcm, _ = read(tmp_path, wav(1, 1, 8000, 16, RAMP.tobytes())[:-3])
    assert np.array_equal(pcm, RAMP[:-2])


FAULTS = {
    "is not a WAV file.": b"ID3 or whatever else there may be in a file",
    "says its format": struct.pack("<4sI4s", b"RIFF", 4, b"WAVE"),
    "holds no audio": wav(1, 1, 8000, 16, b""),
    "has 44100 Hz; 8000, 16000, 24000 and 48000 are known": wav(1, 1, 44100, 16, RAMP.tobytes()),
    "is in format 0x55 with 8 bits": wav(0x55, 1, 8000, 8, b"mp3"),
    "is in format 0x1 with 12 bits": wav(1, 1, 8000, 16, b"ab").replace(b"\x02\0\x10\0data", b"\x02\0\x0c\0data"),
    "contradicts itself: 0 channels": wav(1, 1, 8000, 16, b"ab").replace(b"\x01\0\x01\0", b"\x01\0\0\0"),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_what_cannot_be_used_is_one_sentence(tmp_path, sentence):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, FAULTS[sentence])
    assert sentence in str(caught.value) and "a.wav" in str(caught.value) and "\n" not in str(caught.value)


def test_every_prefix_of_a_file_is_audio_or_a_sentence(tmp_path):
    whole = wav(1, 2, 8000, 24, bytes(range(48)))
    for n in range(len(whole)):
        try:
            pcm, _ = read(tmp_path, whole[:n])
        except ConfigError:
            continue
        assert 0 < len(pcm) <= 8


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_wav(tmp_path / "none.wav")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_wav(tmp_path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_wav(tmp_path / "none" / "a.wav", 8000, RAMP)


def test_raw_samples_need_no_header(tmp_path):
    (tmp_path / "a.raw").write_bytes(RAMP.tobytes() + b"x")
    pcm, rate = read_raw(tmp_path / "a.raw", 16000)
    assert rate == 16000 and np.array_equal(pcm, RAMP)


def test_resampling_keeps_everything_in_its_place():
    click = np.zeros(16000, np.int16)
    click[8000:8160] = (10000 * np.sin(np.arange(160) * 0.2)).astype(np.int16)
    there = resample(click, 16000, 8000)
    loud = np.flatnonzero(np.abs(there) > 1000)
    assert abs(len(there) - 8000) <= 16
    assert 3995 <= loud[0] <= 4005 and 4075 <= loud[-1] <= 4085
    assert resample(click, 16000, 16000) is click


def test_a_tape_grows_and_is_silent_where_nothing_was_written():
    tape = Tape()
    tape.write(50_000, np.ones(10, np.int16))
    assert tape.end == 50_010 and len(tape.read()) == 50_010
    assert tape.read().sum() == 10 and tape.read(50_005, 60_000).tolist() == [1] * 5


def test_a_tape_that_is_cut_is_silent_from_there_on():
    tape = Tape()
    tape.write(0, np.ones(100, np.int16))
    tape.cut(40)
    assert tape.end == 40 and len(tape.read()) == 40
    tape.write(60, np.ones(10, np.int16))
    assert tape.read()[40:60].tolist() == [0] * 20
    tape.cut(1000)
    assert tape.end == 70
