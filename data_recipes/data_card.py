"""The data card beside a prepared set."""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from nanoalign.data_recipes.catalog import catalog


def card(index: Mapping[str, Any]) -> str:
    """Markdown on what a prepared set holds, where it comes from, its licences, and what was left out. ``index`` is the
    set's index.json."""
    report, made_from = index["report"], index["made_from"]
    teaching = json.dumps(made_from["teaching"]) if made_from["teaching"] else "none"
    lines = [
        "# Data card",
        "",
        f"{index['examples']:,} examples, {index['tokens']:,} tokens, {index['trained_tokens']:,} of them trained.",
        f"Chat format {made_from['chat']}, tokenizer {made_from['tokenizer']}, seed {made_from['seed']}, "
        f"teaching: {teaching}.",
        "",
        "## Sources",
        "",
        "| source | about | hub | rows read | usable samples | drawn | epochs |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, each in report["sources"].items():
        entry = catalog().get(name.rpartition(":")[0])
        about, hub = (entry.about, entry.hub or "") if entry else ("", "")
        counted = f"{each['rows']:,} | {each['samples']:,} | {each['taken']:,} | {each['epochs']}"
        lines.append(f"| {name} | {about} | {hub} | {counted} |")
    for key in ("domain", "language", "licence"):
        groups: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for shard in index["shards"]:
            for group in shard["by"]:
                for place, count in enumerate(("examples", "tokens", "trained_tokens")):
                    groups[group[key] or "unknown"][place] += group[count]
        lines += ["", f"## By {key}", "", f"| {key} | examples | tokens | trained |", "|---|---:|---:|---:|"]
        lines += [
            f"| {name} | " + " | ".join(f"{n:,}" for n in counts) + " |" for name, counts in sorted(groups.items())
        ]
    flagged = report.get("flagged", {})
    if unread := report.get("not_read"):
        lines += ["", "## Not read, in rows", "", *(f"- {count:,}: {name}" for name, count in sorted(unread.items()))]
    for title, counts in (("Left out", report["dropped"]), ("Changed", report["changed"]), ("Quality flags", flagged)):
        lines += ["", f"## {title}", "", *(f"- {count:,}: {reason}" for reason, count in sorted(counts.items()))]
        lines += [] if counts else ["Nothing."]
    if report["contamination"]:
        lines += ["", "## Benchmarks' prompts found", ""]
        lines += [f"- {sample} held {benchmark}" for sample, benchmark in report["contamination"][:100]]
    return "\n".join(lines) + "\n"
