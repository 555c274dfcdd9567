"""Checks the deployment files as far as that goes without the cloud and without a container runtime.

The Bicep grammar; that every parameter and resource is used and every name that is used exists; the Compose file's
structure; that every setting named in any of the files is one that the program knows; and that ports, paths and probes
agree between the files and the program.

Usage: check-deploy.py <path of the built pds>
"""

import json
import re
import subprocess
import sys

import yaml
from pycep import BicepParser

problems = []


def check(condition: object, message: str) -> None:
    if not condition:
        problems.append(message)


listed = subprocess.run([sys.argv[1], "check-config", "--list"], check=True, capture_output=True, text=True).stdout
known = set(re.findall(r"^((?:PDS|LOG)_[A-Z0-9_]+)", listed, re.MULTILINE))
check(len(known) > 50, f"pds check-config --list names only {len(known)} settings")


def known_settings(names: set[str], file: str) -> None:
    for name in sorted(names - known):
        problems.append(f"{file}: {name} is no setting that pds knows")


# Bicep.
with open("deploy/main.bicep", encoding="utf-8") as file:
    bicep = file.read()
tree = BicepParser().parse(text=bicep)
resources, parameters = tree["resources"], tree["parameters"]
code = re.sub(r"//[^\n]*", "", bicep)
for kind in ("parameters", "variables", "resources"):
    for name in tree[kind]:
        check(len(re.findall(rf"\b{name}\b", code)) > 1 or name == "app", f"main.bicep: {name} is declared and not used")
symbols = set(parameters) | set(tree["variables"]) | set(resources)
for name in re.findall(r"\b([a-zA-Z]+)\.(?:id|properties|listKeys)\b", code):
    check(name in symbols, f"main.bicep: {name} is used and not declared")
types = {resource["type"] for resource in resources.values()}
for wanted in (
    "Microsoft.App/managedEnvironments",
    "Microsoft.App/containerApps",
    "Microsoft.Storage/storageAccounts",
    "Microsoft.Storage/storageAccounts/blobServices/containers",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.Authorization/roleAssignments",
    "Microsoft.KeyVault/vaults",
):
    check(wanted in types, f"main.bicep: there is no {wanted}")
app = json.dumps(resources["app"]["config"])
settings = set(re.findall(r"'?((?:PDS|LOG)_[A-Z0-9_]+)'?", app))
check(settings, "main.bicep: the container has no settings")
known_settings(settings, "main.bicep")
references = set(re.findall(r"secretRef: '([^']+)'", code))
secrets = set(re.findall(r"name: '([^']+)'\s+keyVaultUrl", code))
check(references == secrets, f"main.bicep: secrets {sorted(secrets)} and references {sorted(references)} differ")
for wanted in ("/_health/live", "/_health/ready", "minReplicas: 1", "maxReplicas: 1", "terminationGracePeriodSeconds"):
    check(wanted in code, f"main.bicep: there is no {wanted}")

with open("deploy/main.bicepparam", encoding="utf-8") as file:
    values = file.read()
given = set(re.findall(r"^param (\w+) =", values, re.MULTILINE))
required = {name for name, parameter in parameters.items() if parameter["default"] is None}
check(given <= set(parameters), f"main.bicepparam: {sorted(given - set(parameters))} are no parameters")
check(required <= given, f"main.bicepparam: {sorted(required - given)} are missing")
known_settings(set(re.findall(r"readEnvironmentVariable\('([^']+)'\)", values)), "main.bicepparam")

# The image.
with open("deploy/Dockerfile", encoding="utf-8") as file:
    dockerfile = file.read()
known_settings(set(re.findall(r"\b((?:PDS|LOG)_[A-Z0-9_]+)=", dockerfile)), "Dockerfile")
port = re.search(r"PDS_PORT=(\d+)", dockerfile)
check(port and f"EXPOSE {port[1]}" in dockerfile, "Dockerfile: PDS_PORT and EXPOSE differ")
check(port and f"var port = {port[1]}" in bicep, "main.bicep and Dockerfile name different ports")
for instruction in ("USER 65532", "HEALTHCHECK", "STOPSIGNAL SIGTERM", "ENTRYPOINT ["):
    check(instruction in dockerfile, f"Dockerfile: there is no {instruction}")
help_text = subprocess.run([sys.argv[1], "--help"], check=True, capture_output=True, text=True).stdout
check("healthcheck" in help_text, "pds has no healthcheck, which the Dockerfile calls")
for place in re.findall(r"^!(\S+)$", open("deploy/Dockerfile.dockerignore", encoding="utf-8").read(), re.MULTILINE):
    tracked = subprocess.run(["git", "ls-files", "--error-unmatch", place], capture_output=True, check=False)
    check(tracked.returncode == 0, f"Dockerfile.dockerignore: {place} does not exist")

# Compose.
with open("deploy/compose.yaml", encoding="utf-8") as file:
    compose = yaml.safe_load(file)
check(set(compose) <= {"name", "services", "volumes", "networks"}, f"compose.yaml: unknown keys in {sorted(compose)}")
for name, service in compose["services"].items():
    check("image" in service or "build" in service, f"compose.yaml: {name} has neither image nor build")
    known_settings(set(service.get("environment", {})), "compose.yaml")
    for volume in service.get("volumes", []):
        check(volume.split(":")[0] in compose["volumes"], f"compose.yaml: {name} uses the unknown volume {volume}")
    for mapping in service.get("ports", []):
        check(port and mapping.endswith(f":{port[1]}"), f"compose.yaml: {name} maps {mapping}, not the port of the image")
with open("deploy/pds.env.example", encoding="utf-8") as file:
    known_settings(set(re.findall(r"^([A-Z0-9_]+)=", file.read(), re.MULTILINE)), "pds.env.example")

print("\n".join(problems) or "Bicep, Dockerfile and Compose agree with each other and with the program")
sys.exit(1 if problems else 0)
