"""Human ratings: the pairs of summaries of a comparison, the file of the choices, and what a rater sees.

`ratings.jsonl`, in the folder of the comparison, has a line for each choice and each undo. A rating belongs to its
texts: it names them by a digest, so that it never counts for summaries that a later comparison replaced.
"""

import hashlib
import json
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from neuron_sum import console, files
from neuron_sum.errors import DataError, ResourceError, RunError
from neuron_sum.text_files import SURROGATE

SUMMARIES, RATINGS = "summaries.jsonl", "ratings.jsonl"
MAX_NAME, MAX_REASON = 40, 2000
Choice = Literal["left", "right", "equal", "both bad"]


class Rating(BaseModel):
    """A line of ratings.jsonl.

    Attributes:
        rater: The name.
        example: The id of the dialogue.
        left: The system whose summary was on the left.
        right: The other system.
        choice: The better side, or one of the other choices; None withdraws the choice.
        reason: The reason, or "".
        pair: The key of the pair, see `Pair`.
        time: The time (UTC).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rater: str
    example: str
    left: str
    right: str
    choice: Choice | None
    reason: str
    pair: str
    time: datetime


@dataclass(frozen=True)
class Pair:
    """Two different summaries of a dialogue.

    Attributes:
        example: The id of the dialogue.
        dialogue: The dialogue, one turn per line.
        systems: The names of the two systems, in the order of the comparison.
        entries: Their entries in summaries.jsonl: `text` and scores.
        key: The digest of the dialogue, the names and the summaries.
    """

    example: str
    dialogue: str
    systems: tuple[str, str]
    entries: tuple[Mapping[str, Any], Mapping[str, Any]]
    key: str

    @property
    def texts(self) -> tuple[str, str]:
        """The summaries."""
        return self.entries[0]["text"], self.entries[1]["text"]


def read_texts(folder: Path) -> list[dict[str, Any]]:
    """Read summaries.jsonl of a comparison.

    Raises:
        RunError: If the folder is not the output of `neuron-sum compare` with two or more systems and with dialogues.
        DataError: If a line is not an entry of that file.
    """
    path, create = folder / SUMMARIES, f"run `{console.command('compare', 'SYSTEM', 'SYSTEM', output=folder)}` first"
    if not path.is_file():
        raise RunError(f"{folder} has no {SUMMARIES}", create)
    entries = files.read_jsonl(path, DataError, create)
    for number, entry in enumerate(entries, 1):
        summaries = entry.get("summaries")
        if not (
            all(isinstance(entry.get(name), str) for name in ("id", "dialogue"))
            and isinstance(summaries, dict)
            and all(isinstance(each, dict) and isinstance(each.get("text"), str) for each in summaries.values())
        ):
            raise DataError(f"{path}:{number} has no id, dialogue and summaries", create)
    if len(names := systems_of(entries)) < 2:
        found = f"only {names[0]}" if names else "no summaries"
        raise RunError(f"{path} has {found}; two systems are needed, and human summaries are not rated", create)
    if not any(entry["dialogue"].strip() for entry in entries):
        hint = (
            "compare again with the column of the dialogues (--dialogue-column), or with data that has them (--recipe)"
        )
        raise RunError(f"{path} has no dialogues", hint)
    return entries


def systems_of(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the systems in summaries.jsonl, in the order of the comparison."""
    return list(dict.fromkeys(name for entry in entries for name in entry["summaries"]))


