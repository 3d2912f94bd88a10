"""A generative judge behind an OpenAI-compatible endpoint: retries, a cache, and a deadline for each batch."""

import json
import re
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from common.endpoint import chat_request
from common.files import fingerprint
from reward.base import RewardError, Sample
from reward.config import Judge

_SCORE = re.compile(r"score\W{0,5}\s*(10|[1-9])\b", re.IGNORECASE)
FIRST_PAUSE_S = 0.25


class JudgeClient:
    """Scores in [0, 1] from a judge's 1 to 10. Deterministic as far as the endpoint is (temperature 0) and, for what
    was asked before, by the cache."""

    def __init__(self, config: Judge) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._known: dict[str, float] = {}
        if config.cache and config.cache.is_file():
            for line in config.cache.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self._known[row["key"]] = row["score"]

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample; a blank answer scores 0 unasked. Raises RewardError where the judge did not give all
        scores before the deadline."""
        deadline = time.monotonic() + self._config.deadline_s
        questions = [self._question(sample) if sample.answer.content.strip() else "" for sample in samples]
        todo = sorted({question for question in questions if question and self._key(question) not in self._known})
        with ThreadPoolExecutor(self._config.parallel) as threads:
            problems = [problem for problem in threads.map(lambda text: self._learn(text, deadline), todo) if problem]
        if problems:
            raise RewardError(
                f"judge {self._config.url} ({self._config.model}): no score for {len(problems)} of {len(samples)} "
                f"samples within {self._config.deadline_s:g} s and {self._config.retries} retries; last: {problems[-1]}"
            )
        return [self._known[self._key(question)] if question else 0.0 for question in questions]

    def _question(self, sample: Sample) -> str:
        conversation = "\n".join(f"{message.role}: {message.content}" for message in sample.messages)
        before, middle, after = re.split(r"\{conversation\}|\{answer\}", self._config.rubric)
        return f"{before}{conversation}{middle}{sample.answer.content}{after}"

    def _key(self, question: str) -> str:
        return fingerprint([self._config.model, self._config.max_tokens, question])

    def _learn(self, question: str, deadline: float) -> str | None:
        """Asks until there is a score, which is kept; else says what went wrong."""
        problem = "the deadline had passed"
        for attempt in range(self._config.retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                score = self._ask(question, left)
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                problem = f"{type(error).__name__}: {error}"
                time.sleep(max(0.0, min(FIRST_PAUSE_S * 2**attempt, deadline - time.monotonic())))
                continue
            self._keep(self._key(question), score)
            return None
        return problem

    def _ask(self, question: str, seconds: float) -> float:
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0.0,
            "max_tokens": self._config.max_tokens,
        }
        request = chat_request(self._config.url, self._config.key_variable, body)
        begun, body_parts = time.monotonic(), []
        with urllib.request.urlopen(request, timeout=seconds) as response:
            while part := response.read1(65536):
                body_parts.append(part)
                if time.monotonic() - begun > seconds:  # its own timeout starts anew with every part
                    raise TimeoutError("the reply trickles in")
        reply = json.loads(b"".join(body_parts))["choices"][0]["message"]["content"]
        scores = _SCORE.findall(reply)
        if not scores:
            raise ValueError(f"no 'Score: N' in the reply {reply[-80:]!r}")
        return (int(scores[-1]) - 1) / 9

    def _keep(self, key: str, score: float) -> None:
        with self._lock:
            self._known[key] = score
            if self._config.cache:
                self._config.cache.parent.mkdir(parents=True, exist_ok=True)
                with self._config.cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "score": score}) + "\n")
