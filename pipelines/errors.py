"""Errors a person can act on, and the exit status each one ends a command with."""

from __future__ import annotations


class SemiflowError(Exception):
    """An expected failure. The message is one sentence: what, which file or value, and the way out."""

    exit_code = 1


class DataError(SemiflowError):
    """The command was understood, the data do not allow it (exit status 1)."""


class UsageError(SemiflowError):
    """The command or its parameters cannot be understood (exit status 2)."""

    exit_code = 2
