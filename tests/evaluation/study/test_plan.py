"""A study's file becomes the runs that it asks for; a mistake in it is one sentence."""

import json
from datetime import date
from pathlib import Path

import pytest
import yaml

from turnppo_hf.evaluation.study.plan import StudyError, check_claims, hash_of, merge
from turnppo_hf.evaluation.study.study_file import read_study

STUDIES = Path(__file__).parents[3] / "trainer_configs" / "studies"
STUDY = {
    "name": "trial",
    "protocol": "Written before the runs.",
    "config": "base.yaml",
    "results": "results",
    "settings": {"max_steps": 3, "environment_kwargs": {"size": 5}},
    "blocks": {
        "tuning": {
            "question": "Which rate?",
            "axes": {
                "method": {"turn": {"algorithm": "turn_ppo"}, "token": {"algorithm": "token_ppo"}},
                "rate": {"low": {"learning_rate": 1e-4}, "high": {"learning_rate": 1e-3}},
            },
            "seeds": [100],
        },
        "main": {
            "question": "Which method?",
            "settings": {"max_steps": 5},
            "axes": {
                "moves": {1: {"environment_kwargs": {"moves": 1}}, 2: {"environment_kwargs": {"moves": 2}}},
                "method": {
                    "turn": {"algorithm": "turn_ppo"},
                    "tuned": {"best_of": "tuning", "at": {"method": "token"}},
                },
            },
            "seeds": [1, 2, 3, 4, 5, 6],
            "claims": [
                {"claim": "turns beat tokens", "axis": "method", "better": "turn", "than": "tuned", "at": {"moves": 1}}
            ],
        },
    },
}


def write(folder: Path, changes: dict | None = None) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump({"model": "tiny", "output_dir": "runs/x", "seed": 7}))
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(merge(STUDY, changes or {}), sort_keys=False))
    return file


def test_runs_hold_the_settings_of_config_study_block_and_cell(tmp_path):
    study = read_study(write(tmp_path))
    tuning, main = study.blocks
    (key, (of, held)) = next(iter(study.best_requests(main).items()))
    assert (of.name, held) == ("tuning", {"method": "token"})
    assert study.best_requests(tuning) == {}
    runs = study.runs(main, {key: {"method": "token", "rate": "high"}})
    assert [run.name for run in runs[:4]] == [
        "main/1/turn/seed_1",
        "main/1/tuned/seed_1",
        "main/2/turn/seed_1",
        "main/2/tuned/seed_1",
    ]
    assert len(runs) == 24 and runs[4].seed == 2  # whole seeds come first
    assert runs[1].settings == {
        "model": "tiny",
        "seed": 1,
        "max_steps": 5,
        "environment_kwargs": {"size": 5, "moves": 1},
        "algorithm": "token_ppo",
        "learning_rate": 1e-3,
    }


def test_hash_is_that_of_the_settings_alone(tmp_path):
    study = read_study(write(tmp_path))
    hashes = [run.settings_hash for run in study.runs(study.blocks[0], {})]
    assert len(set(hashes)) == len(hashes) == 4
    renamed = read_study(write(tmp_path, {"name": "other", "protocol": "another text"}))
    assert [run.settings_hash for run in renamed.runs(renamed.blocks[0], {})] == hashes
    longer = read_study(write(tmp_path, {"settings": {"max_steps": 4}}))
    assert not set(hashes) & {run.settings_hash for run in longer.runs(longer.blocks[0], {})}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocoll": "x"}, r"'protocoll' is no key. Did you mean 'protocol'\?"),
        ({"blocks": {"main": {"axis": {}}}}, r"blocks.main: 'axis' is no key. Did you mean 'axes'\?"),
        ({"blocks": {"main": {"seeds": [1, 1]}}}, "names a seed twice"),
        ({"blocks": {"main": {"seeds": 3}}}, r"must be a list of integers such as \[0, 1, 2\], got 3"),
        ({"blocks": {"main": {"settings": {"seed": 3}}}}, "sets `seed`, which the study chooses"),
        ({"blocks": {"main": {"axes": {"method": {"tuned": {"best_of": "tunning"}}}}}}, "Did you mean 'tuning'"),
        (
            {"blocks": {"main": {"axes": {"method": {"tuned": {"at": {"method": "tokn"}}}}}}},
            "'tokn' is no value of the axis 'method'. Did you m.*'token'",
        ),
        ({"blocks": {"main": {"axes": {"method": "turn"}}}}, "main.axes.method must be a mapping, got 'turn'"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml' cannot be read"),
    ],
)
def test_mistake_in_a_study_is_one_sentence_with_its_place(tmp_path, changes, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": "metod"}, "'metod' is no axis of the block. Did you mean 'method'"),
        ({"better": "trun"}, "'trun' is no value of the axis 'method'. Did you mean 'turn'"),
        ({"at": {}}, "leaves 'moves' open"),
        ({"at": {"moves": "3"}}, r"at: '3' is no value of the axis 'moves'\. There are '1', '2'\."),
        ({"more_than_at": {"moves": "3"}}, "more_than_at: '3' is no value of the axis 'moves'"),
        ({"at": {"moves": 1e-3}}, r"0\.001 is no value of .* Write it in quotes\. There are '1', '2'\."),
        ({"better": True}, r"True is no value of .* Write it in quotes\. There are 'turn', 'tuned'\."),
        ({"better": None}, r"None is no value of .* Write it in quotes\."),
        ({"than": ["turn"]}, r"\['turn'\] is no value of the axis 'method'"),
        ({"more_than_at": {"move": 2}}, "'move' is no axis of the block. Did you mean 'moves'"),
        ({"more_than_at": {"moves": 1}}, "`more_than_at` is `at`"),
        ({"measure": "fal"}, "`measure` is 'fal', so nothing is compared. Did you mean 'fall'"),
        ({"magrin": 1}, "Did you mean 'margin'"),
    ],
)
def test_claim_that_compares_no_two_cells_is_refused(tmp_path, changes, message):
    claims = [{**STUDY["blocks"]["main"]["claims"][0], **changes}]
    with pytest.raises(StudyError, match=message):
        read_study(write(tmp_path, {"blocks": {"main": {"claims": claims}}}))


