"""A wrong configuration is refused at the start, with all its faults."""

import click
import pytest
from click.testing import CliRunner

from adjourn.worker.cli import worker
from adjourn.worker.config import WorkerConfig, new_worker_id


def test_all_faults_are_named():
    with pytest.raises(ValueError, match=r"queue 'a b' .*; processes must .*; prefetch must .*; grace must"):
        WorkerConfig(queues=("a b",), processes=0, prefetch=0, grace_seconds=-1)


def test_the_default_serves_all_queues():
    assert WorkerConfig().queues == ("-",)


def test_worker_ids_are_new_each_time_and_fit_the_wire(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 300)
    first, second = new_worker_id(), new_worker_id()
    assert first != second
    assert len(first) == len(second) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-q", "a_b"], "queue 'a_b' must have 1 to 100 characters"),
        (["-p", "0"], "Invalid value for '-p' / '--processes'"),
        (["--main", "/nowhere.py"], "does not exist"),
        (["--log-level", "loud"], "'loud' is not one of"),
    ],
)
def test_the_command_refuses_bad_options_in_one_line(arguments, message):
    result = CliRunner().invoke(worker, arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_every_option_says_its_variable_and_its_default():
    with click.Context(worker, **worker.context_settings) as context:
        records = [option.get_help_record(context) for option in worker.params if isinstance(option, click.Option)]
    texts = dict(filter(None, records))
    assert [name for name, text in texts.items() if "env var: ADJOURN_" not in text] == []
    assert [name for name, text in texts.items() if "default: " not in text] == ["--main FILE"]
