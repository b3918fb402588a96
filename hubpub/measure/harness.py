"""Benchmarks by lm-evaluation-harness over a `.pte` itself, in ExecuTorch's runtime.

The harness is an extra (`pip install 'hubpub[eval]'`): this module is imported when a task is to be run.
Tasks and their metrics are the harness's own; the program answers. Every answer is kept as it is given, under a hash of
the tokens that were asked for, in a file that names the program: a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeVar

# Read when tqdm is imported: what is done is told in one place.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from datasets.utils.logging import disable_progress_bar
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hubpub.errors import HubpubError, SourceError, UsageError
from hubpub.facts import Evaluation, Score, rounded
from hubpub.files import locked
from hubpub.machine import versions
from hubpub.measure.runtime import Session
from hubpub.measure.scoring import Scorer
from hubpub.model.reader import Reader
from hubpub.progress import Progress

T = TypeVar("T")

_Z = NormalDist().inv_cdf(0.975)
# A log gets a line when the stage changes: not more often than this.
_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """Which tasks, and how: `limit` items of each (None: all), `shots` examples before each item (None: as the task
    says), `chat`: as messages of the chat template; `include` is a folder with tasks of one's own."""

    tasks: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    chat: bool = False
    include: Path | None = None


def evaluate(
    pte: Path, sha256: str, reader: Reader, stop: Sequence[int], asked: Asked, answers: Path, progress: Progress
) -> tuple[Evaluation, ...]:
    """Run the tasks over the file at `pte`, whose hash is `sha256`; `stop` are the ids that end an answer.

    `answers` is the file that keeps them. Raises UsageError for a task that is not known, or that asks for what a
    program cannot do; SourceError where its items cannot be read; ExportError where the runtime fails.
    """
    disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if asked.chat and not reader.tokenizer.chat_template:
        raise UsageError("the tokenizer has no chat template", "leave --chat out: this is a base model")
    progress("tasks", 0.0)
    manager, own = _manager(asked)
    tasks = _loaded(manager, asked)
    with locked(answers.with_suffix(".lock")):
        session = Session(pte)
        program = _Program(Scorer.of(pte, session), reader, stop, _Answers(answers, sha256), progress)
        try:
            found = evaluator.simple_evaluate(
                program,
                tasks=list(tasks),
                num_fewshot=asked.shots,
                limit=asked.limit,
                apply_chat_template=asked.chat,
                fewshot_as_multiturn=asked.chat,
                task_manager=manager,
            )
        except HubpubError:
            raise
        except ImportError as error:
            raise UsageError(f"a task needs more than the harness brings: {error}", "install what it names") from None
        except Exception as error:
            raise UsageError(f"the harness cannot run this: {error}", "see the documentation of the task") from error
        finally:
            session.close()
    assert found is not None
    return tuple(_evaluation(name, found, program, asked, sha256, own) for name in tasks.values())


def _manager(asked: Asked) -> tuple[TaskManager, frozenset[str]]:
    """What knows the tasks, and the names of those that are not the harness's. Its own ten thousand are looked at only
    where they are asked for."""
    if asked.include is not None and not asked.include.is_dir():
        raise UsageError(f"no folder at {asked.include}", "--include takes the folder with the YAML of your tasks")
    own = frozenset[str]()
    if asked.include is not None:
        manager = TaskManager(include_path=str(asked.include), include_defaults=False)
        own = frozenset(manager.all_tasks)
        if own.issuperset(asked.tasks):
            return manager, own
    manager = TaskManager(include_path=str(asked.include) if asked.include else None)
    unknown = [name for name in asked.tasks if name not in manager.all_tasks]
    if unknown:
        near = get_close_matches(unknown[0], manager.all_tasks, 3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"there is no task '{unknown[0]}'", f"{hint}'lm-eval ls tasks' lists them")
    return manager, own


def _loaded(manager: TaskManager, asked: Asked) -> dict[Any, str]:
    """What was asked for, with its items loaded, by name: tasks and groups; a tag is its tasks."""
    try:
        found = {name: manager.load([name]) for name in asked.tasks}
    except Exception as error:
        raise SourceError(
            f"the items of {', '.join(asked.tasks)} cannot be read: {type(error).__name__}: {error}",
            "they come from the Hub: check the network, and HF_TOKEN for what is gated",
        ) from error
    named: dict[Any, str] = {}
    for name, one in found.items():
        top = one["groups"].get(name)
        named |= {top: name} if top is not None else {task: label for label, task in one["tasks"].items()}
    for task in (task for one in found.values() for task in one["tasks"].values()):
        if (task.get_config("generation_kwargs") or {}).get("do_sample"):
            raise UsageError(f"the task {task.task_name} samples its answers", "choose one that decodes greedily")
    return named


