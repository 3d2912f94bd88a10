import os
import shutil
import signal

# Shells start background jobs with Ctrl-C ignored, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU our kernels run in Triton's interpreter; Triton reads this where it is imported first, by whomever.
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"
