"""The hash of a password, checked by the C library that a guest would ask as well."""

import ctypes
import ctypes.util
import re
import subprocess
import sys

import pytest
from pydantic import SecretStr

from provisiond.api.guest_config import MAX_PASSWORD_BYTES, GuestConfig
from provisiond.password import hash_password

# Each line of passlib's parts lets the other threads have their turn.
FIRST_HASHES = """
import threading
import time
from pydantic import SecretStr
from provisiond.password import hash_password

def give_way(frame, event, argument):
    if frame.f_code.co_filename.endswith(("passlib/utils/handlers.py", "passlib/utils/binary.py")):
        gave_way.add(threading.get_ident())
        time.sleep(0.0001)
        return give_way

def hash_one():
    start.wait()
    hashed.append(hash_password(SecretStr("same")))

start, hashed, gave_way = threading.Barrier(4), [], set()
threading.settrace(give_way)
threads = [threading.Thread(target=hash_one) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(hashed), len(gave_way))
"""


def crypt(password: str, setting: str) -> str:
    """crypt(3) of this system's libcrypt."""
    library = ctypes.CDLL(ctypes.util.find_library("crypt"))
    library.crypt.restype = ctypes.c_char_p
    return str(library.crypt(password.encode(), setting.encode()).decode())


@pytest.mark.parametrize(
    "password",
    [
        "x",
        "correct horse battery staple",
        "Grüße, Jürgen!",
        ":$6$",
        "\\'\"$(id)",
        "x" * MAX_PASSWORD_BYTES,
    ],
)
def test_the_c_library_finds_the_same_hash(password: str) -> None:
    hashed = hash_password(SecretStr(password)).get_secret_value()
    assert crypt(password, hashed) == hashed
    assert crypt(password + "x", hashed) != hashed


def test_a_hash_is_sha512crypt_with_a_fresh_salt_and_no_rounds() -> None:
    one, other = (hash_password(SecretStr("same")).get_secret_value() for _ in range(2))
    assert re.fullmatch(r"\$6\$[./0-9A-Za-z]{16}\$[./0-9A-Za-z]{86}", one)
    assert one != other


def test_a_hash_is_what_a_request_may_carry_as_well() -> None:
    hashed = hash_password(SecretStr("same"))
    assert GuestConfig(hostname="web1", password_hash=hashed).password_hash == hashed
    assert hashed.get_secret_value() not in repr(hashed)


def test_the_first_hashes_of_a_process_may_be_made_by_several_threads_at_once() -> None:
    argv = [sys.executable, "-c", FIRST_HASHES]
    ended = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("4 4\n", "")
