"""What each of two ranks does in test_vllm_server: sample with unequal numbers of live episodes from one server."""

import json
import sys

from accelerate import PartialState
from accelerate.utils import gather_object

from tests.helpers.generators import drain, make_model, with_lora
from turnppo_hf.generation.vllm_generator import VLLMGenerator
from turnppo_hf.generation.vllm_server import ServerEngine

if __name__ == "__main__":
    url, output, policy = sys.argv[1:]
    state = PartialState(cpu=True)
    model = with_lora(make_model()) if policy == "adapter" else make_model()
    engine = ServerEngine(url, model, timeout_s=20, gather=gather_object, is_main=state.is_main_process)
    generator = VLLMGenerator(engine, eos_token_ids=[])
    generator.sync()
    answers = {}
    # rank 0 has three episodes alive, then two, then one; rank 1 has one, once
    for live in ([3, 2, 1], [1])[state.process_index]:
        episodes = [100 * state.process_index + 10 * live + number for number in range(live)]
        for episode in episodes:
            generator.submit(episode, [episode, 5], max_new_tokens=4, seed=0)
        answers |= {episode: answer.completion_ids for episode, answer in drain(generator, live).items()}
    generator.reset()
    with open(f"{output}/{state.process_index}.json", "w") as file:
        json.dump(sorted(answers.items()), file)
