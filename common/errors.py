"""The project's base error.

Every error that a user can cause or can act upon inherits :class:`NanoalignError` and a standard type, so that
callers catch either. The CLI prints these without a traceback; anything else is a bug and keeps its traceback.
"""


class NanoalignError(Exception):
    """Base of all errors of this suite. The message names the file, line, key or tensor at fault."""


class ConfigError(NanoalignError, ValueError):
    """A recipe, an override or an argument is wrong."""


class UserCodeError(NanoalignError, RuntimeError):
    """A user's own function raised, hung or returned what it must not. The message starts with its ``file:line``."""


class DataError(NanoalignError, ValueError):
    """A data row, file or source is wrong. The message starts with ``file:line``."""


class CheckpointError(NanoalignError, ValueError):
    """A model folder is missing something, is damaged, or does not fit another one."""


class IsolationError(NanoalignError, RuntimeError):
    """Packed or padded documents influence each other: training on them would be training on a leak."""


class StaleWeightsError(NanoalignError, RuntimeError):
    """The rollout engine's weights are not the trainer's."""


class StageError(NanoalignError, RuntimeError):
    """A stage ended without its artifacts."""
