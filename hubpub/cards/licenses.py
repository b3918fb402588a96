"""What a licence asks of those who pass a model on: the files that go with it and the metadata that names it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hubpub.config import PACKAGE, Variant
from hubpub.errors import RenderError

GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
# The sentence section 3.1 of the Gemma Terms of Use asks for, word for word.
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


def notice_name(variant: Variant) -> str:
    """The file that says what was modified."""
    return "Notice" if variant.license == "gemma" else "NOTICE"


def files(variant: Variant) -> dict[str, bytes]:
    """The licence files of a repo by name. Raises RenderError where one that is needed cannot be had."""
    modified = (
        f"The files in this repository were modified from {variant.source} at revision {variant.revision}:\n"
        "the text decoder was taken out of the multimodal model, converted to ExecuTorch programs and, where a\n"
        "file's recipe says so, quantized.\n"
    )
    if variant.license == "gemma":
        text = (
            f"{GEMMA_NOTICE}\n\n{modified}\n"
            f"The agreement: {GEMMA_TERMS}\n"
            "Use is restricted as section 3.2 of the agreement says; the Prohibited Use Policy is part of it:\n"
            "https://ai.google.dev/gemma/prohibited_use_policy\n"
            "Whoever passes these files on must pass on these restrictions and this notice.\n"
        )
        return {"Notice": text.encode()}
    return {"LICENSE": _apache(), "NOTICE": modified.encode()}


def metadata(variant: Variant) -> dict[str, str]:
    """The licence keys of a card's metadata."""
    if variant.license == "gemma":
        return {"license": "gemma", "license_link": GEMMA_TERMS}
    return {"license": variant.license, "license_link": "LICENSE"}


def _apache() -> bytes:
    """The text of the Apache License, which hubpub is under too."""
    checkout = PACKAGE.parent / "LICENSE"
    if checkout.is_file():
        return checkout.read_bytes()
    try:
        for path in distribution("hubpub").files or ():
            if path.name == "LICENSE":
                return Path(str(path.locate())).read_bytes()
    except PackageNotFoundError:
        pass
    raise RenderError("the text of the Apache License is not installed with hubpub", "install hubpub again")
