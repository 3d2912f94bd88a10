#!/usr/bin/env bash
# lm-eval 0.4.13: IFEval's verdict on two of its prompts is drawn at random.
#
# One expects a verifiable instruction to have one verdict for one answer.
# What happens: keys 1122 and 1129 of IFEval ask for a sign ("#" at least four times, "!" at least 18 times), given as
# letter="#" and letter="!" to keywords:letter_frequency. The checker takes only ASCII letters: any other value is
# replaced by a letter drawn anew at every evaluation.
# Seen: 200 checkers built with letter="#" look for more than ten different letters and never for "#"; an answer of "####"
# never passes, and one of 40 times "abc" passes in some and fails in others. letter="e" is kept.
# Why it hurts: two runs over the same stored answers give different scores, and a model that follows the instruction is
# marked wrong.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q --no-deps lm-eval==0.4.13
"$t/venv/bin/pip" install -q langdetect==1.0.9 nltk==3.9.2 immutabledict==4.2.2 packaging==25.0 2> /dev/null
cat > "$t/signs.py" <<'PY'
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

site = next(Path(path) for path in sys.path if (Path(path) / "lm_eval").is_dir())
for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):  # the package itself imports torch
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(site.joinpath(*name.split(".")))]
import nltk

nltk.download = lambda *args, **kwargs: True  # looked for at import, not needed here
nltk.data.find = lambda *args, **kwargs: True
where = site / "lm_eval/tasks/ifeval/instructions.py"
spec = importlib.util.spec_from_file_location("lm_eval.tasks.ifeval.instructions", where)
instructions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(instructions)


def built(letter):
    checker = instructions.LetterFrequencyChecker("keywords:letter_frequency")
    checker.build_description(letter=letter, let_frequency=4, let_relation="at least")
    return checker


checkers = [built("#") for _ in range(200)]
looked_for = {checker.get_instruction_args()["letter"] for checker in checkers}
asked, other = ([checker.check_following(answer) for checker in checkers] for answer in ("####", "abc " * 40))
print(f"letters looked for: {len(looked_for)}, '#' among them: {'#' in looked_for}")
print(f"'####' passes {sum(asked)} of 200 times, 'abc abc ...' {sum(other)} times; of letter='e' it looks for",
      {built("e").get_instruction_args()["letter"] for _ in range(50)})
assert "#" not in looked_for and len(looked_for) > 10
assert not any(asked) and 0 < sum(other) < 200
assert {built("e").get_instruction_args()["letter"] for _ in range(50)} == {"e"}
PY
"$t/venv/bin/python" "$t/signs.py" 2> "$t/log" || { tail -n 5 "$t/log"; exit 1; }
