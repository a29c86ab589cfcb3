"""The files that a study's model is made by: a checkpoint knows them as they were when it was trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunecli.source import code_now, is_function, loaded_code, named_functions, source_file
from tunecli.study import Study

MADE_NOW = "the model is made by what is there now"


def code_of_model(study: Study) -> dict[str, str]:
    """The hash of each file that the function of the study's model was loaded from, modules beside it included, by its
    path relative to the study's base; of a bundled model none. A file of data or losses alone is none of them."""
    source, base = study.model.source, study.base
    if not is_function(source):
        return {}
    own = source_file(source, base)
    others = {source_file(named, base) for named in named_functions(study.document())} - {own}
    loaded = loaded_code([source], base)
    return {os.path.relpath(path, base): code for path, code in loaded.items() if path not in others}


def changed_code(manifest: Mapping[str, Any], base: Path) -> str | None:
    """What to say of the files that are not what they were when the weights of this manifest were trained, up to what
    comes of it; None where all are."""
    paths = {name: (base / name).resolve() for name in manifest.get("code", {}) if name.endswith(".py")}
    changed = [name for name, path in paths.items() if code_now(path) != manifest["code"][name]]
    which = f"trial {manifest['trial']}" if "finetuned" not in manifest else "the fine-tuned model"
    return f"{', '.join(changed)} changed after {which} was trained" if changed else None
