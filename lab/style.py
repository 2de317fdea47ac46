"""Check the language of the project: `python -m lab.style [PATH ...]`.

The words of code, comments, messages and documents follow the house style in CONTRIBUTING.md. This checks what a
machine can: banned words and phrases, docstring summaries, the shape of error messages, long sentences and spelling.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_SENTENCE = 30
"""Words. The house style asks for 20; numbers, paths and lists in parentheses need some room."""

# Pattern and what to write instead. They apply to prose: comments, docstrings, messages and documents.
PHRASES = {
    r"pictures?": "image",
    r"prov(e|es|ed|en|ing)|proofs?": "verify, verification",
    r"trainees?": "adapter",
    r"judg(e|es|ed|ing|ement)s?": "metric, measure",
    r"held[ -]out": "validation",
    r"noise levels?": "timestep",
    r"no longer better": "early stopping",
    r"anew": "again, new",
    r"(is|are|was|were) no [a-z]+": "say what it is: expected ..., got ...",
    r"(was|were) expected": "expected ..., got ...",
    r"(is|are|was|were) (told|said)": "name the reader or use the active voice",
    r"comes? out|came out": "results in, produces, is",
    r"(is|are) there already|already there": "exists",
    r"as (it|they) (is|are)(?! (not|in|on|by|used))": "unchanged",
    r"the same as before": "unchanged",
    r"(lies|lie|lay) (beside|in|at|on|under|between|behind|next)": "is",
    r"stands? (beside|in|at|under|between|behind|next|there|for itself)": "is",
    r"goes on (from|with|where)|went on|going on (from|with|where)": "resumes, continues",
    r"of its own|of their own|of our own": "its own ...",
    r"said so|says so": "reported",
    r"so many": "name the number",
    r"the ones? that": "name the thing",
    r"what is (wrong|odd|said|told|there|left|asked|meant|known)": "name the thing",
    r"nobody who|anyone who|whoever": "users",
    r"hn?ere it is": "here is",
    r"in(to)? the midst of": "during",
    r"learnt|whilst|amongst": "learned, while, among",
    r"(colour|behaviour|favour|honour|neighbour)\w*": "American spelling",
    r"(normalis|initialis|optimis|recognis|organis|serialis|quantis|summaris|minimis|maximis|analys(e|ing)d?)\w*": (
        "American spelling"
    ),
    r"labelled|labelling|centre|grey|licence|catalogue(d|s)?(?!\.py)": "American spelling",
}
# The same for names in code.
NAMES = {
    r"pictures?": "image",
    r"prove|proof|proved|proofs": "verify",
    r"trainees?": "adapter",
    r"judges?": "metric",
    r"held_out": "validation",
    r"colours?|grey|centre|labelled": "American spelling",
    r"anew|is_told|is_said": "plain words",
}
_FIRST_WORDS = r"(What|Whether|Which|How|Where|Who|Whose|Why|When|In which|By which|For whom)\b"
_PROSE = {name: re.compile(rf"\b({name})\b", re.IGNORECASE) for name in PHRASES}
_NAMED = {name: re.compile(rf"(?:^|_)({name})(?:_|$)", re.IGNORECASE) for name in NAMES}


@dataclass(frozen=True)
class Finding:
    """A place that breaks a rule."""

    path: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


def main(arguments: Sequence[str]) -> int:
    """Check the given files or folders, by default all that git tracks."""
    findings = [finding for path in files(arguments) for finding in check(path)]
    print(*findings, sep="\n")
    print(f"{len(findings)} findings")
    return 1 if findings else 0


def files(arguments: Sequence[str] = ()) -> list[Path]:
    """Return the Python files and documents below paths, by default of the whole project."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *arguments]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(name) for name in names if name.endswith((".py", ".md")) and (ROOT / name).is_file()]


def check(path: Path) -> Iterator[Finding]:
    """Check one file, whose path is relative to the project."""
    if path in (Path("lab/style.py"), Path("tests/system/test_style.py")):
        return
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from _check_document(path, text)
    else:
        yield from _check_module(path, text)


def _check_document(path: Path, text: str) -> Iterator[Finding]:
    prose = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^(?: {4}|\t).*$", "", prose, flags=re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    yield from _check_prose(path, 1, prose)
    yield from _check_sentences(path, 1, prose)


def _check_module(path: Path, text: str) -> Iterator[Finding]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from _check_prose(path, token.start[0], token.string)
    for node in ast.walk(ast.parse(text)):
        yield from _check_node(path, node)


def _check_node(path: Path, node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        line = getattr(node, "lineno", 1)
        yield from _check_name(path, line, getattr(node, "name", path.stem))
        document = ast.get_docstring(node) or ""
        if re.match(_FIRST_WORDS, document):
            yield Finding(path, line, "summary starts with a question word", document.partition("\n")[0])
        yield from _check_sentences(path, line, document)
    elif isinstance(node, ast.arg):
        yield from _check_name(path, node.lineno, node.arg)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield from _check_name(path, node.lineno, node.id)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
        yield from _check_prose(path, node.lineno, node.value)
    elif isinstance(node, ast.Raise) and path.parts[0] != "tests":
        yield from _check_message(path, node)


def _check_name(path: Path, line: int, name: str) -> Iterator[Finding]:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    for pattern, instead in NAMES.items():
        if _NAMED[pattern].search(words):
            yield Finding(path, line, f"name: write {instead}", name)


def _check_prose(path: Path, line: int, text: str) -> Iterator[Finding]:
    bare = re.sub(r"``?[^`\n]*``?", "`x`", text)
    for pattern, instead in PHRASES.items():
        for match in _PROSE[pattern].finditer(bare):
            at = line + bare.count("\n", 0, match.start())
            around = " ".join(bare[max(0, match.start() - 40) : match.end() + 30].split())
            yield Finding(path, at, f"{match[0]!r}: write {instead}", around)


def _check_sentences(path: Path, line: int, text: str) -> Iterator[Finding]:
    """Report sentences that are too long; a blank line, a list item or a table cell ends one as well."""
    for block in re.split(r"\n\s*\n|\n\s*(?=[-*>#|\d])|\n\s*(?=\w+: )|\|", text):
        for sentence in re.split(r"(?<=[.!?:;])\s+", re.sub(r"`[^`]*`", "x", block)):
            count = len(re.findall(r"[A-Za-z][\w'-]*", sentence))
            if count > LONGEST_SENTENCE:
                at = line + text.count("\n", 0, text.find(block))
                yield Finding(path, at, f"sentence of {count} words", " ".join(sentence.split())[:100])


def _check_message(path: Path, node: ast.Raise) -> Iterator[Finding]:
    """Check that a message starts with a capital or a value, and ends with a full stop or a value."""
    call = node.exc
    if not isinstance(call, ast.Call) or not call.args:
        return
    first = call.args[0]
    parts = first.values if isinstance(first, ast.JoinedStr) else [first]
    ends = [part.value for part in (parts[0], parts[-1]) if isinstance(part, ast.Constant)]
    if isinstance(parts[0], ast.Constant) and isinstance(parts[0].value, str) and re.match(r"[a-z]", parts[0].value):
        yield Finding(path, node.lineno, "message starts in lower case", parts[0].value[:80])
    if ends and isinstance(parts[-1], ast.Constant) and isinstance(parts[-1].value, str):
        last = parts[-1].value.rstrip()
        if last and " " in last and last[-1] not in ".!?":
            yield Finding(path, node.lineno, "message ends without a full stop", last[-80:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
