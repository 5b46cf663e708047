"""``braze-sends doctor``: looks at all that a create needs, without making one."""

from __future__ import annotations

from braze_sends.cli import options


def doctor(
    as_json: options.Json = False,
    base_url: options.BaseUrl = None,
    store: options.Store = None,
    workspace: options.Workspace = None,
    api_key_file: options.KeyFile = None,
    profile: options.Profile = None,
) -> None:
    """Check key, network, clock and store. Costs no quota.

    The exit code is 1 if a check failed, and 0 otherwise, warnings or not.
    """
    from braze_sends.cli.doctor import examine

    examine(base_url, store, workspace, api_key_file, as_json)
