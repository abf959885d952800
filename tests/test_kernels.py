"""The audio kernels: values from the standards, plain twins on random input, and what the filters do to tones."""
import base64
import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opusagent._fastpath import (RATES, SILENCE_DBFS, Histogram, Resampler, _lowpass, alaw_decode, alaw_encode,
                                 base64_decode, base64_encode, dbfs, energy, peak, ulaw_decode, ulaw_encode)

ALL_CODES = bytes(range(256))
ALL_SAMPLES = numpy.arange(-32768, 32768).astype(numpy.int16)
LENGTHS = [0, 1, 2, 3, 4, 7, 15, 16, 17, 159, 160, 161, 320, 961]


def noise(count, seed=1, loudest=32767):
    return numpy.random.default_rng(seed).integers(-loudest - 1, loudest + 1, count).astype(numpy.int16)


def decoded(decode, codes):
    pcm = numpy.full(len(codes) + 1, 77, numpy.int16)
    assert decode(codes, pcm) == len(codes) and pcm[-1] == 77, "wrote past the last sample"
    return pcm[:-1]


def encoded(encode, pcm):
    codes = bytearray(b"\x77" * (len(pcm) + 1))
    assert encode(pcm, codes) == len(pcm) and codes[-1] == 0x77, "wrote past the last code"
    return bytes(codes[:-1])


# ---- G.711 -----------------------------------------------------------------------------------------------------------

def ulaw_twin(sample):
    """Tables 2a and 2b of G.711 as in the ITU's software: 14 bits, 33 added, four bits below the highest one."""
    size = min(((sample if sample >= 0 else ~sample) >> 2) + 33, 8191)
    segment = size.bit_length() - 6
    return ~(segment << 4 | size >> (segment + 1) & 15) & 0x7F | (0x80 if sample >= 0 else 0)


def alaw_twin(sample):
    """Tables 1a and 1b: 12 bits, the first two segments alike, every second bit inverted."""
    size = (sample if sample >= 0 else ~sample) >> 4
    segment = max(size.bit_length() - 4, 0)
    return (segment << 4 | size >> max(segment - 1, 0) & 15 | (0x80 if sample >= 0 else 0)) ^ 0x55


@pytest.mark.parametrize("decode, known", [
    (ulaw_decode, {0x00: -32124, 0x80: 32124, 0x0F: -16764, 0x8F: 16764, 0x70: -120, 0xF0: 120, 0x7F: 0, 0xFF: 0}),
    (alaw_decode, {0x2A: -32256, 0xAA: 32256, 0x55: -8, 0xD5: 8, 0x54: -24, 0xD4: 24, 0x80: 5504, 0x00: -5504}),
])
def test_codes_of_the_standard_decode_to_its_values(decode, known):
    assert list(decoded(decode, bytes(known))) == list(known.values())


@pytest.mark.parametrize("encode, known", [
    (ulaw_encode, {0: 0xFF, -1: 0x7F, 3: 0xFF, 4: 0xFE, -4: 0x7F, -5: 0x7E, 32767: 0x80, -32768: 0x00, 1000: 0xCE}),
    (alaw_encode, {0: 0xD5, -1: 0x55, 15: 0xD5, 16: 0xD4, -16: 0x55, -17: 0x54, 32767: 0xAA, -32768: 0x2A, 1000: 0xFA}),
])
def test_samples_encode_to_codes_of_the_standard(encode, known):
    assert list(encoded(encode, numpy.array(list(known), numpy.int16))) == list(known.values())


@pytest.mark.parametrize("encode, twin", [(ulaw_encode, ulaw_twin), (alaw_encode, alaw_twin)])
def test_every_sample_encodes_as_the_twin_does(encode, twin):
    assert encoded(encode, ALL_SAMPLES) == bytes(map(twin, range(-32768, 32768)))


