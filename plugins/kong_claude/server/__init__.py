"""The plugin server: kong-pdk's contract (MessagePack-RPC on a unix socket), hardened.

`wire` frames · `connection` reading and writing · `core` dispatch, events, instances · `worker` one event in one
greenlet, the `kong` object · `plugins` what is loaded · `listener` the socket file · `watchdog` loop lag, parent ·
`metrics` · `service` the process · `cli` its flags · `pdk` types for plugin authors.
"""
