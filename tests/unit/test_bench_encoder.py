from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import compare, encoder, measuring, models, results, table, timing
from benchmarks.deviation import deviation
from benchmarks.engines import ENGINES, Loop
from benchmarks.floor import Ceilings, operations
from benchmarks.measuring import Group, Setting
from benchmarks.models import Reference, Source
from benchmarks.timing import Turns
from benchmarks.workloads import Batch, Workload, make_batch, make_workload
from builder.families import spec_of


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=112
    )
    return Source("tiny", transformers.BertModel(config, add_pooling_layer=False).eval())


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(make_workload("4x24", "uniform"), 100)


WORKLOAD = make_workload("4x24", "uniform")


def measured(source: Source, data_type: str, names: list[str], seconds: float = 0.1) -> Group:
    group = Group(source, data_type, Setting("cpu", 2))
    group.build(names)
    now = time.monotonic()
    group.prepare(WORKLOAD, now + 600)
    group.measure(WORKLOAD, seconds, now + 600)
    return group


@pytest.mark.parametrize("name", ["ori", "ths", "thsext", "packed", "packed+loop"])
@pytest.mark.parametrize("data_type", ["fp32", "bf16"])
def test_every_native_engine_computes_the_encoder(source: Source, name: str, data_type: str) -> None:
    missing = ENGINES[name.removesuffix("+loop")].absent(data_type, "cpu")
    if missing and "on this processor" in missing:
        pytest.skip(missing)
    group = measured(source, data_type, [name])
    assert group.absent == []
    assert [row["engine"] for row in group.rows] == [name]
    assert group.rows[0]["refused"] is None
    assert group.rows[0]["median_ms"] > 0


@pytest.mark.parametrize(
    ("name", "layers"), [("modernbert", {"num_hidden_layers": 4, "local_attention": 6}), ("deberta", {})]
)
def test_newer_models_are_computed(monkeypatch: pytest.MonkeyPatch, name: str, layers: dict[str, int]) -> None:
    kind, options = models.NEWER[name]
    small = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    monkeypatch.setitem(models.NEWER, name, (kind, {**options, **small, "intermediate_size": 112, **ids, **layers}))
    group = measured(models.load_source(name), "fp32", ["thsext"])
    assert group.absent == []
    assert group.rows[0]["refused"] is None
    assert group.rows[0]["plain_error"] < 1e-5  # float64 is of the same model, DeBERTa's by one head at a time


def test_a_size_may_have_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, options = models.NEWER["deberta"]
    small = {"vocab_size": 100, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 112}
    monkeypatch.setitem(models.NEWER, "deberta", (kind, {**options, **small}))
    source = models.load_source("deberta@1")
    assert (source.name, len(source.model.encoder.layer)) == ("deberta@1", 1)
    for wrong in ("deberta@", "deberta@0", "minilm@two"):
        with pytest.raises(ValueError, match="is no number of layers"):
            models.load_source(wrong)


def test_the_trace_of_a_file_can_be_frozen_for_each_shape(source: Source) -> None:
    """As on a GPU."""
    engine: Any = ENGINES["ths"](source, "fp32", "cpu", 2)
    engine.freezes = True
    batches = [make_batch(make_workload(size, "uniform"), 100) for size in ("1x8", "4x24")]
    for batch, call in zip(batches, [engine.bind(batch) for batch in batches], strict=True):
        for _ in range(3):
            output = engine.valid(call(), batch)
            assert deviation(output, Reference(source)(batch), batch.workload.lengths).error < 1e-5


@pytest.mark.parametrize("name", ["thsext", "packed"])
def test_8_bits_are_computed_and_seen(source: Source, name: str) -> None:
    group = measured(source, "int8", [name])
    assert group.absent == []
    assert group.rows[0]["refused"] is None
    assert group.rows[0]["error"] > 1e-4  # it is rounded, not fp32 under another name


def test_a_wrong_output_is_not_timed(source: Source) -> None:
    class Wrong(ENGINES["ori"]):  # type: ignore[misc, name-defined]
        def valid(self, output: Any, batch: Batch) -> torch.Tensor:
            return 1.001 * super().valid(output, batch)

    group = Group(source, "fp32", Setting("cpu", 2))
    group.engines = {"wrong": Wrong(source, "fp32", "cpu", 2)}
    group.prepare(WORKLOAD, time.monotonic() + 600)
    group.measure(WORKLOAD, 0.1, time.monotonic() + 600)
    assert "allowed" in group.rows[0]["refused"]
    assert "median_ms" not in group.rows[0]


