"""From what a user hands over to rows: readers with the run's options."""

from __future__ import annotations

import pytest

from tunecore import Engine
from tunecore.config import PluginsConfig
from tunecore.config_io import check_components, load_config
from tunecore.config_schema import json_schema
from tunecore.data.sources import expand_paths, read_records
from tunecore.errors import ConfigError, DataError
from tunecore.inputs import sources_of
from tunecore.plugins import load_plugins
from tunecore.spool import is_paths


@pytest.fixture(scope="module")
def registry():
    return load_plugins(PluginsConfig(load=False)).registry


def rows(path, sources, registry):
    readers = sources_of(registry, load_config({"data": {"sources": sources}}))
    return [record.fields for record in read_records(expand_paths([str(path)], tuple(readers)), readers)]


def test_a_run_says_how_its_tables_are_read(tmp_path, registry):
    cola, mrpc = tmp_path / "train.tsv", tmp_path / "msr.txt"
    cola.write_text("gj04\t1\t\tIt is \"fine.\ngj04\t0\t*\tIs it fine are.\n")
    mrpc.write_text("\ufeffQuality\t#1 String\n1\tHe said \"no.\n", encoding="utf-8")
    columns = ["source", "label", "star", "sentence"]
    assert rows(cola, {"tsv": {"columns": columns}}, registry) == [
        {"source": "gj04", "label": "1", "star": "", "sentence": 'It is "fine.'},
        {"source": "gj04", "label": "0", "star": "*", "sentence": "Is it fine are."},
    ]
    assert rows(mrpc, {}, registry)[0].keys() == {"text"}
    # csv comes before text by name; options decide whose suffix it is.
    for name, more in (("tsv", {}), ("csv", {"delimiter": "\t", "quoting": False})):
        found = rows(mrpc, {name: {"suffixes": ".txt", **more}}, registry)
        assert found == [{"Quality": "1", "#1 String": 'He said "no.'}]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"tvs": {}}, r"data.sources.tvs: .*tvs.*tsv"),
        ({"tsv": {"colums": ["a"]}}, r"data.sources.tsv: .*colums.*columns"),
        ({"tsv": {"columns": [1]}}, r"data.sources.tsv: source 'tsv': columns.0 is 1"),
        ({"csv": {"quoting": "no"}}, r"data.sources.csv: source 'csv': quoting is 'no'"),
    ],
)
def test_mistakes_in_them_are_named(sources, message, registry):
    with pytest.raises(ConfigError, match=message):
        check_components(load_config({"data": {"sources": sources}}), registry)


def test_editors_know_them(registry):
    sources = json_schema(registry)["$defs"]["DataConfig"]["properties"]["sources"]
    assert {"csv", "tsv", "text", "parquet", "jsonl"} <= sources["properties"].keys()
    assert sources["additionalProperties"] is False


def test_a_file_of_any_name_is_a_path_and_not_a_text(tmp_path):
    path = tmp_path / "a.dat"
    path.write_text("x\n")
    assert is_paths([str(path)]) and not is_paths(["a.dat is a text"])


def test_an_engine_trains_on_and_reads_tables_without_a_header(tmp_path):
    lines = [f"{'good' if i % 2 else 'bad'} film {i}\t{i % 2}\n" for i in range(16)]
    (tmp_path / "train.tsv").write_text("".join(lines))
    sources = {"tsv": {"columns": ["sentence", "label"]}}
    engine = Engine.from_scratch("bert", size="tiny", vocab_size=300, max_length=16, text=lines, sources=sources)
    head = {"sequence_classification": {"text": "sentence"}}
    common = {"batch_size": 8, "progress": False, "report": False, "output_dir": tmp_path / "run"}
    engine.finetune(str(tmp_path / "train.tsv"), head=head, steps=2, eval_fraction=0, **common)
    assert "accuracy" in engine.evaluate(str(tmp_path / "train.tsv"))
    with pytest.raises(DataError, match=r"columns found: bad film 0, 0[\s\S]*data.sources"):
        Engine.from_pretrained(tmp_path / "run").evaluate(str(tmp_path / "train.tsv"))
