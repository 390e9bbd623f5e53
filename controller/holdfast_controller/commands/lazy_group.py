"""A group whose commands are imported when they are asked for: `holdfast status` must not wait for the daemon's code."""

from __future__ import annotations

from importlib import import_module

import click


class LazyGroup(click.Group):
    """Each name is a module of ``commands_folder`` with a command of the same name."""

    def __init__(
        self,
        *arguments: object,
        commands_folder: str,
        command_names: tuple[str, ...],
        **options: object,
    ) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]  # click's own options
        self._folder = commands_folder
        self._names = command_names

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        return sorted({*super().list_commands(ctx), *self._names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imported now, when it is one of ours."""
        if cmd_name not in self._names:
            return super().get_command(ctx, cmd_name)
        found = getattr(import_module(f"{self._folder}.{cmd_name}"), cmd_name)
        assert isinstance(found, click.Command)
        return found
