"""What a version is called."""

from __future__ import annotations

import re

VERSION = re.compile(r"v\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?")
