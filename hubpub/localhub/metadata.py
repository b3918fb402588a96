"""What the Hub checks about the YAML at the top of a README: errors refuse it, warnings are shown."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

_LICENSES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
    "mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "grok2-community gemma unknown other"
)
LICENSES = frozenset(_LICENSES.split())
RELATIONS = frozenset({"adapter", "merge", "quantized", "finetune"})
FRONT = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_SIZE_LIMIT = 1 << 20


@dataclass(frozen=True)
class Findings:
    """What was found: any error refuses the card."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys: one of two values would be dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                problem = f"duplicated mapping key: {key.value}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # A few lines of aliases of aliases would grow to gigabytes.
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def front_matter(content: str) -> str | None:
    """The YAML text between the first two `---` lines, or None."""
    found = FRONT.match(content)
    return found[2] if found else None


def read(content: str) -> dict[str, Any]:
    """The metadata of a card, empty where there is none or it is no valid YAML mapping."""
    text = front_matter(content)
    try:
        value = yaml.load(text, _Loader) if text and len(text) < _SIZE_LIMIT else {}  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check(content: str) -> Findings:
    """Check the metadata of the card `content`."""
    text = front_matter(content)
    if text is None or not text.strip():
        return Findings(warnings=("empty or missing yaml metadata in repo card",))
    if len(text) > _SIZE_LIMIT:
        return Findings(errors=("the yaml metadata is too large",))
    try:
        metadata = yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 2})" if error.problem_mark else ""
        return Findings(errors=(f"YAML metadata: {error.problem}{line}",))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return Findings(errors=(f"YAML metadata: {error}",))
    if not isinstance(metadata, dict):
        return Findings(errors=("YAML metadata must be a mapping",))
    return _check_fields(metadata)


def _check_fields(metadata: dict[str, Any]) -> Findings:
    errors: list[str] = []
    warnings: list[str] = []
    license_ = metadata.get("license")
    licenses = license_ if isinstance(license_, list) else [license_]
    if license_ is None:
        warnings.append('"license" is missing')
    else:
        errors += [
            f'"license" must be one of the identifiers the Hub knows, not {item!r}'
            for item in licenses
            if not isinstance(item, str) or item not in LICENSES
        ]
    if metadata.get("license_name") is not None and licenses != ["other"]:
        errors.append('"license_name" goes with "license: other" only')
    if licenses == ["other"] and not metadata.get("license_name"):
        warnings.append('"license: other" should come with "license_name" and "license_link"')
    for key in ("tags", "datasets", "metrics", "new_version", "library_name", "pipeline_tag", "base_model", "language"):
        errors += _check_texts(key, metadata.get(key), single=key not in {"tags"}, many=key not in _SINGLE)
    models = metadata.get("base_model")
    for model in models if isinstance(models, list) else [models]:
        if isinstance(model, str) and not _REPO.fullmatch(model):
            errors.append(f'"base_model" with value {model!r} is not valid: use a model id like owner/name')
    if (relation := metadata.get("base_model_relation")) is not None and relation not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(sorted(RELATIONS))}')
    languages = metadata.get("language")
    for language in languages if isinstance(languages, list) else [languages]:
        if isinstance(language, str) and not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", language):
            errors.append(f'"language" must be ISO 639 codes, not {language!r}')
    errors += _check_index(metadata.get("model-index"))
    return Findings(tuple(errors), tuple(warnings))


_SINGLE = {"new_version", "library_name", "pipeline_tag"}


def _check_texts(key: str, value: object, *, single: bool, many: bool) -> list[str]:
    if value is None or (single and isinstance(value, str)):
        return []
    if many and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return []
    kinds = [name for name, allowed in (("a string", single), ("a list of strings", many)) if allowed]
    return [f'"{key}" must be {" or ".join(kinds)}']


def _check_index(index: object) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be a list']
    errors = []
    for number, item in enumerate(index):
        where = f'"model-index[{number}]'
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            errors.append(f'{where}.name" is required')
            continue
        results = item.get("results")
        if not isinstance(results, list):
            errors.append(f'{where}.results" must be a list')
            continue
        for place, result in enumerate(results):
            if not isinstance(result, dict):
                errors.append(f'{where}.results[{place}]" must be a mapping')
                continue
            for key, required in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                part = result.get(key)
                if not isinstance(part, dict) or not part.get(required):
                    errors.append(f'{where}.results[{place}].{key}.{required}" is required')
            if not isinstance(result.get("metrics"), list):
                errors.append(f'{where}.results[{place}].metrics" is required')
    return errors
