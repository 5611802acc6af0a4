"""Variables that an option gives to the daemon: which names are good, which values are secret."""

import re

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIALS?$|PRIVATE_KEY", re.ASCII)
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/@]*:[^/@]*@")


def check_variable(name: str, value: str, *, private: bool) -> None:
    """Raise `ValueError` for what cannot be a variable, or, unless *private*, is a secret."""
    if not _NAME.fullmatch(name) or not value or not value.isprintable():
        raise ValueError("it is written env.NAME=VALUE")
    if not private and is_secret(name, value):
        raise ValueError(
            "it is a secret, and others could read it here (use profile, credentials-file, "
            "passwd-file, or [env] in a file of options with mode 0600)"
        )


def is_secret(name: str, value: str) -> bool:
    """Say whether the value of a variable must not be seen by others."""
    if _PASSWORD_IN_ADDRESS.search(value):
        return True
    # AWS_WEB_IDENTITY_TOKEN_FILE, AWS_SHARED_CREDENTIALS_FILE: where a secret is, not what.
    return bool(_SECRET.search(name.upper())) and not name.upper().endswith(("_FILE", "_URI"))
