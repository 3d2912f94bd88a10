"""The tiled divergence equals torch's on whole logits, forward and backward, for every setting."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanoalign.common.errors import ConfigError
from nanoalign.models import distillation
from nanoalign.models.distillation import Divergence, Teacher, add_divergence, linear_divergence
from nanoalign.models.hybrid import install
from nanoalign.models.packed_attention import packed_inputs
from tests.models.small import VOCAB, small_model


def plain(student: Tensor, teacher: Tensor, labels: Tensor, how: Divergence) -> Tensor:
    """(loss, kl, nll) summed, by torch's own functions on whole logits."""
    log_q, log_p = (student / how.temperature).log_softmax(-1), (teacher / how.temperature).log_softmax(-1)
    if how.top_k is not None and how.top_k < student.shape[1]:
        top = log_p.topk(how.top_k, -1).indices
        others = torch.ones_like(log_p).scatter(1, top, 0.0).bool()
        parts = []
        for log in (log_q, log_p):
            tail = log.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
            parts.append(torch.cat([log.gather(1, top), tail], -1))
        log_q, log_p = parts
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    nll = F.cross_entropy(student, labels, reduction="sum")
    return torch.stack([(1 - how.cross_entropy) * how.temperature**2 * kl + how.cross_entropy * nll, kl, nll])


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 30),
    vocabulary=st.integers(2, 40),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tile=st.integers(1, 40),
    temperature=st.sampled_from([1.0, 0.5, 2.0, 7.0]),
    top_k=st.one_of(st.none(), st.integers(1, 45)),
    cross_entropy=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_it_is_torchs_divergence(
    tokens: int, vocabulary: int, widths: tuple[int, int], tile: int, temperature: float, top_k: int | None,
    cross_entropy: float, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, widths[0], dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, widths[0], dtype=dtype, requires_grad=True)
    states, head = torch.randn(tokens, widths[1], dtype=dtype), torch.randn(vocabulary, widths[1], dtype=dtype)
    labels = torch.randint(0, vocabulary, (tokens,))
    how = Divergence(temperature, top_k, cross_entropy)
    want = plain(hidden @ weight.T, states @ head.T, labels, how)
    got = linear_divergence(hidden, weight, states, head, labels, how, tile)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    assert torch.allclose(got, want, **close)
    for a, b in zip(
        torch.autograd.grad(3 * got[0], [hidden, weight]), torch.autograd.grad(3 * want[0], [hidden, weight])
    ):
        assert torch.allclose(a, b, **close)


def test_a_teacher_of_itself_has_nothing_to_teach_and_top_k_bounds_the_whole() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(50, 8)
    labels = torch.randint(0, 50, (20,))
    for how in (Divergence(), Divergence(2.0), Divergence(top_k=5)):
        loss, kl, _ = linear_divergence(hidden, weight, hidden.detach(), weight, labels, how, 8)
        assert kl.abs() < 1e-4 and torch.autograd.grad(loss, hidden)[0].abs().max() < 1e-5
    other = torch.randn(20, 8)
    by_k = [
        float(linear_divergence(hidden, weight, other, weight, labels, Divergence(top_k=k))[1].detach())
        for k in (1, 5, 25, 50)
    ]
    assert by_k == sorted(by_k)  # told apart better, they differ more
    with pytest.raises(ValueError, match=r"got \[\(20, 8\)"):
        linear_divergence(hidden, weight, other[:3], weight, labels, Divergence())


def test_autocast_multiplies_in_bf16_and_a_frozen_head_gets_no_gradient() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(100, 32)
    states, head, labels = torch.randn(64, 16), torch.randn(100, 16), torch.randint(0, 100, (64,))
    want = plain(hidden @ weight.T, states @ head.T, labels, Divergence())
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_divergence(hidden, weight, states, head, labels, Divergence(), 16)
    assert torch.allclose(got, want, rtol=0.01)
    a, b = torch.autograd.grad(got[0], hidden)[0], torch.autograd.grad(want[0], hidden)[0]
    assert (a - b).norm() < 0.02 * b.norm()
    with torch.no_grad():
        assert not linear_divergence(hidden, weight, states, head, labels, Divergence()).requires_grad


@pytest.mark.parametrize("name", ["nemotron_h", "llama"])
def test_a_models_loss_is_that_of_its_whole_logits(name: str) -> None:
    model = small_model(name)
    install(model)
    expert = copy.deepcopy(model)
    with torch.no_grad():
        for weight in expert.parameters():
            weight += 0.02 * torch.randn_like(weight)
    teacher = Teacher(expert, torch.device("cpu"))
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (1, 30))
    labels = ids.masked_fill(torch.rand(1, 30) < 0.3, -100)
    labels[0, [0, 12]] = -100
    inputs = {"input_ids": ids, **packed_inputs([12, 18])}
    shifted = labels[0, 1:]
    counted = shifted != -100
    logits, theirs = (each(**inputs).logits[0, :-1][counted] for each in (model, expert))
    want = plain(logits, theirs.detach(), shifted[counted], Divergence(2.0, None, 0.25))
    add_divergence(model, Divergence(2.0, None, 0.25), tile=7)
    got = model(**inputs, labels=labels, teacher_states=teacher.states(**inputs), teacher_head=teacher.head_VE)
    assert torch.allclose(torch.stack([got.loss, got.kl, got.nll]), want, rtol=1e-4)
    assert got.tokens == counted.sum()
    grads = [torch.autograd.grad(each, list(model.parameters()), allow_unused=True) for each in (got.loss, want[0])]
    for a, b in zip(*grads):
        assert (a is None) == (b is None) and (a is None or (a - b).norm() < 1e-4 * b.norm() + 1e-6)
    assert not any(weight.requires_grad for weight in expert.parameters())
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)  # other calls are as before


def test_models_that_scale_their_logits_are_refused() -> None:
    model = small_model("falcon_h1")
    model.config.lm_head_multiplier = 0.5
    with pytest.raises(ConfigError, match="lm_head_multiplier"):
        add_divergence(model, Divergence())


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_triton_kernel_is_the_plain_one(tau: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, or in Triton's interpreter (TRITON_INTERPRET=1)."""
    triton_divergence = pytest.importorskip("nanoalign.models.triton_divergence")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(triton_divergence, "BLOCK", 16)
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(5, 50, device=device) for _ in range(2))
    labels = torch.randint(0, 50, (5,), device=device)
    want = distillation._plain(student.clone(), teacher, labels, tau, None, share, True)
    got = triton_divergence.kl_and_grads(student, teacher, labels, tau, share, torch.float32)
    for a, b in zip(got, want):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    kl, _, half = triton_divergence.kl_and_grads(student, teacher, labels, tau, share, torch.bfloat16)
    assert torch.equal(kl, got[0]) and torch.allclose(half.float(), got[2], rtol=2**-7)  # the interpreter cuts off
    kl, _, same = triton_divergence.kl_and_grads(student.bfloat16(), teacher, labels, tau, share, None)
    assert torch.allclose(kl, want[0], rtol=0.05) and torch.equal(same, student.bfloat16())
