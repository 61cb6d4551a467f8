"""Results of a model that are read instead of computed again if nothing that they depend on has changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import console, files


@dataclass(frozen=True)
class Reusable:
    """A kind of results, stored as JSON Lines with a record of everything that they depend on.

    Attributes:
        what: The results in messages, in the plural.
        record: The file name of the record, a JSON file.
        content: The file name of the results.
    """

    what: str
    record: str
    content: str

    def hint(self, folder: Path) -> str:
        """The remedy for a damaged record."""
        return f"remove {folder}; the {self.what} are then computed again"

    def fingerprint(self, folder: Path) -> dict[str, str]:
        """The parts that the results in a folder depend on; empty without results.

        Raises:
            RunError: If the record is damaged.
        """
        record = folder / self.record
        found = files.read_json(record, hint=self.hint(folder)).get("fingerprint") if record.is_file() else {}
        return found if isinstance(found, dict) else {}

    def read(self, folder: Path, parts: Mapping[str, str]) -> list[dict[str, Any]] | None:
        """The results in a folder; None without results, or if something that they depend on has changed.

        Args:
            folder: The folder of both files.
            parts: The hash of each part that the results depend on.

        Raises:
            RunError: If the record is damaged.
        """
        record, content = folder / self.record, folder / self.content
        if not record.is_file():
            return None
        recorded = self.fingerprint(folder)
        changed = [part for part in {**recorded, **parts} if recorded.get(part) != parts.get(part)]
        if not content.is_file() or files.sha256(content) != files.read_json(record).get("sha256"):
            changed.append(self.content)
        if changed:
            console.note(f"the {self.what} in {folder} are not reused; changed: {', '.join(changed)}")
            return None
        return files.read_jsonl(content)

    def write(self, folder: Path, parts: Mapping[str, str], lines: Iterable[str], **details: Any) -> None:
        """Write the results, and their record last.

        Args:
            folder: The folder of both files.
            parts: The hash of each part that the results depend on.
            lines: The results as JSON.
            details: More content of the record, for its reader.
        """
        record, content = folder / self.record, folder / self.content
        record.unlink(missing_ok=True)
        files.write_text(content, "".join(f"{line}\n" for line in lines))
        files.write_json(record, {"fingerprint": dict(parts), "sha256": files.sha256(content), **details})
