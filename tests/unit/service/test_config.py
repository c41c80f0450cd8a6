"""The settings: where they come from, which wins, and what is said of those that cannot work."""

from pathlib import Path

import pytest

from adjourn_service.config import ServiceConfig, env_name
from adjourn_service.errors import ConfigError


@pytest.fixture
def toml(tmp_path):
    """Writes a settings file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "adjourn.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def refusal(**fields):
    with pytest.raises(ConfigError) as refused:
        ServiceConfig(**fields)
    return str(refused.value)


def load_refusal(*arguments):
    with pytest.raises(ConfigError) as refused:
        ServiceConfig.load(*arguments)
    return str(refused.value)


def test_nothing_given_means_the_defaults():
    assert ServiceConfig.load({}, {}) == ServiceConfig()


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(toml):
    path = toml('listen = "toml:1"\nstore = "sqlite:///toml.db"\ninline_limit = 1\nlog_format = "json"\n')
    environ = {"ADJOURN_LISTEN": "env:2", "ADJOURN_STORE": "sqlite:///env.db", "ADJOURN_INLINE_LIMIT": "2"}
    config = ServiceConfig.load({"listen": "flag:3", "store": "sqlite:///flag.db", "inline_limit": None}, environ, path)
    assert (config.listen, config.store, config.inline_limit, config.log_format) == (
        "flag:3",
        "sqlite:///flag.db",
        2,
        "json",
    )
    assert config.log_level == ServiceConfig().log_level


def test_numbers_are_read_from_text():
    config = ServiceConfig.load({"drain_grace": "2.5"}, {"ADJOURN_MAX_REQUEST_BYTES": "2097152"})
    assert (config.drain_grace, config.max_request_bytes) == (2.5, 2 << 20)


def test_the_variable_of_a_setting_is_its_name_in_capitals():
    assert env_name("inline_limit") == "ADJOURN_INLINE_LIMIT"


def test_other_variables_are_left_alone():
    assert ServiceConfig.load({}, {"ADJOURN_TARGET": "adjourn:7766", "STORE": "memory:"}) == ServiceConfig()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"listen": "localhost"}, "listen: 'localhost' is not HOST:PORT"),
        ({"listen": ":7766"}, "listen: ':7766' is not HOST:PORT"),
        ({"listen": "localhost:65536"}, "is not HOST:PORT"),
        ({"listen": "localhost:grpc"}, "is not HOST:PORT"),
        ({"listen": "localhost:٣"}, "is not HOST:PORT"),
        ({"store": "adjourn.db"}, "is none of sqlite:///RELATIVE"),
        ({"store": "sqlite://adjourn.db"}, "mind the number of slashes"),
        ({"store": "sqlite:///"}, "is none of sqlite:///RELATIVE"),
        ({"store": "sqlite://[x"}, "is none of sqlite:///RELATIVE"),
        ({"store": "sqlite:///a.db?mode=ro"}, "is none of sqlite:///RELATIVE"),
        ({"store": "sqlite:///a#b.db"}, "%23"),
        ({"store": "memory:x"}, "is none of sqlite:///RELATIVE"),
        ({"store": "postgresql://db/adjourn"}, "PostgreSQL is not in this release yet"),
        ({"inline_limit": 0}, "inline_limit: 0 is not between 1 and 1048576"),
        ({"inline_limit": (1 << 20) + 1}, "inline_limit: 1048577 is not between"),
        ({"idempotency_window": 0.5}, "idempotency_window: 0.5 is not between 1 and 86400"),
        ({"idempotency_window": float("nan")}, "idempotency_window: nan is not between"),
        ({"drain_grace": float("inf")}, "drain_grace: inf is not between"),
        ({"drain_grace": -1.0}, "drain_grace: -1.0 is not between"),
        ({"max_request_bytes": 1000}, "max_request_bytes: 1000 is not between"),
        ({"log_level": "LOUD"}, "log_level: 'LOUD' is none of DEBUG, INFO, WARNING, ERROR"),
        ({"log_format": "xml"}, "log_format: 'xml' is none of text, json"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_what_would(fields, said):
    assert said in refusal(**fields)


def test_every_fault_is_told_at_once():
    said = refusal(listen="nowhere", store="x", inline_limit=-1, log_level="LOUD", log_format="xml")
    assert all(name in said for name in ("listen:", "store:", "inline_limit:", "log_level:", "log_format:"))


def test_faults_of_every_source_are_told_at_once(toml):
    path = toml("inline_limit = [1]\nspeed = 3\nlisten = 7\n")
    said = load_refusal({"log_level": "LOUD"}, {"ADJOURN_DRAIN_GRACE": "soon"}, path)
    assert all(
        each in said
        for each in (
            "'speed' is no setting",
            "inline_limit: [1]",
            "drain_grace: 'soon' is not a number",
            "LOUD",
            "listen:",
        )
    )


def test_a_name_in_the_file_that_is_nearly_a_setting_is_refused_with_a_hint(toml):
    path = toml('inline_limitt = 3\nlisten = "localhost:1"\n')
    assert load_refusal({}, {}, path) == f"{path}: 'inline_limitt' is no setting; did you mean 'inline_limit'?"


def test_a_name_in_the_file_that_is_like_no_setting_is_refused_with_all_of_them(toml):
    said = load_refusal({}, {}, toml("speed = 3\n"))
    assert "'speed' is no setting; there are listen, store, inline_limit" in said


@pytest.mark.parametrize("value", ["1.5", "true", '"many"', "[1]", "inf", '"1.5"'])
def test_what_is_no_whole_number_is_refused_for_one(toml, value):
    assert "inline_limit:" in load_refusal({}, {}, toml(f"inline_limit = {value}\n"))


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path):
    path = tmp_path / "none.toml"
    assert load_refusal({}, {}, path) == f"cannot read {path}: No such file or directory"


def test_a_file_that_is_a_folder_is_a_clear_error(tmp_path):
    assert "Is a directory" in load_refusal({}, {}, tmp_path)


@pytest.mark.parametrize("content", [b"listen = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_a_clear_error(tmp_path, content):
    path = tmp_path / "adjourn.toml"
    path.write_bytes(content)
    assert f"{path} is not valid TOML" in load_refusal({}, {}, path)


@pytest.mark.parametrize(
    ("store", "path"),
    [
        ("sqlite:///adjourn.db", Path("adjourn.db")),
        ("sqlite:////var/lib/adjourn.db", Path("/var/lib/adjourn.db")),
        ("sqlite:///with%20space%23.db", Path("with space#.db")),
        ("memory:", None),
    ],
)
def test_the_store_s_url_gives_its_file(store, path):
    assert ServiceConfig(store=store).sqlite_path() == path
