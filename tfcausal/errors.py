"""The errors that tfcausal raises on purpose.

Every message names the argument (or the configuration key, or the file), what was expected, what was received, and what
to do about it. :func:`message` puts these four in one form.
"""


class TfCausalError(Exception):
    """The root of every error that tfcausal raises on purpose."""


class InvalidArgument(TfCausalError, ValueError):
    """An argument, or the data handed to a function, is not what the function takes."""


class ConfigError(TfCausalError, ValueError):
    """A run configuration is wrong: an unknown key, a wrong type, or keys that do not go together."""


class DataError(TfCausalError, ValueError):
    """A data set cannot be used: a missing folder, an unreadable image, a mask without its image, too few images."""


class RunError(TfCausalError):
    """A run directory cannot be created, read or resumed."""


class UnsupportedOperation(TfCausalError):
    """A model contains something that the graph or a propagation rule does not handle."""


class TrainingDiverged(TfCausalError):
    """Training was stopped: a loss is not finite, or an objective has run away."""


class WorkerLost(TfCausalError):
    """Another process of the same training has failed or ended."""


def message(name: str, expected: str, received: object, remedy: str = "") -> str:
    """Put an error's four parts into the project's one form.

    Args:
        name: The argument, configuration key or file at fault.
        expected: What would have been right, without a full stop.
        received: What was there.
        remedy: What the user can do, as a sentence; may be empty.

    Returns:
        The message.

    Example:
        >>> message("batch_size", "a positive integer", 0, "Set it to 1 or more.")
        'Invalid value for `batch_size`: expected a positive integer; received 0. Set it to 1 or more.'
    """
    text = f"Invalid value for `{name}`: expected {expected}; received {received}."
    return f"{text} {remedy}" if remedy else text
