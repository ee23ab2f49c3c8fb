"""Find a checkpoint's folder: a local one, or a hub model's in the cache, fetched where it is not there."""

from __future__ import annotations

from pathlib import Path

from builder.errors import BuildError
from builder.files import first_line
from builder.foreign import refuse_foreign_files
from builder.naming import hub_name
from builder.quiet import quiet_hub
from builder.sentence_transformers import folder as sentences
from builder.sentence_transformers import outputs as several
from builder.tokenizers import TOKENIZER_FILES


def own_folder(name: str, revision: str | None) -> tuple[Path, str, str | None]:
    """The folder of a model, the name that goes into the archive, and the revision.

    ``name``: a folder, or a hub model, which is fetched. Raises BuildError where there is none, and for a folder whose
    files are not its own.
    """
    folder, source, found = _locate(name, revision)
    refuse_foreign_files(folder, source)
    return folder, source, found


def _locate(name: str, revision: str | None) -> tuple[Path, str, str | None]:
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            folder = folder.resolve()
            return (folder, *(hub_name(folder) or (folder.name, revision)))
        is_file = folder.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise BuildError(f"{name!r} is no folder's name ({first_line(error)})") from error
    if is_file:
        raise BuildError(
            f"{name!r} is a file; give the folder that holds it, with config.json and the tokenizer's files"
        )
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BuildError(f"no folder {name!r}; give a local Hugging Face folder or a hub name such as org/model")
    with quiet_hub():
        folder = _download(name, revision)
    return folder, name, revision or (hub_name(folder) or (name, None))[1]


def _download(name: str, revision: str | None) -> Path:
    """A hub model's folder in the cache, fetched where the hub can be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    patterns = ["config.json", "adapter_config.json", "adapter_model.*", *TOKENIZER_FILES, *several.FILES]
    try:
        # One request: the library's listing tries again for 25 seconds where there is no network.
        files = [file.rfilename for file in huggingface_hub.model_info(name, revision=revision).siblings or []]
        patterns += sentences.hub_files(files)
        wanted = "*.safetensors*" if any(f.endswith(".safetensors") for f in files) else "pytorch_model*.bin*"
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*patterns, wanted]))
    except HFValidationError as error:
        raise BuildError(f"{name!r} is neither a local folder nor a hub name ({first_line(error)})") from error
    except Exception as error:  # the hub's own errors, and those of the two libraries below it
        try:
            return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
        except Exception:
            raise BuildError(
                f"{name!r} is neither a local folder nor a model the hub gives ({first_line(error)}), "
                "and the hub's cache here does not have it"
            ) from error
