"""facts.json: the same text for the same facts, facts of older releases, and a schema that explains itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubpub.config import Project
from hubpub.errors import ConfigError
from hubpub.facts import CardFacts, dump, load

# What releases before held nothing of.
NEWER = {
    "parity": ("lowering", "tokenizer", "stop_tokens", "measuring"),
    "speed": (
        "first_token_seconds", "runs", "prefill_range", "decode_range", "through", "system", "runtime",
        "representative", "reason", "measuring",
    ),
}  # fmt: skip


@pytest.fixture
def stored(project: Project) -> str:
    """The facts of a card, as they were recorded."""
    path = next(card.folder / "facts.json" for card in project.cards if (card.folder / "facts.json").exists())
    return path.read_text()


def test_facts_of_an_older_release_can_be_read(stored: str) -> None:
    facts: dict[str, Any] = json.loads(stored)
    facts.pop("accepted", None)
    for cell in facts["cells"]:
        cell.pop("devices", None)
        for part, names in NEWER.items():
            for name in names:
                cell[part].pop(name, None)
        if cell["parity"]["runner"]:
            cell["parity"]["runner"].pop("prompt_tokens", None)
            cell["parity"]["runner"].pop("prompt_tokens_original", None)
    old = CardFacts.model_validate_json(json.dumps(facts))
    assert all(cell.parity.measuring == 1 and cell.speed.representative for cell in old.cells)


def test_the_same_facts_are_the_same_text(stored: str) -> None:
    facts = CardFacts.model_validate_json(stored)
    text = dump(facts)
    assert dump(CardFacts.model_validate_json(text)) == text
    # In the order of definition, whatever the order they were read in.
    turned = json.dumps(dict(reversed(json.loads(text).items())))
    assert dump(CardFacts.model_validate_json(turned)) == text
    assert load.__doc__


def test_the_schema_explains_every_part() -> None:
    schema = CardFacts.model_json_schema(by_alias=True)
    assert schema["properties"]["schema"] == {"const": 1, "default": 1, "title": "Schema", "type": "integer"}
    unexplained = [name for name, part in schema["$defs"].items() if len(part.get("description", "")) < 20]
    assert unexplained == []
    assert "fingerprint" in schema["$defs"]["CellFacts"]["description"]


def test_what_is_no_facts_is_said_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# A card")
    with pytest.raises(ConfigError, match=r"README\.md: the file: Invalid JSON") as caught:
        load(CardFacts, path)
    assert "facts.json that hubpub wrote" in str(caught.value.hint)
