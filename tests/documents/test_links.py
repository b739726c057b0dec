"""Links between documents lead somewhere, and the files of ours that documents name are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

FENCE = re.compile(r"^ *```.*?^ *```", flags=re.MULTILINE | re.DOTALL)


def test_links_lead_to_files_and_headings(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name) if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_files_of_ours_that_are_named_are_there(document: Path, root: Path) -> None:
    """Python modules, documents and recipes; by their path from the document, the package or the repository."""
    places = (document.parent, root, root / "elit_serve", root / "models", root / "models/recipes")
    named = re.findall(r"`([\w./-]+\.(?:py|md|toml))`", prose(document))
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert set(missing) <= {"keys.toml"}  # a reader's own


def test_the_map_names_folders_that_are_there(root: Path) -> None:
    package = root / "elit_serve"
    named = re.findall(r"`(\w[\w/]*/)`", prose(package / "README.md"))
    assert not [name for name in named if not (package / name).is_dir()]


def test_the_map_names_every_package(root: Path) -> None:
    package = root / "elit_serve"
    text = (package / "README.md").read_text(encoding="utf-8")
    there = {f"{init.parent.name}/" for init in package.glob("*/__init__.py")} | {
        path.name for path in package.glob("*.py")
    }
    assert not [name for name in there - {"__init__.py"} if f"`{name}`" not in text]


def test_the_map_has_the_layers_of_the_import_contract(root: Path) -> None:
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["elit_serve"])
    (drawn,) = re.findall(r"^```text\n(cli\n.*?)^```", (root / "elit_serve/README.md").read_text("utf-8"), re.M | re.S)
    assert [set(line.split()) for line in drawn.splitlines()] == [set(re.findall(r"\w+", layer)) for layer in layers]


def test_every_document_is_reached_from_the_readme(root: Path) -> None:
    reached, waiting = set(), [root / "README.md"]
    while waiting:
        document = waiting.pop().resolve()
        if document in reached:
            continue
        reached.add(document)
        targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose(document))]
        waiting += [document.parent / target for target in targets if target.endswith(".md") and ":" not in target]
    from_root = {path.resolve() for path in (*root.glob("*.md"), *(root / "elit_serve").rglob("*.md"))}
    from_root |= {path.resolve() for name in ("models", "deploy") for path in (root / name).rglob("*.md")}
    assert from_root <= reached


def test_the_readme_is_a_front_door(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """The headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings]
    return {heading.strip().lower().replace(" ", "-") for heading in plain}
