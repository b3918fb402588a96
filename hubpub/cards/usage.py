"""What the code on a card says: the prompts, the limits and the ids of the very file it runs."""

from __future__ import annotations

from dataclasses import dataclass

from hubpub.cards import choice
from hubpub.config import Variant
from hubpub.facts import CellFacts, PromptFormat, Turns
from hubpub.model.families import family

QUESTIONS = ("What is the capital of France?", "Which river runs through it?")
WEATHER = "What is the weather in Paris?"
SYSTEM = "Answer in one sentence."
BEGINNING = "Water moves around the earth in"
NEW_TOKENS = 64


@dataclass(frozen=True)
class Usage:
    """`cell` is the file that the code runs, `prompt` its first prompt and `later` the one of a second turn.

    `bos` is how many first tokens the runner puts before the first prompt and `bos_text` that token (None: not known);
    `written_bos` is one that the prompt itself begins with, since the runner cannot put it there ("" for none);
    `thinking` is a prompt that has the model think first, `thoughts` what it puts around that; `tools` are a prompt
    that declares a function, the model's call of it, and the response to send (None: the template knows neither).
    `end` closes a turn, and is part of what a runner answers. `positions` is the second input of `forward` in Python,
    for tokens `piece` from `held` on. `pieces` says that prompts are fed in pieces, for which the runner counts only
    new tokens and does not watch the context.
    """

    cell: CellFacts
    prompt: str
    later: str | None
    system: str | None
    thinking: str | None
    thoughts: tuple[str, str] | None
    tools: tuple[str, str, str] | None
    end: str
    bos: int
    bos_text: str | None
    written_bos: str
    stop: tuple[int, ...]
    context: int
    longest: int
    positions: str

    @property
    def pieces(self) -> bool:
        return self.longest < self.context


def usage(cell: CellFacts, variant: Variant) -> Usage:
    """How `cell`, which has a KV cache, is run."""
    known = cell.prompt or PromptFormat(bos="")
    first = known.written_bos
    turns = known.turns if variant.chat else None
    begins = bool(known.bos) if cell.prompt else bool(family(variant.family).begins_with_bos)
    return Usage(
        cell=cell,
        prompt=first + (f"{turns.opening}{QUESTIONS[0]}{turns.reply}" if turns else BEGINNING),
        later=f"{turns.again}{QUESTIONS[1]}{turns.reply}" if turns else None,
        system=_with_system(first, turns),
        thinking=_thinking(first, turns),
        thoughts=turns.thinking.thoughts if turns and turns.thinking else None,
        tools=_tools(first, turns),
        end=turns.end if turns else "",
        bos=int(begins and not first),
        bos_text=("" if first else known.bos) if cell.prompt else None,
        written_bos=first,
        stop=stop(cell),
        context=cell.context.exported,
        longest=cell.context.max_prefill,
        positions=_positions(cell),
    )


def stop(cell: CellFacts) -> tuple[int, ...]:
    """The token ids that end a text, as the program's metadata names them."""
    return tuple(int(one) for one in cell.program.eos_ids or ())


def packable(cell: CellFacts) -> bool:
    """Whether XNNPACK may keep the packed weights of `cell` in a file.

    ExecuTorch 1.4.1 then frees every constant of a delegate once its weights are packed, those that are no weights too:
    the operand of a product or a sum is read after that, and the program crashes (XNNWeightsCache, `unpacked_data_`).
    """
    return "XnnpackBackend" in cell.program.backends and cell.program.unpacked_constants == 0


def runnable(cells: tuple[CellFacts, ...]) -> CellFacts | None:
    """The file that code for a KV cache is shown with: the first that has one."""
    return next((cell for cell in cells if choice.window(cell) is None), None)


def _with_system(first: str, turns: Turns | None) -> str | None:
    if turns is None or turns.system is None:
        return None
    before, after = turns.system
    return f"{first}{before}{SYSTEM}{after}{QUESTIONS[0]}{turns.reply}"


def _thinking(first: str, turns: Turns | None) -> str | None:
    if turns is None or turns.thinking is None:
        return None
    return f"{first}{turns.thinking.opening}{QUESTIONS[0]}{turns.thinking.reply}"


def _tools(first: str, turns: Turns | None) -> tuple[str, str, str] | None:
    if turns is None or turns.tools is None:
        return None
    return f"{first}{turns.tools.opening}{WEATHER}{turns.reply}", turns.tools.call, turns.tools.response


def _positions(cell: CellFacts) -> str:
    method = cell.program.forward
    if method and len(method.inputs) == 2 and method.inputs[1].shape == (1,):
        return "torch.tensor([held])"
    return "torch.arange(held, held + len(piece))"
