"""Recipe sections of the preference and reinforcement stages."""

from typing import Annotated, Literal

from pydantic import Field

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.models.config import Measured, Training
from nanoalign.reward.config import Judge, Rewards, weights_of
from nanoalign.rollouts.config import EnvironmentOrName, Rollouts, Thinking


class DPOStage(Section):
    """Iterative on-policy DPO in an environment (section on tool calling of the paper)."""

    kind: Literal["dpo"]
    from_: str = Field(alias="from")
    """`base` or the stage whose model starts."""
    environment: EnvironmentOrName
    """A named environment, or your own: `my_env.py:Shop`, or `{name: "my_env.py:Shop", params: {size: 3}}`."""
    rounds: int = Field(3, ge=1)
    """Rounds of sampling, pairing and training."""
    tasks_per_round: int = Field(ge=1)
    """Training tasks sampled in a round."""
    samples_per_task: int = Field(4, ge=2)
    """Episodes sampled for each task."""
    revisit: float = Field(0.0, ge=0, le=1)
    """At most this share of a round's tasks are those of the round before that both succeeded and failed; the others
    are new ones."""
    min_pairs: int | None = Field(None, ge=1)
    """A round plays on with further tasks, tasks_per_round at a time, until it has so many pairs."""
    max_batches: int = Field(4, ge=1)
    """With min_pairs: a round has at most so many times tasks_per_round tasks."""
    held_out_tasks: int = Field(ge=1)
    """Test tasks on which success is measured before the first and after every round, in greedy episodes."""
    held_out_samples: int = Field(0, ge=0)
    """Episodes of each of them at rollouts.temperature as well: what a round changes first is how often a sampled turn
    goes wrong."""
    pairs_per_task: int = Field(2, ge=1)
    """At most this many success-failure pairs per task."""
    pairing: Literal["random", "closest_length", "same_prefix"] = "closest_length"
    """Which successes meet which failures; same_prefix prefers pairs that part latest."""
    partial_credit: bool = False
    """Where all episodes of a task failed, those whose end state came nearest to the wanted one (of environments that
    say so) are preferred to the others. Success is measured as ever."""
    stop_when_flat: bool = False
    """End before `rounds` when held-out success did not rise in the last round."""
    beta: float = Field(0.1, gt=0)
    """DPO's beta."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of a negative log-likelihood (nats per token) beside DPO's loss."""
    nll_on: Literal["chosen", "successes"] = "chosen"
    """Whose: the chosen answers of the pairs, each the one turn at which two episodes part; or all turns of the round's
    successful episodes, at most nll_turns of them beside each pair, which hold the turns that are right already."""
    nll_turns: int = Field(4, ge=1)
    """With nll_on: successes."""
    max_turns: int = Field(6, ge=1)
    """Assistant turns in an episode."""
    rollouts: Rollouts
    thinking: Thinking = Thinking()
    train: Training
    """Training within one round."""

    @property
    def most_tasks(self) -> int:
        """Of a round."""
        return self.tasks_per_round * (self.max_batches if self.min_pairs is not None else 1)


class RewardModelStage(Section):
    """A Bradley-Terry reward model trained on preference pairs."""

    kind: Literal["reward_model"]
    from_: str = Field(alias="from")
    """`base` or the stage whose model is the trunk."""
    data: str
    """Mixture of preference pairs."""
    train: Training


class GRPOStage(Section):
    """Group-relative policy optimization with verifiable rewards or a reward model, on prompts or in an environment."""

    kind: Literal["grpo"]
    from_: str = Field(alias="from")
    """`base` or the stage whose model starts."""
    data: str | None = None
    """Mixture of prompts; or `environment`."""
    environment: EnvironmentOrName | None = None
    """Environment in whose tasks episodes of several turns are played: a name, or your own (`my_env.py:Shop`)."""
    max_turns: int = Field(6, ge=1)
    """Assistant turns in an episode."""
    episode_tokens: int | None = Field(None, ge=1)
    """Tokens that the model may write in an episode; rollouts.max_tokens bounds each turn."""
    budget_per: Literal["turn", "episode"] = "turn"
    """What a thinking budget is for: each turn, or all turns of an episode together."""
    reward: Rewards = Field(min_length=1)
    """Name of a reward (reward/table.py), or FILE.py:FUNCTION or MODULE:FUNCTION of your own, to its weight."""
    reward_model: str | None = None
    """The reward_model stage behind `preference`."""
    reward_gpu: Annotated[int | None, RUNTIME_ONLY] = Field(None, ge=0)
    """Which of the stage's GPUs the reward model scores on; null is the trainer's own."""
    judge: Judge | None = None
    """The endpoint behind `judge`."""
    group_size: int = Field(8, ge=2)
    """Completions a prompt."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "dapo"
    """Loss aggregation and importance ratio; in an environment, what is said of a completion holds for an episode."""
    clip: tuple[float, float] = Field((0.2, 0.28), strict=False)
    """Lower and upper clip of the importance ratio."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL to the starting model; 0 keeps no reference."""
    rollouts: Rollouts
    thinking: Thinking = Thinking()
    pack_tokens: int | None = Field(None, ge=1)
    """Prompts and completions are trained on end to end, isolated from each other, so many tokens in a forward pass on
    a device (more only for one that is longer); null pads them, train.micro_batch_size in a pass."""
    importance: Literal["clip", "token", "sequence"] | None = None
    """How completions of older weights are corrected (`rollouts.ahead`): by the importance ratio within the loss's
    clip, or by a weight on the loss, of each token or each completion (in an environment: each episode), truncated at
    importance_cap. null: clip where nothing is sampled ahead, else token."""
    importance_cap: float = Field(2.0, gt=1)
    """Largest weight that a token, a completion or an episode can have."""
    max_mismatch: float = Field(1.05, gt=1)
    """Largest mean exp|logprob difference| between engine and trainer after a weight sync."""
    held_out: Annotated[int, Field(ge=1)] | str | None = None
    """What train.evaluate_every measures the reward on, by one greedy answer or episode each: a mixture (of `split:
    test`), or so many prompts of `data`, which are then not trained on (null: 2% of them, 64 at most); in an
    environment so many of its test tasks (null: 64)."""
    train: Measured
    """batch_size counts completions and is a multiple of group_size."""

    @property
    def correction(self) -> Literal["clip", "token", "sequence"]:
        """`importance`, or what null stands for."""
        return self.importance or ("token" if self.rollouts.ahead else "clip")

    @property
    def weights(self) -> dict[str, float]:
        """The rewards by the names that metrics have, with their weights."""
        return weights_of(self.reward)
