"""Errors that both sides say alike."""


class ConfigError(ValueError):
    """A configuration that cannot be honoured. The text starts with the field's dotted name.

    Raised while a plugin's instance starts, so that Kong answers 500 and logs the text instead of letting requests
    pass.
    """

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(f"{field_name}: {problem}")
        self.field_name = field_name
        self.problem = problem
