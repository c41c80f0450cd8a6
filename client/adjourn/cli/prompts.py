"""Asks before what cannot be undone."""

from __future__ import annotations

import sys

import click

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")


def confirm(question: str, yes: bool) -> None:
    """Ask, unless told not to or nobody is there to answer. Raises: click.Abort at any answer but yes."""
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)