RATES = {"low": {"learning_rate": 1e-4}, "high": {"learning_rate": 1e-3}}


@pytest.mark.parametrize(
    ("axes", "claim", "message"),
    [
        (
            {"rate": RATES, "method": {"turn": {}, "token": {"learning_rate": 3e-4}}},
            {"axis": "rate", "better": "high", "than": "low", "at": {"method": "token"}},
            "'token' of the axis 'method' sets `learning_rate` after them",
        ),
        (
            {"rate": RATES, "method": {"turn": {}, "tuned": {"best_of": "tuning"}}},
            {"axis": "rate", "better": "high", "than": "low", "at": {"method": "tuned"}},
            "'tuned' of the axis 'method' sets `learning_rate` after them",
        ),
        (
            {"method": {"turn": {}, "grpo": {}}},
            {"axis": "method", "better": "turn", "than": "grpo"},
            "whose runs have equal settings. The values set the same",
        ),
        (
            {"method": {"high": {"learning_rate": 1e-3}, "tuned": {"best_of": "tuning", "at": {"method": "token"}}}},
            {"axis": "method", "better": "high", "than": "tuned"},
            None,  # another algorithm
        ),
        (
            {"rate": RATES, "moves": {"1": {}, "2": {}}},
            {"axis": "rate", "better": "high", "than": "low", "at": {"moves": 1}, "more_than_at": {"moves": 2}},
            "compares a lead with itself",
        ),
        (
            {"rate": RATES, "moves": {"1": {}, "2": {"learning_rate": 0.5}}},
            {"axis": "rate", "better": "high", "than": "low", "at": {"moves": 1}, "more_than_at": {"moves": 2}},
            "'2' of the axis 'moves' sets `learning_rate` after them",
        ),
    ],
)
def test_claim_about_runs_of_equal_settings_is_refused(tmp_path, axes, claim, message):
    file = write(tmp_path)
    text = yaml.safe_load(file.read_text())
    text["blocks"]["main"] |= {"axes": axes, "claims": [{"claim": "X is better", **claim}]}
    file.write_text(yaml.safe_dump(text, sort_keys=False))
    study = read_study(file)
    block = study.block("main")
    best = {key: {"method": "token", "rate": "high"} for key in study.best_requests(block)}
    if message is None:
        check_claims(study, block, best)
        return
    with pytest.raises(StudyError, match="'X is better' of the block 'main'") as caught:
        check_claims(study, block, best)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "value", [{"a day": date(2024, 1, 1)}, {"of": {"a", "b"}}, {"bytes": b"a"}, {"text": "\ud800"}]
)
def test_settings_that_are_no_json_are_named_with_their_run(tmp_path, value):
    study = read_study(write(tmp_path, {"settings": {"environment_kwargs": value}}))
    run, *_ = study.runs(study.blocks[0], {})
    with pytest.raises(StudyError, match="The settings of tuning/turn/low/seed_100 are no JSON"):
        _ = run.settings_hash


def test_hash_is_that_of_the_settings_as_a_file_keeps_them():
    settings = {"environment_kwargs": {10: 1, 2: 1, "a": [1.0, None]}}
    assert hash_of(settings) == hash_of(json.loads(json.dumps(settings)))


@pytest.mark.parametrize("empty", ["blocks", "axes", "method"])
def test_study_without_runs_is_refused(tmp_path, empty):
    file = write(tmp_path)
    text = yaml.safe_load(file.read_text())
    block = text["blocks"]["main"]
    {"blocks": text["blocks"], "axes": block["axes"], "method": block["axes"]["method"]}[empty].clear()
    file.write_text(yaml.safe_dump(text))
    with pytest.raises(StudyError, match=f"{empty} is empty, so there is nothing to run"):
        read_study(file)


def test_study_without_a_protocol_is_refused(tmp_path):
    file = write(tmp_path)
    found = yaml.safe_load(file.read_text())
    del found["protocol"]
    file.write_text(yaml.safe_dump(found, sort_keys=False))
    with pytest.raises(StudyError, match="lacks `protocol`"):
        read_study(file)


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_study_asks_for_runs_of_different_settings(file):
    study = read_study(file)
    for block in study.blocks:
        best = {key: next(of.cells()) for key, (of, _) in study.best_requests(block).items()}
        runs = study.runs(block, best)
        assert len({run.name for run in runs}) == len(runs) == len(block.seeds) * len(list(block.cells()))
        assert {run.settings["model"] for run in runs} <= set(study.starts)
        limits = {run.cell.get("turns", "16"): run.settings["environment_kwargs"] for run in runs}
        for turns, kwargs in limits.items():
            world = kwargs.get("env_id", "")  # of MiniGrid; Sokoban has none
            assert kwargs["max_steps" if world else "max_actions"] == int(turns) * kwargs["max_actions_per_turn"]
            assert kwargs.get("observation") == ("sentences" if world else None)
            assert kwargs["split"] == (None if "5x5" in world else "train")  # 48 levels cannot be split
