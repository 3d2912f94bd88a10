"""What runs behind walls: scripts for processes of their own, which import nothing of nanoalign but each other.

``program.py`` runs a program that a model wrote (and the judge beside it), ``worker.py`` other packages' verifiers.
Both put up :mod:`walls` first. ``wire.py`` and ``remote.py`` say how plain data, and calls, pass between processes.
"""
