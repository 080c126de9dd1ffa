"""Configuration of claude-metrics. Without an access log it has nothing to configure."""

from __future__ import annotations

from kong_claude.schema import Field

SCHEMA: list[Field] = [
    {
        "access_log": {
            "type": "record",
            "required": False,
            "description": "Writes one JSON line per request. Prompts, tokens and query strings are never in it.",
            "fields": [
                {
                    "stdout": {
                        "type": "boolean",
                        "required": False,
                        "default": False,
                        "description": "Write lines to the plugin server's stdout, which Kong copies to its log.",
                    }
                },
                {
                    "file": {
                        "type": "string",
                        "required": False,
                        "match": "^/",
                        "description": "Absolute path of a file to append to. Renaming it is enough to rotate it.",
                    }
                },
                {
                    "url": {
                        "type": "string",
                        "required": False,
                        "referenceable": True,
                        "match": "^https?://",
                        "description": "Collector to POST batches of lines to: Loki's push API, or Vector.",
                    }
                },
                {
                    "url_style": {
                        "type": "string",
                        "required": False,
                        "default": "ndjson",
                        "one_of": ["loki", "ndjson"],
                        "description": "Form of a batch: Loki's push document, or one JSON object per line.",
                    }
                },
                {
                    "queue_size": {
                        "type": "integer",
                        "required": False,
                        "default": 10000,
                        "between": [1, 1000000],
                        "description": "Lines that wait for the collector at most; more are dropped and counted.",
                    }
                },
                {
                    "flush_seconds": {
                        "type": "number",
                        "required": False,
                        "default": 1,
                        "between": [0.05, 60],
                        "description": "Seconds after which a batch is sent even if it is not full.",
                    }
                },
            ],
        }
    }
]
