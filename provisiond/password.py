"""The password's hash: made once, in the process that received the password."""

import threading

from passlib.hash import sha512_crypt
from pydantic import SecretStr

# crypt(5)'s own default for sha512crypt: every libc since 2007 reads it, with no `rounds=` in the
# field.
_ROUNDS = 5000
# passlib completes itself at its first use, and fails where two threads do that at once. Nothing is
# lost by it: Python computes on one core at a time.
_at_work = threading.Lock()


def hash_password(password: SecretStr) -> SecretStr:
    """`password` as sha512crypt (`$6$salt$…`) with a fresh random salt; takes about 3 ms of CPU.

    May be called from several threads at once.
    """
    with _at_work:
        return SecretStr(sha512_crypt.using(rounds=_ROUNDS).hash(password.get_secret_value()))
