"""The candidates for the next token, selected inside a step graph, so that no tensor of the vocabulary leaves it.

A graph of several greedy steps chooses the tokens itself.

optimum-neuron 0.4.5 also selects in the graph (exporters/neuron/model_wrappers.py, T5DecoderWrapper), but exactly as
many candidates as a beam search without bans needs. Here SPARE more let the loop remove tokens; the loop reads all
logits only if those are not enough.
"""

import torch
from torch import Tensor

SPARE = 16
"""Candidates beyond those that a search without bans needs: an n-gram ban or min_new_tokens may remove them."""
CHUNK = 128
"""Tokens of which the graph first compares only the largest logit. The divisor of common vocabularies."""


def candidates(num_beams: int) -> int:
    """The number of candidates per beam: 2 K, because K of them may end, and SPARE."""
    return 2 * num_beams + SPARE


def select(logits: Tensor, count: int) -> list[Tensor]:
    """The largest logits of every beam, in descending order.

    They are in the chunks with the largest maxima, so only those chunks are sorted.

    Args:
        logits: (B, K, vocab), float32.
        count: Number of candidates; reduced to vocab.

    Returns:
        Their logits (B, K, count), float32; their tokens (B, K, count), int64; the logarithm of the sum of
        exp(logit - largest logit) over the vocabulary (B, K), float32; and all logits.
    """
    batch, beams, vocab = logits.shape
    count = min(count, vocab)
    padded = rows = logits.flatten(0, 1)  # on a device, only a top-k of two dimensions is not a sort [inferred]
    if missing := -vocab % CHUNK:
        least = torch.full((batch * beams, missing), torch.finfo(logits.dtype).min, device=logits.device)
        padded = torch.cat([rows, least], dim=-1)
    chunks = padded.view(batch * beams, -1, CHUNK)
    if chunks.shape[1] > count:
        best = torch.topk(chunks.amax(-1), count).indices
        pool = chunks.gather(1, best.unsqueeze(-1).expand(batch * beams, count, CHUNK)).flatten(1)
        values, at = torch.topk(pool, count)
        ids = best.unsqueeze(-1) * CHUNK + torch.arange(CHUNK, device=logits.device)
        tokens = ids.flatten(1).gather(1, at)
    else:
        values, tokens = torch.topk(rows, count)
    log_sum = (rows - values[:, :1]).exp().sum(-1).log()
    return [
        values.view(batch, beams, count),
        tokens.view(batch, beams, count),
        log_sum.view(batch, beams),
        logits,
    ]


def most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the largest logit of every beam, of several the first, and that logit; both (B, K).

    It has no argmax, because the Neuron compilers list no reduction of logits together with tokens (LIMITS in
    compile/preflight/operators.py). With a NaN the token is the last one, and the logit is not finite.
    """
    largest = logits.amax(-1, keepdim=True)
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == largest, tokens, logits.shape[-1] - 1).amin(-1), largest.squeeze(-1)
