"""Read a data source into examples; every bad row is reported with file and line."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neuron_sum.data.checks import Problem, merge_references, near_overlap, remove_duplicate_ids, remove_overlap
from neuron_sum.data.examples import Dataset, Example, evenly_spaced
from neuron_sum.data.readers import Rows, read_rows
from neuron_sum.data.section_rows import missing_column, section_texts
from neuron_sum.data.splits import is_folder, split_files
from neuron_sum.errors import DataError
from neuron_sum.recipes.schema import Columns, DataConfig, OutputConfig, Split
from neuron_sum.sections import Sections
from neuron_sum.text_files import MAX_CHARACTERS, SURROGATE, conversion_of

SAMPLE = Path(__file__).parent / "sample"
PROBLEMS_SHOWN = 20
NO_SECTIONS = OutputConfig()

COLUMNS = {
    "sample": Columns(id="fname", topic="topic"),
    "dialogsum": Columns(id="fname", topic="topic"),
    "samsum": Columns(id="id"),
}
ORIGINS = {"sample": "the bundled sample", "dialogsum": "DialogSum", "samsum": "SAMSum"}
LICENSES = {"sample": "Apache-2.0", "dialogsum": "CC BY-NC-SA 4.0", "samsum": "CC BY-NC-ND 4.0"}
"""Licences of the data sets with a known format: github.com/cylnlp/dialogsum, arXiv:1911.12237."""


def load_dataset(config: DataConfig, output: OutputConfig = NO_SECTIONS) -> Dataset:
    """Reads and checks every split, and selects as many examples of it as its limit allows.

    Args:
        config: The source.
        output: The form of the summaries; with sections, references have the form of `write_sections`.

    Raises:
        DataError: If the source does not exist, or, unless `skip_bad`, if it has bad rows; the message lists the first
            twenty with file, line and remedy.
    """
    problems: list[Problem] = []
    columns = COLUMNS.get(config.source, config.columns).model_copy(update={"sections": config.columns.sections})
    splits: dict[Split, list[Example]] = {}
    sources, unused = _rows_by_split(config)
    for split, rows in sources.items():
        merged = merge_references(
            _examples(rows, columns, split, problems, output.sections), problems, by_dialogue=split != "train"
        )
        splits[split] = remove_duplicate_ids(merged, problems)
    splits = remove_overlap(splits, problems)
    if problems and not config.skip_bad:
        listing = "\n  ".join(str(problem) for problem in problems[:PROBLEMS_SHOWN])
        more = f"\n  … and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        count = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
        file = next((problem.file for problem in problems if problem.file is not None), None)
        remedy = "fix them" if file is None else conversion_of(file)
        raise DataError(f"{count}\n  {listing}{more}", f"{remedy}, or skip them with --skip-bad")
    skipped: dict[str, int] = {}
    for problem in problems:
        skipped[problem.kind] = skipped.get(problem.kind, 0) + 1
    used = {split: evenly_spaced(examples, config.limit(split)) for split, examples in splits.items()}
    overlap = near_overlap(used.get("train", ()), (*used.get("validation", ()), *used.get("test", ())))
    if config.claims is not None:
        from neuron_sum.data.claims import generate_claims

        used = {split: generate_claims(examples, config.claims) for split, examples in used.items()}
    return Dataset(
        splits=used,
        origin=ORIGINS.get(config.source, str(config.path)),
        license=config.license or _license(config),
        skipped=skipped,
        unused=tuple(unused),
        available={split: len(examples) for split, examples in splits.items()},
        near_overlap=overlap,
    )


def _rows_by_split(config: DataConfig) -> tuple[dict[Split, Rows], list[str]]:
    """The rows of each split, and the names of what is not used."""
    if config.source == "hub":
        from neuron_sum.data.hub import read_hub

        return read_hub(config)
    folder = SAMPLE if config.source == "sample" else Path(str(config.path))
    if not is_folder(folder):
        raise DataError(
            f"data.path = {config.path!r:.200} is not a folder (absolute path: {folder.absolute()!s:.300})",
            "set data.path to a folder; in a recipe it is relative to its file, in an override to the current folder",
        )
    files, unused = split_files(folder, config)
    return {split: read_rows(paths, config) for split, paths in files.items()}, (
        [] if config.source == "sample" else unused
    )


def _examples(
    rows: Rows, columns: Columns, split: Split, problems: list[Problem], sections: Sections
) -> Iterator[Example]:
    """Yields the valid rows as examples, and adds the bad ones to `problems`."""
    first = None
    for row in rows:
        if isinstance(row, Problem):
            problems.append(row)
            continue
        file, _, number = row[0].rpartition(":")
        first = first or file
        unnamed = f"{split}_{number}" if file == first else f"{split}_{file}_{number}"
        example = _example(*row, columns, unnamed, sections)
        if isinstance(example, Problem):
            problems.append(example)
        else:
            yield example


def _example(
    location: str, fields: Mapping[str, Any], columns: Columns, unnamed: str, sections: Sections = ()
) -> Example | Problem:
    """One row as an example, or its problem; a row without an id is called `unnamed`."""
    if (missing := missing_column(location, fields, columns.dialogue)) is not None:
        return missing
    values: dict[str, Any] = {}
    if sections:
        found = section_texts(location, fields, columns, sections)
        if isinstance(found, Problem):
            return found
        values = dict(found)
    else:
        for column in columns.summaries(fields):
            if (missing := missing_column(location, fields, column)) is not None:
                return missing
            values[column] = fields[column]
    summaries, texts = tuple(values), dict[str, str]()
    for column, text in [(columns.dialogue, fields[columns.dialogue]), *values.items()]:
        if not isinstance(text, str):
            remedy = "join the turns to one string" if isinstance(text, list) else "use a string"
            return Problem("not text", location, f"{column!r} is {text!r:.60}", remedy)
        if (fault := _fault(text)) is not None:
            return Problem(fault[0], location, f"{column!r} {fault[1]}", fault[2])
        texts[column] = text.replace("\r\n", "\n").strip()
        if not texts[column]:
            kind = "empty dialogue" if column == columns.dialogue else "empty summary"
            return Problem(kind, location, f"{column!r} is empty", "fill it in or remove the row")
    identity = fields.get(columns.id) if columns.id is not None else None
    if identity is None or identity == "":
        identity = unnamed
    if isinstance(identity, float) and identity.is_integer():  # integers of a column that also has empty cells
        identity = int(identity)
    if not isinstance(identity, str | int):
        return Problem("not text", location, f"{columns.id!r} is {identity!r:.60}", "use a string or an integer")
    if (fault := _fault(str(identity))) is not None:
        return Problem(fault[0], location, f"{columns.id!r} {fault[1]}", fault[2])
    topic = fields.get(columns.topic) or fields.get(f"{columns.topic}1") if columns.topic else None
    if topic is not None and (fault := _fault(str(topic))) is not None:
        return Problem(fault[0], location, f"{columns.topic!r} {fault[1]}", fault[2])
    return Example(
        id=str(identity),
        dialogue=texts[columns.dialogue],
        references=tuple(texts[column] for column in summaries),
        topic=str(topic) if topic else None,
        location=location,
    )


def _fault(text: str) -> tuple[str, str, str] | None:
    """The kind, the detail and the remedy of a text that no tokenizer or file can hold; None if it has no fault."""
    if found := SURROGATE.search(text):
        return "wrong encoding", f"contains the lone surrogate U+{ord(found[0]):04X}", "write whole characters"
    if "\0" in text:
        return "NUL character", f"contains NUL at character {text.index(chr(0))}", "remove it"
    if len(text) > MAX_CHARACTERS:
        return "too long", f"has {len(text):,} characters; the maximum is {MAX_CHARACTERS:,}", "split it"
    return None


def _license(config: DataConfig) -> str | None:
    """The licence of a known source, or from the card of a hub data set."""
    if config.source != "hub":
        return LICENSES.get(config.source)
    from neuron_sum.data.hub import card_license

    return card_license(config)