def test_an_engine_that_is_not_installed_is_absent_with_the_reason(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ENGINES["openvino"], "packages", ("no_such_package",))
    group = Group(source, "fp32", Setting("cpu", 2))
    group.build(["openvino"])
    assert group.engines == {}
    assert group.absent[0]["reason"] == "no_such_package not installed"


def test_no_engine_is_begun_behind_the_runs_time(source: Source) -> None:
    group = Group(source, "fp32", Setting("cpu", 2))
    group.build(["ori", "ths"], limit=time.monotonic() - 1)
    assert group.engines == {}
    assert {entry["reason"] for entry in group.absent} == {"the run's time was over"}


def test_what_was_measured_is_kept_when_a_run_is_ended(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an interrupt in the second type."""
    monkeypatch.setattr(timing, "MAX_ROUNDS", 4)
    monkeypatch.setattr(encoder, "load_source", lambda name: source)
    ceilings = iter([Ceilings({"fp32": 1e11, "bf16": 1e11}, 1e10)] * (encoder.VISITS + 1))

    def measured(*_: Any) -> Ceilings:
        if (found := next(ceilings, None)) is None:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(encoder, "measure", measured)
    parser = ArgumentParser()
    encoder.add_arguments(parser)
    arguments = "--models tiny --workloads 1x8 --types fp32 bf16 --engines ths --minutes 60 --no-memory --output"
    with pytest.raises(KeyboardInterrupt):
        encoder.run(parser.parse_args([*arguments.split(), str(tmp_path)]))
    (path,) = tmp_path.glob("encoder-cpu-*.json")
    rows = results.load(path)["rows"]
    assert [(row["data_type"], row["rounds"]) for row in rows if "rounds" in row] == [("fp32", 4)]
    assert all(row["floor_ms"] for row in rows)


def test_one_sequence_has_no_loop(source: Source) -> None:
    group = Group(source, "fp32", Setting("cpu", 2))
    group.build(["ori", "ori+loop"])
    for size in ("1x8", "2x8"):
        group.prepare(make_workload(size, "uniform"), time.monotonic() + 600)
    assert [(row["workload"], row["engine"]) for row in group.rows] == [
        ("1x8", "ori"),
        ("2x8", "ori"),
        ("2x8", "ori+loop"),
    ]


def test_what_no_time_is_left_for_is_named_and_not_timed(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(source, "fp32", Setting("cpu", 2))
    group.build(["ori"])
    now = time.monotonic()
    assert group.prepare(WORKLOAD, now) == 0
    assert group.rows[0]["refused"] == "the run's time was over"

    class Slow(Turns):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.seconds = 1000

    monkeypatch.setattr(measuring, "Turns", Slow)
    assert group.prepare(make_workload("1x24", "uniform"), time.monotonic() + 600) == 0
    assert "rounds would take" in group.rows[1]["refused"]
    assert not any("median_ms" in row for row in group.rows)


def test_a_later_visit_adds_rounds(source: Source) -> None:
    group = measured(source, "fp32", ["ori"])
    before = group.rows[0]["rounds"]
    group.measure(WORKLOAD, 0, time.monotonic() + 600, least=before + 2)
    assert group.rows[0]["rounds"] == before + 2
    group.measure(WORKLOAD, 600, time.monotonic())  # no time is left
    group.close()
    assert [row["rounds"] for row in group.rows] == [before + 2]


def test_fewer_rounds_than_a_median_wants_are_no_result(source: Source) -> None:
    group = Group(source, "fp32", Setting("cpu", 2))
    group.build(["ori"])
    assert group.prepare(WORKLOAD, time.monotonic() + 600) > 0
    for rounds, refused in ((2, "only 2 of 3 rounds fitted into the run's time"), (3, None)):
        group.measure(WORKLOAD, 0, time.monotonic() + 600, least=rounds)
        assert group.rows[0]["refused"] == refused
        assert ("median_ms" in group.rows[0]) == (refused is None)


def test_long_calls_get_the_fewest_rounds_and_the_rest_is_dealt_out(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, ...]] = []
    monkeypatch.setattr(encoder, "measure", lambda types, *_: measured.append(types) or Ceilings({"fp32": 1e11}, 1e10))
    workloads = [make_workload(size, "uniform") for size in ("1x8", "4x32")]
    calls: list[tuple[Any, float, int]] = []

    class Recorder(Group):
        def prepare(self, workload: Any, limit: float) -> float:
            calls.clear()
            self.limit = limit
            return 12.0 if workload is workloads[0] else 48.0

        def measure(self, workload: Any, seconds: float, limit: float, least: int = 3) -> None:
            calls.append((workload, seconds, least))

    for minutes, spare in ((100, 40), (50, 10)):  # 60 are promised; a fifth is dealt out in any case
        now = time.monotonic()
        group = Recorder(source, "fp32", Setting("cpu", 2))
        encoder._measure([group], [], {"tiny": workloads}, now + minutes, now + 200, False, lambda: None)
        assert group.limit == pytest.approx(now + 200 - 12)
        assert [least for of, _, least in calls if of is workloads[1]] == [1, 1, 2, 2, 2, 3, 3, 3]
        last = {of.name: seconds for of, seconds, _ in calls}
        assert sum(last.values()) == pytest.approx(spare, abs=0.5)
        assert last["4x32"] == pytest.approx(2 * last["1x8"])  # four times as long: half as many more rounds
        assert measured.pop() == ("fp32",)
        assert len(group.setting.ceilings) == encoder.VISITS


def test_short_calls_get_half_of_an_equal_share_at_least() -> None:
    shares = encoder._shares({"short": 0.01, "middle": 25, "long": 100})
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["long"] == pytest.approx(2 * shares["middle"])
    assert shares["short"] == pytest.approx((shares["long"] + shares["middle"]) / 6, rel=0.01)


def test_the_loop_runs_each_sequence_without_padding(source: Source, batch: Batch) -> None:
    seen: list[tuple[int, ...]] = []

    class Spy(ENGINES["ori"]):  # type: ignore[misc, name-defined]
        def bind(self, batch: Batch) -> Any:
            seen.append(tuple(batch.ids.shape))
            return super().bind(batch)

    loop = Loop(Spy(source, "fp32", "cpu", 2))
    output = loop.valid(loop.bind(batch)(), batch)
    assert seen == [(1, n) for n in batch.workload.lengths]
    assert deviation(output, Reference(source)(batch), batch.workload.lengths).error < 1e-5


def test_processor_time_is_for_one_thread(tmp_path: Path) -> None:
    parser = ArgumentParser()
    encoder.add_arguments(parser)
    with pytest.raises(ValueError, match="--threads 1"):
        encoder.run(parser.parse_args(["--clock", "cpu", "--threads", "2", "--output", str(tmp_path)]))


def test_floor_counts_valid_tokens_only(source: Source) -> None:
    shape = spec_of(source.config)
    one = Workload((10,), 10, "full")
    padded = Workload((10, 10), 64, "half")
    assert operations(shape, padded) == 2 * operations(shape, one)
    by_hand = 2 * (2 * 10 * (4 * 64 * 64 + 2 * 64 * 112) + 4 * 64 * 100)
    assert operations(shape, one) == by_hand
    ceilings = Ceilings({"fp32": 1e9}, 1e12)
    assert ceilings.floor_ms(shape, one, "fp32") == pytest.approx(by_hand / 1e6)
    assert ceilings.floor_ms(shape, one, "bf16") is None
    slow_memory = Ceilings({"fp32": 1e15}, 1e6)
    assert slow_memory.floor_ms(shape, one, "fp32") == pytest.approx(2 * (4 * 64 * 64 + 2 * 64 * 112) * 4 / 1e3)


def test_a_run_writes_a_result_that_the_table_and_compare_read(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoder, "load_source", lambda name: source)
    monkeypatch.setattr(timing, "MAX_ROUNDS", 12)
    rates = iter(range(1, 100))
    monkeypatch.setattr(encoder, "measure", lambda *_: Ceilings({"fp32": 1e11 + next(rates)}, 1e10))
    parser = ArgumentParser()
    encoder.add_arguments(parser)
    arguments = "--models tiny --workloads 1x8 4x16 --engines ths packed --minutes 60 --no-memory --output"
    encoder.run(parser.parse_args([*arguments.split(), str(tmp_path)]))
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    result = results.load(path)
    assert {"date", "commit", "device", "versions", "settings", "ceilings", "rows", "absent"} <= result.keys()
    assert len(result["rows"]) == 4
    assert result["ceilings"]["operations"]["fp32"] == 1e11 + next(rates) - 1  # the best of all: the last
    assert result["settings"]["multiplied_gop_per_s"] == {"fp32": [100] * (encoder.VISITS + 2)}
    assert "| packed" in printed
    assert "1.00x" in printed
    assert all(one == two for _, one, two in compare.differences(result, result))
    assert len(compare.differences(result, result)) == 2
    rows = [
        {**row, "calls_ms": [c * (1 + (row["engine"] == "ths")) for c in row["calls_ms"]]} for row in result["rows"]
    ]
    path.with_name("slower.json").write_text(json.dumps({**result, "rows": rows}))
    for row in rows:
        del row["calls_ms"]
    path.with_name("older.json").write_text(json.dumps({**result, "rows": rows}))
    assert results.newest("encoder", tmp_path)[0]["date"] == result["date"]
    compare.run(Namespace(first=path, second=path, over="ths"))
    said = capsys.readouterr().out
    for statistic in compare.STATISTICS:
        for over, count in (("ths", 2), ("floor", 4)):
            agreement = f"{count} of {count} ratios within 10 %, the median 0.0 %, the worst 0.0 % apart"
            assert f"over {over} by {statistic}: {agreement}" in said
    compare.run(Namespace(first=path, second=path.with_name("slower.json"), over="ths"))
    said = capsys.readouterr().out
    fastest = "by fastest calls"
    assert f"over ths {fastest}: 0 of 2 ratios within 10 %, the median 100.0 %, the worst 100.0 % apart" in said
    assert f"over floor {fastest}: 2 of 4 ratios within 10 %, the median 50.0 %, the worst 100.0 % apart" in said
    compare.run(Namespace(first=path, second=path.with_name("older.json"), over="ths"))
    assert f"over ths {fastest}: nothing that both runs have" in capsys.readouterr().out
    assert said.count("GB/s copied") == 2
    assert {of[-1] for of, _, _ in compare.differences(result, result, over="packed")} == {"ths"}
    with pytest.raises(ValueError, match="no engine 'fast'"):
        compare.run(Namespace(first=path, second=path, over="fast"))
    other = {**result, "device": {**result["device"], "threads": 99}}
    path.with_name("other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="not the same machine: threads is .* and 99 in the second"):
        compare.run(Namespace(first=path, second=path.with_name("other.json"), over="ths"))


def test_ratios_are_as_far_apart_either_way_round() -> None:
    assert compare.apart(1.0, 1.1) == pytest.approx(0.1)
    assert compare.apart(1.1, 1.0) == pytest.approx(-0.1)


def test_two_measurements_of_the_ceilings_make_the_best_of_both() -> None:
    one, two = Ceilings({"fp32": 2.0, "bf16": 5.0}, 7.0), Ceilings({"fp32": 3.0, "int8": 4.0}, 6.0)
    assert one.merged(two) == two.merged(one) == Ceilings({"fp32": 3.0, "bf16": 5.0, "int8": 4.0}, 7.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threads 0", "at least one thread"),
        ("--models base some/base", "have the same name"),
        ("--models base --workloads bse:1x32", "'bse' is not among --models base"),
        ("--models base --padding minilm:8x128", "'minilm' is not among --models base"),
        ("--models nowhere", "'nowhere' is neither a size"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(arguments: str, message: str, tmp_path: Path) -> None:
    parser = ArgumentParser()
    encoder.add_arguments(parser)
    with pytest.raises(ValueError, match=message):
        encoder.run(parser.parse_args([*arguments.split(), "--engines", "ths", "--output", str(tmp_path)]))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"kind": "encoder"}))
    with pytest.raises(ValueError, match="a.json is no benchmark result"):
        results.load(tmp_path / "a.json")


def test_unknown_engine_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no engine 'fast'"):
        encoder.check_names(["ori", "fast"])


def test_markdown_lines_up() -> None:
    assert table.markdown(["a", "b"], [["longer", "x"]]).splitlines() == [
        "| a      | b |",
        "|--------|---|",
        "| longer | x |",
    ]
