"""What a server does not do: with one of gRPC's codes, by name."""


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, code, said):
        super().__init__(said)
        self.code, self.said = code, said
