"""Benchmarks as the Hub reads them: what of the recommended file's figures goes into metadata.

Only what was run whole over a data set on the Hub, and never what a stand-in said: the rest is on the page alone, where
it is marked as the part that it is.
"""

from __future__ import annotations

from typing import Any

import yaml

from hubpub.facts import CardFacts, Evaluation

# Data sets that the Hub keeps a leaderboard of, and what their eval.yaml calls the task that is this one of the
# harness: https://huggingface.co/docs/hub/eval-results names both data sets. Their leaderboards are in percent.
_LEADERBOARDS = {"gsm8k": ("openai/gsm8k", "gsm8k"), "mmlu_pro": ("TIGER-Lab/MMLU-Pro", "mmlu_pro")}
FOLDER = ".eval_results"


def model_index(facts: CardFacts, recommended: str) -> list[dict[str, Any]]:
    """The value of "model-index", empty where there is nothing to say."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {
                "type": one.dataset,
                "name": one.task,
                **({"config": one.subset} if one.subset else {}),
                **({"split": one.split} if one.split else {}),
            },
            "metrics": [
                {"type": score.metric.partition(",")[0], "name": score.metric, "value": score.value, "verified": False}
                for score in one.scores
            ],
            "source": {"name": f"{one.harness}, {_setting(one)}", "url": _page(facts)},
        }
        for one in _published(facts, recommended)
    ]
    file = next((cell.file.name for cell in facts.cells if cell.recipe == recommended), "")
    return [{"name": file, "results": results}] if results else []


def eval_results(facts: CardFacts, recommended: str) -> dict[str, bytes]:
    """Files of the folder that the Hub's leaderboards read, by path."""
    found = {}
    for one in _published(facts, recommended):
        if one.task not in _LEADERBOARDS or not one.scores:
            continue
        dataset, task = _LEADERBOARDS[one.task]
        entry = {
            "dataset": {"id": dataset, "task_id": task},
            "value": round(100 * one.scores[0].value, 2),
            "source": {"url": _page(facts), "name": f"{one.harness} over the .pte"},
            "notes": f"{recommended}, {_setting(one)}, {one.scores[0].metric}",
        }
        found[f"{FOLDER}/{one.task}.yaml"] = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True).encode()
    return found


def _published(facts: CardFacts, recommended: str) -> list[Evaluation]:
    cells = [cell for cell in facts.cells if cell.recipe == recommended and not cell.source.scale_model]
    return [one for cell in cells for one in cell.evaluations if one.whole and one.dataset]


def _setting(one: Evaluation) -> str:
    return f"{one.shots}-shot" + (", with the chat template" if one.chat else "")


def _page(facts: CardFacts) -> str:
    return f"https://huggingface.co/{facts.repo}/blob/{facts.version}/facts.json"
