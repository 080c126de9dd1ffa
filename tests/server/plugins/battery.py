"""One plugin that does what its config says: `do` names the method below that runs in access (and in log: `log`)."""

import time
from contextvars import ContextVar
from typing import Any

Schema = ({"do": {"type": "string"}},)
version = "1.0.0"
priority = 1000
VARIABLE = ContextVar("v", default="clean")
here: list[None] = []  # events that are within `how_many_at_once`


class Plugin:
    def __init__(self, config: dict[str, Any]) -> None:
        if config.get("do") == "bad config":
            raise ValueError("config.limit: must be positive")
        if config.get("do") == "slow constructor":
            time.sleep(0.3)
        self.config = config
        self.ran_on = 0
        self.kept: str | None = None

    def access(self, kong: Any) -> None:
        getattr(self, self.config["do"])(kong)

    def log(self, kong: Any) -> None:
        getattr(self, self.config.get("log", "nothing"))(kong)

    def nothing(self, kong: Any) -> None:
        pass

    def one_call(self, kong: Any) -> None:
        kong.ctx.shared.set("host", kong.request.get_header("host"))

    def ten_calls(self, kong: Any) -> None:
        for number in range(10):
            assert kong.request.get_header(f"x-{number}") == f"value {number}"

    def exit_first(self, kong: Any) -> None:
        kong.response.exit(403, {"message": "no"}, {"x-why": "first"})

    def exit_later(self, kong: Any) -> None:
        kong.request.get_header("host")
        kong.response.exit(403, {"message": "no"})

    def code_after_exit(self, kong: Any) -> None:
        try:
            kong.response.exit(403, {"message": "no"})
            self.ran_on += 1
        except Exception:
            self.ran_on += 1

    def tell_ran_on(self, kong: Any) -> None:
        kong.ctx.shared.set("ran_on", self.ran_on)

    def raise_first(self, kong: Any) -> None:
        raise RuntimeError("secret-in-a-message")

    def raise_later(self, kong: Any) -> None:
        kong.request.get_header("authorization")
        raise RuntimeError("secret-in-a-message")

    def raise_system_exit(self, kong: Any) -> None:
        raise SystemExit(3)

    def unserialisable(self, kong: Any) -> None:
        kong.ctx.shared.set("x", object())

    def log_unserialisable(self, kong: Any) -> None:
        kong.log.info("an object:", object)

    def private_method(self, kong: Any) -> None:
        kong.log("plain")
        kong.log.err("error", 1, {"a": [1]})

    def unknown_method(self, kong: Any) -> None:
        kong.ctx.shared.set("answer", [kong.never.heard.of(1, "a")])

    def sleep_100ms(self, kong: Any) -> None:
        time.sleep(0.1)
        kong.request.get_header("host")

    def how_many_at_once(self, kong: Any) -> None:
        """Before its first PDK call, which says how many events were there with it."""
        here.append(None)
        time.sleep(0.1)
        together = len(here)
        here.pop()
        kong.ctx.shared.set("together", together)

    def sleep_long(self, kong: Any) -> None:
        time.sleep(60)

    def sleep_long_stubbornly(self, kong: Any) -> None:
        for _ in range(3):
            try:
                time.sleep(60)
            except BaseException:
                pass

    def burn(self, kong: Any) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            sum(range(100))

    def burn_400ms(self, kong: Any) -> None:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            sum(range(100))

    def body_length(self, kong: Any) -> None:
        kong.ctx.shared.set("length", len(kong.request.get_raw_body(0)))

    def send_body(self, kong: Any) -> None:
        kong.service.request.set_raw_body(b"x" * int(kong.request.get_header("x-size")))

    def keep_kong(self, kong: Any) -> None:
        import threading

        def elsewhere() -> None:
            try:
                kong.request.get_header("host")
            except RuntimeError as error:
                self.kept = str(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        kong.ctx.shared.set("kept", self.kept)

    def contextvar(self, kong: Any) -> None:
        kong.ctx.shared.set("before", VARIABLE.get())
        VARIABLE.set("dirty")

    def give_up_a_call(self, kong: Any) -> None:
        import gevent

        try:
            with gevent.Timeout(0.1):
                kong.request.get_header("slow")
        except gevent.Timeout:
            pass
        kong.ctx.shared.set("second", kong.request.get_header("quick"))

    def spurious_wakeup(self, kong: Any) -> None:
        import gevent
        from greenlet import getcurrent

        gevent.get_hub().loop.run_callback(getcurrent().switch, "forged answer")
        kong.ctx.shared.set("host", kong.request.get_header("slow"))
