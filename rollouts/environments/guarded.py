"""Calling a user's own methods: what they raise, or do not end, becomes an error with their line."""

import signal
import threading
from collections.abc import Mapping
from typing import Any

from nanoalign.common.errors import UserCodeError
from nanoalign.common.user_code import UserCode, blame, reason
from nanoalign.rollouts.environments.calls import Caller, DeadlineError


async def guarded(
    caller: Caller, code: UserCode, what: str, function: Any, *arguments: Any, deadline_s: float,
    named: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """What a function of the user's returns. Raises UserCodeError where it raises or does not end in time; ``what``
    says what it was doing."""
    try:
        return await caller(function, *arguments, deadline_s=deadline_s, **(named or {}))
    except UserCodeError:
        raise
    except DeadlineError as error:
        raise UserCodeError(f"{error.place or code.file}: {what} {error}") from None
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{blame(error, code.file)}: {what} raised {reason(error)}") from error


def called_here(function: Any, code: UserCode, what: str, params: Mapping[str, Any]) -> Any:
    """Called in this thread: environments of verifiers set signal handlers, which only the main thread may. Those that
    were there are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return function(**params)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{blame(error, code.file)}: {what} raised {reason(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
