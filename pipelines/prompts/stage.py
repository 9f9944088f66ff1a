"""Text for every modality x class x site, from the templates of params.yaml.

Several phrasings stand for a class, because one wording is one point of the text encoder's space and their mean a better one
(CLIP's prompt ensembling, Radford et al. 2021). The class 'healthy' is inside the foreground mask without a label, 'outside' is
everything outside the mask.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipelines.cohort import read_manifest
from pipelines.errors import DataError, UsageError
from pipelines.outputs import staged_folder, write_json, write_text
from pipelines.params import Params
from pipelines.prompts.bank import BACKGROUND_CLASSES
from pipelines.prompts.facts import Facts, facts_of

#: How the background classes are worded where a template says {class}.
BACKGROUND_WORDING = {"healthy": "healthy brain tissue", "outside": "background outside the head"}
LABEL_KIND = "label"
KINDS = (LABEL_KIND, *BACKGROUND_CLASSES)
#: What a template can say. A phrase that needs a fact nobody knows is dropped.
PLACEHOLDERS = ("class", "modality", "disease", "scanner", "sequence")

#: "a" before a vowel becomes "an", because a template cannot know what fills it.
ARTICLE = re.compile(r"\b([aA])(?= [aeioAEIO])")

Phrasings = dict[str, dict[str, dict[str, list[str]]]]


def write_prompts(source: Path, out: Path, params: Params) -> None:
    """Write `prompts.json` and `prompts.tsv` (the same, to read) for the cohort resampled in `source`."""
    if not source.is_dir():
        raise UsageError(f"--source {source} does not exist; give the folder that the resample stage wrote")
    table = read_manifest(source)
    images = table[table.kind == "image"]
    if images.empty:
        raise DataError(f"{source}/manifest.tsv has no image; see quarantine.tsv beside it for why")
    phrasings = phrase(images, params)
    with staged_folder(out) as folder:
        write_json(folder / "prompts.json", phrasings)
        write_text(folder / "prompts.tsv", readable(phrasings))
    texts = {text for classes in phrasings.values() for sites in classes.values() for phrases in sites.values() for text in phrases}
    print(f"prompts: {len(texts)} texts for {len(phrasings)} modalities, {len(params.cohort.labels) + len(BACKGROUND_CLASSES)} classes, "
          f"{images.site.nunique()} sites")


def phrase(images: pd.DataFrame, params: Params) -> Phrasings:
    """`phrasings[modality][class][site]` for every modality and site of the manifest's image rows.

    Every modality gets texts at every site, present there or not. Raises UsageError where templates or names do not fit.
    """
    check_templates(params.prompts.templates)
    wording = {label.name: (LABEL_KIND, label.text) for label in params.cohort.labels}
    names = [*(label.name for label in params.cohort.labels), *BACKGROUND_CLASSES]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"cohort.labels in params.yaml has {twice[0]!r}, which another class is called too; give every class its own name")
    wording |= {name: (name, BACKGROUND_WORDING[name]) for name in BACKGROUND_CLASSES}
    phrasings: Phrasings = {}
    for modality in sorted(images.modality.unique()):
        if modality not in params.ingest.modalities:
            raise UsageError(f"the manifest has modality {modality!r}, which ingest.modalities in params.yaml does not have; "
                             "add it there with its text")
        phrasings[modality] = {name: {} for name in wording}
        for site in sorted(images.site.unique()):
            facts = facts_of(images, site, modality)
            for name, (kind, text) in wording.items():
                values = [values_of(text, modality_name, params.cohort.disease, facts) for modality_name in params.ingest.modalities[modality].text]
                phrasings[modality][name][site] = fill(kind, params.prompts.templates[kind], values)
    return phrasings


def values_of(class_text: str, modality_name: str, disease: str, facts: Facts) -> dict[str, str]:
    """What each placeholder stands for."""
    return {"class": class_text, "modality": modality_name, "disease": disease, "scanner": facts.scanner, "sequence": facts.sequence}


def fill(kind: str, templates: list[str], values: list[dict[str, str]]) -> list[str]:
    """Every template with every set of values, without repetitions; those that need an unknown fact are dropped."""
    texts = [ARTICLE.sub(r"\1n", template.format(**known)) for template in templates for known in values
             if all(known[name] for name in placeholders(template))]
    if not texts:
        raise UsageError(f"every template of prompts.templates.{kind} needs a fact that the headers do not tell (scanner or sequence); "
                         "add one without in params.yaml")
    return list(dict.fromkeys(texts))


def placeholders(template: str) -> list[str]:
    """The names in braces. Raises UsageError for a template that cannot be read."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UsageError(f"the template {template!r} in prompts.templates cannot be read ({error}); write placeholders as {{modality}}") from None


def check_templates(templates: Mapping[str, list[str]]) -> None:
    """Refuse a class kind that does not exist or has no template, and placeholders that do not exist."""
    for kind in KINDS:
        if not templates.get(kind):
            raise UsageError(f"prompts.templates in params.yaml has no template for {kind!r}; it needs some for each of {', '.join(KINDS)}")
    unknown = sorted(set(templates) - set(KINDS))
    if unknown:
        raise UsageError(f"prompts.templates in params.yaml has {unknown[0]!r}, which is no kind of class; the kinds are {', '.join(KINDS)}")
    for kind in KINDS:
        for template in templates[kind]:
            wrong = [name for name in placeholders(template) if name not in PLACEHOLDERS]
            if wrong:
                existing = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
                raise UsageError(f"the template {template!r} in prompts.templates.{kind} has the placeholder {{{wrong[0]}}}; "
                                 f"those that exist are {existing}")


def readable(phrasings: Phrasings) -> str:
    """The phrasings as a table, one text a line."""
    lines = ["modality\tclass\tsite\ttext"]
    for modality, classes in phrasings.items():
        for name, sites in classes.items():
            lines += [f"{modality}\t{name}\t{site}\t{text}" for site, texts in sites.items() for text in texts]
    return "\n".join(lines) + "\n"
