"""Jobs: runs that wait in queues in Redis and survive every process that touches them.

SAQ carries *tickets*: each stands for "run the next job", so that SAQ's heartbeats, retries and sweeps give
durability, while `claim.lua` decides which job is next (tier priority, round robin of subjects). What is true about
a job is its record in Redis; a ticket that runs twice claims nothing twice.
"""
