"""One target in a process of its own: libFuzzer takes it over and ends it.

    python -m tests.fuzz.one MODULE:NAME [libFuzzer's own arguments]

Exit status 0 where nothing was found; else the input lies where -artifact_prefix says.
"""

import importlib
import sys

import atheris


def main() -> None:
    """Fuzz until libFuzzer has enough."""
    module, _, name = sys.argv[1].partition(":")
    with atheris.instrument_imports(include=["provisiond"]):
        targets = importlib.import_module(module)
    target = targets.TARGETS[name]

    mend = target.mend

    def mutate(data: bytes, max_size: int, _seed: int) -> bytes:
        return bytes(mend(bytes(atheris.Mutate(data, max_size))))

    argv = [sys.argv[0], f"-max_len={target.longest}", *sys.argv[2:]]
    own_mutator = {} if mend is None else {"custom_mutator": mutate}
    atheris.Setup(argv, target.check, **own_mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
