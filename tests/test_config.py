"""Settings: which source wins, what is refused and with what sentence, and that every field keeps its promises."""
import argparse
import dataclasses
import re

import pytest

from opusagent import ConfigError
from opusagent.cli import main
from opusagent.config import SETTINGS, Config, add_flags, check_exposure, flags
from opusagent.settings import FOREIGN

SECRET = "correct-horse-battery"


def load(overrides=None, environ=None, toml=None, tmp_path=None):
    path = None
    if toml is not None:
        path = tmp_path / "opusagent.toml"
        path.write_text(toml, encoding="utf-8")
    return Config.load(overrides or {}, environ or {}, path)


def refused(overrides=None, environ=None, toml=None, tmp_path=None):
    """The sentence that a configuration is refused with, the directory cut off."""
    with pytest.raises(ConfigError) as caught:
        load(overrides, environ, toml, tmp_path)
    sentence = str(caught.value).replace(f"{tmp_path}/", "")
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


# -- the promises of the fields --------------------------------------------------------------------------------------

def test_every_setting_has_its_names_its_text_and_a_default_that_it_would_accept():
    assert len({known.flag for known in SETTINGS.values()}) == len(SETTINGS)
    assert len({known.variable for known in SETTINGS.values()}) == len(SETTINGS)
    for known in SETTINGS.values():
        assert known.doc and not known.doc.endswith("."), known.key
        assert known.read(known.default, "default", text=False) == known.default
        assert known.kind not in (int, float) or known.low is not None and known.high is not None, known.key
        assert not FOREIGN.fullmatch(known.variable), known.key
        assert Config().get(known.key) == known.default


def test_the_defaults_of_the_latency_guide():
    config = Config.load({}, {}, None)
    assert config == Config()
    net = config.net
    assert (config.host, config.port, config.workers) == ("127.0.0.1", 8000, 0)
    assert (net.nodelay, net.quickack, net.quickack_rearm) == (True, True, False)
    assert (net.receive_buffer, net.send_buffer) == (65536, 65536)
    assert (net.ping_interval_seconds, net.ping_timeout_seconds, net.media_timeout_seconds) == (5, 20, 15)
    assert (net.max_message, net.max_message_telephony) == (16 * 1024 * 1024, 64 * 1024)
    assert (config.history.exchanges, config.history.characters) == (10, 100)
    assert (config.openai.max_tokens, config.openai.temperature) == (150, 0.7)
    assert (config.openai.filler_seconds, config.openai.first_token_seconds) == (1.2, 2.0)
    assert (config.admission.refuse_above, config.admission.resume_below) == (0.7, 0.6)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().port = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().net.dscp = 1


# -- which source wins -----------------------------------------------------------------------------------------------

def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path):
    toml = 'port = 1\nhost = "127.0.0.1"\nworkers = 3\n\n[net]\ndscp = 46\n'
    config = load({"port": "3", "workers": None}, {"OPUSAGENT_PORT": "2", "OPUSAGENT_HOST": "::1"}, toml, tmp_path)
    assert (config.port, config.host, config.workers, config.net.dscp) == (3, "::1", 3, 46)
    assert config.origin("port") == "--port"
    assert config.origin("host") == "OPUSAGENT_HOST"
    assert config.origin("workers") == f"{tmp_path}/opusagent.toml:3"
    assert config.origin("net.dscp") == f"{tmp_path}/opusagent.toml:6"
    assert config.origin("stt") == "default"


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_file_may_be_named_by_a_flag_or_a_variable(tmp_path, by):
    (tmp_path / "x.toml").write_text("port = 9")
    name = str(tmp_path / "x.toml")
    config = load({"config": name}) if by == "flag" else load(environ={"OPUSAGENT_CONFIG": name})
    assert config.port == 9 and config.config == name


@pytest.mark.parametrize(("key", "text", "value"), [
    ("port", "0", 0), ("insecure", "yes", True), ("insecure", "OFF", False), ("diagnostics", "1", True),
    ("turns.threshold", "0.25", 0.25), ("net.head_seconds", "1", 1.0), ("flow", "my flow.toml", "my flow.toml"),
    ("origins", "https://a.example, http://b.example:8080,", ("https://a.example", "http://b.example:8080")),
    ("embedded.voice", "slt", "slt"),
])
def test_words_become_values(key, text, value):
    for config in (load({key: text}), load(environ={SETTINGS[key].variable: text})):
        assert config.get(key) == value and type(config.get(key)) is type(value)


