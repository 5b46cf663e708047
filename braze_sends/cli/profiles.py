"""Profiles: the settings of an instance or workspace by name, in a file of the user's.

The file is ``braze-sends/config.toml`` in ``XDG_CONFIG_HOME``, or in ``~/.config``. It never holds
the API key, only the path of a file that does.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Final

from braze_sends import ConfigurationError
from braze_sends.cli.common import file_of, printable

#: The profile that is used if none is named.
DEFAULT: Final = "default"

KEYS: Final = ("instance", "base_url", "workspace", "store", "key_file")


def path() -> Path:
    """Where the file is."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    folder = Path(home) if os.path.isabs(home) else Path("~/.config").expanduser()
    return folder / "braze-sends" / "config.toml"


def options(name: str | None) -> dict[str, str]:
    """The values of a profile, by the names of the options that they stand for.

    Args:
        name: the profile; ``None`` is ``default``, if there is one.

    Raises:
        ConfigurationError: there is no such profile, or the file cannot be used.
    """
    file = path()
    try:
        text = file.read_text("utf-8")
        tables = tomllib.loads(text)
    except FileNotFoundError:
        if name is None:
            return {}
        raise ConfigurationError(f"there is no profile {name}: {file} does not exist") from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} cannot be read: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:  # tells the line, and no values
        raise ConfigurationError(f"{file} is not TOML: {error}") from None
    profiles = _profiles(file, tables)
    if name is None and DEFAULT not in profiles:
        return {}
    if (profile := profiles.get(name or DEFAULT)) is None:
        known = ", ".join(profiles) or "none"
        raise ConfigurationError(f"there is no profile {name} in {file}; it has: {known}")
    found = {
        "base_url": profile.get("instance") or profile.get("base_url"),
        "workspace": profile.get("workspace"),
        "store": profile.get("store"),
    }
    if "key_file" in profile and not os.environ.get("BRAZE_API_KEY"):
        found["api_key_file"] = str(file.parent / Path(profile["key_file"]).expanduser())
    return {option: value for option, value in found.items() if value is not None}


def _profiles(file: Path, tables: dict[str, Any]) -> dict[str, dict[str, str]]:
    """All profiles, each checked: a mistake in one that is not used is told as well."""
    profiles = tables.pop("profiles", {})
    if tables:
        raise _mistake(file, next(iter(tables)), "is unknown: settings stand in [profiles.NAME]")
    if not isinstance(profiles, dict):
        raise _mistake(file, "profiles", "must be tables, such as [profiles.default]")
    for name, profile in profiles.items():
        where = f"profiles.{name}"
        if not isinstance(profile, dict):
            raise _mistake(file, where, f"must be a table, [{where}]")
        for key, value in profile.items():
            if key not in KEYS:
                hint = "; the API key itself stays in the file that key_file names"
                told = f"is unknown: a profile has {', '.join(KEYS)}{hint * ('key' in key)}"
                raise _mistake(file, f"{where}.{key}", told)
            if not isinstance(value, str) or not value:
                raise _mistake(file, f"{where}.{key}", "must be a string that is not empty")
        if "instance" in profile and "base_url" in profile:
            raise _mistake(file, where, "has instance and base_url: remove one of them")
        database = file_of(profile.get("store"))
        if database is not None and not os.path.isabs(database):
            told = "must have an absolute path, such as sqlite:////var/lib/quota.db"
            raise _mistake(file, f"{where}.store", told)
    return profiles


def _mistake(file: Path, key: str, told: str) -> ConfigurationError:
    return ConfigurationError(printable(f"{file}: {key} {told}"))
