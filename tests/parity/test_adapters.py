"""Several adapters over one base in one archive: each request is answered by the adapter that it names."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.archive import LibraryFile, build
from builder.cli import main
from builder.errors import BuildError
from builder.inspection import describe, read_facts
from handler.config import SetupConfig
from handler.engine import Engine
from handler.predictor import Predictor
from handler.schemas import Request
from handler.tasks.base import Job
from handler.wire.token_ids import TokenIdsRequest
from tests.adapters import make_adapter
from tests.checkpoints import TEXTS, make_checkpoint

LABELS = {"first": 4, "second": 2, "third": 4}


@dataclass
class Built:
    folder: Path
    archive: Path
    merged: dict[str, Any]
    predictor: Predictor


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, cpu_library: Path) -> Built:
    folder = tmp_path_factory.mktemp("adapters")
    base = make_checkpoint(folder / "base", "bert")
    merged = {
        name: make_adapter(base, folder / name, labels=count, seed=seed)
        for seed, (name, count) in enumerate(LABELS.items())
    }
    config = SetupConfig(model_name=str(base), name="several", adapters={name: str(folder / name) for name in LABELS})
    archive, _ = build(config, [LibraryFile(cpu_library, "cpu", ["x86_64"])], folder / "store", lambda step: None)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder / "unpacked")
    return Built(folder, archive, merged, Predictor.load(folder / "unpacked"))


def expected(built: Built, adapter: str, text: str) -> list[float]:
    tokens = built.predictor.task.tokenizer
    ids = torch.tensor([tokens.encode([text], ["truncate"], [0])[0].sequences[0].ids])
    with torch.inference_mode():
        return built.merged[adapter](input_ids=ids).logits.softmax(-1)[0].tolist()


def scores(answer: Any) -> list[float]:
    by_label = {item["label"]: item["score"] for item in answer["labels"]}
    return [by_label[f"LABEL_{i}"] for i in range(len(by_label))]


def test_a_mixed_batch_is_answered_by_each_ones_adapter(built: Built) -> None:
    names = ["second", "first", "third", "second", "first"]
    rows = [{"body": {"text": text, "adapter": name, "top_k": 9}} for text, name in zip(TEXTS, names, strict=True)]
    replies = built.predictor.predict(rows)
    assert [reply.status for reply in replies] == [200] * len(rows)
    for reply, name, text in zip(replies, names, TEXTS, strict=True):
        assert scores(reply.payload) == pytest.approx(expected(built, name, text), abs=2e-5)


def test_a_request_that_names_none_has_the_first(built: Built) -> None:
    answers = built.predictor([{"text": TEXTS[0], "top_k": 9}, {"text": TEXTS[0], "adapter": "first", "top_k": 9}])
    assert answers[0] == answers[1]
    assert scores(answers[0]) == pytest.approx(expected(built, "first", TEXTS[0]), abs=2e-5)


def test_stages_that_run_apart_keep_adapters_apart(built: Built) -> None:
    """As the servers that are not TorchServe run them."""
    engine = built.predictor.engine
    names = ["third", None, "second"]
    requests = [engine.read({"text": TEXTS[1], "adapter": name, "top_k": 9}) for name in names]
    jobs = engine.encode([request for request in requests if isinstance(request, Request)])
    assert all(isinstance(job, Job) for job in jobs)
    outputs = engine.packer.run([sequence for job in jobs for sequence in job.sequences])
    for answer, name in zip(engine.finish(jobs, outputs), names, strict=True):
        assert scores(answer) == pytest.approx(expected(built, name or "first", TEXTS[1]), abs=2e-5)


def test_token_ids_go_to_their_adapter() -> None:
    (sequence,) = TokenIdsRequest(text=".", ids=[2, 7, 3], adapter="second").job().sequences
    assert (sequence.ids, sequence.adapter) == ([2, 7, 3], "second")


@pytest.mark.parametrize("how", [{"encoder": "stock", "format": "export"}, {"scheme": "int8"}], ids=str)
def test_other_kinds_of_archive(built: Built, tmp_path: Path, cpu_library: Path, how: dict[str, str]) -> None:
    adapters = {name: str(built.folder / name) for name in ("third", "second")}
    given = {"model_name": str(built.folder / "base"), "name": "other", "adapters": adapters, **how}
    library = LibraryFile(cpu_library, "cpu", ["x86_64"])
    archive, _ = build(SetupConfig.model_validate(given), [library], tmp_path / "store", lambda step: None)
    with Engine.open(archive, threads=torch.get_num_threads()) as engine:
        for name in adapters:
            (answer,) = engine.payloads([engine.read({"text": TEXTS[2], "adapter": name, "top_k": 9})])
            assert scores(answer) == pytest.approx(
                expected(built, name, TEXTS[2]), abs=0.1 if "scheme" in how else 2e-5
            )
        first, second = (dict(model.module.state_dict()) for model in engine.models)
        shared = sum(first[name].data_ptr() == second[name].data_ptr() for name in first)
        assert shared > (1 if "scheme" in how else len(first) // 2)


def test_an_unknown_adapter_is_one_line_and_spares_the_others(built: Built) -> None:
    reply = built.predictor.predict([{"body": {"text": TEXTS[0], "adapter": "fourth"}}])[0]
    message = "this archive has no such adapter; its adapters are first, second, third"
    assert reply.status == 422
    assert reply.payload["error"] == {"type": "invalid_request", "message": message, "field": "adapter"}
    bad, good = built.predictor([{"text": TEXTS[0], "adapter": "fourth"}, {"text": TEXTS[0], "adapter": "second"}])
    assert bad["error"]["field"] == "adapter"
    assert good["label"].startswith("LABEL_")


def test_what_adapters_do_not_change_is_in_memory_once(built: Built) -> None:
    first, *others = (dict(model.module.named_buffers()) for model in built.predictor.engine.models)
    assert len(others) == 2
    for other in others:
        assert other["encoder.word"].data_ptr() == first["encoder.word"].data_ptr()
        assert other["encoder.vectors"].data_ptr() == first["encoder.vectors"].data_ptr()
        assert other["encoder.matrices"].data_ptr() != first["encoder.matrices"].data_ptr()


def test_each_adapter_is_proven_and_told(built: Built) -> None:
    facts = read_facts(built.archive)
    assert facts.adapters == list(LABELS)
    assert "adapters    first, second, third; default: first" in list(describe(built.archive))
    assert built.predictor.describe()["adapters"] == list(LABELS)
    for _, (own, _) in built.predictor.engine.adapters.items():
        assert own.parity["passed"]
    assert {"adapters/second/model.pt", "adapters/third/archive.json"} <= set(facts.files)


def test_an_adapter_of_another_kind_is_refused(built: Built, tmp_path: Path, cpu_library: Path) -> None:
    folder = built.folder
    config = SetupConfig(
        model_name=str(folder / "base"), adapters={"first": str(folder / "first"), "lost": str(tmp_path / "nowhere")}
    )
    with pytest.raises(BuildError, match="nowhere' is no folder with adapter_config.json"):
        build(config, [LibraryFile(cpu_library, "cpu", ["x86_64"])], tmp_path / "store", lambda step: None)
    assert not list(tmp_path.glob("store/*"))


def test_a_folder_for_other_programs_holds_one_adapter(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-native", str(built.archive), str(tmp_path / "native")]) == 1
    assert "several adapters; build an archive of the one that is wanted" in capsys.readouterr().err
