"""A generative judge behind an OpenAI-compatible endpoint: retries, a cache, and a deadline for each batch.

Only the judge's own reply is read, and the last score in it counts: a score claimed by the judged answer does not
count.
"""

import http.client
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from nanoalign.common.endpoint import chat_request
from nanoalign.common.files import content_hash
from nanoalign.reward.base import RewardError, Sample, Score
from nanoalign.reward.config import Judge

_SCORE = re.compile(r"score\W{0,5}\s*(10|[1-9])\b", re.IGNORECASE)
FIRST_PAUSE_S = 0.25
LONGEST_REPLY = 2**22
"""Bytes; anything longer is not a judgement."""


class _NoScore(Exception):
    """The judge answered without a score."""


def encodable(text: str) -> str:
    """Half of a surrogate pair has no bytes."""
    return text.encode(errors="replace").decode()


def last_score(reply: str) -> float | None:
    """``Score: N`` from 1 to 10, the last one, as 0 to 1."""
    scores = _SCORE.findall(reply)
    return (int(scores[-1]) - 1) / 9 if scores else None


class JudgeClient:
    """Scores in [0, 1] from a judge's 1 to 10. Deterministic as far as the endpoint is (temperature 0) and, for earlier
    questions, through the cache."""

    def __init__(self, config: Judge) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._known: dict[str, float] = {}
        if config.cache and config.cache.is_file():
            for line in config.cache.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self._known[row["key"]] = row["score"]

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score per sample; a blank answer scores 0 unasked. Where the judge's answers had no score even after all
        retries, a sample scores 0 with the reason. Raises RewardError as :meth:`ask` does."""
        questions = [self._question(sample) if sample.answer.content.strip() else "" for sample in samples]
        told = iter(self.ask([question for question in questions if question], last_score))
        without = Score(0.0, "the judge gave no score")
        return [without if (said := next(told) if question else 0.0) is None else said for question in questions]

    def ask(self, questions: Sequence[str], read: Callable[[str], float | None]) -> list[float | None]:
        """What ``read`` finds in the judge's reply to each question; None where it found nothing even after all
        retries. Raises RewardError where the judge could not be reached before the deadline, or nothing was found for
        any of several: then the rubric or the judge is at fault, not an answer."""
        deadline = time.monotonic() + self._config.deadline_s
        todo = sorted({question for question in questions if self._key(question) not in self._known})
        with ThreadPoolExecutor(self._config.parallel) as threads:
            told = threads.map(lambda text: self._learn(text, read, deadline), todo)
            problems = [problem for problem in told if problem]
        failed = [problem for problem in problems if not isinstance(problem, _NoScore)]
        has_scored = any(self._key(question) in self._known for question in questions)
        if failed or (problems and not has_scored and (len(problems) > 1 or not self._known)):
            last = (failed or problems)[-1]
            raise RewardError(
                f"judge {self._config.url} ({self._config.model}): no score for {len(problems)} of {len(questions)} "
                f"questions within {self._config.deadline_s:g} s and {self._config.retries} retries; "
                f"last: {type(last).__name__.lstrip('_')}: {last}"
            )
        return [self._known.get(self._key(question)) for question in questions]

    def _question(self, sample: Sample) -> str:
        """The rubric filled in once: braces in inserted text stay text."""
        conversation = "\n".join(f"{message.role}: {message.content}" for message in sample.messages)
        before, rest = self._config.rubric.split("{conversation}", 1)
        middle, after = rest.split("{answer}", 1)
        question = f"{before}{conversation}{middle}{sample.answer.content}{after}"
        return encodable(question)

    def _key(self, question: str) -> str:
        return content_hash([self._config.model, self._config.max_tokens, question])

    def _learn(self, question: str, read: Callable[[str], float | None], deadline: float) -> Exception | None:
        """Asks until there is a score, which is cached; else returns the last error."""
        problem: Exception = TimeoutError("the deadline had passed")
        for attempt in range(self._config.retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                score = self._ask(question, read, left)
            except (
                OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError, _NoScore
            ) as error:  # fmt: skip
                problem = error
                time.sleep(max(0.0, min(FIRST_PAUSE_S * 2**attempt, deadline - time.monotonic())))
                continue
            self._keep(self._key(question), score)
            return None
        return problem

    def _ask(self, question: str, read: Callable[[str], float | None], seconds: float) -> float:
        asked = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0.0,
            "max_tokens": self._config.max_tokens,
        }
        request = chat_request(self._config.url, self._config.key_variable, asked)
        begun, body = time.monotonic(), bytearray()
        with urllib.request.urlopen(request, timeout=seconds) as response:
            while part := response.read1(65536):
                body += part
                if len(body) > LONGEST_REPLY:
                    raise _NoScore(f"a reply of more than {LONGEST_REPLY:,} bytes")
                if time.monotonic() - begun > seconds:  # its own timeout restarts with every part
                    raise TimeoutError("the reply is too slow")
        reply = json.loads(body)["choices"][0]["message"]["content"]
        score = read(reply) if isinstance(reply, str) else None
        if score is None:
            raise _NoScore(f"no score such as the rubric asks for in the reply {str(reply)[-80:]!r}")
        return score

    def _keep(self, key: str, score: float) -> None:
        with self._lock:
            self._known[key] = score
            if self._config.cache:
                self._config.cache.parent.mkdir(parents=True, exist_ok=True)
                with self._config.cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "score": score}) + "\n")
