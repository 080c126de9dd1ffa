"""What servers and managed Redis answer, for the limits: each refuses, and none is taken for a damaged record.

`was` says what 0.1.0 made of it: "good", or what was wrong. `away`: nobody is served by it, so that after some nobody waits.
`source` and `reported`: see the README.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    who: str
    text: str
    away: bool = False
    was: str = "good"
    source: str = ""
    reported: bool = False

    def __str__(self) -> str:
        return f"{self.who}: {self.text[:40]}"


READONLY_6 = (
    "ERR Error running script (call to f_bb1f01f2e3b5b68548e2717d701a220ae8e253ed): @user_script:302: @user_script: 302: "
    "-READONLY You can't write against a read only replica."
)

ANSWERS = (
    # A primary endpoint after a failover.
    Answer("ElastiCache, Azure", "READONLY You can't write against a read only replica.", away=True, source="redis/redis-py#1764, StackExchange/StackExchange.Redis#2264, redis/redis-rb#550", reported=True),
    Answer("Redis 6.2, from a script", READONLY_6, away=True, was="told as a damaged record of one subject"),
    Answer("Redis 7, from a script", "READONLY You can't write against a read only replica. script: 1f, on @user_script:9.", away=True),
    Answer("a replica without its master", "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", away=True),
    Answer("a server that starts", "LOADING Redis is loading the dataset in memory", away=True),
    Answer("a Cluster's node, asked as a server", "MOVED 3999 127.0.0.1:6381"),
    Answer("a Cluster that is down", "CLUSTERDOWN The cluster is down", away=True, reported=True),
    Answer("a script of somebody else", "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
    Answer("Upstash, a proxy without scripts", "ERR unknown command 'EVALSHA', with args beginning with: 'f0' '8'"),
    Answer("a user without scripts", "NOPERM this user has no permissions to run the 'evalsha' command", reported=True),
    Answer("a user without our keys", "NOPERM No permissions to access a key"),
    Answer("ElastiCache that is full", "OOM command not allowed when used memory > 'maxmemory'.", reported=True),
    Answer("a disk that is full", "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."),
    Answer("too few replicas", "NOREPLICAS Not enough good replicas to write."),
    Answer("a password that was changed", "NOAUTH Authentication required.", away=True),
    Answer("a password that is wrong", "WRONGPASS invalid username-password pair or user is disabled.", away=True, source="Redis: ACL"),
    Answer("a server that has lost its scripts", "NOSCRIPT No matching script. Please use EVAL.", source="CSenshi/nestjs-redis#15, bee-queue/bee-queue#316"),
    Answer("Upstash's free tier", "ERR max daily request limit exceeded. Limit: 10000, Usage: 10001.", source="wotschofsky/domain-digger#36, medusajs/admin#654"),
    Answer("a Cluster that moves a slot", "ASK 3999 127.0.0.1:6381", source="Redis: Cluster specification"),
    Answer("a Cluster that has moved half of a slot", "TRYAGAIN Multiple keys request during rehashing of slot", source="Redis: Cluster specification"),
    Answer("a Cluster, asked by a client of servers", "CROSSSLOT Keys in request don't hash to the same slot", source="Redis: Cluster specification"),
    Answer("a server with too many clients", "ERR max number of clients reached", away=True),
)  # fmt: skip
