"""A Hub on this machine: what huggingface_hub asks of the real one, for rehearsals, previews and tests."""

from __future__ import annotations

from hubpub.localhub.faults import Entry, Fault
from hubpub.localhub.server import LocalHub, serve
from hubpub.localhub.site import Options

__all__ = ["Entry", "Fault", "LocalHub", "Options", "serve"]
