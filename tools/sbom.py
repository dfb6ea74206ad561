#!/usr/bin/env python3
"""Writes what the plugin and stekctl are made of, as CycloneDX 1.5 in JSON: every crate that is
linked into one of them (on x86-64; arm64 has the same), with version, licence and the checksum of what was fetched.

    tools/sbom.py PACKAGE...   > stek-share.cdx.json

Reads Cargo.lock and `cargo metadata` only; the same commit gives the same bytes.
"""

import json
import subprocess
import sys
import tomllib


def linked(metadata, names):
    """The ids of all packages that those are linked with, themselves included."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    by_name = {package["name"]: package["id"] for package in metadata["packages"]}
    missing = [name for name in names if name not in by_name]
    if missing:
        sys.exit(f"sbom: there is no package {', '.join(missing)}")
    todo, seen = [by_name[name] for name in names], set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        for dep in nodes[one]["deps"]:
            # Build scripts and tests are not in what is installed.
            if any(kind["kind"] is None for kind in dep["dep_kinds"]):
                todo.append(dep["pkg"])
    return seen


def main(names):
    run = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline"]
    run += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(run, check=True, capture_output=True).stdout)
    with open("Cargo.lock", "rb") as file:
        locked = tomllib.load(file)["package"]
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in locked}
    ids = linked(metadata, names)
    components = []
    for package in sorted(metadata["packages"], key=lambda p: (p["name"], p["version"])):
        if package["id"] not in ids:
            continue
        name, version = package["name"], package["version"]
        component = {
            "type": "application" if name in names else "library",
            "name": name,
            "version": version,
            "bom-ref": f"{name}@{version}",
            "purl": f"pkg:cargo/{name}@{version}",
            "licenses": [{"expression": package["license"].replace("/", " OR ")}],
        }
        checksum = checksums.get((name, version))
        if checksum:
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "stek-share", "bom-ref": "stek-share"}},
        "components": components,
    }
    json.dump(bom, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
