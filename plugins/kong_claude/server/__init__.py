"""The plugin server: kong-pdk's contract (MessagePack-RPC on a unix socket), hardened.

`wire` frames · `plugins` what is loaded, instances · `worker` one event in one greenlet, the `kong` object ·
`core` connections and dispatch · `listener` the socket file · `watchdog` loop lag, parent · `metrics` · `cli`.
"""
