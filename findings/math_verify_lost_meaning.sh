#!/usr/bin/env bash
# math-verify 0.9.0: notations it does not know are cut short, and different answers become equal.
#
# One expects verify to say False, or parse to give up, where it cannot read a notation: a reward should not be given
# for an answer that was not understood.
# What happens: parse keeps a part (the digits before the mark, the modulus, a quotient) and verify compares these
# parts.
# Seen, equal though different:   1011_2 and 1011_3;  x = 1 (mod 3) and x = 2 (mod 3);  0.333... and 0.666... as
#   0.\overline{3} and 0.\overline{6};  12:30 and 14:35 (both read as the ratio 2/5);  \neq 3 and 3;  f'(x) and f(x);
#   5 cm and 5 km;  1 1/2 and 1.
# Seen, different though equal:   2.\overline{3} and 7/3;  1 1/2 and 3/2;  3 3/4 and 15/4.
# Why it hurts: as a reward, a wrong residue, base, unit or period earns full marks, and the right answer in the
# gold's other usual form earns nothing; as a filter it throws such tasks out as "too hard" or keeps wrong solutions
# as correct.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$t/venv/bin/python" - <<'PY'
from math_verify import parse, verify

different = (
    (r"$1011_2$", r"$1011_3$"),
    (r"$x\equiv 1 \pmod 3$", r"$x\equiv 2 \pmod 3$"),
    (r"$0.\overline{3}$", r"$0.\overline{6}$"),
    (r"$12:30$", r"$14:35$"),
    (r"$\neq 3$", r"$3$"),
    (r"$f'(x)$", r"$f(x)$"),
    (r"$5\text{ cm}$", r"$5\text{ km}$"),
    (r"$1 1/2$", r"$1$"),
)
same = ((r"$2.\overline{3}$", r"$\frac{7}{3}$"), (r"$1 1/2$", r"$3/2$"), (r"$3 3/4$", r"$15/4$"))
for pairs, seen in ((different, True), (same, False)):
    for gold, answer in pairs:
        equal = verify(parse(gold), parse(answer))
        print(gold, answer, equal)
        assert equal is seen, (gold, answer, equal)
PY
