"""The nearest of the names that exist, as a question."""

from turnppo_hf.environments.names import did_you_mean


def test_nearest_name_is_asked_for_whatever_its_case():
    known = ["Sokoban-v0", "WebShop-v0"]
    assert did_you_mean("sokobn-v0", known) == " Did you mean 'Sokoban-v0'?"
    assert did_you_mean("webshop-v0", known, form="`--{}`") == " Did you mean `--WebShop-v0`?"
    assert did_you_mean(3, known) == did_you_mean("zzz", known) == did_you_mean("sokoban", []) == ""
    assert did_you_mean("sokoban", known, cutoff=0.9) == ""
