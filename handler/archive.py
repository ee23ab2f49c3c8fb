"""What an archive says of itself: ``archive.json``, written by the builder and read by the worker."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from handler.config import NAME_PATTERN, Output, Pooling, first_problem
from handler.schemes import Compute, SchemeName, original_type
from handler.spellings import Encoder, ModelFormat, Task, data_type_of, kind_of, modern_facts, older_facts

Activation = Literal["identity", "sigmoid", "tanh"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


_DIGEST = re.compile(rb'(?m)^ "digest": "([0-9a-f]{64})"')


class ArchiveError(ValueError):
    """An archive that cannot be served; the message is one line that says what to do."""


class _Open(BaseModel):
    """Keys of a later builder are kept and ignored."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Sizes(_Open):
    """The encoder's."""

    layers: int = Field(ge=0)
    hidden: int = Field(gt=0)
    embedding: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)


class TorchFacts(_Open):
    """The torch an archive was built with and the oldest that loads it."""

    built: str
    oldest: str = "2.10"


class ModelFacts(_Open):
    """The model's file (of format transformers a folder), and the devices that it runs on."""

    format: ModelFormat
    file: str = Field(pattern=NAME_PATTERN)
    devices: list[Literal["cpu", "cuda"]]
    packed: bool = False
    """Whether the file also takes packed ids and offsets in place of a padded batch."""


class LibraryFacts(_Open):
    """One operator library. ``targets``: compute capabilities ("90a") or instruction sets it has code for."""

    sha256: str
    device: Literal["cpu", "cuda"]
    targets: list[str] = []


class SparseFacts(_Open):
    """How a sparse embedding is made."""

    kind: Literal["vocabulary", "lexical"]
    """What the model gives: a weight for each entry of the vocabulary (SPLADE), or for each token of the text (BGE-M3),
    of which the largest of a token counts."""
    skip: list[int] = []
    """Ids of tokens that have no weight."""
    sums: bool = False
    """Whether weights of a text's windows are added up, as the model adds up its tokens'; else the largest counts."""
    most: int | None = Field(default=None, gt=0)
    """So many weights are kept unless a request says otherwise; None: all."""


class ExpansionFacts(_Open):
    """Tokens behind a short query (ColBERT's query augmentation; Khattab and Zaharia, SIGIR 2020)."""

    token: int
    length: int = Field(gt=0)
    """Tokens of a query, those it is filled up with included."""
    attend: bool
    """Whether other tokens see them."""


class MultiVectorFacts(_Open):
    """How a text is embedded token by token, and what two texts' vectors are worth."""

    query_length: int | None = Field(default=None, gt=0)
    """Longest query in tokens; None: as any text."""
    document_length: int | None = Field(default=None, gt=0)
    expansion: ExpansionFacts | None = None
    skip: list[int] = []
    """Ids of tokens that have no vector."""
    skip_in: list[Literal["query", "document"]] = ["document"]
    """Of which texts they are left out."""
    skip_first: bool = False
    """Whether a text's first token has no vector."""
    mean: bool = False
    """Whether a score is the mean over the query's vectors and not their sum."""


