"""What a license asks of those who pass a model on: the files that go with it and the metadata that names it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hubpub.config import PACKAGE, Variant
from hubpub.errors import RenderError
from hubpub.model.families import family

GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
# The sentence section 3.1 of the Gemma Terms of Use asks for, word for word.
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
GEMMA_POLICY = "https://ai.google.dev/gemma/prohibited_use_policy"


# Its text is Google's: whoever publishes saves it here, beside the folders of the cards, and every repo passes it on.
AGREEMENT = "gemma-terms-of-use.txt"


def agreement(variant: Variant, cards: Path) -> bytes | None:
    """The text of the agreement that goes with `variant`, out of the folder `cards`; None where there is none.

    Raises RenderError for a file of that name with another text.
    """
    path = cards / AGREEMENT
    if variant.license != "gemma" or not path.is_file():
        return None
    text = path.read_bytes()
    if not all(part in text for part in (b"Gemma Terms of Use", b"3.1", b"3.2")):
        raise RenderError(f"{path.name} is not the Gemma Terms of Use", f"save the text of {GEMMA_TERMS} there")
    return text


def lacks_agreement(variant: Variant, cards: Path) -> str | None:
    """What to do where the license asks for a copy of the agreement and there is none; None where all is there."""
    if variant.license != "gemma" or (cards / AGREEMENT).is_file():
        return None
    return f"save the text of {GEMMA_TERMS} as {cards.name}/{AGREEMENT}: section 3.1 asks for a copy of the agreement"


def notice_name(variant: Variant) -> str:
    """The file that says what was modified."""
    return "Notice" if variant.license == "gemma" else "NOTICE"


def files(variant: Variant, cards: Path) -> dict[str, bytes]:
    """The license files of a repo by name; `cards` is the folder that may hold the text of an agreement.

    Raises RenderError where the declared license is not the one of the family, or a text it needs cannot be had.
    """
    source = family(variant.family)
    # A card that says otherwise than the publisher would pass on rights nobody gave.
    if source.license not in (None, variant.license):
        raise RenderError(
            f"variant.license: {variant.name} is a {variant.family} model, which comes under '{source.license}', "
            f"not '{variant.license}'",
            f'set license = "{source.license}"',
        )
    revision = f"revision {variant.revision}" if variant.revision else "a revision that is not pinned yet"
    what = "the text decoder was extracted from the multimodal model," if source.multimodal else "the model was"
    modified = (
        f"The files in this repository were modified from {variant.source} at {revision}:\n"
        f"{what} converted to ExecuTorch programs and, where a file's recipe says so,\n"
        "quantized.\n"
    )
    if variant.license == "gemma":
        copy = agreement(variant, cards)
        text = (
            f"{GEMMA_NOTICE}\n\n{modified}\n"
            f"The agreement: {GEMMA_TERMS}{' (a copy is in LICENSE)' if copy else ''}\n"
            "Use is restricted as section 3.2 of the agreement says; the Prohibited Use Policy is part of it:\n"
            f"{GEMMA_POLICY}\n"
            "Whoever passes these files on must pass on these restrictions and this notice.\n"
        )
        return {"Notice": text.encode(), **({"LICENSE": copy} if copy else {})}
    return {"LICENSE": _apache(), "NOTICE": modified.encode()}


def metadata(variant: Variant) -> dict[str, str]:
    """The license keys of a card's metadata."""
    if variant.license == "gemma":
        return {"license": "gemma", "license_link": GEMMA_TERMS}
    return {"license": variant.license, "license_link": "LICENSE"}


def _apache() -> bytes:
    """The text of the Apache License, which hubpub is under too."""
    places = [PACKAGE.parent / "LICENSE"]
    try:
        found = (path for path in distribution("hubpub").files or () if path.name == "LICENSE")
        places += [Path(str(path.locate())) for path in found]
    except PackageNotFoundError:
        pass
    for path in places:
        # Beside an installed package may lie another one's license.
        if path.is_file() and b"Apache License" in (text := path.read_bytes()):
            return text
    raise RenderError("the text of the Apache License is not installed with hubpub", "install hubpub again")
