"""Data made with a served model: any OpenAI-compatible endpoint, a cache that survives a kill, a cap on what is spent.

A maker (:mod:`rejection`, :mod:`trajectories`, :mod:`long_context`, :mod:`translation`) is a generator function: it
yields questions, is sent the replies, and returns samples. It knows nothing of networks, threads or files;
:mod:`play` runs many of them at once, and :mod:`served` asks. What judges an answer is brought by the caller.
"""
