"""The setup config: one JSON file per archive that says what to build and how to serve it.

The builder reads it from ``setup_configs/``, writes the validated form into the archive, and the worker reads it
there. The keys of TorchServe's generalized transformer example, and those of version 0.1.0, keep working
(:mod:`handler.spellings`).
"""

from __future__ import annotations

import difflib
import json
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from handler.schemes import SCHEMES, Compute, SchemeName
from handler.spellings import Encoder, ModelFormat, Task, data_type_of, kind_of, modern, of_parent

Truncation = Literal["error", "truncate", "stride"]
Aggregation = Literal["none", "simple", "first", "average", "max"]
ScoreFunction = Literal["sigmoid", "softmax", "none"]
SparseKeys = Literal["tokens", "ids"]
Output = Literal["dense", "sparse", "multi_vector"]
"""What a hybrid embedding model can give of a text."""
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""How an embedding is made of its tokens' vectors, by sentence-transformers' names."""

NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")  # $ would let a newline follow
"""Of an archive's name, which becomes a file's and a part of a URL."""


def _known_poolings(value: str) -> str:
    for name in value.split("+"):
        if name not in POOLINGS:
            raise ValueError(f"{name!r} is none of {', '.join(POOLINGS)}")
    return value


Pooling = Annotated[str, AfterValidator(_known_poolings)]
"""One of POOLINGS, or several joined by "+", whose vectors are joined in that order."""


def _one_place(value: str) -> str:
    """A template with one place for a label. Of Python's format language, in which a stranger's template could ask for
    gigabytes, only that is read, and doubled braces."""
    try:
        places = [place[1:] for place in string.Formatter().parse(value) if place[1] is not None]
    except ValueError:
        places = []
    if len(places) != 1 or places[0] not in (("", "", None), ("0", "", None)):
        raise ValueError("a template must have {} once, where a label goes, and other braces doubled")
    return value


HypothesisTemplate = Annotated[str, Field(max_length=4_000), AfterValidator(_one_place)]


class ConfigError(ValueError):
    """A setup config that cannot be used; the message is one line that names the file and the key."""


# Numbers may be strings ("128"), as the parent example writes them: pydantic's lax mode reads those.
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    """Refuses unknown keys, naming the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        lower = {name.lower(): name for name in cls.model_fields}
        for key in data:
            if key in cls.model_fields:
                continue
            near = difflib.get_close_matches(str(key).lower(), lower, n=1, cutoff=0.0)
            raise ValueError(f"unknown key {key!r}, did you mean {lower[near[0]]!r}?")
        return data


class Limits(_Strict):
    """What one request may ask for; more is answered with 413."""

    max_inputs: Positive = 128
    """Elements of a list payload, texts of a rerank request, or candidate labels."""
    max_characters: Positive = 1_000_000
    """Characters of all texts of one request together; what is read once for each of several
    (a rerank query for texts, a text for candidate labels) counts so often."""
    max_tokens: Positive = 65_536
    """Tokens that one input becomes once it is cut into windows: what a BERT-base computes in less than a minute on
    two cores."""
    max_body_bytes: Positive = 16_000_000
    """A compressed body's size once decompressed; what may be sent as it is the server's max_request_size says."""
    max_answer_bytes: Positive = 16_000_000
    """An answer's size; must stay below the server's max_response_size, beyond which TorchServe drops the worker."""


class Explanations(_Strict):
    """What explanations may cost: a worker that explains answers nothing else meanwhile."""

    batch_tokens: Positive = 1024
    """Most tokens of one pass. Far fewer than of a prediction, as what each layer computed is kept for the gradients:
    about 0.5 MB a token in BERT-base's sizes."""
    max_inputs: Positive = 4
    """Inputs of one request."""
    max_windows: Positive = 16
    """Windows of one text, the best of which is explained."""
    steps: Positive = 50
    """Points of the integral; the convergence delta says how well they did."""
    seconds: Positive = 30
    """Longest time that the explanations of one batch may take; at most half of ``response_timeout`` is used."""


