"""The lines of the keys of a YAML file; a key that stands twice is an error, which PyYAML does not say."""

import yaml


def key_lines(
    node: yaml.Node | None,  # As `get_single_node` of a loader gives it
) -> dict[tuple[str, ...], int]:  # The keys that lead to one -> its line, from 1
    "Where every key of the mappings stands; ValueError for one that stands twice or is no text."
    lines, seen = {}, set()

    def note(node, path):
        if not isinstance(node, yaml.MappingNode) or node in seen:
            return
        seen.add(node)  # an alias is not followed
        for key, value in node.value:
            here, line = (*path, str(key.value)), key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                said = key.value if isinstance(key, yaml.ScalarNode) else "this"
                kind = key.tag.rpartition(":")[2]
                raise ValueError(
                    f"line {line}: {said or 'nothing'} is no text but {kind}, and "
                    "cannot be a key"
                )
            if here in lines:
                name, first = ".".join(here), lines[here]
                raise ValueError(f"line {line}: {name} stands already in line {first}")
            lines[here] = line
            note(value, here)

    note(node, ())
    return lines
