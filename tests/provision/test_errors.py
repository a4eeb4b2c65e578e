"""The tree of exceptions in the docstring of errors.py."""

import re

from provision import errors


def test_the_tree_in_the_docstring_has_every_error_class_under_its_base_class():
    drawn = {}
    above = ["ProvisionError"]
    for line in errors.__doc__.splitlines():
        if node := re.match(r"([│ ]*)[├└]── (\w+)", line):
            depth = len(node[1]) // 4
            above[depth + 1 :] = [node[2]]
            drawn[node[2]] = above[depth]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in kinds if kind is not errors.ProvisionError}
