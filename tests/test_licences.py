"""The table of licences names every dependency and nothing else."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "third_party_licenses"


def rows() -> list[list[str]]:
    """Cells of the table under "Dependencies"."""
    section = (FOLDER / "README.md").read_text().split("## Dependencies")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def declared() -> set[str]:
    """Every package that pyproject.toml names, extras and build requirements included."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = file["project"]
    needed = [*project["dependencies"], *file["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        needed += extra
    return {re.split(r"[\s\[<>=!~;]", name)[0].lower() for name in needed}


def test_every_dependency_has_one_row_and_no_row_outlives_its_dependency():
    names = [re.match(r"\[([^]]+)\]\(https?://", row[0])[1].lower() for row in rows()]
    assert len(names) == len(set(names))
    assert set(names) == declared()


def test_each_row_states_licence_text_and_purpose():
    for name, licence, text, purpose in rows():
        assert licence, name
        assert purpose, name
        path = re.fullmatch(r"\[text\]\((texts/[^)]+)\)", text)
        assert path, name
        assert (FOLDER / path[1]).stat().st_size > 500, name


def test_every_text_is_referred_to():
    readme = (FOLDER / "README.md").read_text()
    for text in (FOLDER / "texts").iterdir():
        assert f"(texts/{text.name})" in readme
