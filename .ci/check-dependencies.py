"""Checks the locked dependencies against the licences and bans of deny.toml, without fetching anything but them."""

import json
import re
import subprocess
import sys
import tomllib

with open("deny.toml", "rb") as file:
    rules = tomllib.load(file)
allowed = set(rules["licenses"]["allow"])
banned = {ban["name"]: ban["reason"] for ban in rules["bans"]["deny"]}
metadata = json.loads(
    subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], check=True, capture_output=True).stdout
)


def satisfied(expression: str) -> bool:
    """Whether an SPDX expression can be met with allowed licences only."""
    tokens = re.findall(r"\(|\)|AND|OR|[^\s()]+(?: WITH [^\s()]+)?", expression.replace("/", " OR "))
    logic = [
        token if token in "()" else {"AND": "and", "OR": "or"}.get(token) or str(token in allowed) for token in tokens
    ]
    return eval(" ".join(logic), {"__builtins__": {}})  # only True, False, and, or and parentheses


# What is compiled for the platforms that we build for; other packages are in the lock file and never used.
used = set()
for target in ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin"):
    tree = ["cargo", "tree", "--workspace", "--locked", "--edges", "normal,build", "--prefix", "none"]
    listed = subprocess.run([*tree, "--target", target, "--format", "{p}"], check=True, capture_output=True, text=True)
    used |= {tuple(line.split()[:2]) for line in listed.stdout.splitlines() if line}

problems = []
for package in metadata["packages"]:
    if (package["name"], f"v{package['version']}") not in used:
        continue
    label = f"{package['name']} {package['version']}"
    if package["name"] in banned:
        problems.append(f"{label} is banned: {banned[package['name']]}")
    if package["source"] and not package["source"].startswith("registry+"):
        problems.append(f"{label} comes from {package['source']}")
    if package["source"] and not satisfied(package["license"] or "none"):
        problems.append(f"{label} has the licence {package['license']}, which deny.toml does not allow")
print("\n".join(problems) or f"{len(used)} packages have allowed licences, none is banned")
sys.exit(1 if problems else 0)
