"""Lets the tests here import ``naive_budget``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
