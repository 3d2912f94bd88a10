"""The bridge to NeMo-RL v0.6 (Apache-2.0): configs, data, rewards and launch command out of a recipe's stage.

NeMo-RL is never imported here and never a dependency (its package on PyPI is an empty placeholder); ``plugin.py`` and
``start.py`` are copied into an export and run where NeMo-RL is.
"""
