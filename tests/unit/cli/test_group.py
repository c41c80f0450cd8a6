"""The command's frame: what there is, and what is said of what is not."""

from importlib.metadata import EntryPoint, version

import pytest

from adjourn.cli import group, main


def plugin(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, group.PLUGINS)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    # `main` sets it where it is not set, and other tests start processes.
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")


@pytest.fixture
def plugins(monkeypatch):
    """Replaces what other packages add."""

    def replace(*found: EntryPoint) -> None:
        def select(*, group: str, name: str | None = None) -> list[EntryPoint]:
            return [each for each in found if name in (None, each.name)]

        monkeypatch.setattr(group, "entry_points", select)

    return replace


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adjourn {version('adjourn')}\n"


def test_help_lists_every_command_with_the_statuses(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in ("demo", "migrate", "queues", "serve", "tasks", "up", "worker", "Exit status"):
        assert name in said


def test_without_the_service_its_commands_say_what_to_install(plugins, capsys):
    plugins(plugin("serve", "adjourn_nowhere.cli:serve"))
    assert main(["serve"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("adjourn: 'serve' needs the service")
    assert "pip install 'adjourn[service]'" in said
    assert said.count("\n") == 1
    assert main(["--help"]) == 0
    assert "Not installed" in capsys.readouterr().out


def test_a_broken_plugin_is_not_loaded_for_another_command(plugins, capsys):
    plugins(plugin("serve", "adjourn_nowhere.cli:serve"))
    assert main(["tasks", "list", "--help"]) == 0


def test_what_others_add_does_not_replace_our_own(plugins):
    plugins(plugin("tasks", "adjourn_nowhere.cli:tasks"))
    assert main(["tasks", "--help"]) == 0


def test_a_wrong_command_is_told_what_there_is(plugins, capsys):
    plugins()
    assert main(["task"]) == 2
    assert "there is no command 'task'; there are queues, tasks, worker" in capsys.readouterr().err
