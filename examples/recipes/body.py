"""`body.py FIELDS PROMPT [FILE…]`: prints a request: FIELDS (a JSON object), the prompt, and these files with it."""

import json
import sys
from pathlib import Path

fields, prompt, *paths = sys.argv[1:]
files = [{"path": path, "content": Path(path).read_text("utf-8")} for path in paths]
print(json.dumps({"prompt": prompt, **json.loads(fields), "files": files}))
