"""One plugin that does what its config says: `do` names the method below that runs in access (and in log: `log`)."""

import time

Schema = ({"do": {"type": "string"}},)
version = "1.0.0"
priority = 1000


class Plugin:
    def __init__(self, config):
        if config.get("do") == "bad config":
            raise ValueError("config.limit: must be positive")
        if config.get("do") == "slow constructor":
            time.sleep(0.3)
        self.config = config
        self.ran_on = 0
        self.kept = None

    def access(self, kong):
        getattr(self, self.config["do"])(kong)

    def log(self, kong):
        getattr(self, self.config.get("log", "nothing"))(kong)

    def nothing(self, kong):
        pass

    def one_call(self, kong):
        kong.ctx.shared.set("host", kong.request.get_header("host"))

    def ten_calls(self, kong):
        for number in range(10):
            assert kong.request.get_header(f"x-{number}") == f"value {number}"

    def exit_first(self, kong):
        kong.response.exit(403, {"message": "no"}, {"x-why": "first"})

    def exit_later(self, kong):
        kong.request.get_header("host")
        kong.response.exit(403, {"message": "no"})

    def code_after_exit(self, kong):
        try:
            kong.response.exit(403, {"message": "no"})
            self.ran_on += 1
        except Exception:
            self.ran_on += 1

    def tell_ran_on(self, kong):
        kong.ctx.shared.set("ran_on", self.ran_on)

    def raise_first(self, kong):
        raise RuntimeError("secret-in-a-message")

    def raise_later(self, kong):
        kong.request.get_header("authorization")
        raise RuntimeError("secret-in-a-message")

    def raise_system_exit(self, kong):
        raise SystemExit(3)

    def unserialisable(self, kong):
        kong.ctx.shared.set("x", object())

    def log_unserialisable(self, kong):
        kong.log.info("an object:", object)

    def private_method(self, kong):
        kong.log("plain")
        kong.log.err("error", 1, {"a": [1]})

    def unknown_method(self, kong):
        kong.ctx.shared.set("answer", [kong.never.heard.of(1, "a")])

    def sleep_100ms(self, kong):
        time.sleep(0.1)
        kong.request.get_header("host")

    def sleep_long(self, kong):
        time.sleep(60)

    def sleep_long_stubbornly(self, kong):
        for _ in range(3):
            try:
                time.sleep(60)
            except BaseException:
                pass

    def burn(self, kong):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            sum(range(100))

    def burn_400ms(self, kong):
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            sum(range(100))

    def body_length(self, kong):
        kong.ctx.shared.set("length", len(kong.request.get_raw_body(0)))

    def send_body(self, kong):
        kong.service.request.set_raw_body(b"x" * int(kong.request.get_header("x-size")))

    def keep_kong(self, kong):
        import threading

        def elsewhere():
            try:
                kong.request.get_header("host")
            except RuntimeError as error:
                self.kept = str(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        kong.ctx.shared.set("kept", self.kept)

    def contextvar(self, kong):
        from contextvars import ContextVar

        global VARIABLE
        VARIABLE = globals().get("VARIABLE") or ContextVar("v", default="clean")
        kong.ctx.shared.set("before", VARIABLE.get())
        VARIABLE.set("dirty")

    def give_up_a_call(self, kong):
        import gevent

        try:
            with gevent.Timeout(0.1):
                kong.request.get_header("slow")
        except gevent.Timeout:
            pass
        kong.ctx.shared.set("second", kong.request.get_header("quick"))

    def spurious_wakeup(self, kong):
        import gevent
        from greenlet import getcurrent

        gevent.get_hub().loop.run_callback(getcurrent().switch, "forged answer")
        kong.ctx.shared.set("host", kong.request.get_header("slow"))