def test_toml_has_types_of_its_own(tmp_path):
    config = load(toml='origins = ["https://a.example"]\ninsecure = true\n[turns]\nthreshold = 0.4\n[net]\n'
                       "head_seconds = 2", tmp_path=tmp_path)
    assert config.origins == ("https://a.example",) and config.insecure and config.turns.threshold == 0.4
    assert config.net.head_seconds == 2.0 and type(config.net.head_seconds) is float


def test_values_of_a_program_keep_their_types():
    assert load({"port": 0, "net.nodelay": False, "openai.temperature": 1}).openai.temperature == 1.0


def test_the_openai_packages_own_variables_count_and_ours_win():
    environ = {"OPENAI_API_KEY": "sk-theirs", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    config = load(environ=environ)
    assert (config.openai.api_key, config.openai.base_url) == ("sk-theirs", "http://127.0.0.1:9/v1")
    assert config.origin("openai.api_key") == "OPENAI_API_KEY"
    assert load(environ=environ | {"OPUSAGENT_OPENAI_API_KEY": "sk-ours"}).openai.api_key == "sk-ours"


def test_what_others_put_into_the_environment_is_left_alone():
    kubernetes = {"OPUSAGENT_PORT": "tcp://10.0.0.7:8000", "OPUSAGENT_PORT_8000_TCP": "tcp://10.0.0.7:8000",
                  "OPUSAGENT_PORT_8000_TCP_ADDR": "10.0.0.7", "OPUSAGENT_SERVICE_HOST": "10.0.0.7",
                  "OPUSAGENT_SERVICE_PORT_HTTP": "8000", "PATH": "/bin", "PORT": "x", "OPUSAGENT_ANNOTATE": "1"}
    assert load(environ=kubernetes | {"OPUSAGENT_FLOW": ""}) == Config()


# -- what is refused -------------------------------------------------------------------------------------------------

def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "opusagent.toml"
    path.write_text("prot = 1\nport = '80'\n")
    with pytest.raises(ConfigError) as refused:
        Config.load({}, {}, path)
    assert str(refused.value).replace(str(tmp_path) + "/", "").split("\n") == [
        "opusagent.toml:1: there is no setting 'prot' (did you mean port?).",
        "opusagent.toml:2: port must be a whole number from 0 to 65535, not '80'."]


@pytest.mark.parametrize(("toml", "sentence"), [
    ("prot = 1", "opusagent.toml:1: there is no setting 'prot' (did you mean port?)."),
    ("\n[net]\ndscpp = 1", "opusagent.toml:3: there is no setting 'net.dscpp' (did you mean net.dscp?)."),
    ("dscp = 1", "opusagent.toml:1: there is no setting 'dscp' (did you mean net.dscp?)."),
    ("tls-cert = 'x'", "opusagent.toml:1: there is no setting 'tls-cert' (did you mean tls_cert?)."),
    ("[nett]\ndscp = 1", "opusagent.toml:2: there is no setting 'nett.dscp' (did you mean net.dscp?)."),
    ("zzzzzz = 1", "opusagent.toml:1: there is no setting 'zzzzzz'."),
    ("[net.more]\nx = 1", "opusagent.toml:1: there is no setting 'net.more'."),
    ("net = 1", "opusagent.toml:1: net is a section, to be written as [net]."),
    ("config = 'x.toml'", "opusagent.toml:1: a configuration file cannot name another."),
    ("port = '8000'", "opusagent.toml:1: port must be a whole number from 0 to 65535, not '8000'."),
    ("port = 65536", "opusagent.toml:1: port must be a whole number from 0 to 65535, not '65536'."),
    ("port = 80.0", "opusagent.toml:1: port must be a whole number from 0 to 65535, not '80.0'."),
    ("port = true", "opusagent.toml:1: port must be a whole number from 0 to 65535, not 'True'."),
    ("insecure = 1", "opusagent.toml:1: insecure must be true or false, not '1'."),
    ("host = 1", "opusagent.toml:1: host must be text, not '1'."),
    ("flow = 'a\tb'", "opusagent.toml:1: flow must be text, not 'a\\tb'."),
    ("origins = 'https://a'", "opusagent.toml:1: origins must be a list of texts, not 'https://a'."),
    ("origins = [1]", "opusagent.toml:1: origins must be a list of texts, not '[1]'."),
    ("[turns]\nthreshold = nan", "opusagent.toml:2: turns.threshold must be a number from 0.01 to 0.99, not 'nan'."),
    ("[turns]\n\npause_ms = -1", "opusagent.toml:3: turns.pause_ms must be a whole number from 20 to 5000, not '-1'."),
    ("turns.pause_ms = -1", "opusagent.toml:1: turns.pause_ms must be a whole number from 20 to 5000, not '-1'."),
    ("[embedded]\nvoice = 'slr'", "opusagent.toml:2: embedded.voice must be one of rms, slt, awb, kal16, kal, espeak, "
                                  "not 'slr'."),
    ("log_level = 'warn'", "opusagent.toml:1: log_level must be one of debug, info, warning, error, not 'warn' "
                           "(did you mean warning?)."),
    ("admin_token = 12", "opusagent.toml:1: admin_token must be text."),
])
def test_a_file_is_refused_with_the_place_and_what_was_meant(tmp_path, toml, sentence):
    assert refused(toml=toml, tmp_path=tmp_path) == sentence


@pytest.mark.parametrize(("environ", "sentence"), [
    ({"OPUSAGENT_PROT": "1"}, "OPUSAGENT_PROT: there is no such setting (did you mean OPUSAGENT_PORT?)."),
    ({"OPUSAGENT_DSCP": "1"}, "OPUSAGENT_DSCP: there is no such setting (did you mean OPUSAGENT_NET_DSCP?)."),
    ({"OPUSAGENT_PORT": "eighty"}, "OPUSAGENT_PORT: port must be a whole number from 0 to 65535, not 'eighty'."),
    ({"OPUSAGENT_PORT": "8_000"}, "OPUSAGENT_PORT: port must be a whole number from 0 to 65535, not '8_000'."),
    ({"OPUSAGENT_PORT": "８０"}, "OPUSAGENT_PORT: port must be a whole number from 0 to 65535, not '８０'."),
    ({"OPUSAGENT_INSECURE": "maybe"}, "OPUSAGENT_INSECURE: insecure must be true or false, not 'maybe'."),
    ({"OPUSAGENT_TURNS_THRESHOLD": "inf"}, "OPUSAGENT_TURNS_THRESHOLD: turns.threshold must be a number from 0.01 to "
                                           "0.99, not 'inf'."),
    ({"OPENAI_BASE_URL": "localhost:9"}, "OPENAI_BASE_URL: openai.base_url must begin with http:// or https://."),
])
def test_a_variable_is_refused_by_its_name(environ, sentence):
    assert refused(environ=environ) == sentence


@pytest.mark.parametrize(("overrides", "sentence"), [
    ({"turns.silense_ms": "1"}, "There is no setting 'turns.silense_ms' (did you mean turns.silence_ms?)."),
    ({"silence-ms": "1"}, "There is no setting 'silence-ms' (did you mean turns.silence_ms?)."),
    ({"port": "-1"}, "--port: port must be a whole number from 0 to 65535, not '-1'."),
    ({"port": 8000.0}, "--port: port must be a whole number from 0 to 65535, not '8000.0'."),
    ({"tls_cert": "c.pem"}, "--tls-cert: tls_cert and tls_key are given together or not at all."),
    ({"tls_key": "k.pem"}, "--tls-key: tls_cert and tls_key are given together or not at all."),
    ({"admin": "nowhere"}, "--admin: admin must be HOST:PORT."),
    ({"admin": "127.0.0.1:99999"}, "--admin: admin must be HOST:PORT."),
    ({"origins": "a.example"}, "--origins: 'a.example' is not an origin; one is written https://HOST[:PORT]."),
    ({"origins": "https://a.example/"}, "--origins: 'https://a.example/' is not an origin; one is written "
                                        "https://HOST[:PORT]."),
    ({"origins": "*"}, "--origins: '*' is not an origin; one is written https://HOST[:PORT]."),
    ({"admission.resume_below": "0.8"}, "--admission-resume-below: admission.resume_below must not exceed "
                                        "admission.refuse_above."),
])
def test_what_cannot_be_meant_is_refused(overrides, sentence):
    assert refused(overrides) == sentence


def test_files_that_cannot_be_read(tmp_path):
    assert refused(toml="port = ", tmp_path=tmp_path).startswith("opusagent.toml: Invalid value (at ")
    assert refused(toml="port = 1\nport = 2", tmp_path=tmp_path).startswith("opusagent.toml: Cannot overwrite a value")
    assert refused(toml="port = " + "[" * 5000, tmp_path=tmp_path).endswith(": something in it is nested too deep.")
    assert refused(toml='\ufeffport = "x"', tmp_path=tmp_path).startswith("opusagent.toml:1: port must be a whole")
    assert refused({"config": str(tmp_path / "none.toml")}, tmp_path=tmp_path) == (
        "The configuration file none.toml cannot be read: No such file or directory.")
    assert "Is a directory" in refused({"config": str(tmp_path)}, tmp_path=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'flow = "\xe9"')
    assert refused({"config": str(tmp_path / "latin.toml")}, tmp_path=tmp_path) == (
        "The configuration file latin.toml is not UTF-8 text.")


# -- strangers -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "2001:db8::1", "voice.example", "127.0.0.1.x"])
def test_listening_for_strangers_without_authentication_is_refused(host):
    sentence = refused({"host": host})
    assert "without authentication" in sentence and "--insecure" in sentence and "admin_token" in sentence
    assert load({"host": host, "insecure": True}).host == host
    assert load({"host": host, "admin_token": SECRET}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_authentication(host):
    assert load({"host": host}).host == host


def test_the_pages_own_address_is_held_to_the_same_rule():
    assert "without authentication" in refused({"admin": "0.0.0.0:9000"})
    assert load({"admin": "127.0.0.1:9000"}).admin_address == ("127.0.0.1", 9000)
    assert load({"admin": "[::1]:0"}).admin_address == ("::1", 0)
    assert load().admin_address is None
    with pytest.raises(ConfigError):
        check_exposure(Config(), "0.0.0.0")


# -- secrets ---------------------------------------------------------------------------------------------------------

def test_secrets_are_never_printed(tmp_path):
    config = load({"admin_token": SECRET}, {"OPENAI_API_KEY": "sk-" + SECRET})
    assert SECRET not in repr(config) and SECRET not in str(config) and SECRET not in config.toml()
    assert "admin_token is set, and not shown  (--admin-token)" in config.toml()
    for toml in (f"admin_token = ['{SECRET}']", f"[openai]\napi_key = {{x = '{SECRET}'}}"):
        assert SECRET not in refused(toml=toml, tmp_path=tmp_path)
    short = refused({"admin_token": "short-one"})
    assert "16 characters" in short and "short-one" not in short


def test_a_secret_has_no_flag_for_others_to_read():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert "--admin-token" not in parser.format_help() and "api-key" not in parser.format_help()


# -- what is made from the fields ------------------------------------------------------------------------------------

def test_what_the_parser_read_goes_straight_back_into_load():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert flags(parser.parse_args([])) == {}
    argv = "--port 0 --insecure --no-net-nodelay --turns-silence-ms 150 --origins https://a.example".split()
    config = load(flags(parser.parse_args(argv)))
    assert (config.port, config.insecure, config.net.nodelay, config.turns.silence_ms) == (0, True, False, 150)
    assert config.origins == ("https://a.example",)


def test_help_names_default_and_variable_of_each_flag_and_of_those_in_sections_when_asked(capsys):
    parser = argparse.ArgumentParser()
    add_flags(parser, [key for key in SETTINGS if key.startswith("net.") or key == "port"])
    for asked, there in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit, match="0"):
            parser.parse_args([asked])
        text = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert "--port PORT port to listen on; 0 is a free one (default 8000; OPUSAGENT_PORT)" in text
        assert ("--net-head-seconds SECONDS" in text) == there and "--workers" not in text


def test_the_printed_configuration_loads_back_to_the_same(tmp_path):
    given = {"port": 0, "flow": 'a "b" \\ ü 😀.toml', "origins": ("https://a.example",), "net.nodelay": False,
             "turns.threshold": 0.123456789, "net.head_seconds": 0.1}
    config = load(given)
    assert load(toml=config.toml(), tmp_path=tmp_path) == config
    assert "dscp = 0  # default" in config.toml() and "port = 0  # --port" in config.toml()


@pytest.mark.parametrize("words, sentence", [
    ("serve --max-cals 3", "opusagent serve takes no --max-cals (did you mean --max-calls?)"),
    ("config --net-dscpp=4", "opusagent config takes no --net-dscpp (did you mean --net-dscp?)"),
    ("upgrade now", "opusagent upgrade takes no now; opusagent upgrade --help says what it takes"),
])
def test_an_unknown_flag_is_refused_with_what_it_is_near_to(words, sentence, capsys):
    with pytest.raises(SystemExit) as refused:
        main(words.split())
    assert refused.value.code == 2 and sentence in capsys.readouterr().err
