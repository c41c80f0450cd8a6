"""Asks before what cannot be undone."""

from __future__ import annotations

import sys

import click

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask on.")


def confirm(question: str, yes: bool) -> None:
    """Ask, unless told not to.

    Raises: click.Abort at any answer but yes; click.UsageError if nobody is there to answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{question} There is no terminal to ask on; give --yes to do it", click.get_current_context()
        )
    click.confirm(question, abort=True, err=True)
