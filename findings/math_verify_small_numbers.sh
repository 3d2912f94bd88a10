#!/usr/bin/env bash
# math-verify 0.9.0: all small decimal numbers are equal to each other.
#
# One expects 6.02e-23 and 1.6e-19 to differ: they are four orders of magnitude apart.
# What happens: numbers with a decimal point are compared after rounding to six decimal places, not six significant
# digits, so everything below about 5e-7 becomes zero. Whole-number forms of the same size are compared exactly.
# Seen: verify of $1.6\times 10^{-19}$ and $6.6\times 10^{-34}$ True, $0.0000001$ and $0.0000002$ True, $10^{-7}$ and
# $2\cdot 10^{-7}$ False.
# Why it hurts: physics and chemistry answers (charges, masses, wavelengths, equilibrium constants) are mostly this
# small in SI units: as a reward any tiny number is right, as a benchmark the score is inflated.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$t/venv/bin/python" - <<'PY'
from math_verify import parse, verify

for gold, answer, seen in (
    (r"$1.6\times 10^{-19}$", r"$6.6\times 10^{-34}$", True),
    (r"$6.02\times 10^{-23}$", r"$1.6\times 10^{-19}$", True),
    ("$0.0000001$", "$0.0000002$", True),
    (r"$10^{-7}$", r"$2\cdot 10^{-7}$", False),
    (r"$1.6\times 10^{19}$", r"$6.6\times 10^{34}$", False),
):
    equal = verify(parse(gold), parse(answer))
    print(gold, answer, equal)
    assert equal is seen, (gold, answer, equal)
PY
