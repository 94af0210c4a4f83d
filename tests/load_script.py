"""Load a script of absl flags into a test process that other scripts' flags are loaded into too."""

import importlib.util
import pathlib
import sys

from absl import flags

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"


def load(name):
    """The module of scripts/NAME.py or scripts/dev/NAME.py; absl's registry of flags is as it was before."""
    others = {flag: flags.FLAGS[flag] for flag in flags.FLAGS}
    for flag in others.values():
        flag.allow_override = True
    path = next(SCRIPTS.rglob(f"{name}.py"))
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    for flag in set(flags.FLAGS) - set(others):
        delattr(flags.FLAGS, flag)
    for flag, value in others.items():
        flags.FLAGS[flag] = value
    return module
