"""Ten ways in which a checkpoint is damaged, by a kill, a full disk or a hand."""

import json
import shutil


def cut(file, share=0.5):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


DAMAGES = {
    "weights cut": lambda folder: cut(folder / "model.safetensors"),
    "bit of the critic turned": lambda folder: flip(folder / "critic" / "model.safetensors"),
    "optimizer cut": lambda folder: cut(folder / "optimizer.pt"),
    "optimizer absent": lambda folder: (folder / "optimizer.pt").unlink(),
    "schedule empty": lambda folder: cut(folder / "scheduler.pt", 0.0),
    "state of the trainer cut": lambda folder: cut(folder / "trainer_state.json"),
    "state of the trainer edited": lambda folder: edit(folder / "trainer_state.json", global_step=2),
    "random numbers absent": lambda folder: (folder / "rng_state.pth").unlink(),
    "critic absent": lambda folder: shutil.rmtree(folder / "critic"),
    "record cut": lambda folder: cut(folder / "checkpoint.json"),
}
