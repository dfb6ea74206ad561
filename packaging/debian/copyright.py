#!/usr/bin/env python3
"""Writes a debian/copyright for what is linked into the plugin and into stekctl.

    copyright.py PACKAGE...        workspace packages; the result goes to standard output

The crates are those that cargo resolves for the package's platform, without build scripts and
procedural macros, which only run in the build. Where a crate offers Apache-2.0 beside others, it is
taken under that. A licence that is not known here, or a crate without its licence's text, is an
error: somebody has to look at it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

TARGET = "x86_64-unknown-linux-gnu"
# What may be chosen, best first, by SPDX name; the names of Debian's format beside them.
KNOWN = {"Apache-2.0": "Apache-2.0", "MIT": "Expat", "Unicode-3.0": "Unicode-3.0"}

APACHE = """\
 On Debian systems, the text of the Apache License, Version 2.0, is in
 /usr/share/common-licenses/Apache-2.0."""

HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: stek_share
Comment: The plugin and stekctl are linked from the project's own code, Rust's standard library, and
 the crates below, which cargo takes from crates.io. The paths are those of the crates.

Files: *
Copyright: the authors of stek_share
License: Apache-2.0

Files: rust-std/*
Copyright: the Rust Project contributors
License: Apache-2.0
Comment: Rust's standard library is offered under the MIT licence as well."""


def cargo(*words):
    command = ["cargo", *words, "--locked", "--offline"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked(packages):
    """The registry's crates that the workspace packages link."""
    wanted = [word for package in packages for word in ("--package", package)]
    tree = cargo("tree", *wanted, "--target", TARGET, "--edges", "normal,no-proc-macro",
                 "--prefix", "none", "--format", "{p}")
    names = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    data = json.loads(cargo("metadata", "--format-version=1", f"--filter-platform={TARGET}"))
    found = [crate for crate in data["packages"]
             if crate["source"] and (crate["name"], f"v{crate['version']}") in names]
    return sorted(found, key=lambda crate: (crate["name"], crate["version"]))


def chosen(crate):
    """The licence that the crate is taken under."""
    expression = crate["license"] or ""
    offers = re.split(r"\s+OR\s+|/", expression.strip("()"))
    for spdx in KNOWN:
        if spdx in offers:
            return spdx
    sys.exit(f"copyright.py: {crate['name']}: nobody has looked at the licence {expression!r} yet")


def texts(crate):
    """The crate's licence files, those of the MIT licence first."""
    directory = Path(crate["manifest_path"]).parent
    files = [file for file in directory.iterdir()
             if re.match(r"(?i)(licen[cs]e|copying|copyright|notice)", file.name) and file.is_file()]
    return [file.read_text(errors="replace")
            for file in sorted(files, key=lambda file: ("MIT" not in file.name, file.name))]


def holders(crate, spdx):
    """Who says that the crate is theirs."""
    found = []
    for text in texts(crate):
        for line in re.findall(r"(?m)^\s*(?://\s*)?(Copyright\s+(?:\(c\)|©|\d{4}).*?)\s*$", text):
            name = re.sub(r"^Copyright\s+(?:\(c\)|©)?\s*|\.?\s*All rights reserved\.?$", "", line)
            if name and name not in found:
                found.append(name)
    if not found and spdx == "MIT" and not texts(crate):
        sys.exit(f"copyright.py: {crate['name']}: the MIT licence's text is missing")
    return found or crate["authors"] or [f"the authors of {crate['name']}"]


def indented(text):
    return "\n".join(f" {line.strip()}" if line.strip() else " ." for line in text.splitlines())


def expat(crates):
    """The MIT licence's words, out of a crate that has nothing but them."""
    begin, end = "Permission is hereby granted", "SOFTWARE."
    for crate in crates:
        for text in texts(crate):
            match = re.search(rf"{begin}.*?OTHER DEALINGS IN THE\s+{end}", text, re.DOTALL)
            if match:
                return indented(match.group())
    sys.exit("copyright.py: no crate has the MIT licence's text")


def main():
    crates = linked(sys.argv[1:])
    print(HEAD)
    used = {}
    for crate in crates:
        spdx = chosen(crate)
        used.setdefault(spdx, []).append(crate)
        lines = "\n           ".join(holders(crate, spdx))
        print(f"\nFiles: {crate['name']}-{crate['version']}/*")
        print(f"Copyright: {lines}")
        print(f"License: {KNOWN[spdx]}")
        if crate["license"] != spdx:
            print(f"Comment: The crate's own words are {crate['license']}.")
    print(f"\nLicense: Apache-2.0\n{APACHE}")
    if "MIT" in used:
        print(f"\nLicense: Expat\n{expat(used['MIT'])}")
    if "Unicode-3.0" in used:
        sys.exit("copyright.py: the text of Unicode-3.0 is not here yet")


if __name__ == "__main__":
    main()