def test_codes_survive_the_round_trip():
    assert encoded(alaw_encode, decoded(alaw_decode, ALL_CODES)) == ALL_CODES
    assert encoded(ulaw_encode, decoded(ulaw_decode, ALL_CODES)) == ALL_CODES.replace(b"\x7f", b"\xff")


@pytest.mark.parametrize("length", LENGTHS)
def test_g711_of_any_length(length):
    pcm = noise(length)
    for encode, decode, twin in ((ulaw_encode, ulaw_decode, ulaw_twin), (alaw_encode, alaw_decode, alaw_twin)):
        codes = encoded(encode, pcm)
        assert codes == bytes(map(twin, pcm.tolist()))
        assert (decoded(decode, codes) == decoded(decode, ALL_CODES)[list(codes)]).all()


@pytest.mark.parametrize("decode, milliwatt", [(ulaw_decode, "1e0b0b1e9e8b8b9e"), (alaw_decode, "34212134b4a1a1b4")])
def test_the_digital_milliwatt_is_a_sine_of_its_level(decode, milliwatt):
    """Tables 5 and 6 of G.711: 1 kHz at 0 dBm0, which lies 3.17 dB (A-law 3.14) below the loudest sine."""
    pcm = decoded(decode, bytes.fromhex(milliwatt) * 20)
    assert dbfs(pcm) == pytest.approx(-3.01 - 3.16, abs=0.1)


# ---- level -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("length", LENGTHS)
def test_levels_are_those_of_the_twins(length):
    pcm = noise(length, seed=length)
    wide = pcm.astype(float)
    assert energy(pcm) == pytest.approx((wide ** 2).mean() if length else 0.0, rel=1e-12)
    assert peak(pcm) == (abs(wide).max() if length else 0)


def test_levels_of_known_signals():
    sine = numpy.rint(32767 * numpy.sin(numpy.arange(480) * math.tau / 48)).astype(numpy.int16)
    loudest = numpy.full(10 * 48000, -32768, numpy.int16)
    assert dbfs(sine) == pytest.approx(-3.01, abs=0.01)
    assert (energy(loudest), dbfs(loudest), peak(loudest)) == (2.0 ** 30, 0.0, 32768)
    assert dbfs(numpy.zeros(160, numpy.int16)) == dbfs(b"") == SILENCE_DBFS
    assert peak(numpy.array([3, -5, 4], numpy.int16)) == 5


# ---- resampler -------------------------------------------------------------------------------------------------------

PAIRS = [(a, b) for a in RATES for b in RATES if a != b]
DOWN = [(a, b) for a, b in PAIRS if a > b]
UP = [(a, b) for a, b in PAIRS if a < b]


def tone(hertz, rate, seconds=0.1, amplitude=16000):
    angle = math.tau * hertz * numpy.arange(int(rate * seconds)) / rate
    return numpy.rint(amplitude * numpy.sin(angle + 0.3)).astype(numpy.int16)


