"""The classes of the commands, whose help shows a flag without a type."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose help shows a flag as a flag, and not with ``<bool>``."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_plain_flags(super().get_params(ctx))


class Group(TyperGroup):
    """Such commands. An option before its command is answered with where it goes."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_plain_flags(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        option = args[0].partition("=")[0] if args else ""
        theirs = {name for each in self.commands.values() for name in _names(each.params)}
        if option in theirs - _names(self.get_params(ctx)):
            command = next((arg for arg in args if arg in self.commands), "COMMAND")
            # Without the option's value, which may hold a password.
            ctx.fail(f"options go after the command: braze-sends {command} {option} ...")
        return super().parse_args(ctx, args)


def _names(params: list[Any]) -> set[str]:
    return {name for param in params for name in param.opts}


def _with_plain_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params
