"""The command `doctor`."""

from __future__ import annotations

from dataclasses import asdict

from unic_pipe.cli.options import ConfigOption, JsonOption, SetOption, print_json

EXAMPLES = ("doctor",)


def doctor(as_json: JsonOption = False, config: ConfigOption = None, overrides: SetOption = None) -> int:
    """Check this machine: device, decode and disk rates, weights found, write access, versions."""
    from rich.console import Console

    from unic_pipe.cli.show.doctor import show_checks
    from unic_pipe.stages.doctor import examine

    checks = examine(config, overrides or ())
    if as_json:
        print_json({"checks": [asdict(check) for check in checks], "ok": all(c.ok for c in checks)})
    else:
        show_checks(checks, Console(highlight=False))
    return 0 if all(c.ok for c in checks) else 1
