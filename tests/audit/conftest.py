from __future__ import annotations

from tests.store.conftest import s3 as s3
from tests.store.conftest import store as store
