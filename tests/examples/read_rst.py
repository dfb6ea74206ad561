#!/usr/bin/env python3
"""Reads a page of Traffic Server's manual and fails on every complaint of docutils.

    read_rst.py FILE

The manual is made by Sphinx with a few roles and directives of its own, whose names and forms are
told to docutils here. One that is not known here is an error, as it would be there.
"""

import sys

from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles

# Sphinx's, and those of Traffic Server's extension (domain `ts`).
ROLES = ["doc", "file", "option", "program", "ref", "samp", "ts:cv", "ts:stat"]
DIRECTIVES = ["code-block", "highlight", "option", "program", "toctree", "ts:stat"]


def role(name, rawtext, text, lineno, inliner, options=None, content=None):
    return [nodes.literal(rawtext, text)], []


class Block(Directive):
    """Takes any argument, and its content as it is."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self):
        words = "\n".join([*self.arguments, *self.content])
        return [nodes.literal_block(words, words)]


class Parsed(Block):
    """Its content is text that is read as well."""

    def run(self):
        node = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, node)
        return [nodes.paragraph(text=" ".join(self.arguments)), node]


def main():
    for name in ROLES:
        roles.register_local_role(name, role)
    for name in DIRECTIVES:
        directives.register_directive(name, Block if name == "code-block" else Parsed)
    path = sys.argv[1]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    # Level 2 is a warning; a page that needs none is asked for.
    settings = {"report_level": 2, "halt_level": 2, "file_insertion_enabled": False}
    document = publish_doctree(text, source_path=path, settings_overrides=settings)
    if not any(document.findall(nodes.section)):
        sys.exit(f"{path} has no sections")


if __name__ == "__main__":
    main()