def pairs_of(entries: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """All pairs of different summaries of the same dialogue; none without a dialogue.

    Args:
        entries: The lines of summaries.jsonl.
    """
    pairs = {}
    for entry in entries:
        if not entry["dialogue"].strip():
            continue
        for systems in combinations(entry["summaries"], 2):
            first, second = (entry["summaries"][name] for name in systems)
            if first["text"].split() != second["text"].split():
                named = sorted((name, entry["summaries"][name]["text"]) for name in systems)
                key = _digest(json.dumps([entry["dialogue"], named]))
                pairs[key] = Pair(entry["id"], entry["dialogue"], systems, (first, second), key)
    return list(pairs.values())


def choose_pairs(pairs: Sequence[Pair], systems: Sequence[str], dialogues: int, seed: int) -> list[Pair]:
    """The pairs to rate.

    Args:
        pairs: The pairs of a comparison.
        systems: The names of the systems to compare; empty for all.
        dialogues: The number of dialogues. A larger number adds dialogues to those of a smaller one.
        seed: Determines the dialogues.

    Raises:
        RunError: If a system does not exist, or no pair is left.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair.systems))
    if pairs and (unknown := [name for name in systems if name not in names]):
        raise RunError(f"--system {', '.join(unknown)}: not one of {', '.join(names)}", "use the names of the report")
    if len(set(systems)) == 1:
        raise RunError(f"--system {systems[0]}: one system, and two are compared", "name another one, or none")
    chosen = [pair for pair in pairs if not systems or {*pair.systems} <= {*systems}]
    if not chosen:
        raise RunError("no dialogue has two different summaries of these systems", "compare or name other systems")
    texts = sorted({pair.dialogue for pair in chosen}, key=lambda text: _digest(f"{seed}\n{text}"))
    kept = set(texts[:dialogues])
    return [pair for pair in chosen if pair.dialogue in kept]


def read_ratings(folder: Path) -> dict[tuple[str, str], Rating]:
    """The valid ratings, oldest first: the last of each rater and pair, without those that were withdrawn.

    Args:
        folder: The folder of the comparison; without a file, there are no ratings.

    Returns:
        The ratings by `identity` of the rater and key of the pair.

    Raises:
        DataError: If a line is not a rating.
    """
    path, hint = folder / RATINGS, "correct or remove this line; all others are kept"
    ratings: dict[tuple[str, str], Rating] = {}
    for number, line in enumerate(files.read_jsonl(path, DataError, hint), 1):
        try:
            rating = Rating.model_validate(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{path}:{number}: {where}: {first['msg']}", hint) from error
        owner = (identity(rating.rater), rating.pair)
        ratings.pop(owner, None)
        if rating.choice is not None:
            ratings[owner] = rating
    return ratings


def identity(rater: str) -> str:
    """The name in the form that is compared: Ann and ann are one rater."""
    return rater.casefold()


def current_ratings(folder: Path, pairs: Iterable[Pair]) -> tuple[dict[tuple[str, str], Rating], int]:
    """The ratings of these pairs as `read_ratings` returns them, and the number of others, about which it warns.

    Raises:
        DataError: If a line is not a rating.
    """
    ratings, systems = read_ratings(folder), {pair.key: {*pair.systems} for pair in pairs}
    current = {
        owner: rating for owner, rating in ratings.items() if systems.get(rating.pair) == {rating.left, rating.right}
    }
    if other := len(ratings) - len(current):
        count = f"{other} of {len(ratings)} ratings in {folder / RATINGS}"
        console.warn(f"{count} are of other summaries, dialogues or systems than this comparison, and do not count")
    return current, other


class RatingSession:
    """What raters see and save. Every call reads the file, because several commands can serve one comparison.

    Args:
        folder: The folder of the comparison.
        pairs: The pairs to rate.
        seed: Determines, with the name of a rater, the order of the pairs and the sides of the systems.

    Raises:
        ResourceError: If the file cannot be written.
    """

    def __init__(self, folder: Path, pairs: Sequence[Pair], seed: int) -> None:
        self.path, self._folder, self._pairs, self._seed = folder / RATINGS, folder, pairs, seed
        self._lock = threading.Lock()
        self._checked: tuple[int, int] | None = None
        with self._writing():
            self.path.touch()

    def raters(self) -> list[str]:
        """The names of the raters so far."""
        return sorted({rater: rating.rater for (rater, _), rating in read_ratings(self._folder).items()}.values())

    def next(self, name: object) -> dict[str, Any]:
        """The first pair that a rater has not rated, and the progress.

        Args:
            name: The name of the rater.

        Raises:
            DataError: If the name is not usable.
            RunError: If the comparison has other texts now.
        """
        with self._request(name) as rater:
            return self._view(rater)

    def choose(self, name: object, number: object, choice: object, reason: object) -> dict[str, Any]:
        """Save a choice, and return the next pair.

        Args:
            name: The name of the rater.
            number: The number of the pair in the rater's order, from 0.
            choice: A Choice.
            reason: The reason, or "".

        Raises:
            DataError: If a value is not usable, or the rater has rated the pair already.
            RunError: If the comparison has other texts now.
            ResourceError: If the choice cannot be saved.
        """
        if choice not in get_args(Choice):
            raise DataError(f"the choice is not one of {', '.join(get_args(Choice))}")
        if not isinstance(reason, str) or len(reason) > MAX_REASON or SURROGATE.search(reason):
            raise DataError(f"the reason is not a text of at most {MAX_REASON} characters")
        with self._request(name) as rater:
            pair, swapped = self._at(rater, number)
            if (identity(rater), pair.key) in read_ratings(self._folder):
                raise DataError("this pair is already rated, in another window")
            self._save(rater, pair, swapped, choice, reason.strip())
            return self._view(rater)

    def undo(self, name: object) -> dict[str, Any]:
        """Withdraw the last choice of a rater, and return its pair again, with the reason.

        Args:
            name: The name of the rater.

        Raises:
            DataError: If the name is not usable, or there is no choice.
            RunError: If the comparison has other texts now.
            ResourceError: If the file cannot be written.
        """
        with self._request(name) as rater:
            numbers = {pair.key: number for number, (pair, _) in enumerate(self._order(rater))}
            ratings = read_ratings(self._folder)
            own = [each for (by, key), each in ratings.items() if by == identity(rater) and key in numbers]
            if not own:
                raise DataError("there is no choice to undo")
            number = numbers[own[-1].pair]
            self._save(rater, *self._at(rater, number), None, "")
            return {**self._view(rater, number), "reason": own[-1].reason}

    @contextmanager
    def _request(self, name: object) -> Iterator[str]:
        """Hold the session for a request of a rater, whose name it yields."""
        with self._lock:
            self._check_texts()
            yield self._rater(name)

    def _check_texts(self) -> None:
        """Refuse to continue with texts that `compare` has replaced, because ratings of them would not count."""
        path = self._folder / SUMMARIES
        version = (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None
        if version is None or version != self._checked:
            if not {pair.key for pair in self._pairs} <= {pair.key for pair in pairs_of(read_texts(self._folder))}:
                raise RunError(f"{path} has other texts now, and earlier ones do not count", "start the command again")
            self._checked = version

    def _view(self, rater: str, number: int | None = None) -> dict[str, Any]:
        order = self._order(rater)
        rated = {key for by, key in read_ratings(self._folder) if by == identity(rater)}
        todo = [each for each, (pair, _) in enumerate(order) if pair.key not in rated]
        view = {"rater": rater, "done": len(order) - len(todo), "total": len(order), "reason": "", "pair": None}
        if todo:
            number = todo[0] if number is None else number
            pair, swapped = order[number]
            left, right = reversed(pair.texts) if swapped else pair.texts
            view["pair"] = {"number": number, "dialogue": pair.dialogue, "left": left, "right": right}
        return view

    def _save(self, rater: str, pair: Pair, swapped: bool, choice: Any, reason: str) -> None:
        left, right = reversed(pair.systems) if swapped else pair.systems
        now = datetime.now(timezone.utc).replace(microsecond=0)
        line = Rating(
            rater=rater,
            example=pair.example,
            left=left,
            right=right,
            choice=choice,
            reason=reason,
            pair=pair.key,
            time=now,
        ).model_dump_json()
        with self._writing():
            files.append_line(self.path, line)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "free some space, or make the folder writable"
            raise ResourceError(f"{self.path} cannot be written: {error.strerror}", hint) from error

    def _order(self, rater: str) -> list[tuple[Pair, bool]]:
        """The pairs in the order of a rater, and whether the second system is on the left."""
        start = f"{self._seed}\n{identity(rater)}\n"
        digests = [(_digest(start + pair.dialogue), _digest(start + pair.key), pair) for pair in self._pairs]
        ordered = sorted(digests, key=lambda each: each[:2])  # the pairs of a dialogue follow each other
        return [(pair, int(digest[-1], 16) % 2 == 1) for _, digest, pair in ordered]

    def _at(self, rater: str, number: object) -> tuple[Pair, bool]:
        if not isinstance(number, int) or not 0 <= number < len(self._pairs):
            raise DataError(f"the pair is not a number from 0 to {len(self._pairs) - 1}")
        return self._order(rater)[number]

    def _rater(self, name: object) -> str:
        """The name without superfluous spaces, spelled as before."""
        text = " ".join(unicodedata.normalize("NFC", name).split()) if isinstance(name, str) else ""
        if not 0 < len(text) <= MAX_NAME or not text.isprintable():
            raise DataError(f"the name must have 1 to {MAX_NAME} printable characters")
        known = {identity(rater): rater for rater in self.raters()}
        return known.get(identity(text), text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
