"""Configuration comes from the environment once, faults come all at once, secrets stay secret."""

from __future__ import annotations

import base64

import pytest

import adjourn
from adjourn.client import default_client
from adjourn.config import ClientConfig, current_config
from adjourn.signing import SigningKeys

HEX = "ab" * 32


def test_defaults():
    assert ClientConfig.from_environment({}) == ClientConfig(target="localhost:7766", timeout=10.0, queue="default")


def test_environment_is_read():
    config = ClientConfig.from_environment(
        {
            "ADJOURN_TARGET": "adjourn:7766",
            "ADJOURN_TIMEOUT": "2.5",
            "ADJOURN_SIGNING_KEYS": f"new:{HEX}, old:{base64.b64encode(b'o' * 20).decode()}",
            "ADJOURN_QUEUE": "mail",
            "ADJOURN_MAIN": "app.py",
            "ADJOURN_HTTP_PORT": "for the service",
        }
    )
    keys = SigningKeys([("new", bytes.fromhex(HEX)), ("old", b"o" * 20)])
    assert config == ClientConfig(target="adjourn:7766", timeout=2.5, signing_keys=keys, queue="mail", main="app.py")


def test_empty_variable_counts_as_unset():
    assert ClientConfig.from_environment({"ADJOURN_TARGET": "", "ADJOURN_SIGNING_KEYS": " "}) == ClientConfig()


def test_all_faults_are_told_at_once():
    with pytest.raises(adjourn.ConfigError) as failure:
        ClientConfig.from_environment(
            {"ADJOURN_TIMEOUT": "soon", "ADJOURN_QUEUE": "a_b", "ADJOURN_SIGNING_KEYS": "k:abcd"}
        )
    for variable in ("ADJOURN_TIMEOUT", "ADJOURN_QUEUE", "ADJOURN_SIGNING_KEYS"):
        assert variable in str(failure.value)


@pytest.mark.parametrize("timeout", ["0", "-1", "inf", "nan"])
def test_timeout_is_positive_and_finite(timeout):
    with pytest.raises(adjourn.ConfigError, match="ADJOURN_TIMEOUT: timeout must be"):
        ClientConfig.from_environment({"ADJOURN_TIMEOUT": timeout})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("justasecret", "id:secret"),
        (f"a b:{HEX}", "1 to 64 characters"),
        (f"k:{HEX},k:{HEX}", "given twice"),
        ("k:abcdef", "at least 16"),
        ("k:!!!!", "neither hex nor base64"),
        (",", "no signing key"),
    ],
)
def test_faulty_signing_keys_are_refused_without_telling_the_secret(text, words):
    with pytest.raises(adjourn.ConfigError, match=words) as failure:
        SigningKeys.parse(text)
    assert HEX not in str(failure.value)


def test_secrets_are_masked():
    config = ClientConfig(signing_keys=SigningKeys.parse(f"k1:{HEX},k2:{HEX}"))
    assert HEX not in repr(config)
    assert "k1:***, k2:***" in repr(config)


def test_url_safe_base64_without_padding_is_read():
    secret = bytes(range(240, 256)) + b"\xff\xfe"
    text = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    assert SigningKeys.parse(f"k:{text}") == SigningKeys([("k", secret)])


def test_configure_goes_over_the_environment_and_drops_the_default_client(monkeypatch):
    monkeypatch.setenv("ADJOURN_TARGET", "from-environment:1")
    adjourn.configure(timeout=3)
    assert (current_config().target, current_config().timeout) == ("from-environment:1", 3)
    before = default_client()
    assert default_client() is before
    adjourn.configure(target="elsewhere:2", signing_keys=f"k:{HEX}")
    assert default_client() is not before
    assert default_client().target == "elsewhere:2"
    assert before.target == "from-environment:1"


def test_faulty_configure_changes_nothing():
    adjourn.configure(target="here:1")
    with pytest.raises(adjourn.ConfigError):
        adjourn.configure(target="there:1", timeout=-1)
    assert current_config().target == "here:1"
