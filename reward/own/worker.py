"""Runs a user's function in a process of its own: ``python -m nanoalign.reward.own.worker KEY NAME SECTION``.

``[]`` comes back when the function is loaded. Each line on standard input
holds a sample, pickled (both ends are the user's own), and is answered by ``[score or null, reason, detail]``, or by
``[null, "", "", error]`` for what is no sample's fault. What the function prints is dropped.
"""

import base64
import json
import os
import pickle
import sys
import threading
import time
from typing import Any

from nanoalign.common.errors import NanoalignError
from nanoalign.reward.config import OwnReward
from nanoalign.reward.own.call import Failure, Function


def leave_with(parent: int) -> None:
    """Ends this process when its parent is gone: a function that hangs does not read that its input ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> int:
    threading.Thread(target=leave_with, args=[os.getppid()], daemon=True).start()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(what: Any) -> None:
        replies.write(json.dumps(what).encode() + b"\n")
        replies.flush()

    key, name, section = sys.argv[1:]
    try:
        function = Function(key, name, OwnReward.model_validate_json(section))
    except NanoalignError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 2
    say([])
    for line in sys.stdin.buffer:
        sample, progress, columns = pickle.loads(base64.b64decode(line))
        try:
            value = function.scores([sample], progress, columns)[0]
        except NanoalignError as error:
            say([None, "", "", str(error)])
            continue
        say([None, value.reason, value.detail] if isinstance(value, Failure) else [value, "", ""])
    return 0


if __name__ == "__main__":
    sys.exit(main())
