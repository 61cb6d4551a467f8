"""Check the prose of the repository against five rules of CONTRIBUTING.md: docstrings, comments, strings and Markdown.

    python tools/check_prose.py [--count] [FILE...]

Prints a line for each finding and exits with 1 if there are any. Raw strings are regular expressions and not checked.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

EXCLUDED = {"test_check_prose.py"}
"""Planted violations."""
QUESTION = "Whose|Who|Whom|Where|How|What|When|Which|Why|Told"
WORD = r"(?!(?:that|which|who|whom|whose|what|where|when|while|if|as|to|it|they)\b)[\w'`/*-]+(?:\.[\w`]+)*\s+"
VERB = (
    "is|are|was|were|has|have|had|can|cannot|may|might|must|does|do|did|will|would|should|could|"
    "needs|makes|gives|knows|comes|goes|says|refuses|expects|keeps|begins|wants|fails|stays|lies|means|becomes|exists|"
    "happens|differs|holds|draws|belongs|contains|depends"
)
LESS = r"longer\b|more\b|less\b|fewer\b|faster\b|slower\b|better\b|worse\b|later\b|earlier\b|larger\b|smaller\b"
MANY = '"this many", "after N hours"'
SINCE, NOT, NAME = '"because" or "since"', '"is not a"', 'the name, or "separate", or "custom"'
RULES = [
    (2, rf"^ +\w+(?: \([^)\n]*\))?: (?:{QUESTION})\b[^\n]*|\bTold of\b", "a noun phrase with its unit"),
    (4, rf"[,;:)]\s+for\s+(?!(?:example|instance|each|every)\b)(?:{WORD}){{1,5}}(?:{VERB})\b", SINCE),
    (4, r"[,;:)]\s+for\s+(?:it|they|there|nobody|we)\s+(?!and\b|or\b|alone\b|only\b|too\b|to\b)\w+", SINCE),
    (4, rf"[,;:)]\s+for\s+(?:that|this)\s+(?:{VERB})\b", SINCE),
    (4, r"[,;:)]\s+for\s+[A-Z]\w+\s+(?:lists|takes|reads|calls|writes|sends|sets|uses|asks)\b", SINCE),
    (5, rf"(?<!\bthere )\b(?:is|are|was|were|be)\s+(?:none\b|no\s+(?!{LESS})[\w`*]+)", NOT),
    (6, r"\b(?:of\s+(?:ours|(?:its|their|our)\s+own)|AWS['’]s(?:\s+own)?|[\w`.-]+(?:['’]s|s['’])\s+own)\b", NAME),
    (8, r"(?<!\bas )(?<!hank you )(?<!hanks )\bso\s+(?:many|long|much)\b(?!\s+(?:as|that)\b)", MANY),
]  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="Print the number of findings per rule only.")
    parser.add_argument("files", nargs="*", help="Python and Markdown files. Default: all tracked ones.")
    options = parser.parse_args()
    listed = ["git", "ls-files", "*.py", "*.md"]
    names = options.files or subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    counts = Counter({rule: 0 for rule, *_ in RULES})
    for path in (Path(name) for name in names):
        if path.name in EXCLUDED:
            continue
        for line, rule, matched, suggestion in sorted(set(findings(path))):
            counts[rule] += 1
            if not options.count:
                print(f"{path}:{line}: rule {rule}: {matched} -> {suggestion}")
    if options.count:
        print("\n".join(f"rule {rule}: {count}" for rule, count in counts.items()))
    return int(counts.total() > 0)


def findings(path: Path) -> Iterator[tuple[int, int, str, str]]:
    """Line, rule, matched text and suggestion of each violation in a file."""
    source = path.read_text(encoding="utf-8")
    for first, text in [(1, source)] if path.suffix == ".md" else [*_strings(source), *_comments(source)]:
        for rule, pattern, suggestion in RULES:
            for match in re.finditer(pattern, text, re.MULTILINE):
                if rule != 2 or not match[0].startswith(" ") or _in_section(text[: match.start()]):
                    line = first + text[: match.start()].count("\n")
                    yield line, rule, " ".join(match[0].split()), suggestion


def _in_section(before: str) -> bool:
    """Whether the last section heading is one of a list of names, such as Args."""
    headings = re.findall(r"^ *([A-Z][a-z]+):\n", before, re.MULTILINE)
    return bool(headings) and headings[-1] in ("Args", "Attributes")


def _strings(source: str) -> Iterator[tuple[int, str]]:
    lines = source.splitlines()
    inside: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside.update(node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            text = node.value
        else:
            continue
        opening = lines[node.lineno - 1].encode()[node.col_offset :][:2].lower()
        if b"r" not in opening.partition(b'"')[0].partition(b"'")[0]:
            yield node.lineno, text


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Each block of comment lines as one text."""
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] != block[-1][0] + 1:
            yield block[0][0], "\n".join(text for _, text in block)
            block = []
        block.append((token.start[0], token.string.lstrip("# ")))
    if block:
        yield block[0][0], "\n".join(text for _, text in block)


if __name__ == "__main__":
    sys.exit(main())
