"""The search over the candidates of a step: the same tokens as over all logits, which it reads only if it must."""

from functools import partial

import numpy as np
import pytest
import torch

from compile.graphs.selection import CHUNK, candidates, most_probable, select
from neuron_sum.errors import ArtifactError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import Candidates, Greedy
from neuron_sum.runtimes.search import Counts, search

VOCABULARY, STEPS = 3000, 40


class TableSession:
    """Logits that depend only on the last token: a row of a table.

    Args:
        table: (vocab, vocab).
        examples: Number of examples.
        beams: Number of beams.
        count: Number of candidates.
        steps: Number of greedy steps per call.
    """

    def __init__(self, table: torch.Tensor, examples: int, beams: int, count: int, steps: int = 1) -> None:
        self._table, self._count = table, count
        self.greedy = Greedy(steps, partial(self.several, steps)) if steps > 1 else None
        self.start = np.arange(examples)[:, None].repeat(beams, axis=1) + 10

    def step(self, tokens: np.ndarray, rows: np.ndarray) -> Candidates:
        values, ids, log_sum, logits = select(self._table[torch.from_numpy(tokens)], self._count)
        return Candidates(values.numpy(), ids.numpy(), log_sum.numpy(), logits.shape[-1], logits.numpy)

    def several(self, steps: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        following, found = torch.from_numpy(tokens), []
        for _ in range(steps):
            following, largest = most_probable(self._table[following])
            found.append((following, largest))
        return torch.cat([pair[0] for pair in found], 1).numpy(), torch.cat([pair[1] for pair in found], 1).numpy()


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("vocab", [40, CHUNK * 20, CHUNK * 40 + 1, 32128])
@pytest.mark.parametrize("beams", [1, 4])
def test_the_selected_are_the_largest(vocab: int, beams: int) -> None:
    logits = torch.randn(3, beams, vocab, generator=torch.Generator().manual_seed(1))
    logits[1] -= 1000  # below any padding but the smallest number
    values, tokens, log_sum, whole = select(logits, candidates(beams))
    expected = torch.topk(logits, min(candidates(beams), vocab))
    assert torch.equal(values, expected.values) and torch.equal(tokens, expected.indices)
    assert torch.equal(whole, logits)
    probabilities = (values - values[..., :1]) - log_sum[..., None]
    torch.testing.assert_close(probabilities, torch.log_softmax(logits, -1).gather(-1, tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ends", [(1,), (1, 7, 9)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_new_tokens": 30},
        {"no_repeat_ngram_size": 1},
        {"length_penalty": 0.5},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 5, "early_stopping": True},
    ],
)
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_the_tokens_are_those_of_all_logits(
    table: torch.Tensor, beams: int, settings: dict[str, float], ends: tuple[int, ...]
) -> None:
    asked = GenerateConfig.model_validate({"max_new_tokens": STEPS, "num_beams": beams, **settings})
    likely = table.clone()
    likely[:, list(ends)] += 4  # so that some beams end early
    found = {}
    for count in (candidates(beams), VOCABULARY):
        session, counts = TableSession(likely, 3, beams, count), Counts()
        rows = search(session, session.start[:, :1], ends, asked, counts)
        found[count] = [row[: next((i for i, token in enumerate(row) if token in ends), STEPS) + 1] for row in rows]
        assert counts.steps > 1
        assert count != VOCABULARY or counts.all_logits == 0
    assert found[candidates(beams)] == found[VOCABULARY]


@pytest.mark.parametrize("ends", [(1,), (1, 7, 9)])
@pytest.mark.parametrize("least", [0, 9])
def test_several_steps_per_call_have_the_same_tokens(table: torch.Tensor, least: int, ends: tuple[int, ...]) -> None:
    likely = table.clone()
    likely[:, list(ends)] += 3.5
    asked = GenerateConfig(max_new_tokens=STEPS, min_new_tokens=least)
    session = TableSession(likely, 8, 1, candidates(1))
    expected = search(session, session.start, ends, asked, Counts())
    assert len({len(row) for row in expected}) > 3, "rows end at different places of a call"
    for steps in (2, 3, 7, STEPS):
        session, counts = TableSession(likely, 8, 1, candidates(1), steps), Counts()
        assert search(session, session.start, ends, asked, counts) == expected
        assert 0 <= counts.steps - max(map(len, expected)) < steps


def test_several_steps_that_are_not_finite_are_an_error_only_in_a_summary() -> None:
    table = torch.zeros(50, 50)
    table[:, 5], table[5, 1], table[1] = 1.0, 2.0, float("nan")
    session = TableSession(table, 1, 1, candidates(1), 4)
    assert search(session, session.start, [1], GenerateConfig(max_new_tokens=4), Counts()) == [[5, 1]]
    with pytest.raises(ArtifactError, match="not finite"):
        search(session, session.start, [2], GenerateConfig(max_new_tokens=4), Counts())


def test_the_most_probable_token_is_the_first_of_equal_ones() -> None:
    logits = torch.tensor([[[1.0, 3.0, 3.0]], [[float("nan"), 1.0, 2.0]], [[float("-inf")] * 3], [[0.0, 0.0, 1e30]]])
    tokens, largest = most_probable(logits)
    assert tokens.tolist() == [[1], [2], [0], [2]]
    assert largest.isfinite().tolist() == [[True], [False], [False], [True]]


@pytest.mark.parametrize("beams", [1, 4])
def test_all_logits_are_read_if_a_ban_removes_the_candidates(beams: int) -> None:
    """The same tokens are the most likely at every step, and none may follow twice."""
    table = torch.arange(VOCABULARY, 0, -1, dtype=torch.float32).div(100).expand(VOCABULARY, VOCABULARY)
    asked = GenerateConfig(max_new_tokens=STEPS, num_beams=beams, no_repeat_ngram_size=1)
    session, counts = TableSession(table, 2, beams, candidates(beams)), Counts()
    [row, _] = search(session, session.start[:, :1], [VOCABULARY - 1], asked, counts)
    assert len(set(row)) == STEPS
    assert 0 < counts.all_logits <= STEPS - candidates(1) + 2
    if beams == 1:
        assert row == [token for token in range(STEPS + 1) if token != 10]


def test_of_equal_logits_greedy_search_takes_the_first_token() -> None:
    table = torch.zeros(50, 50)
    table[:, [17, 5, 30]] = 1.0
    session = TableSession(table, 1, 1, candidates(1))
    asked = GenerateConfig(max_new_tokens=3)
    assert search(session, session.start, [1], asked, Counts()) == [[5, 5, 5]]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_logits_that_are_not_finite_are_an_error(num_beams: int) -> None:
    """Every comparison with NaN is false, so that a token outside of the vocabulary would be chosen."""
    session = TableSession(torch.full((50, 50), float("nan")), 2, num_beams, candidates(num_beams))
    with pytest.raises(ArtifactError, match="not finite"):
        search(session, [[1], [2]], (1,), GenerateConfig(max_new_tokens=4, num_beams=num_beams), Counts())
