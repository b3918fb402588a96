"""Fixtures shared by all rooms: the project of this checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.config import Project

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def project() -> Project:
    """The cards and templates of this checkout."""
    return Project.find(ROOT)
