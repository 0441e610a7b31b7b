"""What an owner wrote into a card survives every regeneration, whatever the card looked like."""

import re

import pytest
import yaml

from turnppo_hf.hub.card.merge import merge_cards, read_front_matter

NEW = """---
library_name: transformers
tags:
- trl
---
<!-- Written by `turnppo card`, as ever. -->

# Agent

A claim.

## Quick start

Code.

## Results

Ours.

## Citation

Cite.
"""


def headings(card):
    return re.findall(r"^## (.+)$", card, re.MULTILINE)


@pytest.mark.parametrize(
    "old",
    [
        "",
        "---\nlicense: mit\n---",
        "---\nlicense: mit\n---\n",
        "# X",
        "no front matter",
        "---\n---\n",
        "\ufeff# BOM\n",
    ],
)
def test_card_without_sections_is_merged(old):
    merged = merge_cards(old, NEW)
    assert "## Results\n\nOurs." in merged
    assert ("license: mit" in merged) == ("mit" in old)
    assert merge_cards(merged, NEW) == merged


def test_card_of_somebody_else_is_kept_through_every_push():
    old = "---\nlicense: mit\n---\n# Mine\n\nMy intro.\n\n## Results\n\nMY OWN\n\n## More\n\nMore of mine.\n"
    merged = old
    for _ in range(3):
        merged = merge_cards(merged, NEW)
        for text in ("My intro.", "MY OWN", "More of mine.", "Ours.", "license: mit"):
            assert merged.count(text) == 1, text
    assert headings(merged)[:3] == ["Quick start", "Results", "Citation"]
    assert "Results, as written before" in headings(merged)


def test_users_sections_come_after_what_they_followed_and_stay_once():
    old = NEW.replace("## Results", "## Mine\n\nOne.\n\n## Mine\n\nTwo.\n\n## Results")
    merged = merge_cards(old, NEW)
    assert headings(merged) == ["Quick start", "Mine", "Mine", "Results", "Citation"]
    assert "One." in merged and "Two." in merged
    assert merge_cards(merged, NEW) == merged


@pytest.mark.parametrize(
    "hidden",
    [
        "```\n## Quick start\n```",
        "~~~\n## Quick start\n~~~",
        "  ```python\n## Quick start\n  ```",
        "<!-- \n## Quick start\n-->",
        "<details>\n\n## Quick start\n\n</details>",
    ],
)
def test_heading_inside_of_code_or_comments_is_none(hidden):
    old = NEW.replace("## Results", f"## Mine\n\nBefore.\n\n{hidden}\n\nAfter.\n\n## Results")
    merged = merge_cards(old, NEW)
    assert f"Before.\n\n{hidden}\n\nAfter." in merged and merged.count("Code.") == 1


@pytest.mark.parametrize(
    "front", ["- a\n- b", "just text", "a: [", "!!python/object/apply:os.system ['true']", "x: &a [*a]"]
)
def test_odd_front_matter_stops_nothing(front, caplog):
    merged = merge_cards(f"---\n{front}\n---\n# X\n", NEW)
    assert yaml.safe_load(merged.split("---\n")[1])["library_name"] == "transformers"


@pytest.mark.parametrize(("tags", "kept"), [("mine", ["mine"]), (["a", {"b": 1}, 3], ["a"]), (None, []), (7, [])])
def test_tags_of_any_form_are_read(tags, kept):
    old = f"---\n{yaml.safe_dump({'tags': tags})}---\n"
    assert read_front_matter(merge_cards(old, NEW))[0]["tags"] == ["trl", *kept]


def test_keys_of_the_user_stay_and_stale_results_go():
    old = "---\nbase_model: a/b\nlicense: mit\nmodel-index: []\nmetrics: [x]\n---\n"
    data = read_front_matter(merge_cards(old, NEW))[0]
    assert data["base_model"] == "a/b" and data["license"] == "mit"
    assert "model-index" not in data and "metrics" not in data


def test_windows_line_ends_double_nothing():
    merged = merge_cards(NEW.replace("\n", "\r\n"), NEW)
    assert merged == merge_cards(NEW, NEW)


def test_line_of_inline_code_hides_no_section():
    old = NEW.replace("Ours.", "Old.").replace(
        "## Citation", "## Notes\n\n```turnppo evaluate``` prints this.\n\n## Citation"
    )
    merged = merge_cards(merge_cards(old + "\n```\ncode\n```\n", NEW), NEW)
    assert headings(merged) == ["Quick start", "Results", "Notes", "Citation"]
    assert "Old." not in merged and "```turnppo evaluate``` prints this." in merged
