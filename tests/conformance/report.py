"""Reads ginkgo's report: a line per test that failed or ended otherwise than in the report kept in the tree.

    report.py REPORT.json REPORT.txt KEPT.txt [--update]

A line of the text is `passed NAME`, or `failed NAME: why` for each test that was chosen. --update writes what was found
over what is kept, test by test. Ends with 1 when a test failed.
"""

import json
import pathlib
import sys


def tests(path):
    for spec in json.loads(pathlib.Path(path).read_text())[0]["SpecReports"]:
        # what was not chosen is skipped without having run
        if spec["LeafNodeType"] != "It" or (spec["State"] == "skipped" and not spec.get("Failure")):
            continue
        name = " ".join([*(spec.get("ContainerHierarchyTexts") or []), spec["LeafNodeText"]])
        why = " ".join(spec.get("Failure", {}).get("Message", "").split())[:200]
        state = {"passed": "passed", "skipped": "skipped"}.get(spec["State"], "failed")
        yield name, state, why


def line(name, state, why):
    return f"{state} {name}" + (f": {why}" if state != "passed" and why else "")


def main():
    source, target, kept_path = sys.argv[1:4]
    found = {name: (state, why) for name, state, why in tests(source)}
    pathlib.Path(target).write_text("".join(line(n, *r) + "\n" for n, r in sorted(found.items())))
    kept_file = pathlib.Path(kept_path)
    kept = {}
    for text in kept_file.read_text().splitlines() if kept_file.exists() else []:
        state, _, rest = text.partition(" ")
        # names may have ": " in them: what is known now says where they end
        name = next((n for n in found if rest == n or rest.startswith(n + ": ")), rest)
        kept[name] = (state, rest[len(name) + 2 :])
    for name, (state, why) in sorted(found.items()):
        if state == "failed":
            print("FAIL", name)
            print("    ", why)
        if name in kept and kept[name][0] != state:
            print(f"CHANGED {name}: was {kept[name][0]}, is {state}")
        elif name not in kept:
            print("NEW", state, name)
    if "--update" in sys.argv:
        kept.update(found)
        kept_file.write_text("".join(line(n, *r) + "\n" for n, r in sorted(kept.items())))
    count = {s: sum(1 for r in found.values() if r[0] == s) for s in ("passed", "failed", "skipped")}
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped ({pathlib.Path(target).parent})")
    return 1 if count["failed"] or not count["passed"] else 0


sys.exit(main())
