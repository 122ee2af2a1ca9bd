"""`make fuzz`: hostile input, made by the hundred thousand, with no oracle but what is promised.

api.py           schemathesis: requests out of the OpenAPI, against a daemon that serves
test_wire.py     bytes that are hardly HTTP, on its socket
targets.py       what atheris throws bytes at, and what must hold of each
one.py           one target in a process of its own, which libFuzzer takes over
planted.py       one that is wrong on purpose
run.py           a target is fuzzed, and what libFuzzer kept given to another reader
corpus.py        what each begins with: made by qemu-img and by provisiond's own writers
__main__.py      all of them, for as long as is wanted
"""
