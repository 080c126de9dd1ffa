"""A killer that never does anything (see `weakened`)."""

import os

while os.read(0, 65536):
    pass