def settled(rate_in, rate_out, pcm):
    """What comes out once the filter is full of signal."""
    return Resampler(rate_in, rate_out).push(pcm)[rate_out // 100:].astype(float)


def parts(pcm, hertz, rate):
    """(gain of the tone in dB, all that is not the tone in dB, both relative to a tone of amplitude 16000)."""
    angle = math.tau * hertz * numpy.arange(len(pcm)) / rate
    waves = numpy.stack([numpy.sin(angle), numpy.cos(angle)], axis=1)
    found = numpy.linalg.lstsq(waves, pcm, rcond=None)[0]
    rest = pcm - waves @ found
    return 20 * math.log10(math.hypot(*found) / 16000), 10 * math.log10((rest ** 2).mean() / (16000 ** 2 / 2))


def design(rate_in, rate_out):
    """(up, down, the taps at up times the input's rate)."""
    up, down = rate_out // math.gcd(rate_in, rate_out), rate_in // math.gcd(rate_in, rate_out)
    half = Resampler(rate_in, rate_out).delay * down
    return up, down, up * _lowpass(half, 0.85 / max(up, down), 1 / max(up, down))


def resampled_twin(pcm, rate_in, rate_out):
    """Zeros in between, a convolution in floating point, every so many samples kept."""
    up, down, taps = design(rate_in, rate_out)
    stuffed = numpy.zeros(len(pcm) * up)
    stuffed[::up] = pcm
    return numpy.rint(numpy.convolve(stuffed, taps)[:len(stuffed):down]).clip(-32768, 32767)


@pytest.mark.parametrize("rate_in, rate_out", PAIRS)
def test_the_passband_is_flat_and_clean(rate_in, rate_out):
    for hertz in numpy.linspace(0.02, 0.85, 21) * min(rate_in, rate_out) / 2:
        gain, rest = parts(settled(rate_in, rate_out, tone(hertz, rate_in)), hertz, rate_out)
        assert abs(gain) < 0.5 and rest < -60, f"{hertz:.0f} Hz: {gain:+.2f} dB, images {rest:.1f} dB"


@pytest.mark.parametrize("rate_in, rate_out", DOWN)
def test_what_the_lower_rate_cannot_hold_is_gone(rate_in, rate_out):
    for hertz in numpy.linspace(rate_out / 2, rate_in / 2 * 0.99, 30):
        out = settled(rate_in, rate_out, tone(hertz, rate_in))
        level = 10 * math.log10(max((out ** 2).mean(), 0.1) / (16000 ** 2 / 2))
        assert level < -60, f"{hertz:.0f} Hz leaves an alias of {level:.1f} dB"


@pytest.mark.parametrize("rate_in, rate_out", UP)
def test_nothing_appears_that_the_lower_rate_did_not_hold(rate_in, rate_out):
    """In the passband that is tested above; here it is from there to the edge, where the tone itself fades."""
    for hertz in numpy.linspace(0.85, 0.99, 15) * rate_in / 2:
        _, images = parts(settled(rate_in, rate_out, tone(hertz, rate_in)), hertz, rate_out)
        assert images < -60, f"{hertz:.0f} Hz has images of {images:.1f} dB"


@pytest.mark.parametrize("rate_in, rate_out", PAIRS)
def test_the_delay_is_as_stated_and_at_most_two_milliseconds(rate_in, rate_out):
    resampler = Resampler(rate_in, rate_out)
    click = numpy.zeros(rate_in // 50, numpy.int16)
    click[0] = 20000
    out = resampler.push(click).astype(int)
    assert abs(out).argmax() == resampler.delay
    before, after = out[:resampler.delay], out[resampler.delay + 1:2 * resampler.delay + 1]
    assert (before == after[::-1]).all(), "not linear in phase"
    assert resampler.delay / rate_out <= 0.002 * 8000 / min(rate_in, rate_out)


@pytest.mark.parametrize("rate_in, rate_out", PAIRS)
def test_the_resampler_computes_what_its_twin_does(rate_in, rate_out):
    pcm = noise(1000, loudest=20000)
    error = Resampler(rate_in, rate_out).push(pcm) - resampled_twin(pcm, rate_in, rate_out)
    assert abs(error).max() <= 8 and (error ** 2).mean() < 4


@pytest.mark.parametrize("rate_in, rate_out", PAIRS)
def test_twenty_milliseconds_give_twenty_from_the_first_push_on(rate_in, rate_out):
    resampler = Resampler(rate_in, rate_out)
    for _ in range(5):
        assert len(resampler.push(noise(rate_in // 50))) == rate_out // 50
    assert len(resampler.flush()) == resampler.delay


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(PAIRS), st.lists(st.sampled_from([0, 1, 2, 3, 5, 31, 32, 160, 959, 960, 961, 2000]), max_size=8))
def test_a_stream_is_the_same_however_it_is_cut(pair, cuts):
    pcm = noise(sum(cuts), seed=3)
    whole, cut = Resampler(*pair), Resampler(*pair)
    ends = numpy.cumsum([0, *cuts])
    pieces = []
    for start, end in zip(ends, ends[1:]):
        pieces.append(cut.push(pcm[start:end]))
        assert sum(map(len, pieces)) == math.ceil(end * pair[1] / pair[0])
    pieces.append(cut.flush())
    assert (numpy.concatenate(pieces) == numpy.concatenate([whole.push(pcm), whole.flush()])).all()
    assert (cut.push(pcm) == Resampler(*pair).push(pcm)).all(), "flush left something behind"


@pytest.mark.parametrize("rate_in, rate_out", PAIRS)
def test_too_loud_is_clipped_and_never_wraps(rate_in, rate_out):
    """The worst that can come in: full scale, with the signs of one row of taps, so that nothing cancels."""
    up, down, taps = design(rate_in, rate_out)
    for row in range(up):
        signs = numpy.sign(taps[row::up][::-1])
        worst = numpy.concatenate([numpy.where(signs < 0, -32768, 32767).astype(numpy.int16)] * (down + 1))[down:]
        out, twin = Resampler(rate_in, rate_out).push(worst), resampled_twin(worst, rate_in, rate_out)
        assert abs(out - twin).max() <= 16
    assert out.max() == 32767


def test_the_same_rate_is_a_copy():
    pcm = noise(100)
    out = Resampler(16000, 16000).push(pcm)
    assert (out == pcm).all() and not numpy.shares_memory(out, pcm)


@pytest.mark.parametrize("rates", [(8000, 11025), (0, 8000), (-8000, 8000), (44100, 48000)])
def test_other_rates_are_refused_by_name(rates):
    with pytest.raises(ValueError, match="8000, 16000, 24000, 48000"):
        Resampler(*rates)


# ---- histogram -------------------------------------------------------------------------------------------------------

DURATIONS = st.lists(st.integers(0, 10 ** 9) | st.integers(0, 70 * 10 ** 9), min_size=1, max_size=60)


def filled(values, **shape):
    histogram = Histogram(**shape)
    for value in values:
        histogram.record(value)
    return histogram


def rank(values, p):
    return sorted(values)[max(math.ceil(len(values) * p / 100) - 1, 0)]


@settings(deadline=None)
@given(DURATIONS, st.sampled_from([0, 1, 50, 90, 95, 99, 99.9, 100]))
def test_percentiles_are_never_too_low_and_at_most_one_percent_too_high(values, p):
    histogram, exact = filled(values), rank(values, p)
    assert (histogram.min, histogram.max) == (min(values), max(values))
    assert (histogram.count, histogram.sum) == (len(values), sum(values))
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    if exact <= 60 * 10 ** 9:
        assert exact <= histogram.percentile(p) <= max(exact * 1.01, exact + 4)
    else:
        assert histogram.percentile(p) == max(values)


@settings(deadline=None)
@given(DURATIONS, DURATIONS)
def test_added_histograms_are_one_of_all_values(some, others):
    both, whole = filled(some), filled(some + others)
    both.add(filled(others))
    both.add(Histogram())
    for p in (0, 50, 99, 100):
        assert both.percentile(p) == whole.percentile(p)
    assert (both.count, both.sum, both.min, both.max) == (whole.count, whole.sum, whole.min, whole.max)


@settings(deadline=None)
@given(DURATIONS)
def test_cumulative_counts_lose_at_most_the_cell_at_the_bound(values):
    bounds = [10 ** 5, 10 ** 6, 5 * 10 ** 6, 10 ** 9, 60 * 10 ** 9]
    for bound, count in zip(bounds, filled(values).cumulative(bounds)):
        assert sum(v <= bound * 0.99 for v in values) <= count <= sum(v <= bound for v in values)


def test_a_histogram_in_shared_memory():
    memory = bytearray(Histogram().nbytes)
    writer, reader = Histogram(buffer=memory), Histogram(buffer=memoryview(memory))
    assert (reader.count, reader.min, reader.max, reader.mean, reader.percentile(99)) == (0, 0, 0, 0.0, 0)
    writer.record(5_000_000)
    assert (reader.count, reader.percentile(50), reader.max) == (1, 5_000_000, 5_000_000)
    reader.reset()
    assert writer.count == 0 and not any(memory)


def test_values_beyond_the_range_are_kept_at_its_ends():
    histogram = filled([-5, 0, 10 ** 12])
    assert (histogram.min, histogram.max, histogram.count) == (0, 10 ** 12, 3)
    assert histogram.percentile(100) == 10 ** 12 and histogram.percentile(1) <= 3


@pytest.mark.parametrize("digits, error", [(1, 0.1), (2, 0.01), (3, 0.001)])
def test_digits_are_the_precision(digits, error):
    for value in (1_000, 1_234_567, 29_999_999_999):
        histogram = filled([value, 2 * value], digits=digits)
        assert value <= histogram.percentile(50) <= value * (1 + error)


def test_histograms_of_no_shape_or_another_are_refused():
    for wrong in ({"digits": 0}, {"digits": 4}, {"lowest_ns": 0}, {"highest_ns": 10}, {"buffer": bytearray(8)}):
        with pytest.raises(ValueError):
            Histogram(**wrong)
    with pytest.raises(ValueError, match="different shape"):
        Histogram().add(Histogram(digits=1))


# ---- base64 and Twilio -----------------------------------------------------------------------------------------------

@settings(deadline=None)
@given(st.binary(max_size=300))
def test_base64_both_ways(data):
    text = base64.b64encode(data)
    assert base64_encode(data) == text
    for source in (text, text.decode(), memoryview(text)):
        out = bytearray(len(data) + 1)
        count = base64_decode(source, out)
        assert (count, bytes(out[:-1])) == (len(data), data) if data else count == -1
        assert out[-1] == 0 and (not data or base64_decode(source, bytearray(len(data) - 1)) == -1)


@pytest.mark.parametrize("text", ["", "A", "AA", "AAA", "AAAAA", "AA=A", "A===", "====", "AB==", "AAB=", "AA==AAAA",
                                  "A-_A", "AA A", "AAAA\n", "AAA\x00", "AAA\xff", "ÄÄ"])
def test_base64_that_is_not_canonical_is_left_to_others(text):
    assert base64_decode(text, bytearray(99)) == -1
    assert base64_decode(text.encode(), bytearray(99)) == -1


# ---- borrowed memory -------------------------------------------------------------------------------------------------

WRONG = [
    (ulaw_decode, bytes(5), bytearray(8), "room for 4"), (alaw_decode, bytes(5), bytearray(9), "2 bytes"),
    (ulaw_encode, bytearray(6), bytearray(2), "room for 2"), (ulaw_encode, bytearray(5), bytearray(8), "2 bytes"),
    (alaw_encode, numpy.zeros(4, numpy.float32), bytearray(8), "not 4"),
    (alaw_encode, numpy.zeros((4, 2), numpy.int16)[:, 0], bytearray(8), "contiguous"),
    (ulaw_decode, bytearray(2), bytes(8), "writable"), (base64_decode, bytearray(b"AAAA"), bytes(8), "writable"),
]


@pytest.mark.parametrize("kernel, src, dst, sentence", WRONG)
def test_wrong_memory_is_refused_and_given_back(kernel, src, dst, sentence):
    with pytest.raises((ValueError, BufferError), match=sentence):
        kernel(src, dst)
    for memory in (src, dst):
        if isinstance(memory, bytearray):
            memory.append(0)        # BufferError while somebody holds it


@pytest.mark.parametrize("kernel", [energy, dbfs, peak, Resampler(8000, 16000).push])
def test_half_a_sample_is_refused_and_given_back(kernel):
    memory = bytearray(3)
    with pytest.raises(ValueError, match="2 bytes"):
        kernel(memory)
    memory.append(0)
    kernel(memory)
    memory.append(0)