class ArchiveFacts(_Open):
    """``archive.json``. Format 1, of version 0.1.0, is read in its own words and written back in them."""

    format: Literal[1, 2] = 2
    """The layout of an archive; raised when an older handler could not serve a newer archive."""
    name: str
    task: Task
    family: str
    encoder: Encoder
    model: ModelFacts
    compute: Compute
    scheme: SchemeName = "none"
    labels: list[str] = []
    problem_type: ProblemType | None = None
    max_positions: int = Field(gt=0)
    """Longest sequence in tokens, special tokens included."""
    uses_segments: bool = False
    pad_id: int = 0
    mask_id: int | None = None
    pooling: Pooling | None = None
    normalize: bool = False
    cut_first: bool = True
    """Whether an embedding is cut to fewer dimensions before it is normalised, as version 0.1.0 did;
    sentence-transformers normalises first."""
    dimensions: int | None = Field(default=None, gt=0)
    """Dimensions of an embedding that are kept; None: all."""
    include_prompt: bool = True
    """Whether an embedding's pooling counts the prompt's tokens."""
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    activation: Activation | None = None
    """What makes a cross-encoder's logit its score; None, of version 0.1.0 and of several labels: sigmoid of one label,
    the last of several labels' probabilities."""
    entailment: int | None = Field(default=None, ge=0)
    """Of a zero-shot classifier: the row of the label that says that a claim follows from a text."""
    sparse: SparseFacts | None = None
    multi_vector: MultiVectorFacts | None = None
    outputs: list[Output] = []
    """What a hybrid embedding model gives, in the order of its outputs."""
    adapters: list[Annotated[str, Field(pattern=NAME_PATTERN)]] = []
    """Names that a request may choose from, the default first, whose model is ``model``; of each other one
    ``adapters/NAME`` holds the model and an archive.json of its own. Empty: there is nothing to choose."""
    truncation_side: Literal["left", "right"] = "right"
    """Which end of a text is cut off."""
    sizes: Sizes
    encoder_spec: str = ""
    """What the fused encoder computes, as ``efft::encode`` takes it; empty in archives without one, and in those that
    0.1.0 built, of which ``sizes`` is all that is known."""
    torch: TorchFacts
    libraries: dict[str, LibraryFacts] = {}
    quantisation: dict[str, Any] = {}
    """Of a scheme: what the choice was made on, how many matrices there are and which were kept in the compute type."""
    parity: dict[str, Any] = {}
    checkpoint: dict[str, Any] = {}
    tuned: dict[str, Any] = {}
    """What ``builder tune`` measured, and on which processor."""
    files: dict[str, str] = {}
    """SHA-256 of every other file of the archive by its name; see :mod:`handler.integrity`."""
    digest: str = ""
    """SHA-256 of this file's own text, with zeros in this place."""

    @model_validator(mode="before")
    @classmethod
    def _older_spellings(cls, data: Any) -> Any:
        return modern_facts(data) if isinstance(data, dict) else data

    @property
    def kind(self) -> str:
        """Encoder and format in the parent project's word: ori, ths or thsext."""
        return kind_of(self.encoder, self.model.format)

    @property
    def data_type(self) -> str:
        """Compute type and scheme in one word."""
        return data_type_of(self.compute, self.scheme)

    @property
    def original_type(self) -> str:
        """The type of the checkpoint in the archive, where it holds one."""
        return original_type(self.compute, self.scheme)

    def label(self, index: int) -> str:
        """A label's name, or its number where the checkpoint names none."""
        return self.labels[index] if index < len(self.labels) else f"LABEL_{index}"

    @classmethod
    def load(cls, path: Path | str) -> ArchiveFacts:
        """Read and validate a file. Raises ArchiveError with one line that says what to do."""
        path = Path(path)
        try:
            return cls.parse(path.read_bytes())
        except FileNotFoundError as error:
            raise ArchiveError(f"{path.name} is missing from the archive; build it again") from error
        except OSError as error:
            raise ArchiveError(f"{path.name} cannot be read ({error.strerror})") from error

    @classmethod
    def parse(cls, content: bytes) -> ArchiveFacts:
        """Validate the file's content. Raises ArchiveError with one line that says what to do."""
        try:
            return cls.model_validate(json.loads(content))
        except ValidationError as error:
            raise ArchiveError(f"archive.json: {first_problem(error)}; build the archive again") from error
        except (ValueError, RecursionError) as error:
            raise ArchiveError(f"archive.json is not JSON ({error}); build the archive again") from error

    def save(self, path: Path | str) -> None:
        """Write the file; see ``content``."""
        Path(path).write_bytes(self.content())

    def content(self) -> bytes:
        """The file's bytes, with sorted keys, so that the same facts give the same bytes, and with its own digest
        where it has digests of the other files."""
        facts = {**self.model_dump(mode="json"), "digest": "0" * 64 if self.files else ""}
        if self.format == 1:  # the handler in that archive knows no other words
            facts = older_facts(facts)
        text = (json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        if not self.files:
            return text
        return _DIGEST.sub(b' "digest": "' + self.digest_of(text).encode() + b'"', text, count=1)

    @staticmethod
    def digest_of(content: bytes) -> str:
        """What ``digest`` is to be, given the file's bytes: their SHA-256 with zeros in its place."""
        return hashlib.sha256(_DIGEST.sub(b' "digest": "' + b"0" * 64 + b'"', content, count=1)).hexdigest()
