"""Mamba-2 as batched matrix products: pure torch functions that isolate packed documents and padding exactly.

The scan is the chunked form of structured state-space duality (Dao and Gu 2024, arXiv 2405.21060, section 6): inside a
chunk it is a masked matrix product like attention, across chunks a small recurrence over states. It runs on CPU and
CUDA, in fp32 and under bf16 autocast, and autograd differentiates it.

Shapes: B batch, T tokens, H heads, P channels of a head, G groups of heads that share B and C, N state size,
D convolution channels, K convolution width, Z chunks, Q tokens of a chunk, S states between chunks (Z + 1).
The state-space inputs B and C are called ``input_BTGN`` and ``output_BTGN``: how a token enters the state, how it is
read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Chunks whose recurrence is solved by one S x S matrix product; longer sequences go block by block."""


def causal_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    previous_BKD: Tensor | None = None,
    document_BT: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Depthwise causal convolution: token t sees the last K tokens, itself included, of its own document only.

    ``previous_BKD`` holds inputs that came before (the last K - 1 are used; zeros if None); they belong to the first
    token's document. ``document_BT`` comes from :func:`models.chunks.document_runs`. Padding is the caller's: zero its
    inputs. ``silu`` applies the activation that follows it in every Mamba-2.
    """
    width, length = weight_DK.shape[1], x_BTD.shape[1]
    if width == 1:
        previous_BKD = x_BTD[:, :0]
    if previous_BKD is None:
        padded = F.pad(x_BTD, (0, 0, width - 1, 0))
    else:
        padded = torch.cat([previous_BKD[:, previous_BKD.shape[1] - (width - 1) :].to(x_BTD.dtype), x_BTD], dim=1)
    if document_BT is not None:
        documents = F.pad(document_BT, (width - 1, 0))  # what came before belongs to document 0, the first token's
    weight_DK = weight_DK.to(x_BTD.dtype)
    y = x_BTD * weight_DK[:, -1]
    for lag in range(1, width):
        start = width - 1 - lag
        earlier = padded[:, start : start + length]
        if document_BT is not None:
            same = documents[:, start : start + length] == document_BT
            earlier = earlier * same.unsqueeze(-1)
        y = torch.addcmul(y, earlier, weight_DK[:, -1 - lag])
    y = y if bias_D is None else y + bias_D.to(y.dtype)
    return F.silu(y) if silu else y


def conv_step(
    x_BD: Tensor, state_BDK: Tensor, weight_DK: Tensor, bias_D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token through :func:`causal_conv`. Returns its output (B, D) and the new state, the last K inputs."""
    state_BDK = torch.cat([state_BDK[:, :, 1:], x_BD.to(state_BDK.dtype).unsqueeze(-1)], dim=-1)
    y = (state_BDK * weight_DK.to(state_BDK.dtype)).sum(-1)
    return (y if bias_D is None else y + bias_D).to(x_BD.dtype), state_BDK


