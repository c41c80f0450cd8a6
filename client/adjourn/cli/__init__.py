"""The command `adjourn`."""

from adjourn.cli.group import main

__all__ = ["main"]
