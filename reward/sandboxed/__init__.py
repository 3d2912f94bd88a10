"""What runs in the sandbox: scripts for separate processes, which import nothing of nanoalign but each other.

``program.py`` runs a program that a model wrote (and the judge beside it), ``worker.py`` other packages' verifiers.
Both enter the sandbox (:mod:`walls`) first. ``wire.py`` and ``remote.py`` say how plain data, and calls, pass between
processes.
"""
