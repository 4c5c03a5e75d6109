"""The result of a soak test: its plan, what happened, and the invariants, as JSON and as a table."""

from __future__ import annotations

import json
import subprocess
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from benchmarks.soak.invariants import MAX_VIOLATIONS, Invariant
from benchmarks.soak.run import Soak

ROOT = Path(__file__).parents[2]


def make_result(soak: Soak, invariants: list[Invariant], settings: dict[str, Any], duration: float) -> dict[str, Any]:
    """Return everything about a soak test that has ended, as values that JSON can hold."""
    started = min(command.started for command in soak.project.commands.commands)
    injected = [fault for fault in soak.faults if fault.at is not None]
    return {
        "benchmark": "soak",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "seconds": round(duration, 1),
        "machine": machine(),
        "versions": versions(),
        "commit": git_commit(),
        "counts": {
            "faults": len(injected),
            "faults_that_met_nothing": len(soak.faults) - len(injected),
            "commands": len(soak.project.commands.commands),
            "searches_that_ended_with": _exit_codes(soak),
            "trials": soak.budgets[-1] if soak.budgets else 0,
            "budgets": soak.budgets,
        },
        "invariants": [
            {"statement": invariant.statement, "holds": invariant.holds, "violations": list(invariant.violations)}
            for invariant in invariants
        ],
        "plan": [
            {
                "at": fault.planned.at,
                "kind": fault.planned.kind.value,
                "seconds": fault.planned.seconds,
                "injected_at": None if fault.at is None else round(fault.at, 2),
                "effect": fault.effect,
            }
            for fault in soak.faults
        ],
        "commands": [
            {
                "arguments": [word.replace(str(soak.project.folder), "FOLDER") for word in command.arguments],
                "started": round(command.started - started, 2),
                "seconds": round(command.seconds, 2),
                "exit_code": command.exit_code,
            }
            for command in soak.project.commands.commands
        ],
    }


def to_json(result: dict[str, Any]) -> str:
    """Return a result as JSON with a line for each fault and each command."""
    parts = []
    for key, value in result.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
        else:
            text = json.dumps(value)
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def format_table(result: dict[str, Any]) -> str:
    """Return a short table of the faults by kind, and the invariants with what breaks them."""
    counts, effects = result["counts"], defaultdict(list)
    for fault in result["plan"]:
        effects[fault["kind"]].append(fault["injected_at"] is not None)
    lines = [f"{'fault':<26}{'injected':>9}{'met nothing':>13}"]
    lines += [f"{kind:<26}{sum(hits):>9}{len(hits) - sum(hits):>13}" for kind, hits in sorted(effects.items())]
    lines += [f"{'all':<26}{counts['faults']:>9}{counts['faults_that_met_nothing']:>13}", ""]
    for invariant in result["invariants"]:
        lines.append(f"{'holds ' if invariant['holds'] else 'BROKEN'}  {invariant['statement']}")
        lines += [
            f"          {line}" for text in invariant["violations"][:MAX_VIOLATIONS] for line in text.splitlines()
        ]
    exits = ", ".join(f"{code}: {count}" for code, count in counts["searches_that_ended_with"].items())
    lines += ["", f"{counts['trials']} trials in {result['seconds']:.0f} s; exit codes of the searches: {exits}"]
    lines += [f"seed {result['settings']['seed']}, commit {result['commit'][:10]}, {result['machine']}"]
    return "\n".join(lines)


def git_commit() -> str:
    """Return the commit of this checkout, with a note if files differ from it; "" outside of a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def _exit_codes(soak: Soak) -> dict[str, int]:
    codes = Counter(command.exit_code for command in soak.project.commands.commands if command.name == "search")
    return {str(code): count for code, count in sorted(codes.items(), key=lambda item: item[0] or 0)}
