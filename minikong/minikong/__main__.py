"""`python -m minikong`."""

import sys

from minikong.cli import main

sys.exit(main())