class _Answers:
    """Answers by the hash of what was asked, one JSON line each, below a line that names the file they are of."""

    def __init__(self, path: Path, sha256: str) -> None:
        head = {"file": sha256, "runtime": f"executorch {versions(('executorch',))['executorch']}"}
        self.known: dict[str, Any] = {}
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        kept = bool(lines) and _json(lines[0]) == head
        for line in lines[1:] if kept else ():
            # The last line of a run that was killed may be half a line.
            if isinstance(one := _json(line), dict) and "request" in one:
                self.known[one["request"]] = one["answer"]
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = [head, *({"request": key, "answer": value} for key, value in self.known.items())]
        path.write_text("".join(json.dumps(line) + "\n" for line in whole), "utf-8")
        self._path = path

    def get(self, request: list[Any], answer: Callable[[], Any]) -> tuple[Any, bool]:
        """The answer to `request`, and whether it had to be given now."""
        key = hashlib.sha256(json.dumps(request).encode()).hexdigest()
        if key in self.known:
            return self.known[key], False
        self.known[key] = answer()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"request": key, "answer": self.known[key]}) + "\n")
        return self.known[key], True


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


class _Program(TemplateLM):
    """A `.pte` as the harness speaks to it. `truncated` counts requests whose beginning did not fit the context."""

    def __init__(
        self, scorer: Scorer, reader: Reader, stop: Sequence[int], answers: _Answers, progress: Progress
    ) -> None:
        super().__init__()
        self.scorer, self.reader, self.stop, self.answers, self.progress = scorer, reader, stop, answers, progress
        self.tokenizer = reader.tokenizer
        self.truncated: Counter[str] = Counter()
        self._of: list[Instance] = []

    @property
    def eot_token_id(self) -> int:
        return int(self.stop[0])

    @property
    def prefix_token_id(self) -> int:
        return self.reader.bos[0] if self.reader.bos else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of `string`; the first token of a text comes before it, unless it stands there in words."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        first = self.reader.bos
        return ids if add_special_tokens is False or tuple(ids[: len(first)]) == first else [*first, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._of = requests
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        done = _Count(self._of, self.progress)

        def ask(number: int) -> tuple[float, bool]:
            _, text, continuation = requests[number]
            if len(text) + len(continuation) - 1 > self.scorer.context:
                self.truncated[str(self._of[number].task_name)] += 1
            (value, greedy), now = self.answers.get(
                ["score", text, continuation], lambda: self.scorer.score(text, continuation)
            )
            done.add(number, now)
            return value, greedy

        return _side_by_side([[*text, *continuation] for _, text, continuation in requests], ask)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        done = _Count(requests, self.progress)

        def ask(number: int) -> float:
            ids = self.tok_encode(requests[number].args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.scorer.context, 1)
            pairs = list(map(make_disjoint_window, windows))
            value, now = self.answers.get(
                ["score all", pairs], lambda: sum(self.scorer.score(text, more)[0] for text, more in pairs)
            )
            done.add(number, now)
            return float(value)

        return [ask(number) for number in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        done = _Count(requests, self.progress)

        def ask(number: int) -> str:
            prompt, given = requests[number].args
            wanted = normalize_gen_kwargs(given)
            if wanted["do_sample"]:
                raise UsageError(f"the task {requests[number].task_name} samples its answers", "choose a greedy one")
            text, most = self.tok_encode(prompt), min(wanted["max_gen_toks"], self.scorer.context - 1)
            if len(text) + most > self.scorer.context:
                self.truncated[str(requests[number].task_name)] += 1
            until = [end for end in wanted["until"] if end]

            def ends(made: list[int]) -> bool:
                return made[-1] in self.stop or any(end in self.tokenizer.decode(made) for end in until)

            def write() -> str:
                made = self.scorer.write(text, most, ends)
                said = made[:-1] if made and made[-1] in self.stop else made
                plain = self.tokenizer.decode(said, skip_special_tokens=True)
                return str(postprocess_generated_text(plain, until, None))

            said, now = self.answers.get(["write", text, most, until], write)
            done.add(number, now)
            return str(said)

        return _side_by_side([one.args[0] for one in requests], ask)


def _side_by_side(texts: list[Any], ask: Callable[[int], T]) -> list[T]:
    """The answer to each of `texts`, by its number. What begins alike is asked one after the other, since what two
    texts have in common is read once: items of a task share their examples, choices of an item its question."""
    answered = {number: ask(number) for number in sorted(range(len(texts)), key=texts.__getitem__)}
    return [answered[number] for number in range(len(texts))]


class _Count:
    """Tells how many items are done, and how many a minute: an item is done with the last of its requests."""

    def __init__(self, requests: Sequence[Instance], progress: Progress) -> None:
        self._item = [(one.task_name, one.doc_id) for one in requests]
        self._open = Counter(self._item)
        self._all = len(self._open)
        self._progress = progress
        self._started = self._told = time.monotonic()
        self._done = self._now = 0

    def add(self, number: int, now: bool) -> None:
        """Request `number` is answered; `now`: it was not known before."""
        item = self._item[number]
        self._open[item] -= 1
        if self._open[item]:
            return
        self._done += 1
        self._now += now
        clock = time.monotonic()
        if clock - self._told >= _SECONDS or self._done == self._all:
            self._told = clock
            rate = 60 * self._now / max(clock - self._started, 1e-9)
            speed = f", {rate:.{0 if rate >= 10 else 1}f} a minute" if self._now else ", all known"
            self._progress(f"{self._done:,} of {self._all:,} items{speed}", self._done / self._all)


def _evaluation(name: str, found: Any, program: _Program, asked: Asked, sha256: str, own: frozenset[str]) -> Evaluation:
    leaves = _leaves(name, found["group_subtasks"]) or [name]
    counts = [found["n-samples"][leaf] for leaf in leaves]
    config = found["configs"].get(leaves[0], {})
    path = str(config.get("dataset_path") or "")
    shots = {found["n-shot"].get(leaf, 0) for leaf in leaves}
    return Evaluation(
        task=name,
        version=str(found["versions"].get(name, found["versions"].get(leaves[0], ""))),
        dataset="" if name in own or ("/" not in path and path in {"json", "csv", "parquet", "text"}) else path,
        subset=str(config.get("dataset_name") or "") if len(leaves) == 1 else "",
        split=str(config.get("test_split") or config.get("validation_split") or ""),
        shots=max(shots) if asked.shots is None else asked.shots,
        chat=asked.chat,
        items=sum(int(one["effective"]) for one in counts),
        items_of_task=sum(int(one["original"]) for one in counts),
        truncated=sum(program.truncated[leaf] for leaf in leaves),
        scores=_scores(name, found),
        harness=f"lm-evaluation-harness {versions(('lm_eval',))['lm_eval']}",
        runtime=f"executorch {versions(('executorch',))['executorch']}",
        sha256=sha256,
    )


def _leaves(name: str, groups: Any) -> list[str]:
    """The tasks of a group, those of groups in it too; none for a task."""
    return [leaf for one in groups.get(name, ()) for leaf in (_leaves(one, groups) or [one])]


def _scores(name: str, found: Any) -> tuple[Score, ...]:
    measured = found["results"].get(name) or found["groups"][name]
    samples = (found.get("samples") or {}).get(name) or ()
    scores = []
    for key, value in measured.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = measured.get(f"{metric}_stderr,{kept}")
        error = float(error) if isinstance(error, int | float) else None
        values = [one[metric] for one in samples if one.get("filter") == kept and metric in one]
        scores.append(
            Score(
                metric=metric if kept == "none" else f"{metric}, {kept}",
                value=rounded(value),
                stderr=None if error is None else rounded(error),
                interval=interval(float(value), error, values),
                higher_is_better=(found["higher_is_better"].get(name) or {}).get(metric, True) is not False,
            )
        )
    if not scores:
        raise UsageError(f"the harness gives no single figure for {name}", "name tasks of it instead")
    return tuple(scores)


def interval(value: float, error: float | None, values: Sequence[Any]) -> tuple[float, float] | None:
    """The range that holds the true value 95 times of 100: Wilson's for a share of right items, else from the standard
    error; None where that is not known."""
    if values and all(one in (0, 1) for one in values) and abs(sum(values) / len(values) - value) < 1e-9:
        count, square = len(values), _Z * _Z
        middle = (value + square / (2 * count)) / (1 + square / count)
        half = _Z * sqrt(value * (1 - value) / count + square / (4 * count * count)) / (1 + square / count)
        return rounded(max(0.0, middle - half)), rounded(min(1.0, middle + half))
    return None if error is None else (rounded(value - _Z * error), rounded(value + _Z * error))