class SetupConfig(_Strict):
    """One archive's settings.

    ``mode`` (the task), ``kind`` (``ori``: stock and transformers; ``ths``: stock and torchscript; ``thsext``: fused
    and torchscript; the last two with ``format`` export, too) and ``data_type`` (a compute type, or int8) are accepted.
    The parent example's ``save_mode`` and ``FasterTransformer`` say encoder and format where nothing else does:
    pretrained -> ori; torchscript -> thsext with FasterTransformer, ths without it.
    """

    model_name: str = Field(min_length=1)
    """A local Hugging Face folder or a hub name."""
    revision: str | None = None
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """A PEFT adapter that is merged into the checkpoint: its folder, or the name of one within the checkpoint's. One
    that lies beside the weights, or names its base, is merged without being named."""
    adapters: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Annotated[str, Field(min_length=1)]] = {}
    """Several adapters over one base, each by the name that requests choose it by; the first one answers requests that
    choose none. Each is merged, and what its weights share with the others' is in memory once."""
    name: str | None = Field(default=None, pattern=NAME_PATTERN)
    """The archive's name; None: the last part of ``model_name``."""
    task: Task | None = None
    """None: the builder reads it off the checkpoint's architecture."""
    encoder: Encoder = "fused"
    """The kernels of this project, or transformers' own modules."""
    format: ModelFormat = "torchscript"
    """How the model is stored: traced by TorchScript or torch.export, or as transformers saves it (the stock encoder
    only)."""
    compute: Compute = "fp32"
    """The type of weights and arithmetic."""
    scheme: SchemeName = "none"
    """How the encoder's matrices are quantised: int8 or fp8 (e4m3), with bf16 or fp16 between the products."""
    keep: list[Annotated[str, Field(min_length=1)]] = []
    """Matrices that a scheme leaves in 16 bits, by name (``layer.3.output``, ``layer.*.qkv``), beside those that the
    builder finds too sensitive."""
    num_labels: Count = 0
    """0: as the checkpoint says."""
    labels: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1)
    """The labels' names, one for each of the classifier's outputs, in their order; None: as the checkpoint says."""
    do_lower_case: bool | None = None
    """None: as the checkpoint's tokenizer says."""
    max_length: Positive | None = None
    """Longest sequence in tokens, special tokens included; None: as long as the checkpoint allows."""

    save_mode: Literal["pretrained", "torchscript"] | None = None
    FasterTransformer: bool | None = None
    BetterTransformer: Literal[False] = False
    model_parallel: Literal[False] = False
    captum_explanation: bool = False
    """Archive the differentiable twin of the encoder, so that /explanations answers."""
    explanations: Explanations = Explanations()
    embedding_name: str | None = None
    """Accepted for the parent example's sake; the embedding layer is found without it."""

    batch_size: Positive = 32
    """Most requests TorchServe joins into one batch."""
    max_batch_delay: Count = 1
    """How long TorchServe waits for a batch to fill, in milliseconds; at least 1, to which 0 is raised."""
    workers: Positive | None = None
    """None: one, or by the GPUs and cores of the machine that builds the archive (builder/serving.py)."""
    threads: Count = 0
    """Threads of one worker on a CPU; 0: the machine's cores divided by the workers."""
    response_timeout: Positive = 120
    """Seconds after which TorchServe gives a worker up."""
    startup_timeout: Positive = 300
    """Seconds a worker may take to load the model."""
    max_batch_tokens: Positive | None = None
    """Most tokens, pads included, of one forward pass; None: 16,384 on a GPU, 512 a thread on a CPU, where larger
    passes take more memory and are slower."""
    cpu_fallback: bool = True
    """Serve on the CPU when there is a GPU but the archive has no library that fits it."""
    warm_up: bool = True
    limits: Limits = Limits()
    allow_overrides: bool = True
    """Whether a request may set the options below for itself."""

    truncation: Truncation | None = None
    """What happens to a text that is too long; None: stride for question answering and token classification, truncate
    for the other tasks."""
    stride: Count = 128
    """Tokens that two neighbouring windows share; unless given, at most half of ``max_length``."""
    top_k: Positive | None = None
    """Labels (fill-mask candidates, weights of a sparse embedding) in an answer; None: the best one (fill-mask: 5; all
    weights that the model's own limit leaves)."""
    function_to_apply: ScoreFunction | None = None
    """What makes scores of a classifier's outputs; None: as transformers' pipeline, by the checkpoint's problem type,
    else by the number of its labels."""
    candidate_labels: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1)
    """The labels of zero-shot requests that bring none."""
    hypothesis_template: HypothesisTemplate = "This example is {}."
    """What a zero-shot classifier is asked of a text, with {} where a label goes."""
    multi_label: bool = False
    """Whether several candidate labels may be true of one text."""
    n_best: Positive = 1
    max_answer_length: Positive = 30
    """Longest answer, in tokens."""
    null_threshold: float = 0.0
    """An answer is withheld when the no-answer score exceeds the best answer's by more than this (SQuAD 2.0's
    threshold, a difference of logits)."""
    null_answer: bool = True
    """Whether "no answer" is a possible answer at all; False for models trained without unanswerable questions."""
    align_to_words: bool | None = None
    """Whether answers are cut at words (true) or at the model's tokens (false); None: at words of scripts that put
    spaces between them, at tokens elsewhere (Chinese, Japanese, Thai ...)."""
    aggregation: Aggregation = "simple"
    """How the tokens of an entity are joined."""
    pooling: Pooling | None = None
    """None: as the checkpoint's folder says, else mean."""
    normalize: bool | None = None
    """Whether embeddings have length 1; None: as the checkpoint's folder says."""
    dimensions: Positive | None = None
    """Keep only the first so many dimensions of an embedding; None: as the checkpoint's folder says, else all."""
    sparse_keys: SparseKeys | None = None
    """Whether the weights of a sparse embedding stand under tokens or under their ids; None: tokens, but ids of a model
    with lexical weights, as its authors' library has it."""
    outputs: list[Output] | None = Field(default=None, min_length=1)
    """What a hybrid embedding answers where the request does not say; None: all that the model has."""
    prompts: dict[str, str] | None = None
    """Texts that stand before an embedding's text or a rerank query, by name; they are added to those of the
    checkpoint's folder and replace its ones of the same name."""
    default_prompt_name: str | None = None
    """The prompt of requests that choose none; None: as the checkpoint's folder says, else no prompt."""

    @model_validator(mode="before")
    @classmethod
    def _older_spellings(cls, data: Any) -> Any:
        return of_parent(modern(data)) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> SetupConfig:
        if self.format == "transformers" and self.encoder == "fused":
            raise ValueError("format transformers holds the stock encoder, not encoder fused")
        if self.adapters and self.adapter is not None:
            raise ValueError("adapter names one adapter and adapters several; say one of the two")
        if self.adapters and (self.format == "transformers" or self.captum_explanation):
            raise ValueError("adapters to choose from need a traced model (kind ths or thsext) without explanations")
        if self.compute not in (allowed := SCHEMES[self.scheme].compute):
            raise ValueError(f"scheme {self.scheme} computes in {' or '.join(allowed)}, not {self.compute}")
        if self.FasterTransformer and self.encoder != "fused":
            raise ValueError(
                f"FasterTransformer needs save_mode torchscript and encoder fused (kind thsext), not kind {self.kind}"
            )
        if self.save_mode is not None and (self.save_mode == "pretrained") != (self.format == "transformers"):
            raise ValueError(f"save_mode {self.save_mode} contradicts format {self.format} (kind {self.kind})")
        if self.max_length is not None and "stride" not in self.model_fields_set:
            object.__setattr__(self, "stride", min(self.stride, self.max_length // 2))
        if self.max_length is not None and self.stride >= self.max_length:
            raise ValueError(f"stride {self.stride} must be smaller than max_length {self.max_length}")
        return self

    @property
    def kind(self) -> str:
        """Encoder and format in the parent project's word."""
        return kind_of(self.encoder, self.format)

    @property
    def data_type(self) -> str:
        """Compute type and scheme in one word."""
        return data_type_of(self.compute, self.scheme)

    @property
    def explanation_seconds(self) -> float:
        """What the explanations of one batch may take, so that the server does not give the worker up."""
        return min(float(self.explanations.seconds), self.response_timeout / 2)

    @classmethod
    def load(cls, path: Path | str) -> SetupConfig:
        """Read and validate a file. Raises ConfigError with one line that names the file and the key."""
        path = Path(path)
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise ConfigError(f"{path.name}: {first_problem(error)}") from error
        except RecursionError as error:
            raise ConfigError(f"{path.name}: nested too deeply to be read") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path.name}: {error}") from error


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation in one line: ``key: what is wrong``."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
