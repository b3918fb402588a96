"""One family of errors per exit code: a script can tell from the code alone what kind of thing went wrong.

| code | family | meaning |
|---|---|---|
| 0 | | done |
| 1 | `HubpubError` | anything not covered below |
| 2 | `UsageError` | the command line is wrong |
| 3 | `ConfigError` | a card, a recipe or a selector is wrong |
| 4 | `ToolchainError` | this machine cannot do it: versions, memory, disk |
| 5 | `SourceError` | the source checkpoint is missing, damaged or unsupported |
| 6 | `ExportError` | exporting or running a program failed |
| 7 | `GateError` | a cell was measured and did not pass its gates |
| 8 | `RenderError` | a card could not be rendered, or a committed card is stale |
| 9 | `HubError` | the Hub could not be reached or refused |
| 10 | `AccessError` | the token is missing, wrong or lacks a right |
| 11 | `ConflictError` | the Hub holds something this release must not overwrite |
| 130 | | interrupted |
"""

from __future__ import annotations

import os
from pathlib import Path
from traceback import extract_tb

from hubpub.redaction import redact


class HubpubError(Exception):
    """Base of every error shown to a user: a message that names the thing, and a hint that names the way out.

    `path` and `line` (1-based) say which declaration it is about, where that is known. Secrets are taken out when it
    is made, so that none is in it wherever it goes.
    """

    exit_code = 1
    path: str | None = None
    line: int | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = redact(message)
        self.hint = redact(hint) if hint else hint
        super().__init__(self.message)


class UsageError(HubpubError):
    exit_code = 2


class ConfigError(HubpubError):
    """A declaration is wrong. `path` and `line` (1-based) say where, when known."""

    exit_code = 3

    def __init__(
        self, message: str, hint: str | None = None, *, path: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.path = path
        self.line = line


class ToolchainError(HubpubError):
    exit_code = 4


class SourceError(HubpubError):
    exit_code = 5


class ExportError(HubpubError):
    exit_code = 6


class GateError(HubpubError):
    exit_code = 7


class RenderError(HubpubError):
    """A card could not be rendered. `path` and `line` (1-based) name the template or card, when known."""

    exit_code = 8

    def __init__(
        self, message: str, hint: str | None = None, *, path: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.path = path
        self.line = line


class HubError(HubpubError):
    exit_code = 9


class AccessError(HubError):
    exit_code = 10


class ConflictError(HubError):
    exit_code = 11


def place(error: BaseException) -> str:
    """File and line where `error` was raised, as "loader.py:41": the innermost of ours, where there is one."""
    frames = extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}hubpub{os.sep}" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "unknown place"