def ssd_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    input_BTGN: Tensor,
    output_BTGN: Tensor,
    chunk: int,
    D_H: Tensor | None = None,
    initial_BHPN: Tensor | None = None,
    document_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The selective state-space scan: ``state = exp(dt A) state + dt x (input)``, ``y = state . output + D x``.

    ``dt`` is positive (after softplus), ``A`` negative. The state starts at ``initial`` (zeros if None) and again at
    exact zeros where ``document_BT`` (from :func:`models.chunks.document_runs`) changes. Tokens whose ``mask_BT`` is 0
    leave the state as it is. Large products run in x's dtype, decays and states in fp32.

    Returns y (B, T, H, P) in x's dtype and the state after the last token (B, H, P, N) in fp32.
    """
    length, groups = x_BTHP.shape[1], input_BTGN.shape[2]
    chunk = min(chunk, length)
    chunks = -(-length // chunk)
    tail = chunks * chunk - length
    with torch.autocast(x_BTHP.device.type, enabled=False):
        dt_BTH = dt_BTH.float()
        if mask_BT is not None:
            dt_BTH = dt_BTH * mask_BT.unsqueeze(-1)
        if document_BT is None:
            documents = torch.zeros(1, chunks, chunk, dtype=torch.int64, device=x_BTHP.device)
        else:
            documents = F.pad(document_BT.unsqueeze(1).float(), (0, tail), mode="replicate").long()
            documents = documents.view(-1, chunks, chunk)

        def chunked(tensor: Tensor) -> Tensor:
            """(B, T, heads, ...) to (B, Z, heads, Q, ...), filled up with zeros: dt = 0 keeps the state."""
            filled = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, tail)) if tail else tensor
            return filled.unflatten(1, (chunks, chunk)).transpose(2, 3)

        # The log-decays are summed in fp64 and split into a rounded part, whose differences are exact to fp32, and a
        # small rest that is folded into inputs and outputs: a strong decay early in the chunk (perhaps of another
        # document) must not cost precision later in it.
        dt_BZHQ = chunked(dt_BTH)
        decay = (dt_BZHQ.double() * A_H.double().unsqueeze(-1)).cumsum(-1)
        coarse_BZHQ = decay.float()
        fine_BZHQ = (decay.detach() - coarse_BZHQ.detach()).float()

        x_BZHQP = chunked(x_BTHP)
        input_BZGQN, output_BZGQN = chunked(input_BTGN), chunked(output_BTGN)
        dtx_BZHQP = x_BZHQP * (dt_BZHQ * torch.exp(-fine_BZHQ)).unsqueeze(-1)

        # 1. Inside the chunk: y_t = sum over s <= t, same document, of (output_t . input_s) decay(s -> t) dt_s x_s
        same = documents.unsqueeze(-1) == documents.unsqueeze(-2)
        visible = same & torch.ones(chunk, chunk, dtype=torch.bool, device=same.device).tril()
        between = coarse_BZHQ.unsqueeze(-1) - coarse_BZHQ.unsqueeze(-2)
        weights = between.masked_fill_(~visible.unsqueeze(2), -torch.inf).exp_()  # in place: the largest tensor here
        scores = output_BZGQN @ input_BZGQN.transpose(-1, -2)
        weights = (weights.unflatten(2, (groups, -1)) * scores.unsqueeze(3)).flatten(2, 3)
        y = weights.to(x_BTHP.dtype) @ dtx_BZHQP.to(x_BTHP.dtype)

        # 2. What each chunk adds to the state, as of its end.
        ends = documents[:, :, -1]
        total_BZH = decay[..., -1]
        to_end = torch.exp(coarse_BZHQ[..., -1:] - coarse_BZHQ) * torch.exp(fine_BZHQ[..., -1:])
        to_end = to_end * (documents == ends.unsqueeze(-1)).unsqueeze(2)
        weighted = (dtx_BZHQP.float() * to_end.unsqueeze(-1)).unflatten(2, (groups, -1))
        added = weighted.transpose(-1, -2) @ input_BZGQN.float().unsqueeze(3)
        added_BZHPN = added.flatten(2, 3)

        # 3. The recurrence over chunks, then 4. what each token reads from the state that entered its chunk.
        if initial_BHPN is None and chunks == 1:
            final_BHPN = added_BZHPN[:, 0]
        else:
            if initial_BHPN is None:
                initial_BHPN = torch.zeros_like(added_BZHPN[:, 0])
            entering_BZHPN, final_BHPN = _recurrence(
                initial_BHPN.float(), added_BZHPN, total_BZH, documents[:, 0, 0], ends
            )
            before = torch.cat([documents[:, :1, 0], ends[:, :-1]], dim=1)
            from_start = torch.exp(coarse_BZHQ) * (documents == before.unsqueeze(-1)).unsqueeze(2)
            read = output_BZGQN.float().unsqueeze(3) @ entering_BZHPN.unflatten(2, (groups, -1)).transpose(-1, -2)
            y = y + read.flatten(2, 3) * from_start.unsqueeze(-1)
        y = y * torch.exp(fine_BZHQ).unsqueeze(-1)
        if D_H is not None:
            y = y + x_BZHQP * D_H.float()[:, None, None]
    y_BTHP = y.transpose(2, 3).flatten(1, 2)[:, :length]
    return y_BTHP.to(x_BTHP.dtype), final_BHPN


def _recurrence(
    initial_BHPN: Tensor, added_BZHPN: Tensor, total_BZH: Tensor, first_B: Tensor, ends_BZ: Tensor
) -> tuple[Tensor, Tensor]:
    """The states that enter each chunk (B, Z, H, P, N) and the state after the last (B, H, P, N).

    ``total_BZH`` is the log-decay across each chunk, ``ends_BZ`` the document at its end; a state passes a chunk only
    if the document that it belongs to extends to the chunk's end.
    """
    entering, state, owner_B = [], initial_BHPN, first_B
    for start in range(0, added_BZHPN.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        states_BSHPN = torch.cat([state.unsqueeze(1), added_BZHPN[:, block]], dim=1)
        owners_BS = torch.cat([owner_B.unsqueeze(1), ends_BZ[:, block]], dim=1)
        since_BHS = F.pad(total_BZH[:, block].transpose(1, 2).cumsum(-1), (1, 0))
        between = since_BHS.unsqueeze(-1) - since_BHS.unsqueeze(-2)
        size = between.shape[-1]
        visible = (owners_BS.unsqueeze(-1) == owners_BS.unsqueeze(-2)).unsqueeze(1)
        visible = visible & torch.ones(size, size, dtype=torch.bool, device=between.device).tril()
        passed_BHSS = torch.exp(between.masked_fill(~visible, -torch.inf)).float()
        flat_BHSX = states_BSHPN.transpose(1, 2).flatten(3)
        flat_BHSX = passed_BHSS @ flat_BHSX
        after = flat_BHSX.unflatten(3, states_BSHPN.shape[3:]).transpose(1, 2)
        entering.append(after[:, :-1])
        state, owner_B = after[:, -1], owners_BS[:, -1]
    return torch.cat(entering, dim=1) if len(entering) > 1 else entering[0], state


def split_channels(channels: Tensor, heads: int, head_dim: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution's output (..., D) as x (..., H, P), and as input and output (..., G, N)."""
    inner = heads * head_dim
    group = (channels.shape[-1] - inner) // 2
    x, inputs, outputs = channels.split([inner, group, group], dim=-1)
    return x.unflatten(-1, (heads, head_dim)), inputs.unflatten(-1, (-1, size)), outputs.unflatten(-1, (-1, size))


def ssd_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    input_BGN: Tensor,
    output_BGN: Tensor,
    state_BHPN: Tensor,
    D_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token through :func:`ssd_scan`. Returns y (B, H, P) in x's dtype and the new state (B, H, P, N) in fp32."""
    groups, heads = input_BGN.shape[1], x_BHP.shape[1]
    dt_BH = dt_BH.float()
    x = x_BHP.float()
    dtx = (x * dt_BH.unsqueeze(-1)).unflatten(1, (groups, -1))
    added = (dtx.unsqueeze(-1) * input_BGN.float()[:, :, None, None]).flatten(1, 2)
    state = torch.addcmul(added, state_BHPN.float(), torch.exp(dt_BH * A_H.float())[:, :, None, None])
    y = (
        (state.unflatten(1, (groups, heads // groups)) @ output_BGN.float()[:, :, None, :, None])
        .squeeze(-1)
        .flatten(1, 2)
    )
    if D_H is not None:
        y = torch.addcmul(y, x, D_H.float().unsqueeze(-1))
    return y.to(x_BHP.dtype), state
