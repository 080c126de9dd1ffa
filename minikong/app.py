"""The gateway: one request through Kong's phases, in Kong's order (kong/init.lua, kong/runloop/handler.lua).

The seam with the HTTP edge is `minikong.http.seam`; on top of it:

* `Exchange.respond(ctx)`: `ctx.response.headers` is complete, `ctx.added_response_headers` are already in it.
* `Exchange.proxy(ctx)`: the edge puts `ctx.added_response_headers` before the upstream's own (nginx's order).
* The edge sets `ctx.args` (the query string) and makes the Context; the gateway sets all else.
* `ctx.body` replaces the client's body if it is not None (set_raw_body, set_body).
"""
