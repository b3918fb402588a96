"""A `.pte` in the ExecuTorch runtime, one step at a time."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hubpub.errors import ExportError, ToolchainError


class Session:
    """A loaded program. With a KV cache, `step` feeds tokens at a position and returns the last token's logits.

    A program over a fixed window has no cache: `window` is its length in tokens, and `score` runs it. `window` is None
    for a program with a cache.
    """

    def __init__(self, path: Path) -> None:
        """Load `path`. Raises ExportError where the runtime refuses it."""
        self.path = path
        register_kernels()
        from executorch.extension.pybindings import _portable_lib

        try:
            with native_log():
                # The method keeps no reference to its program: both must outlive every step.
                self._program = _portable_lib._load_program(str(path))
                if "forward" not in {self._program.get_method_name(n) for n in range(self._program.num_methods())}:
                    raise ExportError(f"{path.name} has no method 'forward'")
                self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise ExportError(f"{path.name} does not load in the ExecuTorch runtime: {error}") from None
        about = self._method.method_meta()
        self.longest: int = about.input_tensor_meta(0).sizes()[-1]
        self.window: int | None = self.longest if about.num_inputs() == 1 else None

    def close(self) -> None:
        """Let go of the program and the memory it holds; nothing can be run after."""
        del self._method, self._program

    def step(self, tokens: Sequence[int], position: int) -> Any:
        """Logits [vocabulary] float32 after `tokens`, the first of which stands at `position`.

        What is longer than one call takes is fed piece by piece, as the LLM runner does.
        """
        if len(tokens) > self.longest:
            self.step(tokens[: self.longest], position)
            return self.step(tokens[self.longest :], position + self.longest)
        return self._execute(f"running {len(tokens)} tokens at position {position}", list(tokens), position).reshape(-1)

    def score(self, tokens: Sequence[int]) -> Any:
        """Logits [len(tokens), vocabulary] float32 of a window program; what is left of the window is padded."""
        assert self.window is not None
        padded = [*tokens, *[0] * (self.window - len(tokens))]
        logits = self._execute(f"running a window of {self.window} tokens", padded)
        return logits.reshape(self.window, -1)[: len(tokens)]

    def _execute(self, what: str, tokens: list[int], position: int | None = None) -> Any:
        import torch

        inputs = [torch.tensor([tokens], dtype=torch.long)]
        if position is not None:
            inputs.append(torch.tensor([position], dtype=torch.long))
        try:
            with native_log():
                # A copy: the runtime may write the next result into the same memory.
                return self._method(inputs)[0].to(torch.float32, copy=True)
        except RuntimeError as error:
            raise ExportError(f"{what} failed in the runtime: {error}") from None

    def generate(self, prompt: Sequence[int], new_tokens: int, stop: Sequence[int]) -> list[int]:
        """Greedy continuation of `prompt`, at most `new_tokens` long; a token of `stop` ends it and is included."""
        made: list[int] = []
        while True:
            if self.window is not None:
                logits = self.score([*prompt, *made])[-1]
            elif made:
                logits = self.step(made[-1:], len(prompt) + len(made) - 1)
            else:
                logits = self.step(prompt, 0)
            made.append(int(logits.argmax()))
            if made[-1] in stop or len(made) == new_tokens:
                return made


@cache
def register_kernels() -> None:
    """Load the runtime and the libraries of kernels beside it.

    Not by the packages that wrap them: those import all of the export stack, and of torch's compiler, to which a
    process that runs a program has no use. Raises ToolchainError where a library is not where it was.
    """
    import torch

    import_module("executorch.extension.pybindings._portable_lib")
    for package, library in (
        ("executorch.kernels.quantized", "quantized_ops_aot_lib"),
        ("executorch.extension.llm.custom_ops", "custom_ops_aot_lib"),
    ):
        spec = find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        found = [path for folder in folders or () for path in Path(folder).glob(f"*{library}.*")]
        if len(found) != 1:
            raise ToolchainError(f"{package} holds no {library}", "install executorch again: pip install executorch")
        torch.ops.load_library(found[0])


@contextlib.contextmanager
def native_log() -> Iterator[None]:
    """Keep the native runtime's chatter off stderr, and show it after all if the block fails.

    The runtime writes "E ... No temp allocator provided" for every operator that would like scratch memory, and
    cpuinfo complains about files that only exist on phones; neither is an error.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            for line in [line for line in lines if not _harmless(line)][-20:]:
                print(line, file=sys.stderr)
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _harmless(line: str) -> bool:
    return "No temp allocator provided" in line or "cpuinfo_utils" in line
