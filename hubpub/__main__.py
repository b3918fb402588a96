"""`python -m hubpub`: the same as `hubpub`."""

import sys

from hubpub.cli.app import main

sys.exit(main())
